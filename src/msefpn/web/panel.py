"""What the page shows of a visit, as HTML. Every text of others, a class's or a file's name, is escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from msefpn.inference.draw import class_colour
from msefpn.web.visit import Look, Shown, Visit, all_classes, chosen, drawn, json_name, results

WELCOME = '<div class="welcome">The boxes that are found in your picture appear here.</div>'

ABOUT = (
    "The time is from pixels to boxes. Level: where in the pyramid a box was found; P3 / 8 is the level of "
    "stride 8, in pixels of what the network sees. In a two-stage detector it is the level that the box's "
    "region was pooled from. – where the detector does not tell."
)


def panels(visit: Visit, runs: Sequence[Shown], score: float, wanted: Collection[str]) -> str:
    """A panel for each run, side by side where there is room."""
    classes = all_classes(runs)
    inner = "".join(
        _panel(visit, look, run, chosen(look, score, wanted, classes), classes)
        for look, run in zip(visit.looks, runs, strict=True)
    )
    return f'<div class="panels">{inner}</div><p class="about">{ABOUT}</p>'


def title(runs: Sequence[Shown]) -> str:
    """The head of the page."""
    names = " and ".join(escape(run.name) for run in runs)
    count = len(all_classes(runs))
    return f'<div class="title"><h1>{names}</h1><p>{count} class{"es" if count > 1 else ""}</p></div>'


def notice(text: str) -> str:
    """A message to the visitor; nothing for no text."""
    return f'<p class="notice" role="alert">{escape(text)}</p>' if text else ""


def _panel(visit: Visit, look: Look, run: Shown, rows: NDArray[np.int64], classes: Sequence[str]) -> str:
    height, width = visit.size
    count = f"{len(rows)} of {len(look.found.scores)} boxes"
    link = (
        f'<a class="save" download="{escape(json_name(visit.name, run.name))}" '
        f'href="{results(look, rows, run, visit.name)}">Download JSON</a>'
    )
    return (
        f'<section class="panel"><header><h2>{escape(run.name)}</h2>'
        f"<p>{count} · {_seconds(look.seconds)} · {width} × {height} px</p></header>"
        f'<img src="{drawn(visit.pixels, look, rows, classes)}" alt="{escape(visit.name)} with {count}">'
        f"{_table(look, rows, classes)}<footer>{link}</footer></section>"
    )


def _table(look: Look, rows: NDArray[np.int64], classes: Sequence[str]) -> str:
    if not len(rows):
        return '<p class="hint">No box at this score. Move the slider to the left.</p>'
    strides, cells = look.found.strides, []
    for row in rows:
        place = int(look.small.labels[row])
        x1, y1, x2, y2 = look.found.boxes[row]
        cells.append(
            f'<tr><td><div><i style="background:{class_colour(place)}"></i>'
            f"{escape(classes[place])}</div></td>"
            f"<td>{look.found.scores[row]:.2f}</td>"
            f'<td class="corner">{x1:.0f}, {y1:.0f}</td>'
            f"<td>{x2 - x1:.0f} × {y2 - y1:.0f}</td>"
            f"<td>{'–' if strides is None else _level(int(strides[row]))}</td></tr>"
        )
    heads = '<th>Class</th><th>Score</th><th class="corner">Left, top</th><th>Size, px</th><th>Level</th>'
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="boxes"><table>{head}<tbody>{"".join(cells)}</tbody></table></div>'


def _level(stride: int) -> str:
    """A level as the papers write it: level l has the stride 2^l."""
    return f"P{stride.bit_length() - 1} / {stride}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"

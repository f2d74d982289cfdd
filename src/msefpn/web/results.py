"""The detections of a session as HTML; all foreign text, names of classes and files, is escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from msefpn.inference.draw import class_colour
from msefpn.web.session import (
    RunDetections,
    ServedRun,
    Session,
    all_classes,
    choose_rows,
    draw_detections,
    json_name,
    results_json,
)

WELCOME = '<div class="welcome">The detected boxes of your image appear here.</div>'

TABLE_NOTE = (
    "Time: from pixels to boxes. Level: the pyramid level that a box was found on, with its stride in pixels "
    "of the resized image; for a two-stage detector, the level that its region was pooled from; – if the "
    "detector does not tell."
)


def result_panels(session: Session, runs: Sequence[ServedRun], score: float, wanted: Collection[str]) -> str:
    """A panel for each run, side by side where they fit."""
    classes = all_classes(runs)
    inner = "".join(
        _panel(session, detections, run, choose_rows(detections, score, wanted, classes), classes)
        for detections, run in zip(session.detections, runs, strict=True)
    )
    return f'<div class="panels">{inner}</div><p class="about">{TABLE_NOTE}</p>'


def title(runs: Sequence[ServedRun]) -> str:
    """The head of the page."""
    names = " and ".join(escape(run.name) for run in runs)
    count = len(all_classes(runs))
    return f'<div class="title"><h1>{names}</h1><p>{count} class{"es" if count > 1 else ""}</p></div>'


def notice(text: str) -> str:
    """A message to the visitor; empty for no text."""
    return f'<p class="notice" role="alert">{escape(text)}</p>' if text else ""


def _panel(
    session: Session,
    detections: RunDetections,
    run: ServedRun,
    rows: NDArray[np.int64],
    classes: Sequence[str],
) -> str:
    height, width = session.size
    image = draw_detections(session.pixels, detections, rows, classes)
    count = f"{len(rows)} of {len(detections.full.scores)} boxes"
    link = (
        f'<a class="save" download="{escape(json_name(session.name, run.name))}" '
        f'href="{results_json(detections, rows, run, session.name)}">Download JSON</a>'
    )
    return (
        f'<section class="panel"><header><h2>{escape(run.name)}</h2>'
        f"<p>{count} · {_seconds(detections.seconds)} · {width} × {height} px</p></header>"
        f'<img src="{image}" alt="{escape(session.name)} with {count}">'
        f"{_table(detections, rows, classes)}<footer>{link}</footer></section>"
    )


def _table(detections: RunDetections, rows: NDArray[np.int64], classes: Sequence[str]) -> str:
    if not len(rows):
        return '<p class="hint">No box at this score. Move the slider to the left.</p>'
    strides, cells = detections.full.strides, []
    for row in rows:
        place = int(detections.small.labels[row])
        x1, y1, x2, y2 = detections.full.boxes[row]
        cells.append(
            f'<tr><td><div><i style="background:{class_colour(place)}"></i>'
            f"{escape(classes[place])}</div></td>"
            f"<td>{detections.full.scores[row]:.2f}</td>"
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

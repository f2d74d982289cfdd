"""Confusion, the cost of each kind of error, and pictures: parts of a run's page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msefpn.html.charts import Series, bar_chart
from msefpn.html.page import (
    Cell,
    Html,
    Section,
    card,
    gallery,
    grid,
    joined,
    missing,
    picture,
    swatch,
    table,
    tag,
)
from msefpn.metrics.errors import ERROR_KINDS
from msefpn.report.numbers import analysed, gaps
from msefpn.report.text import changed, told
from msefpn.report.view import Analysis, Pictures, RunView

_SHOWN = 20
"""Classes up to which the matrix is shown; of more, the most frequent confusions."""
_BACKGROUND = "background"


def confusion(views: Sequence[RunView]) -> Section:
    """Which class is taken for which."""
    known = analysed(views)
    cards = []
    for at, view, one in known:
        first = known[0][2] if view.same_data and at != known[0][0] else None
        shown = _matrix(one, first, at) if len(one.classes) <= _SHOWN else _pairs(one)
        above = [joined([swatch(at), view.name, ": "])] if len(views) > 1 else []
        cards.append(card(tag("h3", *above, f"score {one.score:.2f} and over"), shown))
    about = (
        "Rows: what it is; columns: what it is taken for, at IoU 0.5 and the score of the best F1. A "
        "detection takes an object of its own class where it can, else one that is left. The last column "
        "counts missed objects, the last row detections on no object. Filled by the share of the row."
    )
    return Section("Confusion", [*gaps(views, "analysis"), *([grid(*cards)] if cards else [])], about)


def _matrix(one: Analysis, first: Analysis | None, color: int) -> Html:
    names = [*one.classes, _BACKGROUND]
    totals = one.matrix.sum(axis=1)
    last = len(names) - 1
    rows = []
    for row, name in enumerate(names):
        cells: list[object] = [tag("em", name) if row == last else name]
        for column in range(len(names)):
            count = int(one.matrix[row, column])
            if row == column == last:
                cells.append("")
                continue
            share = count / int(totals[row]) if totals[row] else 0.0
            step = (
                0
                if first is None or first.matrix.shape != one.matrix.shape
                else count - int(first.matrix[row, column])
            )
            text = joined([count, " ", tag("small", f"{step:+d}")]) if step else count
            title = f"{name} taken for {names[column]}: {count}, {100 * share:.1f} %"
            cells.append(Cell(text, heat=share, color=color, title=title))
        rows.append(cells)
    heads = ["truth", *one.classes, tag("em", "missed")]
    return table(heads, rows)


def _pairs(one: Analysis) -> Html:
    names = [*one.classes, _BACKGROUND]
    off = one.matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None)[:_SHOWN]
    rows = [
        [
            names[at // len(names)],
            "missed" if at % len(names) == len(names) - 1 else names[at % len(names)],
            off.flat[at],
        ]
        for at in order.tolist()
        if off.flat[at]
    ]
    return table(
        ["it is", "taken for", "count"], rows, caption=f"The most frequent of {len(one.classes)} classes"
    )


def costs_of_errors(views: Sequence[RunView]) -> Section:
    """What each kind of error costs."""
    known = [item for item in analysed(views) if item[2].errors.ap50 >= 0]
    parts = gaps(views, "analysis")
    if known:
        names = [told(kind) for kind in ERROR_KINDS]
        series = [
            Series(view.name, [max(0.0, one.errors.cost[kind]) for kind in ERROR_KINDS], color=at)
            for at, view, one in known
        ]
        chart = bar_chart("AP50 that each kind of error costs", names, series, lambda v: f"{100 * v:.1f}")
        parts.append(grid(chart, card(_error_table(views, known))))
    about = (
        "After TIDE (Bolya et al., arXiv 2008.08115): AP50 if this kind of error were mended, less AP50, in "
        "points. The kinds do not add up, since mending one may uncover another. Counts are of all "
        "detections, whatever their score."
    )
    return Section("ErrorAnalysis", parts, about)


def _error_table(views: Sequence[RunView], known: Sequence[tuple[int, RunView, Analysis]]) -> Html:
    rows = []
    first = known[0][2].errors
    for kind, meaning in ERROR_KINDS.items():
        cells: list[object] = [joined([told(kind), tag("small", meaning, class_="under")])]
        for at, view, one in known:
            mine, base = one.errors.counts[kind], first.counts[kind]
            cells.append(
                changed(mine, base, lambda v: f"{v:.0f}", 1, at, view.same_data, less=True, digits="0")
            )
        rows.append(cells)
    heads = ["error", *("count" if len(views) == 1 else joined([swatch(at), v.name]) for at, v, _ in known)]
    return table(heads, rows, caption="How many", words=[0])


def pictures(views: Sequence[RunView], shown: Pictures | None) -> Section:
    """Images with truth and detections."""
    parts = gaps(views, "analysis")
    key = [("#00c8a8", "right (truth: white)"), ("#ff7010", "wrong"), ("#f028be", "missed, dashed")]
    marks = [tag("span", tag("i", style=f"--c:{color}"), text) for color, text in key]
    if shown is not None:
        parts.append(tag("div", *marks, class_="legend key"))
        for one in shown.galleries:
            parts.append(tag("h3", one.title, " ", tag("span", one.about, class_="quiet")))
            figures = [
                picture(
                    shot.picture,
                    f"{row.file}: {shot.told}",
                    _caption(row.file, shot.told, name, len(shown.runs)),
                )
                for row in one.rows
                for name, shot in zip(shown.runs, row.shots, strict=True)
            ]
            parts.append(gallery(figures, together=len(shown.runs)))
    if shown is not None and not shown.galleries:
        parts.append(missing("no validation image can be read"))
    about = (
        "At IoU 0.5 and each run's score of the best F1. Quality: the IoU of right boxes, summed, over right "
        "+ half of wrong and missed (panoptic quality, arXiv 1801.00868). Each image is shown once; a click "
        "shows it large."
    )
    return Section("Pictures", parts, about)


def _caption(file: str, said: str, name: str, runs: int) -> Html:
    lead = tag("b", name if runs > 1 else file)
    return joined([lead, " · ", said, f" · {file}" if runs > 1 else ""])

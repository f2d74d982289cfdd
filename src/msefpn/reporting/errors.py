"""Confusions, the cost of each kind of error, example images: sections of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msefpn.html.charts import Series, bar_chart
from msefpn.html.page import (
    Html,
    Section,
    TableCell,
    card,
    figure,
    gallery,
    grid,
    joined,
    missing,
    swatch,
    table,
    tag,
)
from msefpn.metrics.errors import ERROR_KINDS
from msefpn.reporting.analysis import Analysis
from msefpn.reporting.images import (
    CORRECT_COLOR,
    MISSED_COLOR,
    WRONG_COLOR,
    DrawnImage,
    ImageGroup,
    ImageRow,
)
from msefpn.reporting.numbers import analysed, missing_parts
from msefpn.reporting.run import ReportedRun
from msefpn.reporting.text import error_name, with_difference

_SHOWN = 20
"""Most classes of a matrix; of more, the most frequent confusions are listed."""
_BACKGROUND = "background"


def confusion(runs: Sequence[ReportedRun]) -> Section:
    """Which class is detected as which."""
    known = analysed(runs)
    cards = []
    for at, run, one in known:
        first = known[0][2] if run.same_data and at != known[0][0] else None
        shown = _matrix(one, first, at) if len(one.classes) <= _SHOWN else _pairs(one)
        above = [joined([swatch(at), run.name, ": "])] if len(runs) > 1 else []
        cards.append(card(tag("h3", *above, f"score {one.best.score:.2f} and above"), shown))
    about = (
        "Rows: class of the object; columns: class of the detection, at IoU 0.5 and the score of the best "
        "F1. A detection is matched to an object of its own class if possible, else to any other. The last "
        "column counts missed objects, the last row detections on no object. The fill is a share of the row."
    )
    return Section("Confusion", [*missing_parts(runs, "analysis"), *([grid(*cards)] if cards else [])], about)


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
            title = f"{name} detected as {names[column]}: {count}, {100 * share:.1f} %"
            cells.append(TableCell(text, heat=share, color=color, title=title))
        rows.append(cells)
    heads = ["object", *one.classes, tag("em", "missed")]
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
        ["object", "detected as", "count"], rows, caption=f"The most frequent of {len(one.classes)} classes"
    )


def costs_of_errors(runs: Sequence[ReportedRun]) -> Section:
    """What each kind of error costs."""
    known = [item for item in analysed(runs) if item[2].errors.ap50 >= 0]
    parts = missing_parts(runs, "analysis")
    if known:
        names = [error_name(kind) for kind in ERROR_KINDS]
        series = [
            Series(run.name, [max(0.0, one.errors.cost[kind]) for kind in ERROR_KINDS], color=at)
            for at, run, one in known
        ]
        chart = bar_chart("AP50 that each kind of error costs", names, series, lambda v: f"{100 * v:.1f}")
        parts.append(grid(chart, card(_error_table(runs, known))))
    about = (
        "As in TIDE (Bolya et al., arXiv 2008.08115): AP50 with this kind of error fixed, minus AP50, in "
        "points. The costs do not add up, since fixing one kind may uncover another. Counts are of all "
        "detections, at any score."
    )
    return Section("Errors", parts, about)


def _error_table(runs: Sequence[ReportedRun], known: Sequence[tuple[int, ReportedRun, Analysis]]) -> Html:
    rows = []
    first = known[0][2].errors
    for kind, meaning in ERROR_KINDS.items():
        cells: list[object] = [joined([error_name(kind), tag("small", meaning, class_="under")])]
        for at, run, one in known:
            mine, base = one.errors.counts[kind], first.counts[kind]
            cells.append(
                with_difference(mine, base, lambda v: f"{v:.0f}", 1, at, run.same_data, less=True, digits="0")
            )
        rows.append(cells)
    heads = ["error", *("count" if len(runs) == 1 else joined([swatch(at), v.name]) for at, v, _ in known)]
    return table(heads, rows, caption="Number of errors", words=[0])


def example_images(runs: Sequence[ReportedRun], groups: Sequence[ImageGroup] | None) -> Section:
    """Images with ground truth and detections."""
    parts = missing_parts(runs, "analysis")
    key = [
        (CORRECT_COLOR, "correct (ground truth: white)"),
        (WRONG_COLOR, "wrong"),
        (MISSED_COLOR, "missed, dashed"),
    ]
    marks = [tag("span", tag("i", style=f"--c:rgb{color}"), text) for color, text in key]
    if groups is not None:
        parts.append(tag("div", *marks, class_="legend key"))
        if not groups:
            parts.append(missing("no validation image can be read"))
        for group in groups:
            parts.append(tag("h3", group.title, " ", tag("span", group.about, class_="quiet")))
            figures = [_figure(row, image) for row in group.rows for image in row.images]
            parts.append(gallery(figures, group=len(group.rows[0].images)))
    about = (
        "At IoU 0.5 and each run's score of the best F1. Quality: sum of the IoU of correct boxes / "
        "(correct + wrong / 2 + missed / 2), as panoptic quality (arXiv 1801.00868). Each image is shown "
        "once; a click enlarges it."
    )
    return Section("Images", parts, about)


def _figure(row: ImageRow, image: DrawnImage) -> Html:
    several = len(row.images) > 1
    lead = tag("b", image.run if several else row.file)
    caption = joined([lead, " · ", image.caption, f" · {row.file}" if several else ""])
    return figure(image.data, f"{row.file}: {image.caption}", caption)

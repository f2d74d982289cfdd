"""COCO's numbers, AP by class and by size, precision over recall: sections of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.html.charts import Axis, Series, bar_chart, column_chart, line_chart
from msefpn.html.page import Html, Section, card, details, grid, joined, missing, swatch, table
from msefpn.metrics.curves import SizeBin
from msefpn.reporting.analysis import Analysis
from msefpn.reporting.run import ReportedRun
from msefpn.reporting.text import with_difference
from msefpn.runs.console import percent

MEANING = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "area under 32² px",
    "APm": "area 32² to 96² px",
    "APl": "area over 96² px",
    "AR1": "1 detection per image",
    "AR10": "10 detections per image",
    "AR100": "100 detections per image",
    "ARs": "area under 32² px",
    "ARm": "area 32² to 96² px",
    "ARl": "area over 96² px",
}
_BARS = 12
"""Most classes in a chart; the table has all."""
_LINES = 6
"""Most classes with a curve."""
_RECALLS = [at / 100 for at in range(101)]


def missing_parts(runs: Sequence[ReportedRun], part: str) -> list[Html]:
    """Why a part is missing, a line for each run that lacks it."""
    return [missing(f"{run.name}: {run.missing[part]}") for run in runs if part in run.missing]


def analysed(runs: Sequence[ReportedRun]) -> list[tuple[int, ReportedRun, Analysis]]:
    """The runs that were analysed, with their place on the page."""
    return [(at, run, run.analysis) for at, run in enumerate(runs) if run.analysis is not None]


def numbers(runs: Sequence[ReportedRun]) -> Section:
    """COCO's numbers of boxes and masks."""
    known = [(at, run) for at, run in enumerate(runs) if run.numbers]
    parts, about = missing_parts(runs, "numbers"), ""
    if known:
        kinds = [("box", "boxes")] + [("mask", "masks")] * any("mask" in run.numbers for _, run in known)
        first = known[0][1]
        heads: list[object] = ["number"]
        for _, kind in kinds:
            for at, run in known:
                label = (
                    kind if len(runs) == 1 else joined([swatch(at), run.name, f", {kind}" * (len(kinds) > 1)])
                )
                heads.append(label)
        epochs = ", ".join(f"{run.name}: epoch {run.numbers['epoch']}" for _, run in known)
        said = f"epoch {first.numbers['epoch']}" if len(runs) == 1 else epochs
        tables = []
        for start, caption in (("AP", "Average precision"), ("AR", "Average recall")):
            rows = []
            for name in (name for name in MEANING if name.startswith(start)):
                cells: list[object] = [name]
                for kind, _ in kinds:
                    base = _scores(first, kind).get(name)
                    for at, run in known:
                        mine = _scores(run, kind).get(name)
                        cells.append(with_difference(mine, base, percent, 100, at, run.same_data))
                rows.append([*cells, MEANING[name]])
            tables.append(card(table([*heads, "of"], rows, caption=caption, words=[len(heads)])))
        parts += [grid(*tables)] if len(heads) <= 4 else tables
        about = f"Percent, of the best weights ({said})."
    return Section("COCO's numbers", parts, about, "COCO")


def _scores(run: ReportedRun, kind: str) -> dict[str, Any]:
    """The numbers of a run's boxes or masks: kind 'box' or 'mask'."""
    scores: dict[str, Any] = run.numbers if kind == "box" else run.numbers.get(kind, {})
    return scores


def classes(runs: Sequence[ReportedRun]) -> Section:
    """AP of each class."""
    known = [(at, run) for at, run in enumerate(runs) if run.numbers.get("per_class")]
    parts = missing_parts(runs, "numbers")
    if not known:
        return Section("Classes", parts)
    names = list(dict.fromkeys(name for _, run in known for name in run.numbers["per_class"]))
    values = {at: [_share(run.numbers["per_class"].get(name, -1)) for name in names] for at, run in known}
    first = values[known[0][0]]
    order = sorted(range(len(names)), key=lambda row: -first[row] if math.isfinite(first[row]) else 1.0)
    drawn = order if len(order) <= _BARS else [*order[: _BARS // 2], *order[-_BARS // 2 :]]
    title = (
        "AP of each class" if len(drawn) == len(order) else f"AP of the {_BARS // 2} best and worst classes"
    )
    series = [Series(run.name, [values[at][row] for row in drawn], color=at) for at, run in known]
    charts = [bar_chart(title, [names[row] for row in drawn], series, lambda v: f"{100 * v:.1f}", high=1)]
    parts.append(
        grid(*charts, card(_class_table(runs, known, names, order))) if len(order) <= _BARS else charts[0]
    )
    if len(order) > _BARS:
        parts.append(details("All classes", card(_class_table(runs, known, names, order))))
    return Section("Classes", parts, "IoU 0.50:0.95, of the best epoch; classes sorted by AP.")


def _class_table(
    runs: Sequence[ReportedRun], known: list[tuple[int, ReportedRun]], names: list[str], order: list[int]
) -> Html:
    objects: dict[str, int] = {}
    for _, _, one in analysed(runs)[:1]:
        objects = dict(zip(one.classes, one.objects, strict=True))
    kinds = [("box", "")] + [("mask", " mask")] * any("mask" in run.numbers for _, run in known)
    base = known[0][1]
    rows = []
    for row in order:
        cells: list[object] = [names[row], objects.get(names[row], "–")]
        for kind, _ in kinds:
            for at, run in known:
                mine, first = (_scores(one, kind).get("per_class", {}) for one in (run, base))
                both = mine.get(names[row]), first.get(names[row])
                cells.append(with_difference(*both, percent, 100, at, run.same_data))
        rows.append(cells)
    heads: list[object] = ["class", "objects"]
    for _, kind in kinds:
        heads += [f"AP{kind}" if len(runs) == 1 else joined([swatch(at), v.name, kind]) for at, v in known]
    return table(heads, rows, caption="AP, percent")


def sizes(runs: Sequence[ReportedRun]) -> Section:
    """AP over bins of the objects' size."""
    known = [item for item in analysed(runs) if item[1].same_data]
    parts = missing_parts(runs, "analysis")
    for group in [known] + [[item] for item in analysed(runs) if not item[1].same_data]:
        if not group:
            continue
        bins = group[0][2].sizes
        series = [
            Series(run.name, [_share(one.ap) for one in analysis.sizes], color=at)
            for at, run, analysis in group
        ]
        parts.append(
            column_chart(
                "AP over the size of the objects" + f": {group[0][1].name}" * (group is not known),
                [_label(one) for one in bins],
                series,
                lambda v: f"{100 * v:.0f}",
                high=1,
                below=[("objects", [one.objects for one in bins])],
            )
        )
    about = (
        "Size: square root of the object's area, pixels of the image file; bins of equal ratio. AP at IoU "
        "0.50:0.95, percent, like COCO's APs, APm and APl."
    )
    return Section("Sizes", parts, about)


def _label(one: SizeBin) -> str:
    if not one.low:
        return f"< {one.high:.0f}" if math.isfinite(one.high) else "all"
    return f"{one.low:.0f}–{one.high:.0f}" if math.isfinite(one.high) else f"≥ {one.low:.0f}"


def curves(runs: Sequence[ReportedRun]) -> Section:
    """Precision over recall."""
    known = analysed(runs)
    parts = missing_parts(runs, "analysis")
    charts = []
    x, y = Axis("recall", 0, 1), Axis("precision", 0, 1)
    if len(known) == 1:
        _, _, one = known[0]
        lines = [
            Series(f"IoU {0.5 + 0.05 * at:.2f}", _over_classes(one.precision[at]), _RECALLS, color)
            for color, at in enumerate((0, 5, 8))
        ]
        charts.append(line_chart("All classes: precision over recall", lines, x, y))
    elif known:
        for at, iou in ((0, "0.50"), (5, "0.75")):
            lines = [
                Series(run.name, _over_classes(one.precision[at]), _RECALLS, color)
                for color, run, one in known
            ]
            charts.append(line_chart(f"All classes, IoU {iou}", lines, x, y))
    if known:
        one = known[0][2]
        chosen = _chosen(one)
        if len(known) == 1:
            lines = [
                Series(one.classes[k], _values(one.precision[0, :, k]), _RECALLS, at)
                for at, k in enumerate(chosen)
            ]
            some = "" if len(chosen) == len(one.classes) else f" ({len(chosen) // 2} best and worst)"
            charts.append(line_chart(f"Classes at IoU 0.50{some}", lines, x, y))
        else:
            charts += [_of_class(one.classes[k], known) for k in chosen]
    about = "At each recall the best precision at that recall or above, as in COCO's AP."
    return Section("Precision and recall", [*parts, grid(*charts)] if charts else parts, about, "Precision")


def _of_class(name: str, known: Sequence[tuple[int, ReportedRun, Analysis]]) -> Html:
    lines = [
        Series(run.name, _values(one.precision[0, :, one.classes.index(name)]), _RECALLS, at)
        for at, run, one in known
        if name in one.classes
    ]
    return line_chart(f"{name}, IoU 0.50", lines, Axis("recall", 0, 1), Axis("precision", 0, 1), height=180)


def _chosen(one: Analysis) -> list[int]:
    """Labels of the classes with objects: all, or the best and the worst."""
    known = [label for label, count in enumerate(one.objects) if count]
    known.sort(key=lambda label: -float(one.precision[..., label].mean()))
    return known if len(known) <= _LINES else [*known[: _LINES // 2], *known[-_LINES // 2 :]]


def _over_classes(precision: NDArray[np.float64]) -> list[float]:
    """The mean of (101, K) over the classes with objects."""
    there = precision[:, (precision > -1).all(axis=0)]
    return _values(there.mean(axis=1)) if there.size else [math.nan] * len(_RECALLS)


def _values(column: NDArray[np.float64]) -> list[float]:
    """A curve up to the highest recall that is reached."""
    reached = np.flatnonzero(column > 0)
    end = reached[-1] + 2 if len(reached) else 1
    return [*column[:end].tolist(), *[math.nan] * (len(column) - min(end, len(column)))]


def _share(value: float) -> float:
    return value if value >= 0 else math.nan

"""COCO's numbers, AP by class and by size, and precision over recall: parts of a run's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.html.charts import Axis, Series, bar_chart, column_chart, line_chart
from msefpn.html.page import Html, Section, card, details, grid, joined, missing, swatch, table
from msefpn.metrics.curves import SizeBin
from msefpn.report.text import changed, percent
from msefpn.report.view import Analysis, RunView

_MEANING = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "area under 32² px",
    "APm": "area 32² to 96² px",
    "APl": "area over 96² px",
    "AR1": "1 detection an image",
    "AR10": "10 detections",
    "AR100": "100 detections",
    "ARs": "area under 32² px",
    "ARm": "area 32² to 96² px",
    "ARl": "area over 96² px",
}
_BARS = 12
"""Classes that are drawn; of more, all are in a table."""
_LINES = 6
_RECALLS = [at / 100 for at in range(101)]


def gaps(views: Sequence[RunView], key: str) -> list[Html]:
    """What is missing, a line for each run."""
    return [missing(f"{view.name}: {view.missing[key]}") for view in views if key in view.missing]


def analysed(views: Sequence[RunView]) -> list[tuple[int, RunView, Analysis]]:
    """The runs that were analysed, with their places."""
    return [(at, view, view.analysis) for at, view in enumerate(views) if view.analysis is not None]


def numbers(views: Sequence[RunView]) -> Section:
    """COCO's table of boxes and masks."""
    known = [(at, view) for at, view in enumerate(views) if view.numbers]
    parts, about = gaps(views, "numbers"), ""
    if known:
        kinds = [("box", "boxes")] + [("mask", "masks")] * any("mask" in view.numbers for _, view in known)
        first = known[0][1]
        heads: list[object] = ["number"]
        for _, kind in kinds:
            for at, view in known:
                label = (
                    kind
                    if len(views) == 1
                    else joined([swatch(at), view.name, f", {kind}" * (len(kinds) > 1)])
                )
                heads.append(label)
        epochs = ", ".join(f"{view.name}: epoch {view.numbers['epoch']}" for _, view in known)
        said = f"epoch {first.numbers['epoch']}" if len(views) == 1 else epochs
        tables = []
        for start, caption in (("AP", "Average precision"), ("AR", "Average recall")):
            rows = []
            for name in (name for name in _MEANING if name.startswith(start)):
                cells: list[object] = [name]
                for key, _ in kinds:
                    base = _scores(first, key).get(name)
                    for at, view in known:
                        mine = _scores(view, key).get(name)
                        cells.append(changed(mine, base, percent, 100, at, view.same_data))
                rows.append([*cells, _MEANING[name]])
            tables.append(card(table([*heads, "of"], rows, caption=caption, words=[len(heads)])))
        parts += [grid(*tables)] if len(heads) <= 4 else tables
        about = f"Percent, of the best weights ({said})."
    return Section("COCO's numbers", parts, about, "COCO")


def _scores(view: RunView, kind: str) -> dict[str, Any]:
    """The numbers of a run's boxes or masks: kind 'box' or 'mask'."""
    found: dict[str, Any] = view.numbers if kind == "box" else view.numbers.get(kind, {})
    return found


def classes(views: Sequence[RunView]) -> Section:
    """AP of each class."""
    known = [(at, view) for at, view in enumerate(views) if view.numbers.get("per_class")]
    parts = gaps(views, "numbers")
    if not known:
        return Section("Classes", parts)
    names = list(dict.fromkeys(name for _, view in known for name in view.numbers["per_class"]))
    values = {at: [_share(view.numbers["per_class"].get(name, -1)) for name in names] for at, view in known}
    first = values[known[0][0]]
    order = sorted(range(len(names)), key=lambda row: -first[row] if math.isfinite(first[row]) else 1.0)
    drawn = order if len(order) <= _BARS else [*order[: _BARS // 2], *order[-_BARS // 2 :]]
    title = (
        "AP of each class" if len(drawn) == len(order) else f"AP of the {_BARS // 2} best and worst classes"
    )
    series = [Series(view.name, [values[at][row] for row in drawn], color=at) for at, view in known]
    charts = [bar_chart(title, [names[row] for row in drawn], series, lambda v: f"{100 * v:.1f}", high=1)]
    parts.append(
        grid(*charts, card(_class_table(views, known, names, order))) if len(order) <= _BARS else charts[0]
    )
    if len(order) > _BARS:
        parts.append(details("All classes", card(_class_table(views, known, names, order))))
    return Section("Classes", parts, "IoU 0.50:0.95, of the best epoch; the classes by their AP.")


def _class_table(
    views: Sequence[RunView], known: list[tuple[int, RunView]], names: list[str], order: list[int]
) -> Html:
    objects: dict[str, int] = {}
    for _, _, one in analysed(views)[:1]:
        objects = dict(zip(one.classes, one.objects, strict=True))
    kinds = [("box", "")] + [("mask", " mask")] * any("mask" in view.numbers for _, view in known)
    base = known[0][1]
    rows = []
    for row in order:
        cells: list[object] = [names[row], objects.get(names[row], "–")]
        for key, _ in kinds:
            for at, view in known:
                mine, first = (_scores(one, key).get("per_class", {}) for one in (view, base))
                both = mine.get(names[row]), first.get(names[row])
                cells.append(changed(*both, percent, 100, at, view.same_data))
        rows.append(cells)
    heads: list[object] = ["class", "objects"]
    for _, kind in kinds:
        heads += [f"AP{kind}" if len(views) == 1 else joined([swatch(at), v.name, kind]) for at, v in known]
    return table(heads, rows, caption="AP, percent")


def sizes(views: Sequence[RunView]) -> Section:
    """AP over bins of the objects' size."""
    known = [item for item in analysed(views) if item[1].same_data]
    parts = gaps(views, "analysis")
    for group in [known] + [[item] for item in analysed(views) if not item[1].same_data]:
        if not group:
            continue
        bins = group[0][2].sizes
        series = [
            Series(view.name, [_share(one.ap) for one in found.sizes], color=at) for at, view, found in group
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
        "Size: square root of the object's area, pixels of the image file; bins of equal ratio over the "
        "sizes that the truth has. As COCO's APs, APm and APl: IoU 0.50:0.95, percent."
    )
    return Section("Sizes", parts, about)


def _label(one: SizeBin) -> str:
    if not one.low:
        return f"< {one.high:.0f}" if math.isfinite(one.high) else "all"
    return f"{one.low:.0f}–{one.high:.0f}" if math.isfinite(one.high) else f"≥ {one.low:.0f}"


def curves(views: Sequence[RunView]) -> Section:
    """Precision over recall."""
    known = analysed(views)
    parts = gaps(views, "analysis")
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
                Series(view.name, _over_classes(one.precision[at]), _RECALLS, color)
                for color, view, one in known
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
    about = "At each recall the best precision that is reached there or beyond, as COCO reads it."
    return Section("Precision and recall", [*parts, grid(*charts)] if charts else parts, about, "Precision")


def _of_class(name: str, known: Sequence[tuple[int, RunView, Analysis]]) -> Html:
    lines = [
        Series(view.name, _values(one.precision[0, :, one.classes.index(name)]), _RECALLS, at)
        for at, view, one in known
        if name in one.classes
    ]
    return line_chart(f"{name}, IoU 0.50", lines, Axis("recall", 0, 1), Axis("precision", 0, 1), tall=180)


def _chosen(one: Analysis) -> list[int]:
    """Classes with objects: all, or the best and the worst."""
    known = [label for label, count in enumerate(one.objects) if count]
    known.sort(key=lambda label: -float(one.precision[..., label].mean()))
    return known if len(known) <= _LINES else [*known[: _LINES // 2], *known[-_LINES // 2 :]]


def _over_classes(precision: NDArray[np.float64]) -> list[float]:
    """The mean of (101, K) over the classes that have objects."""
    there = precision[:, (precision > -1).all(axis=0)]
    return _values(there.mean(axis=1)) if there.size else [math.nan] * len(_RECALLS)


def _values(column: NDArray[np.float64]) -> list[float]:
    """A curve up to the recall that is reached: beyond it the precision is 0."""
    reached = np.flatnonzero(column > 0)
    end = reached[-1] + 2 if len(reached) else 1
    return [*column[:end].tolist(), *[math.nan] * (len(column) - min(end, len(column)))]


def _share(value: float) -> float:
    return value if value >= 0 else math.nan

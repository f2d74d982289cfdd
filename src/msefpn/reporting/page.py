"""The page of one run, or of several side by side: overview, training, cost, configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msefpn.config import to_yaml
from msefpn.html.charts import Axis, Series, line_chart
from msefpn.html.page import (
    COLORS,
    Html,
    Section,
    TableCell,
    Tile,
    alert,
    card,
    code,
    details,
    document,
    escaped,
    grid,
    joined,
    missing,
    paragraph,
    swatch,
    table,
    tag,
    tiles,
)
from msefpn.metrics.coco import NUMBERS
from msefpn.reporting.errors import confusion, costs_of_errors, example_images
from msefpn.reporting.images import ImageGroup
from msefpn.reporting.numbers import classes, curves, missing_parts, numbers, sizes
from msefpn.reporting.run import ReportedRun
from msefpn.reporting.text import error_name, with_difference
from msefpn.runs.console import percent


def report_page(runs: Sequence[ReportedRun], groups: Sequence[ImageGroup] | None) -> str:
    """Write the page.

    Args:
        runs: the runs; differences are to the first.
        groups: images with the detections of the runs; None where there are no detections.

    Returns:
        The HTML document.
    """
    several = len(runs) > 1
    title = " · ".join(run.name for run in runs) if several else runs[0].name
    lead = (
        f"{len(runs)} runs side by side; differences are to the first."
        if several
        else joined([runs[0].summary, runs[0].data_summary], "; validated on ")
    )
    sections = [
        _overview(runs),
        _training(runs),
        numbers(runs),
        classes(runs),
        sizes(runs),
        curves(runs),
        confusion(runs),
        costs_of_errors(runs),
        example_images(runs, groups),
        _cost(runs),
        _configuration(runs),
    ]
    made = f"Made by msefpn on {time.strftime('%Y-%m-%d %H:%M')}. This file loads nothing from anywhere."
    return document(title, lead, sections, footer=made)


def _overview(runs: Sequence[ReportedRun]) -> Section:
    if len(runs) == 1:
        return Section("Overview", [tiles(_tiles(runs[0]))], str(runs[0].folder))
    first = runs[0]
    parts = [_other_data(runs)] if any(not run.same_data for run in runs) else []
    rows = []
    for number, run in enumerate(runs):
        comparable = run.same_data
        cells: list[object] = [joined([swatch(number), run.name])]
        for key in ("AP", "AP50", "AP75"):
            cells.append(
                with_difference(
                    run.numbers.get(key), first.numbers.get(key), percent, 100, number, comparable
                )
            )
        f1 = [None if one.analysis is None else one.analysis.best.f1 for one in (run, first)]
        cells.append(with_difference(f1[0], f1[1], percent, 100, number, comparable))
        for key, factor, text in (("parameters", 1e-6, ".2f"), ("seconds", 1e3, ".1f")):
            mine, base = (None if one.cost is None else getattr(one.cost, key) for one in (run, first))
            cells.append(
                with_difference(mine, base, _scaled(factor, text), factor, number, less=True, digits=text[1])
            )
        rows.append([*cells, escaped(run.summary)])
    heads = ["run", "AP", "AP50", "AP75", "best F1", "parameters, M", "ms per image", "detector"]
    parts.append(card(table(heads, rows, caption="AP and F1 in percent, of the best epoch", words=[7])))
    return Section("Overview", parts)


def _other_data(runs: Sequence[ReportedRun]) -> Html:
    others = [run for run in runs if not run.same_data]
    lines = [tag("li", f"{run.name}: {run.data_summary}") for run in [runs[0], *others]]
    names = ", ".join(run.name for run in others)
    said = (
        f"Different validation data: {names} and {runs[0].name} were not evaluated on the same images and "
        "objects. Their AP cannot be compared; differences in accuracy and their images are omitted."
    )
    return alert(joined([said, tag("ul", *lines)]))


def _tiles(run: ReportedRun) -> list[Tile]:
    shown = []
    best = run.numbers
    if best:
        shown.append(
            Tile(
                "AP", percent(best["AP"]), "%", f"IoU 0.50:0.95; epoch {best['epoch']} of {run.config.epochs}"
            )
        )
        shown.append(Tile("AP50", percent(best["AP50"]), "%", "IoU 0.50"))
        if "mask" in best:
            shown.append(Tile("mask AP", percent(best["mask"]["AP"]), "%", "IoU 0.50:0.95"))
    if run.analysis is not None:
        best_f1 = run.analysis.best
        about = f"precision {percent(best_f1.precision)}, recall {percent(best_f1.recall)}"
        shown.append(Tile("best F1", percent(best_f1.f1), "%", f"at score {best_f1.score:.2f}: {about}"))
        worst, cost = max(run.analysis.errors.cost.items(), key=lambda item: item[1])
        if cost > 0:
            shown.append(Tile("costliest error", error_name(worst), "", f"fixing it: AP50 {100 * cost:+.1f}"))
    if run.cost is not None:
        macs = f"{run.cost.macs['all'] / 1e9:.2f} GMAC per image"
        shown.append(Tile("time", f"{1e3 * run.cost.seconds:.0f}", "ms", "per image, on this machine"))
        shown.append(Tile("parameters", f"{run.cost.parameters / 1e6:.2f}", "M", macs))
    return shown or [Tile("numbers", "none", "", run.missing.get("numbers", ""))]


def _training(runs: Sequence[ReportedRun]) -> Section:
    parts: list[Html] = []
    for run in runs:
        for key, what in (("steps", "values of each step"), ("history", "values of the training")):
            if key in run.missing:
                parts.append(missing(f"{run.name}: {what}: {run.missing[key]}"))
    known = [(number, run) for number, run in enumerate(runs) if run.history.steps or run.history.epochs]
    if not known:
        return Section("Training", parts)
    charts = [_loss_chart(runs, known)]
    scored = [(number, run) for number, run in known if any("AP" in row for row in run.history.epochs)]
    if len(runs) == 1 and scored:
        keys = [key for key in ("AP", "AP50", "AP75") if key in runs[0].history.epochs[0]]
        lines = [_by_epoch(runs[0], key, at, key) for at, key in enumerate(keys)]
    else:
        lines = [_by_epoch(run, "AP", number, run.name) for number, run in scored]
    if lines:
        charts.append(line_chart("Accuracy after each epoch", lines, Axis("epoch"), Axis("AP, percent")))
    lines = [_line(run, "lr", number, run.name, smooth=False) for number, run in known]
    charts.append(line_chart("Learning rate", lines, Axis("step"), Axis("learning rate"), height=150))
    speed = [
        _by_epoch(run, _SPEED, number, run.name, 1)
        for number, run in known
        if any(_SPEED in row for row in run.history.epochs)
    ]
    if speed:
        charts.append(
            line_chart("Training speed", speed, Axis("epoch"), Axis("images per second"), height=150)
        )
    return Section("Training", [*parts, grid(*charts)])


def _loss_chart(runs: Sequence[ReportedRun], known: Sequence[tuple[int, ReportedRun]]) -> Html:
    if len(runs) > 1:
        lines = [_line(run, "loss", number, run.name) for number, run in known]
        return line_chart("Loss", lines, Axis("step"), Axis("loss"), about=_smoothing(known[0][1]))
    history = runs[0].history
    named = history.steps or history.epochs[0]
    names = [name for name in named if name not in _NO_LOSSES and name.removeprefix("mask_") not in NUMBERS]
    lines = [_line(runs[0], name, at) for at, name in enumerate(["loss", *sorted(names)][:COLORS])]
    return line_chart("Loss and its parts", lines, Axis("step"), Axis("loss"), about=_smoothing(runs[0]))


_SPEED = "images_per_second"
_NO_LOSSES = {"epoch", "step", "lr", "loss", _SPEED}
_AVERAGED = 0.04
"""Share of a training over which a point of a loss is averaged, in each direction."""


def _smoothing(run: ReportedRun) -> str:
    curves = run.history.steps.values()
    return "Running means." if any(len(curve.steps) * _AVERAGED >= 1 for curve in curves) else ""


def _line(run: ReportedRun, key: str, color: int, name: str = "", *, smooth: bool = True) -> Series:
    """A value over the steps, or at the ends of the epochs where steps were not logged."""
    curve = run.history.steps.get(key)
    if curve is None:
        known = [row for row in run.history.epochs if key in row]
        return Series(name or key, [row[key] for row in known], [row["step"] for row in known], color)
    values = list(curve.values)
    width = int(len(values) * _AVERAGED) if smooth else 0
    mean = (
        [_mean(values[max(0, at - width) : at + width + 1]) for at in range(len(values))] if width else values
    )
    return Series(name or key, mean, curve.steps, color)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_epoch(run: ReportedRun, key: str, color: int, name: str, factor: float = 100) -> Series:
    known = [row for row in run.history.epochs if key in row]
    return Series(name, [factor * row[key] for row in known], [row["epoch"] for row in known], color)


def _cost(runs: Sequence[ReportedRun]) -> Section:
    parts = missing_parts(runs, "cost")
    measured = [(number, run.cost) for number, run in enumerate(runs) if run.cost is not None]
    if not measured:
        return Section("Speed and cost", parts)
    first = measured[0][1]
    names = list(dict.fromkeys(name for _, cost in measured for name in cost.macs if name != "all"))
    heads = ["run", "parameters, M", "ms per image", "images per second", "GMAC", *names]
    rows = []
    for place, (number, cost) in enumerate(measured):

        def of(mine: float | None, base: float | None, scale: float, text: str, at: int = place) -> TableCell:
            return with_difference(
                mine, base, lambda v: format(v * scale, text), scale, at, less=True, digits=text[1]
            )

        same = cost.size == first.size
        cells: list[object] = [joined([swatch(number), runs[number].name])]
        cells += [
            of(cost.parameters, first.parameters, 1e-6, ".2f"),
            of(cost.seconds, first.seconds, 1e3, ".1f"),
        ]
        cells.append(f"{1 / cost.seconds:.1f}")
        for name in ("all", *names):
            base = first.macs.get(name) if same else None
            cells.append(of(cost.macs.get(name), base, 1e-9, ".2f"))
        rows.append(cells)
    sizes_ = {cost.size for _, cost in measured}
    said = " and ".join(f"{height} x {width}" for height, width in sorted(sizes_))
    about = (
        f"GMAC: 10⁹ multiply-accumulates for an image of {said} pixels, in total and by part. "
        f"Time: {first.setting}."
    )
    return Section("Speed and cost", [*parts, card(table(heads, rows))], about, "Cost")


def _scaled(factor: float, text: str) -> Callable[[float], str]:
    """Format values times a factor."""
    return lambda value: format(value * factor, text)


def _configuration(runs: Sequence[ReportedRun]) -> Section:
    parts: list[Html] = []
    if len(runs) > 1:
        parts.append(card(_differing(runs)))
    parts += [
        card(
            tag("h3", "The command" if len(runs) == 1 else f"{run.name}: the command"),
            code(run.command, wrap=True),
        )
        for run in runs
    ]
    parts += [
        details(
            "The whole configuration" if len(runs) == 1 else f"{run.name}: the whole configuration",
            code(to_yaml(run.config)),
        )
        for run in runs
    ]
    return Section("Configuration", parts, "The command trains the same detector again.")


def _differing(runs: Sequence[ReportedRun]) -> Html:
    """The values of the configurations; those that differ come first."""
    flat = [_flat(to_yaml(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [[key, *(one.get(key, "–") for one in flat)] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    other = [at for at, row in enumerate(rows) if len(set(row[1:])) > 1]
    if not other:
        return paragraph("The configurations are the same.")
    heads = ["key", *(joined([swatch(number), run.name]) for number, run in enumerate(runs))]
    shown = table(heads, rows[: len(other)], caption="Different values", text=True, marked=range(len(other)))
    return joined([shown, details("Equal values", table(heads, rows[len(other) :], text=True))])


def _flat(text: str) -> dict[str, str]:
    """The values of a configuration in YAML by their dotted keys."""
    import yaml  # noqa: PLC0415  needed with several runs only

    found: dict[str, str] = {}

    def walk(value: object, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        else:
            found[key] = str(value)

    walk(yaml.safe_load(text), "")
    return found

"""The page of one run, or of several side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msefpn.html.charts import Axis, Series, line_chart
from msefpn.html.page import (
    Cell,
    Html,
    Section,
    Tile,
    alert,
    card,
    code,
    details,
    escaped,
    grid,
    joined,
    missing,
    page,
    paragraph,
    swatch,
    table,
    tag,
    tiles,
)
from msefpn.report.errors import confusion, costs_of_errors, pictures
from msefpn.report.numbers import classes, curves, numbers, sizes
from msefpn.report.text import changed, percent, told
from msefpn.report.view import Pictures, RunView


def run_page(views: Sequence[RunView], shown: Pictures | None) -> str:
    """Write the page.

    Args:
        views: the runs; differences are to the first.
        shown: pictures of the runs that have some.

    Returns:
        The HTML document.
    """
    several = len(views) > 1
    title = " · ".join(view.name for view in views) if several else views[0].name
    lead = (
        f"{len(views)} runs side by side; differences are to the first."
        if several
        else joined([views[0].summary, views[0].data], "; validated on ")
    )
    sections = [
        _glance(views),
        _training(views),
        numbers(views),
        classes(views),
        sizes(views),
        curves(views),
        confusion(views),
        costs_of_errors(views),
        pictures(views, shown),
        _cost(views),
        _configuration(views),
    ]
    made = f"Made by msefpn on {time.strftime('%Y-%m-%d %H:%M')}. This file loads nothing from anywhere."
    return page(title, lead, sections, footer=made)


def _glance(views: Sequence[RunView]) -> Section:
    if len(views) == 1:
        return Section("At a glance", [tiles(_tiles(views[0]))], views[0].folder)
    first = views[0]
    parts = [_other_data(views)] if any(not view.same_data for view in views) else []
    rows = []
    for number, view in enumerate(views):
        comparable = view.same_data
        cells: list[object] = [joined([swatch(number), view.name])]
        for key in ("AP", "AP50", "AP75"):
            cells.append(
                changed(view.numbers.get(key), first.numbers.get(key), percent, 100, number, comparable)
            )
        f1 = [None if one.analysis is None else one.analysis.f1 for one in (view, first)]
        cells.append(changed(f1[0], f1[1], percent, 100, number, comparable))
        for key, factor, text in (("parameters", 1e-6, ".2f"), ("seconds", 1e3, ".1f")):
            mine, base = (None if one.price is None else getattr(one.price, key) for one in (view, first))
            cells.append(
                changed(mine, base, _scaled(factor, text), factor, number, less=True, digits=text[1])
            )
        rows.append([*cells, escaped(view.summary)])
    heads = ["run", "AP", "AP50", "AP75", "best F1", "parameters, M", "ms per image", "what"]
    parts.append(card(table(heads, rows, caption="AP and F1 in percent, of the best epoch", words=[7])))
    return Section("At a glance", parts)


def _other_data(views: Sequence[RunView]) -> Html:
    others = [view for view in views if not view.same_data]
    lines = [tag("li", f"{view.name}: {view.data}") for view in [views[0], *others]]
    names = ", ".join(view.name for view in others)
    said = (
        f"Different validation data: {names} and {views[0].name} were not measured on the same images and "
        "objects. Their AP cannot be compared; differences of accuracy and their pictures are left out."
    )
    return alert(joined([said, tag("ul", *lines)]))


def _tiles(view: RunView) -> list[Tile]:
    found = []
    best = view.numbers
    if best:
        found.append(
            Tile("AP", percent(best["AP"]), "%", f"IoU 0.50:0.95; epoch {best['epoch']} of {view.epochs}")
        )
        found.append(Tile("AP50", percent(best["AP50"]), "%", "IoU 0.50"))
        if "mask" in best:
            found.append(Tile("mask AP", percent(best["mask"]["AP"]), "%", "IoU 0.50:0.95"))
    if view.analysis is not None:
        one = view.analysis
        about = f"precision {percent(one.found)}, recall {percent(one.recall)}"
        found.append(Tile("best F1", percent(one.f1), "%", f"at score {one.score:.2f}: {about}"))
        worst, cost = max(one.errors.cost.items(), key=lambda item: item[1])
        if cost > 0:
            found.append(Tile("costliest error", told(worst), "", f"mended: AP50 {100 * cost:+.1f}"))
    if view.price is not None:
        one_price = view.price
        found.append(Tile("time", f"{1e3 * one_price.seconds:.0f}", "ms", "an image, on this machine"))
        macs = f"{one_price.macs['all'] / 1e9:.2f} GMAC an image"
        found.append(Tile("parameters", f"{one_price.parameters / 1e6:.2f}", "M", macs))
    return found or [Tile("numbers", "none", "", view.missing.get("numbers", ""))]


def _training(views: Sequence[RunView]) -> Section:
    parts: list[Html] = []
    for view in views:
        for key, what in (("steps", "values of each step"), ("log", "values of each epoch")):
            if key in view.missing:
                parts.append(missing(f"{view.name}: {what}: {view.missing[key]}"))
    known = [(number, view) for number, view in enumerate(views) if view.steps or view.rows]
    if not known:
        return Section("Training", parts)
    charts = []
    if len(views) == 1:
        view = views[0]
        names = sorted({*view.steps} - {"lr", "loss"}) or sorted(set(_losses(view)) - {"loss"})
        lines = [_line(view, name, at) for at, name in enumerate(["loss", *names][:6])]
        charts.append(
            line_chart("Loss, and its parts", lines, Axis("step"), Axis("loss"), about=_smoothing(view))
        )
    else:
        lines = [_line(view, "loss", number, view.name) for number, view in known]
        charts.append(line_chart("Loss", lines, Axis("step"), Axis("loss"), about=_smoothing(known[0][1])))
    scored = [(number, view) for number, view in known if view.rows]
    if len(views) == 1 and scored:
        keys = [key for key in ("AP", "AP50", "AP75") if key in views[0].rows[0]]
        lines = [_by_epoch(views[0], key, at, key) for at, key in enumerate(keys)]
    else:
        lines = [_by_epoch(view, "AP", number, view.name) for number, view in scored]
    if lines and scored:
        charts.append(line_chart("Accuracy after each epoch", lines, Axis("epoch"), Axis("AP, percent")))
    lines = [_line(view, "lr", number, view.name, smooth=False) for number, view in known]
    charts.append(line_chart("Learning rate", lines, Axis("step"), Axis("learning rate"), tall=150))
    speed = [
        _by_epoch(v, "images_per_second", n, v.name, 1) for n, v in scored if "images_per_second" in v.rows[0]
    ]
    if speed:
        charts.append(
            line_chart("Speed of training", speed, Axis("epoch"), Axis("images per second"), tall=150)
        )
    return Section("Training", [*parts, grid(*charts)])


def _losses(view: RunView) -> list[str]:
    """The names of the losses in a log: its columns between `lr` and the speed."""
    names = list(view.rows[0])
    return (
        names[names.index("lr") + 1 : names.index("images_per_second")]
        if "images_per_second" in names
        else []
    )


_AVERAGED = 0.04
"""Part of a training that a point of a loss is the mean of."""


def _smoothing(view: RunView) -> str:
    return "Running means." if view.steps and len(next(iter(view.steps.values())).steps) > 30 else ""


def _line(view: RunView, key: str, color: int, name: str = "", *, smooth: bool = True) -> Series:
    """A value over the steps, or over the ends of the epochs where there is no more."""
    curve = view.steps.get(key)
    if curve is None:
        known = [row for row in view.rows if key in row]
        return Series(name or key, [row[key] for row in known], [row["step"] for row in known], color)
    values = list(curve.values)
    width = int(len(values) * _AVERAGED) if smooth else 0
    mean = (
        [_mean(values[max(0, at - width) : at + width + 1]) for at in range(len(values))] if width else values
    )
    return Series(name or key, mean, curve.steps, color)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_epoch(view: RunView, key: str, color: int, name: str, factor: float = 100) -> Series:
    return Series(name, [factor * row[key] for row in view.rows], [row["epoch"] for row in view.rows], color)


def _cost(views: Sequence[RunView]) -> Section:
    parts = [missing(f"{v.name}: {v.missing['price']}") for v in views if "price" in v.missing]
    priced = [(number, view.price) for number, view in enumerate(views) if view.price is not None]
    if not priced:
        return Section("Speed and cost", parts)
    first = priced[0][1]
    names = list(dict.fromkeys(name for _, price in priced for name in price.macs if name != "all"))
    heads = ["run", "parameters, M", "ms per image", "images per second", "GMAC", *names]
    rows = []
    for place, (number, price) in enumerate(priced):

        def of(mine: float | None, base: float | None, scale: float, text: str, at: int = place) -> Cell:
            return changed(
                mine, base, lambda v: format(v * scale, text), scale, at, less=True, digits=text[1]
            )

        same = price.size == first.size
        cells: list[object] = [joined([swatch(number), views[number].name])]
        cells += [
            of(price.parameters, first.parameters, 1e-6, ".2f"),
            of(price.seconds, first.seconds, 1e3, ".1f"),
        ]
        cells.append(f"{1 / price.seconds:.1f}")
        for name in ("all", *names):
            base = first.macs.get(name) if same else None
            cells.append(of(price.macs.get(name), base, 1e-9, ".2f"))
        rows.append(cells)
    sizes_ = {price.size for _, price in priced}
    said = " and ".join(f"{height} x {width}" for height, width in sorted(sizes_))
    about = (
        f"GMAC: 10⁹ multiply-accumulates for an image of {said} pixels, whole and by part. "
        f"Time: {first.setting}."
    )
    return Section("Speed and cost", [*parts, card(table(heads, rows))], about, "Cost")


def _scaled(factor: float, text: str) -> Callable[[float], str]:
    """Write values times a factor."""
    return lambda value: format(value * factor, text)


def _configuration(views: Sequence[RunView]) -> Section:
    parts: list[Html] = []
    if len(views) > 1:
        parts.append(card(_differing(views)))
    parts += [
        card(
            tag("h3", "The command" if len(views) == 1 else f"{view.name}: the command"),
            code(view.command, wrap=True),
        )
        for view in views
    ]
    parts += [
        details(
            "The whole configuration" if len(views) == 1 else f"{view.name}: the whole configuration",
            code(view.config),
        )
        for view in views
    ]
    return Section("Configuration", parts, "The command trains the same again.")


def _differing(views: Sequence[RunView]) -> Html:
    """The lines of the configurations, with a mark where they differ."""
    flat = [_flat(view.config) for view in views]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [[key, *(one.get(key, "–") for one in flat)] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    other = [at for at, row in enumerate(rows) if len(set(row[1:])) > 1]
    if not other:
        return paragraph("The configurations are the same.")
    heads = ["key", *(joined([swatch(number), view.name]) for number, view in enumerate(views))]
    shown = table(heads, rows[: len(other)], caption="What differs", text=True, marked=range(len(other)))
    return joined([shown, details("What is the same", table(heads, rows[len(other) :], text=True))])


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

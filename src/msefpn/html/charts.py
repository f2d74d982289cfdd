"""Charts of a page: lines, bars and columns; legible at any width, because labels are text.

Only lines are drawn as SVG, stretched to the available width; labels are HTML, positioned in percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msefpn.html.page import COLORS, Html, card, tag

_GAP = 7.5
"""Least distance between labels at the ends of lines, percent of the height."""
_POINTS = 300
"""Most points of a drawn line; of a longer line, neighbouring points are averaged."""


@dataclass(frozen=True)
class Series:
    """A line, or the bars of one colour."""

    name: str
    y: Sequence[float]
    """NaN where a value is missing."""
    x: Sequence[float] = ()
    """For lines: as long as `y`, rising."""
    color: int = 0
    """Slot of the palette; the same thing has the same colour in all charts of a page."""
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Name and range of an axis; None: the range of the values."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Logarithmic; all values must be positive."""


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, about: str = "", height: int = 230
) -> Html:
    """Draw lines over one x axis and one y axis, with a readout under the pointer.

    Args:
        title: what the chart shows.
        series: at least one; a series without points appears only in the legend.
        x: the horizontal axis.
        y: the vertical axis; starts at 0 unless `low` is given or it is logarithmic.
        about: a line under the title.
        height: of the plot, pixels.
    """
    series = [_thinned(one) for one in series]
    xs = [value for one in series for value, y_ in zip(one.x, one.y, strict=True) if math.isfinite(y_)]
    ys = [value for one in series for value in one.y if math.isfinite(value)]
    if not xs:
        return card(tag("h3", title), tag("p", "no values", class_="about"))
    across, up = _Scale.of(x, xs, from_zero=False, close=True), _Scale.of(y, ys, from_zero=True)
    rules = [f"M0 {up.down(tick):.2f}H100" for tick in up.ticks]
    drawing = [Html(f'<path class="rule" d="{"".join(rules)}"/><path class="base" d="M0 100H100"/>')]
    drawing += [_trace(one, across, up) for one in series]
    svg = Html(
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{"".join(drawing)}</svg>'
    )
    data = {
        "series": [
            {
                "name": one.name,
                "color": one.color % COLORS,
                "points": [
                    [float(f"{a:.6g}"), float(f"{b:.5g}")]
                    for a, b in zip(one.x, one.y, strict=True)
                    if math.isfinite(b)
                ],
            }
            for one in series
        ],
        "left": across.low,
        "right": across.high,
        "log": x.log,
    }
    spoken = f"{title}: {y.name} over {x.name}; " + ", ".join(one.name for one in series)
    plot = tag(
        "div",
        svg,
        class_="plot",
        tabindex=0,
        role="img",
        aria_label=spoken,
        data_x=x.name,
        data_series=json.dumps(data),
    )
    labels = _ends(series, up)
    widest = max(len(up.text(tick)) for tick in up.ticks)
    chart = tag(
        "div",
        tag("div", *(tag("span", up.text(t), style=f"top:{up.down(t):.2f}%") for t in up.ticks), class_="y"),
        plot,
        tag("div", *labels, class_="ends"),
        tag(
            "div",
            *(tag("span", across.text(t), style=f"left:{across.share(t):.2f}%") for t in across.ticks),
            class_="x",
        ),
        tag("div", x.name, class_="name"),
        class_="chart",
        style=f"--tall:{height}px;--left:{14 + 7 * widest}px;--right:{_room(series) if labels else 12}px",
    )
    note = [tag("p", about, class_="about")] if about else []
    return card(tag("h3", title), *note, legend(series), tag("div", y.name, class_="unit"), chart)


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    text: Callable[[float], str],
    *,
    high: float | None = None,
    about: str = "",
) -> Html:
    """Draw horizontal bars from zero, one group for each label, each bar with its value.

    Args:
        title: what the chart shows.
        labels: names of the groups.
        series: the bars of one colour, a value >= 0 for each label; NaN: no bar.
        text: formats a value.
        high: the value of a full bar; None: the largest value.
        about: a line under the title.
    """
    top = high or max((v for one in series for v in one.y if math.isfinite(v)), default=1.0) or 1.0
    parts: list[Html] = []
    for number, label in enumerate(labels):
        bars = [
            tag(
                "div",
                tag("i", style=_style(one, one.y[number] / top if math.isfinite(one.y[number]) else 0.0)),
                tag("span", text(one.y[number]) if math.isfinite(one.y[number]) else "–"),
                class_="bar",
                title=f"{label}, {one.name}" if len(series) > 1 else label,
            )
            for one in series
        ]
        parts += [tag("div", label, class_="label", title=label), tag("div", *bars, class_="group")]
    note = [tag("p", about, class_="about")] if about else []
    return card(tag("h3", title), *note, legend(series, block=True), tag("div", *parts, class_="bars"))


def column_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    text: Callable[[float], str],
    *,
    high: float | None = None,
    below: Sequence[tuple[str, Sequence[object]]] = (),
    about: str = "",
) -> Html:
    """Draw columns from zero over ordered bins.

    Args:
        title: what the chart shows.
        labels: names of the bins, short.
        series: the columns of one colour, a value >= 0 for each bin; NaN: a dash.
        text: formats a value.
        high: the value of a full column; None: the largest value.
        below: rows of numbers under the labels: the name of the row and a number for each bin.
        about: a line under the title.
    """
    top = high or max((v for one in series for v in one.y if math.isfinite(v)), default=1.0) or 1.0
    cells: list[Html] = [tag("div", class_="first")]
    for number, label in enumerate(labels):
        stack = [
            tag(
                "i",
                tag("b", text(one.y[number])),
                style=_style(one, one.y[number] / top),
                title=f"{one.name}, {label}",
            )
            if math.isfinite(one.y[number])
            else tag("em", "–")
            for one in series
        ]
        cells.append(tag("div", *stack, class_="stack many" if len(series) > 1 else "stack"))
    cells += [tag("div", class_="first"), *(tag("div", label, class_="tick") for label in labels)]
    for name, values in below:
        cells += [tag("div", name, class_="first"), *(tag("div", value) for value in values)]
    note = [tag("p", about, class_="about")] if about else []
    columns = tag("div", *cells, class_="columns", style=f"--n:{len(labels)}")
    return card(tag("h3", title), *note, legend(series, block=True), columns)


def legend(series: Sequence[Series], *, block: bool = False) -> Html:
    """Name the series beside their colours; empty for a single series, which the title names."""
    if len(series) < 2:
        return Html("")
    return tag(
        "div",
        *(
            tag(
                "span",
                tag("i", class_="block" if block else "dash" if one.dashed else None, style=_style(one)),
                one.name,
            )
            for one in series
        ),
        class_="legend",
    )


def _style(one: Series, share: float | None = None) -> str:
    color = f"--c:var(--s{one.color % COLORS})"
    return color if share is None else f"{color};--share:{min(1.0, max(0.0, share)):.4f}"


@dataclass(frozen=True)
class _Scale:
    """An axis with its ends and ticks."""

    low: float
    high: float
    ticks: list[float]
    log: bool

    @classmethod
    def of(cls, axis: Axis, values: Sequence[float], *, from_zero: bool, close: bool = False) -> _Scale:
        """Fit the values; `close`: end at the outermost values, else at the next tick."""
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        if axis.log:
            return cls._logarithmic(low, high)
        if from_zero and axis.low is None:
            low = min(low, 0.0)
        if high <= low and from_zero:
            high = low + 1
        if high <= low:
            return cls(low - 0.5, low + 0.5, [low], log=False)
        step = _nice((high - low) / 5)
        if not close:
            low = low if axis.low is not None else math.floor(low / step + 1e-9) * step
            high = high if axis.high is not None else math.ceil(high / step - 1e-9) * step
        first = math.ceil(low / step - 1e-9)
        ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
        return cls(low, high, ticks, log=False)

    @classmethod
    def _logarithmic(cls, low: float, high: float) -> _Scale:
        if high <= low:
            low, high = low / 2, high * 2
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for marks in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            ticks = [mark * 10.0**power for power in powers for mark in marks]
            ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
            if len(ticks) >= 3:
                break
        return cls(low, high, ticks or [low, high], log=True)

    def share(self, value: float) -> float:
        """Position of a value, percent from the low end."""
        if self.log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)

    def down(self, value: float) -> float:
        """Position of a value, percent from the top."""
        return 100 - self.share(value)

    def text(self, tick: float) -> str:
        """Label of a tick."""
        if tick and not self.log and max(abs(self.low), abs(self.high)) < 0.01:
            return f"{tick:.0e}" if len(f"{tick:.4g}") > 7 else f"{tick:.4g}"
        return f"{tick:,.0f}" if abs(tick) >= 10000 else f"{tick:.4g}"


def _nice(step: float) -> float:
    """The next larger of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(step))
    return float(next(mark for mark in (1, 2, 2.5, 5, 10) if mark * power >= step * 0.999) * power)


def _trace(one: Series, across: _Scale, up: _Scale) -> Html:
    """A line, with gaps at missing values, and dots where points are few."""
    parts, pen, points = [], "M", []
    for x, y in zip(one.x, one.y, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        place = f"{across.share(x):.2f} {up.down(min(max(y, up.low), up.high)):.2f}"
        parts.append(pen + place)
        points.append(place)
        pen = "L"
    dots = "".join(f"M{place}h0" for place in points) if len(points) <= 12 else ""
    style = _style(one)
    line = f'<path class="trace{" dash" * one.dashed}" style="{style}" d="{"".join(parts)}"/>'
    return Html(line + (f'<path class="points" style="{style}" d="{dots}"/>' if dots else ""))


def _ends(series: Sequence[Series], up: _Scale) -> list[Html]:
    """Names beside the ends of lines, moved apart; none for a single line or more than 8."""
    last = [(next((y for y in reversed(one.y) if math.isfinite(y)), None), one) for one in series]
    placed = sorted(((up.down(y), one) for y, one in last if y is not None), key=lambda pair: pair[0])
    if not 1 < len(placed) <= 8:
        return []
    places: list[float] = []
    for at, _ in placed:
        places.append(max(at, places[-1] + _GAP) if places else at)
    over = max(0.0, places[-1] - 100)
    for number in range(len(places) - 1, -1, -1):
        ceiling = 100 - _GAP * (len(places) - 1 - number)
        places[number] = min(places[number], ceiling) if over else places[number]
    return [
        tag("span", one.name, style=f"top:{at:.1f}%;{_style(one)}", title=one.name)
        for at, (_, one) in zip(places, placed, strict=True)
    ]


def _room(series: Sequence[Series]) -> int:
    """Pixels for the names at the ends of lines."""
    return 16 + min(130, 8 * max(len(one.name) for one in series))


def _thinned(one: Series) -> Series:
    """At most `_POINTS` points."""
    if len(one.y) <= _POINTS:
        return one
    size = math.ceil(len(one.y) / _POINTS)
    parts = [slice(start, start + size) for start in range(0, len(one.y), size)]
    mean = [_mean(one.y[part]) for part in parts]
    return Series(one.name, mean, [_mean(one.x[part]) for part in parts], one.color, one.dashed)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan

"""Drawing of maps, gates and weights over the photograph, for the page of `msefpn explain`."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.html.page import Html, Section, paragraph, tag

MAX_CELLS = 160
"""Most cells on the longer side of a drawn map; larger maps are averaged."""
PHOTO_SIDE = 960
"""Longest side of the photograph in the page, pixels."""
_SEQUENTIAL = (
    *((68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141)),
    *((44, 114, 142), (38, 129, 142), (33, 144, 140), (31, 159, 136), (40, 174, 128), (62, 188, 116)),
    *((93, 201, 99), (130, 211, 76), (171, 220, 50), (213, 226, 26), (253, 231, 37)),
)
"""Seventeen colours of viridis, which is perceptually uniform (Smith and van der Walt, 2015, CC0)."""
_DIVERGING = (
    (8, 44, 104),
    (58, 130, 190),
    (150, 198, 224),
    (247, 247, 247),
    (244, 165, 130),
    (205, 80, 70),
    (103, 0, 31),
)
"""From blue over white to red."""
_COLOURS = {"energy": _SEQUENTIAL, "spread": _SEQUENTIAL, "gate": _DIVERGING}
_MEANING = {
    "energy": "root mean square over the channels, as a multiple of its mean over the image",
    "gate": "mean over the channels; 0.5 is white, more is red, less is blue",
    "spread": "standard deviation over the channels",
}
_SCRIPT = """
document.querySelector("#heat")?.addEventListener("input", (event) =>
  document.documentElement.style.setProperty("--heat", event.target.value));
"""


@dataclass(frozen=True)
class MapPanel:
    """One map over the photograph."""

    label: str
    note: str
    values: NDArray[np.float32]
    """(h, w), a value for each cell."""
    reach: tuple[float, float]
    """How far the cells reach, in heights and widths of the image; over 1 where it was padded."""


@dataclass(frozen=True)
class WeightBars:
    """Weights without a position, such as those of channels."""

    label: str
    weights: NDArray[np.float32]
    """(n,), 0 to 1."""


@dataclass(frozen=True)
class MapBlock:
    """Maps of one kind, of all runs and levels, drawn with one scale."""

    title: str
    text: str
    kind: str
    """`energy`, `gate` (0 to 1, 0.5 is neutral), `spread` or `channels`."""
    rows: list[tuple[str, list[MapPanel]]] = field(default_factory=list)
    """Name of a run, and its panels."""
    bars: list[tuple[str, list[WeightBars]]] = field(default_factory=list)
    """Name of a run, and its weights, of the kind `channels`."""


@dataclass(frozen=True)
class MapSection:
    """A stage of the neck, or a module of it."""

    title: str
    short: str
    text: str
    blocks: list[MapBlock]


def inside(values: NDArray[np.float32], reach: tuple[float, float]) -> NDArray[np.float32]:
    """The cells (h, w) whose centre lies in the image; see `MapPanel.reach`."""
    rows, columns = (
        max(1, math.ceil(count / far - 0.5)) for count, far in zip(values.shape, reach, strict=True)
    )
    return values[:rows, :columns]


def photographs(pixels: NDArray[np.uint8]) -> Html:
    """The photograph (H, W, 3) RGB, once for all panels, and the slider that blends it with the maps."""
    height, width = pixels.shape[:2]
    factor = min(1.0, PHOTO_SIDE / max(height, width))
    small = Image.fromarray(pixels).resize((max(1, round(width * factor)), max(1, round(height * factor))))
    photos = f":root {{ --photo: {_jpeg(small.convert('L'))}; --colour-photo: {_jpeg(small)}; }}"
    style = resources.files("msefpn.explaining").joinpath("explain.css").read_text(encoding="utf-8")
    slider = tag("input", type="range", id="heat", min=0, max=1, step=0.05, value=0.7)
    label = tag("label", "photograph", slider, "colour", class_="overlay")
    return Html(f"<style>{photos}{style}</style>{label}<script>{_SCRIPT}</script>")


def draw_section(section: MapSection, ratio: str) -> Section:
    """Draw a section; `ratio` is width / height of the photograph."""
    body = []
    for block in section.blocks:
        head = [tag("h3", block.title), paragraph(block.text)] if block.title else []
        drawn = _bars(block) if block.kind == "channels" else _panels(block, ratio)
        small = max((len(panels) for _, panels in block.rows), default=0) == 1
        body.append(tag("div", *head, *drawn, class_="block small" if small else "block"))
    return Section(section.title, [tag("div", *body, class_="blocks")], section.text, section.short)


def _bars(block: MapBlock) -> list[Html]:
    parts = []
    for name, bars in block.bars:
        parts += [tag("p", name, class_="of"), tag("div", *map(_histogram, bars), class_="hist")]
    return parts


def _panels(block: MapBlock, ratio: str) -> list[Html]:
    observed = [inside(panel.values, panel.reach).ravel() for _, panels in block.rows for panel in panels]
    low, high = _range(block.kind, np.concatenate(observed))
    parts = [_key(block.kind, low, high)]
    most = max(len(panels) for _, panels in block.rows)
    for name, panels in block.rows:
        drawn = [_panel(panel, block.kind, low, high, ratio) for panel in panels]
        parts += [tag("p", name, class_="of"), tag("div", *drawn, class_="panels", style=f"--n:{most}")]
    return parts


def _range(kind: str, values: NDArray[np.float32]) -> tuple[float, float]:
    """The ends of the colour scale that all panels of a block share; 2 % of the cells may lie outside."""
    low, high = (float(end) for end in np.percentile(values, [1, 99]))
    if kind == "gate":
        half = max(high - 0.5, 0.5 - low, 0.01)
        return 0.5 - half, 0.5 + half
    return low, max(high, low + 1e-6)


def _key(kind: str, low: float, high: float) -> Html:
    """The colour scale and its meaning."""
    colours = ", ".join(f"rgb({r},{g},{b})" for r, g, b in colour_scale(kind)[::16])
    unit = "×" if kind == "energy" else ""
    return tag(
        "div",
        tag("span", f"{low:.2f}{unit}"),
        tag("i", style=f"background:linear-gradient(90deg, {colours})"),
        tag("span", f"{high:.2f}{unit}"),
        tag("span", _MEANING[kind]),
        class_="key",
    )


def _panel(panel: MapPanel, kind: str, low: float, high: float, ratio: str) -> Html:
    values = _fewer(panel.values)
    index = np.clip((values - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colour_scale(kind).tobytes())
    down, across = (f"{100 * share:.3f}%" for share in panel.reach)
    heat = Html(f'<img src="{_data(image, "png")}" alt="" style="width:{across};height:{down}">')
    own = inside(panel.values, panel.reach)
    unit = "×" if kind == "energy" else ""
    said = f"{panel.note}, {own.min():.2f} to {own.max():.2f}{unit}"
    caption = tag("figcaption", tag("b", panel.label), f" {said}")
    over = tag(
        "div",
        heat,
        class_="over",
        style=f"aspect-ratio:{ratio}",
        role="img",
        aria_label=f"{panel.label}: {said}",
    )
    return tag("figure", over, caption)


def _histogram(bars: WeightBars) -> Html:
    """Number of weights in each twentieth between 0 and 1."""
    counts, _ = np.histogram(bars.weights, bins=20, range=(0, 1))
    colours = [f"rgb({r},{g},{b})" for r, g, b in colour_scale("gate")[6::13]]
    columns = [
        tag(
            "i",
            style=f"height:{100 * count / max(1, counts.max()):.1f}%;--c:{colour}",
            title=f"{start / 20:.2f} to {(start + 1) / 20:.2f}: {count}",
        )
        for start, (count, colour) in enumerate(zip(counts.tolist(), colours, strict=True))
    ]
    said = (
        f" {len(bars.weights)} channels, mean {bars.weights.mean():.2f}, deviation {bars.weights.std():.2f}"
    )
    ends = tag("div", *(tag("span", end) for end in ("0", "0.5", "1")), class_="ends")
    return tag(
        "figure", tag("div", *columns, class_="plot"), ends, tag("figcaption", tag("b", bars.label), said)
    )


def colour_scale(kind: str) -> NDArray[np.uint8]:
    """(256, 3) RGB, interpolated between the colours of a scale."""
    anchors = np.array(_COLOURS[kind], np.float64)  # (n, 3)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _fewer(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most `MAX_CELLS` cells per side, by averaging."""
    if max(values.shape) <= MAX_CELLS:
        return values
    factor = MAX_CELLS / max(values.shape)
    height, width = (max(1, round(side * factor)) for side in values.shape)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))


def _jpeg(image: Image.Image) -> str:
    return f'url("{_data(image, "jpeg")}")'


def _data(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 82} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

"""Maps, gates and weights of a neck over the photograph: a part of the page of `msefpn explain`."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.html import page as shell
from msefpn.html.page import Html, paragraph, tag

MOST_CELLS = 160
"""A map with more cells on its longer side is averaged for the page."""
PHOTO = 960
"""Longest side of the photograph in the page, pixels."""
_COLOURS = {"energy": "viridis", "spread": "viridis", "gate": "RdBu_r"}
_MEANING = {
    "energy": "root mean square over the channels, as a multiple of its mean over the picture",
    "gate": "mean over the channels; white is 0.5, red lets more through, blue less",
    "spread": "standard deviation over the channels",
}
_SCRIPT = """
document.querySelector("#heat")?.addEventListener("input", (event) =>
  document.documentElement.style.setProperty("--heat", event.target.value));
"""


@dataclass(frozen=True)
class Panel:
    """One map over the photograph."""

    label: str
    note: str
    values: NDArray[np.float32]
    """(h, w), a value for each cell."""
    reach: tuple[float, float]
    """How far the cells reach, in heights and widths of the picture: over 1, where it was padded."""


@dataclass(frozen=True)
class Bars:
    """Weights without a place, such as those of channels."""

    label: str
    weights: NDArray[np.float32]
    """(n,), 0 to 1."""


@dataclass(frozen=True)
class Block:
    """One kind of map of all runs and levels, drawn with one scale."""

    title: str
    text: str
    kind: str
    """`energy`, `gate` (0 to 1, 0.5 is neutral), `spread` or `channels`."""
    rows: list[tuple[str, list[Panel]]] = field(default_factory=list)
    """A run's name and its panels."""
    bars: list[tuple[str, list[Bars]]] = field(default_factory=list)
    """Of `channels`."""


@dataclass(frozen=True)
class Section:
    """What belongs together: a stage of the neck, or a module of it."""

    title: str
    short: str
    text: str
    blocks: list[Block]


def inside(values: NDArray[np.float32], reach: tuple[float, float]) -> NDArray[np.float32]:
    """The cells (h, w) whose centre lies in the picture; see `Panel.reach`."""
    rows, columns = (
        max(1, math.ceil(count / far - 0.5)) for count, far in zip(values.shape, reach, strict=True)
    )
    return values[:rows, :columns]


def photographs(pixels: NDArray[np.uint8]) -> Html:
    """The photograph (H, W, 3) RGB, once for all panels, and what lets it shine through them."""
    height, width = pixels.shape[:2]
    factor = min(1.0, PHOTO / max(height, width))
    small = Image.fromarray(pixels).resize((max(1, round(width * factor)), max(1, round(height * factor))))
    photos = f":root {{ --photo: {_jpeg(small.convert('L'))}; --colour-photo: {_jpeg(small)}; }}"
    style = resources.files("msefpn.explain").joinpath("explain.css").read_text(encoding="utf-8")
    slider = tag("input", type="range", id="heat", min=0, max=1, step=0.05, value=0.7)
    label = tag("label", "photograph", slider, "colour", class_="overlay")
    return Html(f"<style>{photos}{style}</style>{label}<script>{_SCRIPT}</script>")


def drawn_section(section: Section, ratio: str) -> shell.Section:
    """Draw a section over a photograph of this ratio, width / height."""
    body = []
    for block in section.blocks:
        head = [tag("h3", block.title), paragraph(block.text)] if block.title else []
        drawn = _bars(block) if block.kind == "channels" else _panels(block, ratio)
        small = max((len(panels) for _, panels in block.rows), default=0) == 1
        body.append(tag("div", *head, *drawn, class_="block small" if small else "block"))
    return shell.Section(section.title, [tag("div", *body, class_="blocks")], section.text, section.short)


def _bars(block: Block) -> list[Html]:
    parts = []
    for name, bars in block.bars:
        parts += [tag("p", name, class_="of"), tag("div", *map(_histogram, bars), class_="hist")]
    return parts


def _panels(block: Block, ratio: str) -> list[Html]:
    seen = [inside(panel.values, panel.reach).ravel() for _, panels in block.rows for panel in panels]
    low, high = _range(block.kind, np.concatenate(seen))
    parts = [_key(block.kind, low, high)]
    most = max(len(panels) for _, panels in block.rows)
    for name, panels in block.rows:
        drawn = [_panel(panel, block.kind, low, high, ratio) for panel in panels]
        parts += [tag("p", name, class_="of"), tag("div", *drawn, class_="panels", style=f"--n:{most}")]
    return parts


def _range(kind: str, values: NDArray[np.float32]) -> tuple[float, float]:
    """The ends of the colour scale that all panels of a block share; a few cells may lie beyond."""
    low, high = (float(end) for end in np.percentile(values, [1, 99]))
    if kind == "gate":
        half = max(high - 0.5, 0.5 - low, 0.01)
        return 0.5 - half, 0.5 + half
    return low, max(high, low + 1e-6)


def _key(kind: str, low: float, high: float) -> Html:
    """The colour scale, with what it shows."""
    colours = ", ".join(f"rgb({r},{g},{b})" for r, g, b in _colours(kind)[::16])
    unit = "×" if kind == "energy" else ""
    return tag(
        "div",
        tag("span", f"{low:.2f}{unit}"),
        tag("i", style=f"background:linear-gradient(90deg, {colours})"),
        tag("span", f"{high:.2f}{unit}"),
        tag("span", f"{_MEANING[kind]}"),
        class_="key",
    )


def _panel(panel: Panel, kind: str, low: float, high: float, ratio: str) -> Html:
    values = _fewer(panel.values)
    index = np.clip((values - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(_colours(kind).tobytes())
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


def _histogram(bars: Bars) -> Html:
    """How many weights lie in each twentieth between 0 and 1."""
    counts, _ = np.histogram(bars.weights, bins=20, range=(0, 1))
    colours = [f"rgb({r},{g},{b})" for r, g, b in _colours("gate")[6::13]]
    columns = [
        tag(
            "i",
            style=f"height:{100 * count / max(1, counts.max()):.1f}%;--c:{colour}",
            title=f"{start / 20:.2f} to {(start + 1) / 20:.2f}: {count}",
        )
        for start, (count, colour) in enumerate(zip(counts.tolist(), colours, strict=True))
    ]
    said = f" {len(bars.weights)} channels, mean {bars.weights.mean():.2f}, spread {bars.weights.std():.2f}"
    ends = tag("div", *(tag("span", end) for end in ("0", "0.5", "1")), class_="ends")
    return tag(
        "figure", tag("div", *columns, class_="plot"), ends, tag("figcaption", tag("b", bars.label), said)
    )


def _colours(kind: str) -> NDArray[np.uint8]:
    """(256, 3) RGB."""
    from matplotlib import colormaps  # noqa: PLC0415  slow to import

    return np.asarray(colormaps[_COLOURS[kind]](np.arange(256), bytes=True)[:, :3], np.uint8)


def _fewer(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most `MOST_CELLS` cells a side, each the mean of its own."""
    if max(values.shape) <= MOST_CELLS:
        return values
    factor = MOST_CELLS / max(values.shape)
    height, width = (max(1, round(side * factor)) for side in values.shape)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))


def _jpeg(image: Image.Image) -> str:
    return f'url("{_data(image, "jpeg")}")'


def _data(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 82} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

"""The page of `msefpn check --out`: images with boxes, box sizes and shapes, classes, faults."""

from __future__ import annotations

import colorsys
import io
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from msefpn.data.advice import ANCHOR_SIDES, PYRAMID_STRIDES, as_size, resized_boxes
from msefpn.data.check import Check, SplitCheck
from msefpn.data.coco import CocoData
from msefpn.data.images import ImageFault, read_reduced
from msefpn.html.charts import Series, bar_chart, column_chart
from msefpn.html.page import (
    Html,
    Section,
    Tile,
    alert,
    code,
    document,
    figure,
    gallery,
    grid,
    joined,
    missing,
    tag,
    tiles,
)

CHECK_FILE = "check.html"
_SIDES = (6, 11, 23, 45, 91, 181, 362, 724)
"""Borders of the bins of box sizes, pixels: half an octave from the anchors, one anchor to a bin."""
_RATIOS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Borders of the bins of shapes: logarithm to base 2 of width over height."""
_RATIO_NAMES = ("<1:4", "1:4", "1:2.8", "1:2", "1:1.4", "1:1", "1.4:1", "2:1", "2.8:1", ">4:1")
_CROWDS = (0, 1, 2, 3, 6, 11, 21, 51, 101)
"""Least number of boxes of each bin of images."""
_LETTERS = 11
"""Height of letters in pictures, pixels."""
_NAMED = 40
"""Boxes in a picture up to which each is named."""
_SHEET = 24
"""Images on the sheet, and as many again where classes are still missing."""
_SIDE = 560  # pixels of the longest side of a picture
_CLASSES = 80  # that get a bar


def write_check_page(check: Check, out: Path) -> None:
    """Write `check.html`, which embeds its images, into a folder."""
    (out / CHECK_FILE).write_text(_page(check), encoding="utf-8")


def choose_images(data: CocoData, size: tuple[int, int], most: int = _SHEET) -> list[tuple[int, str]]:
    """Choose images: the most and the fewest boxes, the smallest and the largest, every class once.

    Args:
        data: a split.
        size: longest and shortest side that images will be resized to fit into, pixels.
        most: number of images; twice as many where classes are still missing.

    Returns:
        Index of the image and why it was chosen; each image once.
    """
    counts = np.diff(data.offsets)
    reasons: dict[int, str] = {}

    def take(indices: Sequence[int] | NDArray[np.int64], reason: str) -> None:
        for index in indices:
            reasons.setdefault(int(index), reason)

    take(np.argsort(-counts, kind="stable")[:3], "most boxes")
    take(np.argsort(counts, kind="stable")[:2], "fewest boxes")
    side = np.sqrt(resized_boxes(data, size).prod(1))
    owner = np.repeat(np.arange(len(data)), counts)[~data.crowd]
    small = list(dict.fromkeys(owner[np.argsort(side, kind="stable")].tolist()))
    take(small[:3], "smallest boxes")
    take(small[::-1][:2], "largest boxes")
    seen = {int(label) for index in reasons for label in data.boxes_of(index)[1]}
    for label in np.argsort(np.bincount(data.labels, minlength=len(data.classes)), kind="stable").tolist():
        if (
            label not in seen
            and len(reasons) < 2 * most
            and (rows := np.flatnonzero(data.labels == label)).size
        ):
            holders = np.searchsorted(data.offsets, rows, side="right") - 1
            # of the images with the class, the one with the most missing classes
            gains = [len(set(data.boxes_of(index)[1].tolist()) - seen) for index in holders]
            best = int(holders[int(np.argmax(gains))])
            take([best], f"shows {data.classes[label]}")
            seen |= set(data.boxes_of(best)[1].tolist())
    rest = np.random.default_rng(0).permutation(len(data))
    take([index for index in rest if int(index) not in reasons][: max(0, most - len(reasons))], "at random")
    return list(reasons.items())


def draw_boxes(data: CocoData, index: int) -> tuple[bytes, Html]:
    """Draw the boxes of an image into a small JPEG, and write the key of their colours: class and count.

    Crowd regions get a thin line. Raises FileNotFoundError and ImageFault.
    """
    height, width = data.sizes[index].tolist()
    factor = min(1.0, _SIDE / max(height, width))
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    pixels, _ = read_reduced(data.path_of(index), (height, width), small[::-1])
    image = Image.fromarray(pixels).resize(small, Image.Resampling.LANCZOS)
    boxes, labels, crowd = data.boxes_of(index)
    colours = {label: class_paint(label) for label in sorted(set(labels.tolist()))}
    pen = ImageDraw.Draw(image)
    scale = [small[0] / width, small[1] / height] * 2
    thick = 1 if len(boxes) > _NAMED else 2
    for box, label, region in zip(boxes.tolist(), labels.tolist(), crowd, strict=True):
        left, top, right, bottom = (side * by for side, by in zip(box, scale, strict=True))
        corners = (left, top, max(left + 1, right - 1), max(top + 1, bottom - 1))
        pen.rectangle(corners, outline=colours[label], width=1 if region else thick)
        if len(boxes) <= _NAMED:
            _write_name(pen, data.classes[label], colours[label], (left, top), small)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    found = Counter(labels.tolist())
    keys = [
        tag(
            "span",
            tag("span", class_="swatch", style=f"--c:{colour}"),
            f"{found[label]} {data.classes[label]}",
            style="white-space:nowrap",
        )
        for label, colour in colours.items()
    ]
    return file.getvalue(), joined(keys, ", ") if keys else Html("no boxes")


def class_paint(label: int) -> str:
    """The colour of a class in the page, as #rrggbb: its own in every picture, and unlike that of the others.

    Hues a golden section apart fill the circle evenly; lightness and saturation change from one to the next.
    """
    hue, lightness, full = label * 0.618034 % 1, (0.5, 0.66, 0.36)[label % 3], (1.0, 0.75)[label // 3 % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, full)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _write_name(
    pen: ImageDraw.ImageDraw, name: str, colour: str, corner: tuple[float, float], size: tuple[int, int]
) -> None:
    """Write a class name on a plate above a box's upper left corner, inside a picture of `size`."""
    font = ImageFont.load_default(_LETTERS)
    text = " ".join(name.split())[:24]
    wide = pen.textlength(text, font=font) + 4
    left = max(0.0, min(corner[0], size[0] - wide))
    top = corner[1] - _LETTERS - 4 if corner[1] > _LETTERS + 4 else corner[1]
    pen.rectangle((left, top, left + wide, top + _LETTERS + 4), fill=colour)
    light = sum(ImageColor.getrgb(colour)[:3]) > 380
    pen.text((left + 2, top + 1), text, fill="black" if light else "white", font=font)


def _page(check: Check) -> str:
    splits = [split for split in check.splits if split.data is not None]
    verdict = "ready to train" if check.usable else "not ready: fix what stops a run"
    sections = [_advice(check)]
    if splits:
        sections += [_sheet(splits[0], check.size), _sizes(splits, check.size), _classes(splits)]
    sections.append(_faults(check))
    title = f"Data set {check.name}"
    lead = f"{verdict}; sizes are those after resizing to {as_size(check.size)}"
    return document(title, lead, sections, footer="written by msefpn check")


def _advice(check: Check) -> Section:
    numbers = [
        Tile(f"{split.name} images", f"{split.images:,}", note=f"{split.empty:,} without objects")
        for split in check.splits
    ]
    numbers += [
        Tile(
            f"{split.name} boxes",
            f"{split.boxes:,}",
            note=f"{split.crowd:,} crowd regions" if split.crowd else "",
        )
        for split in check.splits
    ]
    sizes = check.splits[0].sizes
    if sizes is not None:
        numbers.append(Tile("median box", f"{sizes.quantiles[50]:.0f}", "px", "square root of the area"))
        numbers.append(Tile("too small", f"{sizes.tiny_share:.1%}", note="under two cells at stride 4"))
    stops = [f"{split.name}: {fault}" for split in check.splits for fault in split.report.stops[:3]]
    stops += [check.missing] * bool(check.missing)
    marks = [alert(text) for text in (*stops, *check.differences)]
    return Section(
        "Summary", [*marks, tag("ul", *(tag("li", text) for text in check.advice)), tiles(numbers)]
    )


def _sheet(split: SplitCheck, size: tuple[int, int]) -> Section:
    assert split.data is not None
    shots = []
    for index, reason in choose_images(split.data, size):
        name = split.data.names[index]
        try:
            image, key = draw_boxes(split.data, index)
        except (OSError, ImageFault) as error:
            shots.append(missing(f"{name}: {error}"))
            continue
        caption = joined([tag("b", reason), Html(": "), name, Html("<br>"), key])
        shots.append(figure(image, f"{name} with its boxes", caption))
    about = "The most and the fewest boxes, the smallest and the largest, every class, and some at random."
    return Section(f"Images of {split.name}", [gallery(shots)], about, "Images")


def _sizes(splits: Sequence[SplitCheck], size: tuple[int, int]) -> Section:
    names = [f"<{_SIDES[0]}", *map(str, _SIDES)]
    middles = np.sqrt(np.array([4.0, *_SIDES]) * np.array([*_SIDES, 1024.0]))
    levels = np.abs(np.log2(middles[:, None] / np.array(ANCHOR_SIDES))).argmin(1)
    extents = {split.name: resized_boxes(split.data, size) for split in splits if split.data is not None}
    sides = {
        name: np.digitize(np.sqrt(extent.prod(1)), _SIDES) for name, extent in extents.items() if len(extent)
    }
    shapes = {
        name: np.digitize(np.log2(extent[:, 0] / extent[:, 1]), _RATIOS)
        for name, extent in extents.items()
        if len(extent)
    }
    numbers = {
        split.name: np.digitize(np.diff(split.data.offsets), _CROWDS) - 1
        for split in splits
        if split.data is not None
    }
    ends = [f"{low}-{high - 1}" if high - low > 1 else str(low) for low, high in itertools.pairwise(_CROWDS)]
    parts = [
        column_chart(
            "Box sizes against the pyramid's levels",
            names,
            _shares(sides, len(names)),
            _percent,
            below=[
                ("stride", [PYRAMID_STRIDES[level] for level in levels]),
                ("anchor", [ANCHOR_SIDES[level] for level in levels]),
            ],
            about="From square root of the area, pixels; stride and anchor of the closest level",
        ),
        column_chart(
            "Shapes against the anchors",
            _RATIO_NAMES,
            _shares(shapes, len(_RATIO_NAMES)),
            _percent,
            below=[("anchor", ["1:2"] * 4 + ["1:1"] * 2 + ["2:1"] * 4)],
            about="From width to height; shape of the closest anchor",
        ),
        column_chart(
            "Boxes per image",
            [*ends, f">{_CROWDS[-1] - 1}"],
            _shares(numbers, len(_CROWDS)),
            _percent,
        ),
    ]
    about = f"Boxes without crowd regions, after resizing to {as_size(size)}; percent of each split."
    return Section("Sizes and shapes", parts, about, "Sizes")


def _shares(bins: dict[str, NDArray[np.int64]], count: int) -> list[Series]:
    return [
        Series(name, (np.bincount(rows, minlength=count) / len(rows)).tolist(), color=number)
        for number, (name, rows) in enumerate(bins.items())
    ]


def _percent(share: float) -> str:
    return "" if not share else "<1" if share < 0.005 else f"{100 * share:.0f}"


def _classes(splits: Sequence[SplitCheck]) -> Section:
    order = sorted(splits[0].per_class, key=lambda name: -splits[0].per_class[name])[:_CLASSES]
    series = [
        Series(split.name, [float(split.per_class.get(name, 0)) for name in order], color=number)
        for number, split in enumerate(splits)
    ]
    chart = bar_chart("Boxes per class", order, series, lambda count: f"{count:,.0f}")
    rest = len(splits[0].per_class) - len(order)
    more = f"The {_CLASSES} most frequent classes; {rest} more are not shown." if rest > 0 else ""
    return Section("Classes", [grid(chart)], more)


def _faults(check: Check) -> Section:
    lines = []
    for split in check.splits:
        lines += [f"{split.name}: {split.file}", *(f"  {line}" for line in split.report.lines(20))]
        lines += ["  no faults"] * (not split.report.faults)
    return Section(
        "Faults", [code("\n".join([*check.read, *lines]), wrap=True)], "Faults, and what is done about each."
    )

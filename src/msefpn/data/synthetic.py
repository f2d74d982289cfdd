"""The built-in set: shapes over textured backgrounds, drawn here, in COCO format.

Objects differ in shape, not in colour. They are 8 to 256 px large, about a third each small, medium and large
in COCO's sense; they overlap or are cut off by the border, and some images have none. Boxes, areas and masks
are exactly those of the visible pixels.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from msefpn.data.folders import unfinished_folder
from msefpn.data.images import write_image
from msefpn.errors import UserError

_Floats = NDArray[np.float32]
_Mask = NDArray[np.bool_]

_SMALLEST, _LARGEST = 8, 256
_EMPTY = 0.08  # share of images without objects
_OVERSAMPLING = 4
_SKEW = 0.75  # 1: sizes are log-uniform; less: larger ones are more frequent
_TURN = np.pi / 9  # largest rotation of an object
_VISIBLE = 0.5  # share of an object that later ones must leave uncovered


def _star(corners: int, inner: float) -> _Floats:
    """Corners (2 * corners, 2) of a star with outer radius 1."""
    angles = np.arange(2 * corners) * np.pi / corners
    radii = np.where(np.arange(2 * corners) % 2, inner, 1.0)
    return (np.stack([np.sin(angles), -np.cos(angles)], 1) * radii[:, None]).astype(np.float32)


def _arc(radius: float, start: float, stop: float, centre: float = 0.0) -> _Floats:
    angles = np.linspace(start, stop, 64)
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], 1).astype(np.float32)


def _regular(corners: int) -> _Floats:
    return _star(corners, 1.0)[::2]


def _crescent() -> _Floats:
    # Unit disc less a disc of radius 0.8 at 0.5: their circles meet at cos(angle) = 0.61 / 1.0.
    meet = np.arccos((1 + 0.25 - 0.64) / (2 * 0.5))
    bite = np.pi - np.arccos((0.64 + 0.25 - 1) / (2 * 0.5 * 0.8))
    outer = _arc(1.0, meet, 2 * np.pi - meet)
    return np.concatenate([outer, _arc(0.8, 2 * np.pi - bite, bite, centre=0.5)])


_CROSS = np.array(
    [
        (-1, -3),
        (1, -3),
        (1, -1),
        (3, -1),
        (3, 1),
        (1, 1),
        (1, 3),
        (-1, 3),
        (-1, 1),
        (-3, 1),
        (-3, -1),
        (-1, -1),
    ]
)
_SHAPES: dict[str, Callable[[], _Floats]] = {
    "circle": lambda: _arc(1.0, 0, 2 * np.pi),
    "square": lambda: _regular(4),
    "triangle": lambda: _regular(3),
    "star": lambda: _star(5, 0.42),
    # The seam between both circles has no width.
    "ring": lambda: np.concatenate([_arc(1.0, 0, 2 * np.pi), _arc(0.55, 2 * np.pi, 0)]),
    "cross": lambda: (_CROSS / 3).astype(np.float32),
    "crescent": _crescent,
}
CLASSES = tuple(_SHAPES)
"""Names of the classes; the category ids are 1 to 7 in this order."""


class _Object(NamedTuple):
    label: int
    mask: _Mask  # (H, W) visible pixels
    full: int  # pixels before anything covered it


def draw_builtin_set(
    folder: Path, *, train: int = 600, val: int = 60, seed: int = 0, size: int = 320
) -> None:
    """Draw the set: `train.json` + `train/*.jpg` and `val.json` + `val/*.jpg`, the same bytes for a seed.

    Args:
        folder: made whole or not at all; must not exist, or be empty.
        train: number of training images.
        val: number of validation images.
        seed: an image depends on it and on its own number only.
        size: the longest side is 0.8 * `size` to `size` pixels.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"'{folder}' already exists: choose another folder for the built-in set, or remove it"
        )
    try:
        with unfinished_folder(folder) as work:
            for number, (split, count) in enumerate({"train": train, "val": val}.items()):
                _draw_split(work, split, count, (seed, number), size)
            work.replace(folder)
    except OSError as error:
        raise UserError(
            f"cannot write the built-in set to '{folder}': {error.strerror or error}: choose another folder"
        ) from None


def _draw_split(folder: Path, split: str, count: int, seed: tuple[int, int], size: int) -> None:
    (folder / split).mkdir()

    def one(index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        pixels, objects = _draw_image(np.random.default_rng([*seed, index]), size)
        name = f"{index + 1:06d}.jpg"
        write_image(Image.fromarray(pixels), folder / split / name, quality=92)
        height, width = pixels.shape[:2]
        image = {"id": index + 1, "file_name": name, "width": width, "height": height}
        return image, [_annotation(item, index + 1) for item in objects]

    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(one, range(count)))
    annotations = [annotation for _, found in drawn for annotation in found]
    content = {
        "info": {"description": "built-in set, drawn by msefpn"},
        "images": [image for image, _ in drawn],
        "annotations": [item | {"id": number} for number, item in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content, sort_keys=True), encoding="utf-8")


def _annotation(item: _Object, image_id: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "image_id": image_id,
        "category_id": item.label + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(item.mask.shape), "counts": _run_lengths(item.mask)},
    }


def _run_lengths(mask: _Mask) -> list[int]:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths: list[int] = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def _draw_image(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], list[_Object]]:
    """Draw one image (H, W, 3) and its objects, the last one on top."""
    long = int(rng.integers(size * 4 // 5, size + 1))
    short = max(_SMALLEST * 4, int(long * rng.uniform(0.66, 1.0)))
    height, width = (short, long) if rng.random() < 0.6 else (long, short)
    canvas = _background(rng, height, width)
    objects: list[_Object] = []
    count = 0 if rng.random() < _EMPTY else int(rng.integers(1, 9))
    for _ in range(4 * count):
        if len(objects) == count:
            break
        extent = _SMALLEST * (min(_LARGEST, short * 0.85) / _SMALLEST) ** (rng.random() ** _SKEW)
        label = int(rng.integers(len(CLASSES)))
        objects = _place(rng, canvas, objects, label, extent)
    noise = rng.normal(0, 3, canvas.shape).astype(np.float32)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), objects


def _place(
    rng: np.random.Generator, canvas: _Floats, objects: list[_Object], label: int, extent: float
) -> list[_Object]:
    """Draw one more object onto the canvas (H, W, 3), unless too much would be hidden by it or the border."""
    height, width = canvas.shape[:2]
    patch = _alpha(rng, CLASSES[label], extent)
    side = patch.shape[0]
    slack = extent / 5  # how far an object may stick out
    left = round(rng.uniform(-slack, width - side + slack))
    top = round(rng.uniform(-slack, height - side + slack))
    alpha = np.zeros((height, width), dtype=np.float32)
    rows = slice(max(0, top), min(height, top + side))
    columns = slice(max(0, left), min(width, left + side))
    alpha[rows, columns] = patch[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    mask = alpha >= 0.5
    rest = [item._replace(mask=item.mask & ~mask) for item in objects]
    hidden = any(int(item.mask.sum()) < _VISIBLE * item.full for item in rest)
    if hidden or int(mask.sum()) < max(1.0, _VISIBLE * int((patch >= 0.5).sum())):
        return objects
    part = canvas[rows, columns]
    weight = alpha[rows, columns, None]
    part += weight * (_paint(rng, part, weight) - part)
    return [*rest, _Object(label, mask, int(mask.sum()))]


def _alpha(rng: np.random.Generator, shape: str, extent: float) -> _Floats:
    """Coverage (S, S), 0..1, of a shape, turned a little, whose box's longest side is `extent` pixels."""
    angle = rng.uniform(-_TURN, _TURN)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    squeeze = np.array([1.0, rng.uniform(0.75, 1.0)])
    outline = (_SHAPES[shape]() * squeeze) @ turn
    low, high = outline.min(0), outline.max(0)
    side = int(np.ceil(extent)) + 1
    centred = (outline - (low + high) / 2) * (extent / (high - low).max()) + side / 2
    image = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    points = [(float(x), float(y)) for x, y in centred * _OVERSAMPLING - 0.5]
    ImageDraw.Draw(image).polygon(points, fill=255)
    coverage: _Floats = np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32) / np.float32(255)
    return coverage


def _paint(rng: np.random.Generator, part: _Floats, weight: _Floats) -> _Floats:
    """Colour of an object, (h, w, 3), shaded, well apart from what it covers."""
    under = (part * weight).sum((0, 1)) / weight.sum()
    colours = rng.uniform(0, 255, (6, 3))
    colour = colours[np.abs(colours - under).sum(1).argmax()]
    height, width = part.shape[:2]
    slope = rng.uniform(-20, 20, 2)
    shade = np.linspace(-1, 1, height)[:, None] * slope[0] + np.linspace(-1, 1, width) * slope[1]
    painted: _Floats = (colour + shade[..., None]).astype(np.float32)
    return painted


def _background(rng: np.random.Generator, height: int, width: int) -> _Floats:
    """A gradient with stripes and noise at several scales, (H, W, 3), 0..255."""
    corners = rng.uniform(60, 180, (2, 2, 1)) + rng.uniform(-20, 20, (2, 2, 3))
    canvas = _resized(corners, height, width)
    for cells, strength in ((4, 14), (12, 9), (40, 6)):
        canvas += _resized(rng.normal(0, strength, (cells, cells, 3)), height, width)
    if rng.random() < 0.5:
        angle, period, contrast = rng.uniform(0, np.pi), rng.uniform(6, 40), rng.uniform(4, 12)
        rows, columns = np.mgrid[:height, :width]
        wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * (2 * np.pi / period)) * contrast
        canvas += wave[..., None].astype(np.float32)
    return np.clip(canvas, 0, 255)


def _resized(grid: NDArray[np.float64], height: int, width: int) -> _Floats:
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(grid.astype(np.float32), -1, 0)
    ]
    return np.stack(channels, -1)

"""What the numbers of a data set say about how to train on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from msefpn.data.coco import CocoData
from msefpn.data.images import fitted_size

PYRAMID_STRIDES = (4, 8, 16, 32, 64)
ANCHOR_SIDES = tuple(8 * stride for stride in PYRAMID_STRIDES)
"""Sides of the square anchors, pixels, one per level (mmdetection's Faster R-CNN)."""
TINY = 2 * PYRAMID_STRIDES[0]
"""Pixels, two cells of the finest level: smaller objects can hardly be detected."""
NARROW = 3.0
"""Long side to short side: longer boxes fit no anchor (1:2 to 2:1) well."""

_MANY_TINY, _SOME_TINY, _FEW_TINY = 0.2, 0.1, 0.02
_LARGE = 64.0  # pixels: where nearly all boxes are larger, half the input size is enough
_ENLARGED = 1.25  # enlarging images by more than this brings nothing
_FEW_BOXES = 10
_COUNTED = 100  # detections of an image that COCO's protocol looks at
_STEP = 32  # pixels: sides of images are padded to multiples of it


def resized_boxes(data: CocoData, size: tuple[int, int]) -> NDArray[np.float64]:
    """Width and height (R, 2) of the boxes, crowd regions aside, when their images are resized.

    Args:
        data: the images and boxes.
        size: longest and shortest side to fit into, pixels.
    """
    factors = np.repeat(resize_factors(data, size), np.diff(data.offsets))
    extent: NDArray[np.float64] = (data.boxes[:, 2:] - data.boxes[:, :2]) * factors[:, None]
    return extent[~data.crowd]


def resize_factors(data: CocoData, size: tuple[int, int]) -> NDArray[np.float64]:
    """By how much each image (N,) is enlarged to fit into `size`."""
    heights = [fitted_size(int(height), int(width), *size)[0] for height, width in data.sizes]
    return np.array(heights) / data.sizes[:, 0]


def advise(
    data: CocoData, size: tuple[int, int], misses: Callable[[tuple[int, int]], bool] | None = None
) -> list[str]:
    """Sentences on input size, tiling and classes, from the training split.

    Args:
        data: the training split.
        size: longest and shortest side that images will be resized to fit into, pixels.
        misses: whether the detector's anchors would miss many objects at an input size, which is then not
            advised; None: not known.
    """
    extent = resized_boxes(data, size)
    if not len(extent):
        return []
    on_size = _on_size(data, extent, size, misses or (lambda _: False))
    lines = [on_size] if on_size else []
    counts = np.bincount(data.labels[~data.crowd], minlength=len(data.classes))
    rare = [f"{name} {count}" for name, count in zip(data.classes, counts, strict=True) if count < _FEW_BOXES]
    if rare:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        lines.append(
            f"under {_FEW_BOXES} training boxes: {', '.join(rare[:5])}{more}: label more, or merge classes"
        )
    crowded = int((np.diff(data.offsets) > _COUNTED).sum())
    if crowded:
        lines.append(
            f"{crowded} images hold more than {_COUNTED} boxes, and COCO's protocol looks at {_COUNTED} "
            "detections: cut these images into tiles"
        )
    return lines


def _on_size(
    data: CocoData,
    extent: NDArray[np.float64],
    size: tuple[int, int],
    misses: Callable[[tuple[int, int]], bool],
) -> str:
    """The sentence on the input size; empty where the objects have pixels enough and miss the anchors."""
    longer = extent.max(1)
    tiny = float((longer < TINY).mean())
    if tiny >= _MANY_TINY:
        factor = TINY / float(np.quantile(longer, _SOME_TINY))
        larger = _scaled(size, factor)
        seen = f"{tiny:.0%} of the boxes are under {TINY} px after the resize into {as_size(size)}"
        if factor <= 2:
            return f"{seen}: train with --size {as_size(larger)}, or predict with --tile"
        return f"{seen}, too many for a larger --size alone ({as_size(larger)}): predict with --tile"
    factor = 1 / float(np.median(resize_factors(data, size)))
    if factor < 1 / _ENLARGED and float((longer * factor < TINY).mean()) <= _FEW_TINY:
        own = _scaled(size, factor)
    else:
        own = size
    if own != size and not misses(own):
        return (
            f"the images are enlarged {1 / factor:.1f} times, and their boxes are large enough as they are: "
            f"--size {as_size(own)} takes {_saved(size, own)} of the time"
        )
    low = float(np.quantile(longer, 0.05))
    smaller = _scaled(size, max(0.5, _LARGE / 2 / low))
    if low > _LARGE and min(smaller) >= 4 * _STEP and not misses(smaller):
        return (
            f"19 of 20 boxes are over {low:.0f} px: --size {as_size(smaller)} shows them too, in "
            f"{_saved(size, smaller)} of the time"
        )
    return "" if misses(size) else f"sizes fit: keep --size {as_size(size)}"


def as_size(size: tuple[int, int]) -> str:
    """How `--size` is given."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    long, short = (max(_STEP, int(np.ceil(round(side * factor / _STEP, 2))) * _STEP) for side in size)
    return long, short


def _saved(size: tuple[int, int], other: tuple[int, int]) -> str:
    return f"about {other[0] * other[1] / (size[0] * size[1]):.0%}"

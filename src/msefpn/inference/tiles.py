"""Detection on overlapping tiles of a large image, for small objects, and on the whole image, for large ones.

The idea of slicing-aided inference (arXiv 2202.06934). supervision's InferenceSlicer does
not detect on the whole image, decodes every mask to the image's size, and keeps the parts of objects that a
tile's border cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from msefpn.data.masks import moved_mask
from msefpn.inference.detect import Predictions, merge_predictions

Detect = Callable[[Sequence[NDArray[np.uint8]]], list[Predictions]]
"""Images (H, W, 3) to their predictions, such as a `Predictor`."""
IOU = 0.5
"""Two boxes of a class with a larger IoU are one object, where nothing else is said."""
INSIDE = 0.6
"""A cut box belongs to another box of its class that holds more than this fraction of its area."""
_TOUCH = 2.0
"""A box that ends this near to a tile's border, in pixels, is cut by it."""


def windows(height: int, width: int, tile: tuple[int, int], overlap: float) -> NDArray[np.int64]:
    """Tiles (T, 4), xyxy, that cover an image evenly, none of them larger than `tile`.

    Args:
        height: of the image, pixels.
        width: likewise.
        tile: width and height, pixels.
        overlap: least overlap of neighbouring tiles, as a fraction of a side.
    """
    columns, rows = _starts(width, tile[0], overlap), _starts(height, tile[1], overlap)
    x, y = (axis.reshape(-1) for axis in np.meshgrid(columns, rows))
    return np.stack([x, y, np.minimum(x + tile[0], width), np.minimum(y + tile[1], height)], 1)


def _starts(length: int, side: int, overlap: float) -> NDArray[np.int64]:
    if length <= side:
        return np.zeros(1, np.int64)
    count = int(np.ceil((length - side) / (side * (1 - overlap)))) + 1
    return np.linspace(0, length - side, count).round().astype(np.int64)


def detect_in_tiles(
    detect: Detect,
    pixels: NDArray[np.uint8],
    *,
    tile: tuple[int, int],
    overlap: float,
    batch: int,
    iou: float | None = None,
) -> Predictions:
    """Detect on an image and on its tiles, and merge the predictions.

    Args:
        detect: detects on images.
        pixels: (H, W, 3) RGB.
        tile: width and height of a tile, pixels; an image that fits in it has none.
        overlap: of neighbouring tiles, as a fraction of a side.
        batch: images and tiles at a time.
        iou: two boxes of a class with a larger IoU are one object; None: `IOU`.
    """
    height, width = pixels.shape[:2]
    tiles = windows(height, width, tile, overlap)
    whole = np.array([[0, 0, width, height]])
    views = whole if len(tiles) == 1 else np.concatenate([whole, tiles])
    parts, pieces = [], []
    for start in range(0, len(views), batch):
        group = views[start : start + batch].tolist()
        for view, found in zip(group, detect([pixels[y:b, x:r] for x, y, r, b in group]), strict=True):
            moved = _moved(found, view, (height, width))
            parts.append(moved)
            pieces.append(_is_piece(moved.boxes, view, (height, width)))
    together = merge_predictions(parts)
    if len(views) == 1:
        return together
    return together.where(suppress(together, np.concatenate(pieces), IOU if iou is None else iou))


def _moved(found: Predictions, view: Sequence[int], size: tuple[int, int]) -> Predictions:
    """The predictions for a view, in pixels of the whole image of `size`: height and width."""
    x, y = view[:2]
    masks = found.masks
    if masks is not None:
        masks = np.empty(len(found.boxes), dtype=object)
        for row, mask in enumerate(found.masks if found.masks is not None else ()):
            masks[row] = moved_mask(mask, (y, x), size)
    boxes = found.boxes + np.array([x, y, x, y], np.float32)
    return Predictions(
        np.zeros_like(found.image_ids), boxes, found.scores, found.labels, masks, found.num_dropped
    )


def _is_piece(boxes: NDArray[np.float32], view: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes (M, 4) end at a border of the view that is not the image's own."""
    height, width = size
    inner = np.array([view[0] > 0, view[1] > 0, view[2] < width, view[3] < height])
    pieces: NDArray[np.bool_] = ((np.abs(boxes - np.array(view)) <= _TOUCH) & inner).any(axis=1)
    return pieces


def suppress(found: Predictions, pieces: NDArray[np.bool_], iou: float = IOU) -> NDArray[np.int64]:
    """Rows to keep, best first: per class, whole objects before pieces (M,) that a border cuts."""
    order = np.lexsort((-found.scores, pieces))
    boxes, areas = found.boxes[order], _areas(found.boxes[order])
    labels, cut = found.labels[order], pieces[order]
    alive = np.ones(len(order), bool)
    for row in range(len(order)):
        if not alive[row]:
            continue
        rest = row + 1 + np.flatnonzero(alive[row + 1 :] & (labels[row + 1 :] == labels[row]))
        corners = np.maximum(boxes[row, :2], boxes[rest, :2]), np.minimum(boxes[row, 2:], boxes[rest, 2:])
        shared = _areas(np.concatenate(corners, 1))
        same = shared > iou * (areas[row] + areas[rest] - shared)
        alive[rest[same | (cut[rest] & (shared > INSIDE * areas[rest]))]] = False
    kept = order[alive]
    best: NDArray[np.int64] = kept[np.argsort(-found.scores[kept], kind="stable")]
    return best


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    areas: NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return areas

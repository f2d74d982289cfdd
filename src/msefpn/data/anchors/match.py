"""The objects of a split, and the matchers of `msefpn.models` on all of them at once, in numpy.

Where torch compares every anchor with every object, here an object meets only the cells around it: those
whose anchors can reach the IoU that matters. Arithmetic is the same, in float32, so the results are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msefpn.data.anchors.rules import BoxRule, PointRule, Rule, ShapeRule
from msefpn.data.coco import CocoData
from msefpn.data.images import fitted_size

MOST_OBJECTS = 20_000
"""Of a larger set, evenly chosen images with about so many are measured."""
Rows = NDArray[np.int64]
Reals = NDArray[np.float64]
_SLACK = 1e-4
"""IoU, relative, by which the search for cells is wider than what is kept."""
_CHUNK = 4000
"""Objects whose anchors are held at a time; whole images."""
_CELLS = 1 << 24
"""More than a level's cells, and the factor between the keys of its anchors."""


@dataclass(frozen=True)
class Objects:
    """R objects on N images, as training meets them: resized, crowd regions aside."""

    boxes: NDArray[np.float32]
    """(R, 4) xyxy, pixels of the resized images."""
    image: NDArray[np.int64]
    """(R,) row of each one's image in `sizes`, ascending."""
    labels: NDArray[np.int64]
    """(R,) 0..K-1."""
    sizes: NDArray[np.int64]
    """(N, 2) height and width of the resized images, pixels."""
    classes: tuple[str, ...]
    total: int
    """Objects of the whole split, of which these are a part or all."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def sides(self) -> NDArray[np.float64]:
        """(R,) square roots of the areas, pixels."""
        extent = (self.boxes[:, 2:] - self.boxes[:, :2]).astype(np.float64)
        sides: NDArray[np.float64] = np.sqrt(extent.prod(axis=1))
        return sides

    def fewer(self, most: int) -> Objects:
        """Those of evenly chosen images, about `most` of them."""
        step = -(-len(self) // most)
        return self if step <= 1 else self.of_images(self.image % step == 0)

    def of_images(self, chosen: NDArray[np.bool_]) -> Objects:
        """The objects chosen, (R,) bool; the images keep their rows."""
        return Objects(
            self.boxes[chosen],
            self.image[chosen],
            self.labels[chosen],
            self.sizes,
            self.classes,
            self.total,
        )


def resized_objects(data: CocoData, size: tuple[int, int], *, most: int = MOST_OBJECTS) -> Objects:
    """The objects of a split when its images are resized as training does without augmentation.

    Args:
        data: the images and boxes.
        size: longest and shortest side to fit into, pixels.
        most: about so many objects are taken, of evenly chosen images.
    """
    sizes = np.array([fitted_size(int(h), int(w), *size) for h, w in data.sizes]).reshape(-1, 2)
    ratio = sizes / np.maximum(data.sizes.reshape(-1, 2), 1)
    image = np.repeat(np.arange(len(data), dtype=np.int64), np.diff(data.offsets))
    kept = ~data.crowd
    image = image[kept]
    factors = np.tile(ratio[:, ::-1], 2)[image]  # (R, 4) as x, y, x, y
    boxes = (data.boxes[kept] * factors).astype(np.float32)
    labels = data.labels[kept]
    return Objects(boxes, image, labels, sizes, data.classes, len(boxes)).fewer(most)


class Meeting(NamedTuple):
    """What anchors do to R objects."""

    met: NDArray[np.bool_]
    """(R,) has a positive anchor."""
    iou: NDArray[np.float32]
    """(R,) the largest IoU with an anchor (YOLOv3: with a shape); of points, 1 where one fits."""


class _Level(NamedTuple):
    """The cells of a level, for R objects: along x and y, (R, 2)."""

    step: Reals
    """Distance of the cells, pixels."""
    cells: Rows
    """How many there are."""


class _Pairs(NamedTuple):
    """P pairs of an anchor and an object."""

    object: Rows
    key: Rows
    """Which anchor, over all images."""
    iou: NDArray[np.float32]
    anchor: NDArray[np.float32]
    """(P, 4)."""


def meet(objects: Objects, rule: Rule) -> Meeting:
    """Assign as in training, each image padded to a multiple of 32 as if alone in its batch."""
    met = np.zeros(len(objects), dtype=np.bool_)
    iou = np.zeros(len(objects), dtype=np.float32)
    for part in _chunks(objects):
        found = _meet(objects.of_images(part), rule)
        met[part], iou[part] = found
    return Meeting(met, iou)


def _chunks(objects: Objects) -> Iterator[NDArray[np.bool_]]:
    """Objects of whole images, some thousands at a time."""
    if not len(objects):
        return
    starts = np.searchsorted(objects.image, objects.image)  # of each object's image
    group = starts // _CHUNK
    for number in np.unique(group):
        yield group == number


def _meet(objects: Objects, rule: Rule) -> Meeting:
    if isinstance(rule, PointRule):
        return _meet_points(objects, rule)
    if isinstance(rule, ShapeRule):
        return _meet_shapes(objects, rule)
    return _meet_boxes(objects, rule)


def best_iou(objects: Objects, rule: BoxRule) -> Reals:
    """(R,) IoU of each object with its best anchor, which is in the nearest cell."""
    best = np.zeros(len(objects))
    extent, centre = _extent(objects)
    for number, shapes in enumerate(rule.shapes):
        level = _level(objects, rule.strides[number], whole_steps=rule.whole_steps)
        for shape in shapes:
            sides = _sides(objects, rule, shape)
            low, high = _usable(objects, rule, level, sides)
            cell = np.clip(np.round(centre / level.step - rule.offset), low, high)
            away = np.abs((cell + rule.offset) * level.step - centre)
            shared = (
                np.minimum(np.minimum(sides, extent), (sides + extent) / 2 - away).clip(min=0).prod(axis=1)
            )
            iou = shared / (sides.prod(axis=1) + extent.prod(axis=1) - shared)
            best = np.maximum(best, np.where((low <= high).all(axis=1), iou, 0))
    return best


def _meet_boxes(objects: Objects, rule: BoxRule) -> Meeting:
    best = best_iou(objects, rule)
    least = np.minimum(best, rule.positive_iou) * (1 - _SLACK)
    least[(best < rule.least_iou * (1 - _SLACK)) | (best <= 0)] = np.inf
    pairs = _joined(list(_pairs(objects, rule, least)))
    top = np.zeros(len(objects), dtype=np.float32)
    np.maximum.at(top, pairs.object, pairs.iou)
    wins = (
        (top[pairs.object] == pairs.iou) & (pairs.iou >= np.float32(rule.low_quality_iou)) & (pairs.iou > 0)
    )
    positive = pairs.iou >= np.float32(rule.positive_iou)
    if not rule.reassign:
        owners = [_owners(objects, pairs, positive | wins)[1]]
    else:
        won, last = _last_of(pairs.key[wins], pairs.object[wins])
        free = positive & ~np.isin(pairs.key, won)
        owners = [last, _first_best(pairs.key[free], -pairs.iou[free], pairs.object[free])[1]]
    met = np.zeros(len(objects), dtype=np.bool_)
    met[np.concatenate(owners)] = True
    return Meeting(met, np.maximum(top, best.astype(np.float32)))


def _owners(objects: Objects, pairs: _Pairs, positive: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Positive anchors, and the object of the image that each overlaps most (torchvision's assignment)."""
    keys, first = np.unique(pairs.key[positive], return_index=True)
    anchor = pairs.anchor[positive][first]
    image = objects.image[pairs.object[positive][first]]
    start, end = (np.searchsorted(objects.image, image, side) for side in ("left", "right"))
    row, within = _repeated(end - start)
    other = start[row] + within
    return _first_best(keys[row], -_iou(anchor[row], objects.boxes[other]), other)


def _last_of(key: Rows, object_: Rows) -> tuple[Rows, Rows]:
    """Each key, and the last object that has it."""
    order = np.lexsort((-object_, key))
    keys, first = np.unique(key[order], return_index=True)
    return keys, object_[order][first]


def _first_best(key: Rows, cost: NDArray[np.floating], object_: Rows) -> tuple[Rows, Rows]:
    """Each key, and the object of least cost that has it, the first of several."""
    order = np.lexsort((object_, cost, key))
    keys, first = np.unique(key[order], return_index=True)
    return keys, object_[order][first]


def _pairs(objects: Objects, rule: BoxRule, least: Reals) -> Iterator[_Pairs]:
    """The pairs of an IoU of at least `least` (R,), for each level and shape."""
    extent, centre = _extent(objects)
    area = extent.prod(axis=1)
    for number, shapes in enumerate(rule.shapes):
        level = _level(objects, rule.strides[number], whole_steps=rule.whole_steps)
        for which, shape in enumerate(shapes):
            sides = _sides(objects, rule, shape)
            low, high = _usable(objects, rule, level, sides)
            both = np.minimum(sides, extent)
            with np.errstate(invalid="ignore"):
                needed = least / (1 + least) * (area + sides.prod(axis=1))  # of the intersection
                reach = (sides + extent) / 2 - needed[:, None] / both[:, ::-1]
            near = np.isfinite(least) & (needed <= both.prod(axis=1) * (1 + _SLACK))
            rows = np.flatnonzero(near & (low <= high).all(axis=1))
            reach = reach[rows] + level.step[rows] * 1e-6
            low, high, step = low[rows], high[rows], level.step[rows]
            low = np.maximum(np.ceil((centre[rows] - reach) / step - rule.offset), low)
            high = np.minimum(np.floor((centre[rows] + reach) / step - rule.offset), high)
            count = np.maximum(high - low + 1, 0).astype(np.int64)
            row, within = _repeated(count.prod(axis=1))
            cell = low[row] + np.stack([within % count[row, 0], within // count[row, 0]], axis=1)
            object_ = rows[row]
            anchor = _placed(cell, step[row], rule.offset, sides[object_])
            iou = _iou(anchor, objects.boxes[object_])
            kept = iou >= least[object_]
            name = (objects.image[object_] * len(rule.shapes) + number) * 64 + which
            index = cell[:, 1].astype(np.int64) * level.cells[object_, 0] + cell[:, 0].astype(np.int64)
            key = name * _CELLS + index
            yield _Pairs(object_[kept], key[kept], iou[kept], anchor[kept])


def _joined(parts: list[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _placed(cell: Reals, step: Reals, offset: float, sides: Reals) -> NDArray[np.float32]:
    """Anchors (P, 4) around cells (P, 2), rounded as float32 arithmetic does."""
    centre = ((cell + offset) * step).astype(np.float32)
    half = (sides / 2).astype(np.float32)
    return np.concatenate([centre - half, centre + half], axis=1)


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU of pairs (P, 4), in the operations and the precision of `models.boxes.pairwise_iou`."""
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(min=0)
    intersection = shared[:, 0] * shared[:, 1]
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    union = areas[0] + areas[1] - intersection
    found: NDArray[np.float32] = intersection / np.maximum(union, np.float32(1e-6))
    return found


def _meet_points(objects: Objects, rule: PointRule) -> Meeting:
    extent, centre = _extent(objects)
    keys, owners, areas = [], [], []
    for number, stride in enumerate(rule.strides):
        level = _level(objects, stride, whole_steps=rule.whole_steps)
        least = rule.low * stride if number else 0.0
        most = rule.high * stride if number < len(rule.strides) - 1 else np.inf
        reach = np.minimum(rule.radius * stride, extent / 2) + stride * 1e-6
        low = np.maximum(np.ceil((centre - reach) / level.step - rule.offset), 0)
        high = np.minimum(np.floor((centre + reach) / level.step - rule.offset), level.cells - 1)
        count = np.maximum(high - low + 1, 0).astype(np.int64)
        row, within = _repeated(count.prod(axis=1))
        cell = low[row] + np.stack([within % count[row, 0], within // count[row, 0]], axis=1)
        sides = np.full((len(row), 2), float(stride))
        anchor = _placed(cell, level.step[row], rule.offset, sides)
        point, box = (anchor[:, :2] + anchor[:, 2:]) / 2, objects.boxes[row]
        distances = np.concatenate([point - box[:, :2], box[:, 2:] - point], axis=1)
        off = np.abs(point - (box[:, :2] + box[:, 2:]) / 2).max(axis=1)
        farthest = distances.max(axis=1)
        fits = (distances.min(axis=1) > 0) & (off < rule.radius * stride)
        if rule.inclusive:
            fits &= (farthest >= least) & (farthest <= most)
        else:
            fits &= (farthest > least) & (farthest < most)
        index = cell[:, 1].astype(np.int64) * level.cells[row, 0] + cell[:, 0].astype(np.int64)
        key = (objects.image[row] * len(rule.strides) + number) * _CELLS + index
        keys.append(key[fits])
        owners.append(row[fits])
        areas.append((box[:, 2:] - box[:, :2]).prod(axis=1)[fits])
    met, held = np.zeros(len(objects), dtype=np.bool_), np.zeros(len(objects), dtype=np.float32)
    owner = np.concatenate(owners)
    met[_first_best(np.concatenate(keys), np.concatenate(areas), owner)[1]] = True
    held[owner] = 1
    return Meeting(met, held)


def _meet_shapes(objects: Objects, rule: ShapeRule) -> Meeting:
    size = objects.boxes[:, 2:] - objects.boxes[:, :2]  # (R, 2)
    centre = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2
    shapes = np.concatenate(rule.shapes)
    shared = np.minimum(size[:, None], shapes).prod(axis=2)
    union = size.prod(axis=1)[:, None] + shapes.prod(axis=1) - shared
    iou = shared / np.maximum(union, np.float32(1e-6))  # (R, A)
    best = iou.argmax(axis=1)
    of_level = np.repeat(np.arange(len(rule.shapes)), [len(level) for level in rule.shapes])[best]
    stride = np.array(rule.strides)[of_level][:, None]
    padded = (objects.sizes[objects.image, ::-1] + 31) // 32 * 32
    cells = -(-padded // stride)
    cell = np.clip((centre / stride).astype(np.int64), 0, cells - 1)
    key = (objects.image * len(shapes) + best) * _CELLS + cell[:, 1] * cells[:, 0] + cell[:, 0]
    met = np.zeros(len(objects), dtype=np.bool_)
    met[_last_of(key, np.arange(len(objects)))[1]] = True
    return Meeting(met, iou.max(axis=1).astype(np.float32))


def _extent(objects: Objects) -> tuple[Reals, Reals]:
    """Width and height, and centre, of the objects: (R, 2) each, pixels."""
    boxes = objects.boxes.astype(np.float64)
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9), (boxes[:, :2] + boxes[:, 2:]) / 2


def _level(objects: Objects, stride: int, *, whole_steps: bool) -> _Level:
    padded = (objects.sizes[objects.image, ::-1] + 31) // 32 * 32  # (R, 2) as x, y
    cells = -(-padded // stride)
    step = padded // cells if whole_steps else np.full_like(padded, stride)
    return _Level(step.astype(np.float64), cells)


def _sides(objects: Objects, rule: BoxRule, shape: NDArray[np.float32]) -> Reals:
    """Width and height (R, 2), pixels, of an anchor on the objects' images."""
    if not rule.relative:
        return np.broadcast_to(shape.astype(np.float64), (len(objects), 2))
    padded = ((objects.sizes[objects.image, ::-1] + 31) // 32 * 32).astype(np.float32)
    sides: Reals = (shape * padded).astype(np.float64)
    return sides


def _usable(objects: Objects, rule: BoxRule, level: _Level, sides: Reals) -> tuple[Reals, Reals]:
    """First and last cell (R, 2) whose anchor takes part."""
    low: Reals = np.zeros(sides.shape)
    high = (level.cells - 1).astype(np.float64)
    if rule.border is None:
        return low, high
    image = objects.sizes[objects.image, ::-1].astype(np.float64)
    low = np.maximum(low, np.ceil((sides / 2 - rule.border) / level.step - rule.offset))
    inside = (image + rule.border - sides / 2) / level.step - rule.offset
    high = np.minimum(high, np.ceil(inside) - 1)  # by less than the border there, see `boxes.within`
    return low, high


def _repeated(counts: Rows) -> tuple[Rows, Rows]:
    """For counts (n,) the row, as often as its count says, and the number within the row."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)

"""How each detector assigns anchors to objects, as data: what its head's constructor and matcher do.

The defaults repeat those of the heads, which need torch; a test compares each rule with the built head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.errors import UserError, unknown_name

Shapes = NDArray[np.float32]
"""(A, 2) width and height of the anchors of a cell."""

_LEVELS = (4, 8, 16, 32)
_EXTRA = {"none": 0, "pool": 1}  # the others add two
_PART = {"faster_rcnn": "rpn", "mask_rcnn": "rpn", "cascade_rcnn": "rpn"}
_HEADS = ("retinanet", "ssd", "yolov3")
_PRESETS = ("mmdetection", "torchvision")
_FCOS_PRESETS = ("mmdetection", "journal", "conference", "torchvision")
ANCHORS: Mapping[str, Mapping[str, Any]] = {
    "rpn": {"anchor_scale": 8.0, "ratios": [0.5, 1.0, 2.0]},
    "retinanet": {"anchor_scale": 4.0, "ratios": [0.5, 1.0, 2.0]},
    "ssd": {"smallest": 0.15, "largest": 0.9},
    "yolov3": {
        "anchors": [
            [[10, 13], [16, 30], [33, 23]],
            [[30, 61], [62, 45], [59, 119]],
            [[116, 90], [156, 198], [373, 326]],
        ]
    },
}
"""Options that decide the anchors, with their defaults, of the RPN and of the other heads."""


@dataclass(frozen=True)
class BoxRule:
    """Anchors of fixed shapes in every cell, assigned by IoU: `models.matching.MaxIoUMatcher`."""

    strides: tuple[int, ...]
    shapes: tuple[Shapes, ...]
    """For each level, pixels; where `relative`, parts of the padded image's sides."""
    positive_iou: float
    low_quality_iou: float
    """Each object also gets its best anchors if their IoU is at least this, and above 0."""
    offset: float = 0.0
    """Where in a cell the anchors are centred, in strides."""
    reassign: bool = True
    border: float | None = None
    """Anchors that stand out of the image by more pixels take no part."""
    relative: bool = False
    whole_steps: bool = False
    """A level's stride is the padded side divided by the grid's, without the remainder (torchvision)."""

    @property
    def least_iou(self) -> float:
        """IoU that an object's best anchor needs."""
        return min(self.positive_iou, self.low_quality_iou)


@dataclass(frozen=True)
class PointRule:
    """FCOS's central points: `models.matching.PointMatcher`."""

    strides: tuple[int, ...]
    radius: float = 1.5
    """Of the central region, in strides; infinite: it is the whole box."""
    low: float = 4.0
    high: float = 8.0
    offset: float = 0.5
    whole_steps: bool = False
    inclusive: bool = True
    """The limits of the size are within."""


@dataclass(frozen=True)
class ShapeRule:
    """YOLOv3's: the anchor of the most similar shape in the cell of the object's centre."""

    strides: tuple[int, ...]
    shapes: tuple[Shapes, ...]
    """For each level, pixels."""


Rule = BoxRule | PointRule | ShapeRule


def options_part(detector: str) -> tuple[str, tuple[str, ...]] | None:
    """Key in `detector_options`, and keys below it, that decide the anchors; None: the detector has none."""
    if detector in _PART:
        return "rpn", tuple(ANCHORS["rpn"])
    return ("head", tuple(ANCHORS[detector])) if detector in _HEADS else None


def without_anchors(detector: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's options without those that decide its anchors."""
    part = options_part(detector)
    if part is None or part[0] not in options:
        return dict(options)
    kept = {key: value for key, value in (options[part[0]] or {}).items() if key not in part[1]}
    return {**options, part[0]: kept}


def rule_for(
    detector: str,
    options: Mapping[str, Any],
    neck_options: Mapping[str, Any] | None = None,
    *,
    strides: Sequence[int] | None = None,
) -> Rule | None:
    """The rule of one of the package's detectors.

    Args:
        detector: its name.
        options: its options, as in `Config.detector_options`.
        neck_options: the neck's, which may ask for other levels.
        strides: those of the pyramid; None: a backbone's of strides 4 to 32, with the levels that the
            detector and the neck's options ask for.

    Returns:
        The rule; None for fast_rcnn, which is given its regions, and for plug-ins.

    Raises:
        UserError: an option of the anchors that is not a number, or numbers.
    """
    part = options_part(detector)
    if part is None and detector != "fcos":
        return None
    own = ANCHORS.get("rpn" if detector in _PART else detector, {})
    given = {**own, **(options.get(part[0] if part else "head") or {})}
    preset = options.get("preset", _PRESETS[0])
    presets = _FCOS_PRESETS if detector == "fcos" else _PRESETS
    if preset not in presets:
        raise unknown_name("preset", preset, presets)
    torchvision = preset == "torchvision"
    where = f"detector_options.{part[0] if part else 'head'}"
    levels = tuple(strides) if strides is not None else _strides(detector, neck_options or {})
    if detector == "fcos":
        return _points(levels, given, where, preset)
    if detector == "yolov3":
        return ShapeRule(levels, tuple(_yolo_shapes(given["anchors"], len(levels))))
    if detector == "ssd":
        return _ssd(levels, given, where)
    return _grid(detector, levels, given, where, torchvision=torchvision)


def number(value: Any, what: str, *, low: float = 1e-6, high: float = 1e6) -> float:
    """A finite number within bounds. Raises UserError."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not good:
        raise UserError(f"{what} is {value!r}: give a number from {low:g} to {high:g}")
    return float(value)


def number_list(values: Any, what: str) -> tuple[float, ...]:
    """Some positive numbers. Raises UserError."""
    if not isinstance(values, (list, tuple)) or not values:
        raise UserError(f"{what} is {values!r}: give a list of numbers, such as [0.5, 1.0, 2.0]")
    return tuple(number(value, what) for value in values)


def _strides(detector: str, neck_options: Mapping[str, Any]) -> tuple[int, ...]:
    two_stage = detector in _PART
    extra = "pool" if two_stage else "none" if detector == "yolov3" else "conv"
    start = neck_options.get("start_level", 0 if two_stage else 1)
    levels = [*_LEVELS[start if isinstance(start, int) else 0 :]]
    for _ in range(_EXTRA.get(neck_options.get("extra_levels", extra), 2)):
        levels.append(2 * levels[-1])
    return tuple(levels)


def _points(strides: tuple[int, ...], given: Mapping[str, Any], where: str, preset: str) -> PointRule:
    torchvision = preset == "torchvision"
    radius = given.get("radius", None if preset == "conference" else 1.5)
    return PointRule(
        strides,
        math.inf if radius is None else number(radius, f"{where}.radius"),
        offset=number(given.get("offset", 0.0 if torchvision else 0.5), f"{where}.offset", low=0),
        whole_steps=bool(given.get("integer_anchors", torchvision)),
        inclusive=bool(given.get("inclusive", not torchvision)),
    )


def _grid(
    detector: str, strides: tuple[int, ...], given: Mapping[str, Any], where: str, *, torchvision: bool
) -> BoxRule:
    """RetinaNet's anchors, or those of an RPN."""
    retina = detector == "retinanet"
    scale = number(given["anchor_scale"], f"{where}.anchor_scale")
    ratios = number_list(given["ratios"], f"{where}.ratios")
    scales = [scale * 2 ** (i / 3) for i in range(3)] if retina else [scale]
    whole = bool(given.get("integer_anchors", torchvision))
    low = 0.0 if retina or torchvision else 0.3
    border = given.get("border", 0.0 if detector == "cascade_rcnn" else None)
    return BoxRule(
        strides,
        tuple(_cell(stride, scales, ratios, whole=whole) for stride in strides),
        number(given.get("positive_iou", 0.5 if retina else 0.7), f"{where}.positive_iou"),
        low if retina else number(given.get("low_quality_iou", low), f"{where}.low_quality_iou", low=0),
        reassign=bool(given.get("reassign", not torchvision)),
        border=None if border is None else number(border, f"{where}.border", low=0),
        whole_steps=whole,
    )


def _cell(stride: int, scales: Sequence[float], ratios: Sequence[float], *, whole: bool) -> Shapes:
    """The shapes of a cell, in float32 as `models.anchors.AnchorGenerator` has them."""
    sizes = [int(stride * scale) if whole else stride * scale for scale in scales]
    size, root = np.array(sizes, dtype=np.float32), np.sqrt(np.array(ratios, dtype=np.float32))
    half = np.stack([(size / root[:, None]).ravel(), (size * root[:, None]).ravel()], axis=1) / 2
    return (2 * (np.round(half) if whole else half)).astype(np.float32)


def _ssd(strides: tuple[int, ...], given: Mapping[str, Any], where: str) -> BoxRule:
    low = number(given["smallest"], f"{where}.smallest", high=1)
    high = number(given["largest"], f"{where}.largest", high=1)
    last = len(strides) - 1
    scales = [low + (high - low) * k / max(last, 1) for k in range(last + 1)] + [1.0]
    levels = []
    for k, scale in enumerate(scales[:-1]):
        sides = [(scale, scale), (math.sqrt(scale * scales[k + 1]),) * 2]
        for ratio in (2.0,) if k in (0, last - 1, last) else (2.0, 3.0):
            wide = (scale * math.sqrt(ratio), scale / math.sqrt(ratio))
            sides += [wide, wide[::-1]]
        levels.append(np.minimum(np.array(sides, dtype=np.float32), np.float32(1)))
    positive = number(given.get("positive_iou", 0.5), f"{where}.positive_iou")
    return BoxRule(strides, tuple(levels), positive, 0.0, offset=0.5, relative=True)


def _yolo_shapes(anchors: Any, levels: int) -> list[Shapes]:
    what = "detector_options.head.anchors"
    if not isinstance(anchors, (list, tuple)) or len(anchors) != levels:
        raise UserError(f"{what}: give {levels} lists, one a level, of [width, height] in pixels")
    shapes = []
    for level in anchors:
        pairs = [number_list(pair, what) for pair in level] if isinstance(level, (list, tuple)) else []
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{what}: give {levels} lists, one a level, of [width, height] in pixels")
        shapes.append(np.array(pairs, dtype=np.float32))
    return shapes

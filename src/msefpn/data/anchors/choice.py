"""Anchors chosen on the training boxes: `anchors: auto`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msefpn.data.anchors.match import Objects, best_iou
from msefpn.data.anchors.rules import ANCHORS, BoxRule, ShapeRule, options_part, rule_for
from msefpn.data.anchors.share import AnchorShare, as_percent, measure_share

_SCALES = {
    "rpn": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0),
    "head": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
}
_RATIOS = ((0.5, 1.0, 2.0), (0.33, 1.0, 3.0), (0.25, 1.0, 4.0))
_LONGEST = 5.0  # long side to short side
_SMALLEST, _LARGEST = (0.03, 0.05, 0.1, 0.15, 0.2), (0.5, 0.7, 0.9)
_LOOKED_AT = 3000
"""Objects that candidates are compared on."""
_FINALISTS = 6
"""Candidates, best by their overlap, whose assignment is computed."""
_STEP = 0.005
"""Shares of objects, missed or weak, that differ by no more from the least are taken as equal."""
_WORTH = 0.01
"""Mean IoU that a change from the detector's own anchors must bring where the shares are equal."""


@dataclass(frozen=True)
class AnchorChoice:
    """Anchors for a set of objects, and what they bring."""

    options: dict[str, Any]
    """Those of the detector's part that were open: what `auto` writes into the configuration."""
    share: AnchorShare
    before: AnchorShare
    """With the detector's own anchors."""

    def __str__(self) -> str:
        """The options, rounded as they are used, and the shares."""
        own, new = self.before, self.share
        return (
            f"{options_text(self.options)}: {as_percent(new.share)} of {new.objects} objects get no positive "
            f"anchor, {as_percent(new.weak_share)} at best one of low IoU, mean best IoU {new.iou:.2f} "
            f"(its own anchors: {as_percent(own.share)}, {as_percent(own.weak_share)}, {own.iou:.2f})"
        )


def with_choice(detector: str, options: Mapping[str, Any], choice: AnchorChoice | None) -> dict[str, Any]:
    """A detector's options with the anchors chosen for it; as they are where none were."""
    part = options_part(detector)
    if part is None or choice is None:
        return dict(options)
    return {**options, part[0]: {**(options.get(part[0]) or {}), **choice.options}}


def options_text(options: Mapping[str, Any]) -> str:
    """Options of anchors as text: `anchor_scale 2, ratios 0.5 1 2`."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in options.items())


def _shown(value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return f"{value:g}"
    return " ".join("x".join(f"{v:g}" for v in one) if _is_pair(one) else _shown(one) for one in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and not isinstance(value[0], (list, tuple))


def choose_anchors(
    objects: Objects,
    detector: str,
    options: Mapping[str, Any],
    neck_options: Mapping[str, Any] | None = None,
    *,
    strides: Sequence[int] | None = None,
) -> AnchorChoice | None:
    """Choose anchors that meet the objects.

    Fewest missed first, then fewest weak ones: beside objects with dozens of positive anchors, those with
    a single one are hardly learned. Then the largest mean of the best IoU.

    What `options` sets stays as it is. The number of anchors in a cell stays the same, so weights of a head
    fit whatever is chosen.

    Args:
        objects: of the training split.
        detector: name of one of the package's detectors.
        options: its options.
        neck_options: the neck's.
        strides: see `rule_for`.

    Returns:
        The choice; None for a detector without anchors, without objects, or where all is set already.

    Raises:
        UserError: options of anchors that are not numbers.
    """
    part = options_part(detector)
    if part is None or not len(objects):
        return None
    given = options.get(part[0]) or {}
    open_keys = [key for key in part[1] if key not in given]
    if not open_keys:
        return None
    few = objects.fewer(_LOOKED_AT)

    def rule(changes: Mapping[str, Any]) -> Any:
        changed = {**options, part[0]: {**given, **changes}}
        return rule_for(detector, changed, neck_options, strides=strides)

    own = rule({})
    if isinstance(own, ShapeRule):
        finalists: list[dict[str, Any]] = [{"anchors": _clusters(few, len(own.strides))}]
    else:
        candidates = list(_candidates(few, detector, part[0], open_keys))
        overlaps = [_overlap(few, rule(one)) for one in candidates]
        finalists = [candidates[at] for at in _best_first(overlaps)[:_FINALISTS]]
    before = measure_share(few, own)
    shares = [measure_share(few, rule(one)) for one in finalists]
    first = _best_first([_meeting(one) for one in shares])[0]
    best, found = finalists[first], shares[first]
    if not _better(_meeting(found), _meeting(before)):
        best, found = {}, before
    # written down also where they are the detector's own, so that the run says which anchors it has
    own_values = ANCHORS[detector if part[0] == "head" else part[0]]
    return AnchorChoice(best or {key: own_values[key] for key in open_keys}, found, before)


class _Met(NamedTuple):
    """How objects meet a candidate's anchors."""

    missed: float
    """Share of the objects."""
    weak: float
    """Likewise, see `AnchorShare.weak`."""
    iou: float
    """Mean of the best."""


def _meeting(share: AnchorShare) -> _Met:
    return _Met(share.share, share.weak_share, share.iou)


def _best_first(found: Sequence[_Met]) -> list[int]:
    """Indices of the candidates, in the order that `choose_anchors` gives."""
    missed = min(one.missed for one in found) + _STEP
    weak = min(one.weak for one in found if one.missed <= missed) + _STEP

    def key(at: int) -> tuple[float, float, float]:
        one = found[at]
        return max(missed, one.missed), max(weak, one.weak), -one.iou

    return sorted(range(len(found)), key=key)


def _better(new: _Met, old: _Met) -> bool:
    """Whether to change from the detector's own anchors."""
    for fewer in (old.missed - new.missed, old.weak - new.weak):
        if abs(fewer) > _STEP:
            return fewer > 0
    return new.iou - old.iou >= _WORTH


def _overlap(objects: Objects, rule: BoxRule) -> _Met:
    """As if no object took an anchor from another."""
    best = best_iou(objects, rule)
    missed, weak = (float((best < least).mean()) for least in (rule.least_iou, rule.positive_iou))
    return _Met(missed, weak, float(best.mean()))


def _candidates(
    objects: Objects, detector: str, part: str, open_keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
    values: dict[str, Sequence[Any]] = {"smallest": _SMALLEST, "largest": _LARGEST}
    if detector != "ssd":
        values = {"anchor_scale": _SCALES[part], "ratios": [list(one) for one in _ratios(objects)]}
    for chosen in itertools.product(*(values[key] for key in open_keys)):
        yield dict(zip(open_keys, chosen, strict=True))


def _ratios(objects: Objects) -> list[tuple[float, ...]]:
    """Usual ratios (height / width), and those of the objects: three of each, for the head's shape."""
    extent = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64)
    quantiles = np.quantile(extent[:, 1] / np.maximum(extent[:, 0], 1e-9), (0.05, 0.5, 0.95))
    own = tuple(float(f"{value:.2g}") for value in quantiles.clip(1 / _LONGEST, _LONGEST))
    return [*_RATIOS, own] if len(set(own)) == 3 else [*_RATIOS]


def _clusters(objects: Objects, levels: int) -> list[list[list[int]]]:
    """Three shapes a level by k-means under IoU (YOLO9000, arXiv 1612.08242, section 2), smallest first."""
    extent = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64)
    count = 3 * levels
    order = extent[np.argsort(extent.prod(axis=1), kind="stable")]
    centres = order[np.linspace(0, len(order) - 1, count).astype(int)] + np.arange(count)[:, None] * 1e-3
    for _ in range(50):
        nearest = _shape_iou(extent, centres).argmax(axis=1)
        moved = np.stack(
            [
                np.median(extent[nearest == at], axis=0) if (nearest == at).any() else centres[at]
                for at in range(count)
            ]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    shapes = np.maximum(np.round(centres), 1).astype(int)
    shapes = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    return [[[int(w), int(h)] for w, h in shapes[3 * at : 3 * at + 3]] for at in range(levels)]


def _shape_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU (n, m) of shapes (n, 2) and (m, 2) with one corner in common."""
    shared = np.minimum(a[:, None], b).prod(axis=2)
    found: NDArray[np.float64] = shared / (a.prod(axis=1)[:, None] + b.prod(axis=1) - shared)
    return found

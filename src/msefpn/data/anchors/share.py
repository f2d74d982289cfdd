"""What share of the objects gets no positive anchor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msefpn.data.advice import NARROW
from msefpn.data.anchors.match import Objects, meet
from msefpn.data.anchors.rules import BoxRule, PointRule, Rule

MANY_MISSED = 0.05
"""Share of objects without a positive anchor over which training warns and `check` looks for a remedy."""
_SIDES = (16, 32, 64, 128, 256)
_CLASSES = 8

Counts = Mapping[str, tuple[int, int]]
"""Name -> objects without a positive anchor, and all."""


@dataclass(frozen=True)
class AnchorShare:
    """The objects of a split against a detector's anchors."""

    objects: int
    """Objects that were measured."""
    total: int
    """Objects of the split."""
    missed: int
    """Objects without a positive anchor."""
    taken: int
    """Of these, how many overlap an anchor enough, but it went to another object."""
    weak: int
    """Objects whose best anchor has less IoU than a positive one needs: they get that one alone, or none."""
    iou: float
    """Mean of the largest IoU with an anchor."""
    points: bool = False
    """The detector has points instead of anchors."""
    by_size: Counts = field(default_factory=dict)
    by_shape: Counts = field(default_factory=dict)
    by_class: Counts = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the objects without a positive anchor, 0..1."""
        return self.missed / self.objects if self.objects else 0.0

    @property
    def weak_share(self) -> float:
        """Of the objects whose best anchor is weak, 0..1."""
        return self.weak / self.objects if self.objects else 0.0

    def lines(self) -> list[str]:
        """As text: the share, and where it is not zero which objects it hits."""
        of = f"{self.objects} objects" + f" (of {self.total})" * (self.objects < self.total)
        what = "point" if self.points else "anchor"
        text = f"{self.missed} of {of} get no positive {what} ({as_percent(self.share)})"
        if not self.missed:
            return [text]
        none = "hold none" if self.points else "overlap none enough"
        why = [f"{self.missed - self.taken} {none}"] * (self.missed > self.taken)
        why += [f"{self.taken} lose theirs to other objects"] * bool(self.taken)
        lines = [f"{text}: {', '.join(why)}"]
        for name, counts in (("size", self.by_size), ("shape", self.by_shape), ("class", self.by_class)):
            hit = sorted(
                ((key, *pair) for key, pair in counts.items() if pair[0]), key=lambda x: -x[1] / x[2]
            )
            shown = ", ".join(f"{key} {missed} of {count}" for key, missed, count in hit[:_CLASSES])
            lines += [f"  by {name}: {shown}{', ...' if len(hit) > _CLASSES else ''}"] * bool(hit)
        return lines


def measure_share(objects: Objects, rule: Rule) -> AnchorShare:
    """Run a detector's rule over objects."""
    found = meet(objects, rule)
    missed = ~found.met
    enough = found.iou > 0
    weak = ~enough
    if isinstance(rule, BoxRule):
        enough = found.iou >= np.float32(rule.least_iou)
        weak = found.iou < np.float32(rule.positive_iou)
    extent = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64)
    ratio = extent.max(axis=1) / np.maximum(extent.min(axis=1), 1e-9)
    bins = np.searchsorted(_SIDES, objects.sides, side="right")
    ends = [f"under {_SIDES[0]} px", *(f"{a} to {b} px" for a, b in itertools.pairwise(_SIDES))]
    return AnchorShare(
        objects=len(objects),
        total=objects.total,
        missed=int(missed.sum()),
        taken=int((missed & enough).sum()),
        points=isinstance(rule, PointRule),
        weak=int(weak.sum()),
        iou=float(found.iou.mean()) if len(objects) else 0.0,
        by_size=_counts([*ends, f"over {_SIDES[-1]} px"], bins, missed),
        by_shape=_counts([f"up to {NARROW:g}:1", f"longer than {NARROW:g}:1"], ratio > NARROW, missed),
        by_class=_counts(list(objects.classes), objects.labels, missed),
    )


def _counts(names: list[str], of: NDArray[np.integer | np.bool_], missed: NDArray[np.bool_]) -> Counts:
    every = np.bincount(of.astype(np.int64), minlength=len(names))
    hit = np.bincount(of[missed].astype(np.int64), minlength=len(names))
    return {name: (int(hit[at]), int(every[at])) for at, name in enumerate(names) if every[at]}


def as_percent(share: float) -> str:
    """A share 0..1 with one decimal; what is not zero does not read as zero."""
    return "under 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"

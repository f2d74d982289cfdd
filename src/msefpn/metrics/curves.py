"""Precision over recall and average precision as COCO's protocol has them, for any choice of objects."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from msefpn.metrics.matching import (
    LIMIT,
    THRESHOLDS,
    Flags,
    Floats,
    Ints,
    Predicted,
    Truth,
    assign,
    pairs_of,
    ranks,
)

RECALLS: Floats = np.linspace(0, 1, 101)
"""Where COCO reads the precision."""


@dataclass(frozen=True)
class Curves:
    """What a detector reaches. T: thresholds of IoU, K: classes, N: detections."""

    precision: Floats
    """(T, 101, K) at `RECALLS`, as the best at that recall or over it; -1 where a class has no object."""
    taken: Ints
    """(T, N) the object that each detection takes, -1 for none."""
    counted: Flags
    """(T, N) whether a detection is right or wrong, rather than left out."""

    @property
    def ap(self) -> float:
        """Mean over thresholds and classes; -1 without any."""
        return mean_precision(self.precision)

    @property
    def per_class(self) -> list[float]:
        """AP of each class; -1 for one without an object."""
        return [mean_precision(self.precision[..., label]) for label in range(self.precision.shape[-1])]


def mean_precision(precision: Floats) -> float:
    """Mean of the values that are there; -1 without any."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else -1.0


def curves_of(
    truth: Truth,
    predicted: Predicted,
    classes: int,
    *,
    thresholds: Floats = THRESHOLDS,
    sizes: tuple[float, float] = (0.0, np.inf),
) -> Curves:
    """Match and measure as COCOeval does, with at most `LIMIT` detections of an image and class.

    Args:
        truth: the objects.
        predicted: the detections.
        classes: how many there are.
        thresholds: of IoU.
        sizes: square root of the area, pixels, from and up to which objects count; others are left out, and
            with them a detection that takes one, or takes none and is not of such a size itself.
    """
    rank = ranks(predicted)
    ignored = truth.crowd | ~_within(truth.area, sizes)
    taken = assign(pairs_of(truth, predicted), rank, truth.crowd, ignored, thresholds)
    outside = ~_within(predicted.boxes[:, 2] * predicted.boxes[:, 3], sizes)
    counted = np.where(taken >= 0, ~_at(ignored, taken), ~outside) & (rank < LIMIT)
    objects = np.bincount(truth.label[~ignored], minlength=classes)
    precision = np.stack(
        [
            precision_of(predicted.score[mine], (taken >= 0)[:, mine], counted[:, mine], int(objects[label]))
            for label in range(classes)
            for mine in [np.flatnonzero(predicted.label == label)]
        ],
        axis=-1,
    )
    return Curves(precision, taken, counted)


def precision_of(score: Floats, right: Flags, counted: Flags, objects: int) -> Floats:
    """Precision at `RECALLS` of one class.

    Args:
        score: (N,)
        right: (T, N) it takes an object.
        counted: (T, N) it is not left out.
        objects: how many there are to be found.

    Returns:
        (T, 101), -1 without objects.
    """
    if not objects:
        return np.full((len(right), len(RECALLS)), -1.0)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum((right & counted)[:, order], axis=1, dtype=np.float64)
    tried = np.cumsum(counted[:, order], axis=1, dtype=np.float64)
    precision = hits / np.maximum(tried, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # a recall that is never reached
    places = [np.searchsorted(row, RECALLS, "left") for row in hits / objects]
    return np.take_along_axis(best, np.stack(places), axis=1)


def best_score(truth: Truth, predicted: Predicted, curves: Curves) -> tuple[float, float, float, float]:
    """The score from which on detections are best kept: that of the greatest F1 of all classes together.

    Args:
        truth: the objects.
        predicted: the detections.
        curves: of these; their first threshold of IoU counts.

    Returns:
        Score, F1, precision and recall; zeros where no detection is right.
    """
    counted = curves.counted[0]
    order = np.argsort(-predicted.score[counted], kind="stable")
    score = predicted.score[counted][order]
    hits = np.cumsum((curves.taken[0] >= 0)[counted][order], dtype=np.float64)
    tried, objects = np.arange(1, len(hits) + 1), int((~truth.crowd).sum())
    last = np.append(score[1:] != score[:-1], True)[: len(score)]  # equal scores are kept together
    f1 = np.where(last, 2 * hits / (tried + objects), -1.0)
    if not len(f1) or f1.max() <= 0:
        return 0.0, 0.0, 0.0, 0.0
    at = int(f1.argmax())
    return float(score[at]), float(f1[at]), float(hits[at] / tried[at]), float(hits[at] / objects)


@dataclass(frozen=True)
class SizeBin:
    """AP of the objects of some size."""

    low: float
    """Square root of the area, pixels; 0 for the smallest."""
    high: float
    """Infinite for the largest."""
    objects: int
    ap: float
    """-1 without objects."""


def size_edges(truth: Truth, bins: int = 8) -> list[float]:
    """Borders of size bins in equal ratios over the truth's sizes, whole pixels, from 0 to infinity."""
    sizes = np.sqrt(truth.area[~truth.crowd])
    if not len(sizes):
        return [0.0, np.inf]
    low, high = np.maximum(np.quantile(sizes, [0.01, 0.99]), 1)
    inner = np.unique(np.rint(np.geomspace(low, max(high, low + 1), bins + 1)[1:-1]))
    return [0.0, *inner.tolist(), np.inf]


def ap_over_sizes(truth: Truth, predicted: Predicted, classes: int, edges: list[float]) -> list[SizeBin]:
    """AP (IoU 0.50:0.95) of the objects between each two neighbouring edges, as COCO's APs, APm and APl."""
    found = []
    for low, high in itertools.pairwise(edges):
        objects = int((_within(truth.area, (low, high)) & ~truth.crowd).sum())
        ap = curves_of(truth, predicted, classes, sizes=(low, high)).ap if objects else -1.0
        found.append(SizeBin(low, high, objects, ap))
    return found


def _within(area: Floats, sizes: tuple[float, float]) -> Flags:
    side = np.sqrt(area)
    return (side >= sizes[0]) & (side < sizes[1])


def _at(flags: Flags, rows: Ints) -> Flags:
    """Flags at rows; False where a row is -1."""
    return np.append(flags, False)[rows]

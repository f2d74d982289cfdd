"""Precision over recall and average precision by COCO's protocol, for any choice of objects."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from msefpn.metrics.matching import (
    LIMIT,
    THRESHOLDS,
    BoxPredictions,
    Flags,
    Floats,
    GroundTruth,
    Ints,
    assign,
    pairs_of,
    ranks,
)

RECALLS: Floats = np.linspace(0, 1, 101)
"""Where COCO reads the precision."""


@dataclass(frozen=True)
class PrecisionCurves:
    """Precision of a detector at each recall. T: thresholds of IoU, K: classes, N: detections."""

    precision: Floats
    """(T, 101, K) at `RECALLS`: the best at that recall or above; -1 for a class without objects."""
    matched: Ints
    """(T, N) the object that each detection matches, -1 for none."""
    counted: Flags
    """(T, N) whether a detection counts as correct or wrong; else it is ignored."""

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


def precision_curves(
    truth: GroundTruth,
    predicted: BoxPredictions,
    classes: int,
    *,
    thresholds: Floats = THRESHOLDS,
    sizes: tuple[float, float] = (0.0, np.inf),
) -> PrecisionCurves:
    """Match detections and measure precision as COCOeval does, `LIMIT` detections per image and class.

    Args:
        truth: the objects.
        predicted: the detections.
        classes: how many there are.
        thresholds: of IoU.
        sizes: range of the square root of the area, pixels, in which objects count. Other objects are
            ignored, and so are detections that match one of them, or match none and have another size.
    """
    rank = ranks(predicted)
    ignored = truth.crowd | ~_within(truth.area, sizes)
    matched = assign(pairs_of(truth, predicted), rank, truth.crowd, ignored, thresholds)
    outside = ~_within(predicted.boxes[:, 2] * predicted.boxes[:, 3], sizes)
    counted = np.where(matched >= 0, ~_at(ignored, matched), ~outside) & (rank < LIMIT)
    objects = np.bincount(truth.label[~ignored], minlength=classes)
    precision = np.stack(
        [
            precision_of(
                predicted.score[mine], (matched >= 0)[:, mine], counted[:, mine], int(objects[label])
            )
            for label in range(classes)
            for mine in [np.flatnonzero(predicted.label == label)]
        ],
        axis=-1,
    )
    return PrecisionCurves(precision, matched, counted)


def precision_of(score: Floats, matched: Flags, counted: Flags, objects: int) -> Floats:
    """Precision at `RECALLS` of one class.

    Args:
        score: (N,)
        matched: (T, N) whether a detection matches an object.
        counted: (T, N) whether it counts, rather than being ignored.
        objects: how many objects count.

    Returns:
        (T, 101), -1 without objects.
    """
    if not objects:
        return np.full((len(matched), len(RECALLS)), -1.0)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum((matched & counted)[:, order], axis=1, dtype=np.float64)
    tried = np.cumsum(counted[:, order], axis=1, dtype=np.float64)
    precision = hits / np.maximum(tried, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # recalls that are never reached
    places = [np.searchsorted(row, RECALLS, "left") for row in hits / objects]
    return np.take_along_axis(best, np.stack(places), axis=1)


class OperatingPoint(NamedTuple):
    """What a detector reaches when it keeps detections of a score and above; all classes together."""

    score: float
    f1: float
    precision: float
    recall: float


def best_f1(truth: GroundTruth, predicted: BoxPredictions, curves: PrecisionCurves) -> OperatingPoint:
    """The score threshold with the highest F1.

    Args:
        truth: the objects.
        predicted: the detections.
        curves: of these; their first threshold of IoU counts.

    Returns:
        Zeros where no detection is correct.
    """
    counted = curves.counted[0]
    order = np.argsort(-predicted.score[counted], kind="stable")
    score = predicted.score[counted][order]
    hits = np.cumsum((curves.matched[0] >= 0)[counted][order], dtype=np.float64)
    tried, objects = np.arange(1, len(hits) + 1), int((~truth.crowd).sum())
    last = np.append(score[1:] != score[:-1], True)[: len(score)]  # equal scores are kept together
    f1 = np.where(last, 2 * hits / (tried + objects), -1.0)
    if not len(f1) or f1.max() <= 0:
        return OperatingPoint(0.0, 0.0, 0.0, 0.0)
    at = int(f1.argmax())
    return OperatingPoint(
        float(score[at]), float(f1[at]), float(hits[at] / tried[at]), float(hits[at] / objects)
    )


@dataclass(frozen=True)
class SizeBin:
    """AP of the objects in a range of sizes."""

    low: float
    """Square root of the area, pixels; 0 for the smallest."""
    high: float
    """Infinite for the largest."""
    objects: int
    ap: float
    """-1 without objects."""


def size_edges(truth: GroundTruth, bins: int = 8) -> list[float]:
    """Borders of size bins of equal ratio over the objects' sizes, whole pixels, from 0 to infinity."""
    sizes = np.sqrt(truth.area[~truth.crowd])
    if not len(sizes):
        return [0.0, np.inf]
    low, high = np.maximum(np.quantile(sizes, [0.01, 0.99]), 1)
    inner = np.unique(np.rint(np.geomspace(low, max(high, low + 1), bins + 1)[1:-1]))
    return [0.0, *inner.tolist(), np.inf]


def ap_over_sizes(
    truth: GroundTruth, predicted: BoxPredictions, classes: int, edges: list[float]
) -> list[SizeBin]:
    """AP (IoU 0.50:0.95) of the objects between neighbouring edges, like COCO's APs, APm and APl."""
    found = []
    for low, high in itertools.pairwise(edges):
        objects = int((_within(truth.area, (low, high)) & ~truth.crowd).sum())
        ap = precision_curves(truth, predicted, classes, sizes=(low, high)).ap if objects else -1.0
        found.append(SizeBin(low, high, objects, ap))
    return found


def _within(area: Floats, sizes: tuple[float, float]) -> Flags:
    side = np.sqrt(area)
    return (side >= sizes[0]) & (side < sizes[1])


def _at(flags: Flags, rows: Ints) -> Flags:
    """Flags at rows; False where a row is -1."""
    return np.append(flags, False)[rows]

"""Detections and ground truth as arrays, and which detection matches which object in COCO's protocol.

N: detections, M: objects, T: thresholds of IoU. Nothing here loops over images or pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds of IoU."""
LIMIT = 100
"""Most detections of an image and class that count, as in COCO's AP."""
_SURE = 1 - 1e-10


class GroundTruth(NamedTuple):
    """The objects in the images."""

    image: Ints
    """(M,) number of the image."""
    label: Ints
    """(M,) 0..K-1."""
    boxes: Floats
    """(M, 4) x, y, width, height; pixels."""
    area: Floats
    """(M,) square pixels: the annotation's, which may be that of a mask."""
    crowd: Flags
    """(M,) a region with many objects: it need not be found, and any number of detections may lie on it."""


class BoxPredictions(NamedTuple):
    """The detected boxes."""

    image: Ints
    """(N,) number of the image, rising: COCO takes equal scores in this order."""
    label: Ints
    """(N,) 0..K-1."""
    boxes: Floats
    """(N, 4) x, y, width, height; pixels."""
    score: Floats
    """(N,) 0..1."""

    def where(self, chosen: Flags | Ints) -> BoxPredictions:
        """Those that are chosen."""
        return BoxPredictions(self.image[chosen], self.label[chosen], self.boxes[chosen], self.score[chosen])


class Pairs(NamedTuple):
    """Detections with objects that they may match. P: pairs, ordered by detection, then by object."""

    predicted: Ints
    """(P,) rows of `BoxPredictions`."""
    truth: Ints
    """(P,) rows of `GroundTruth`."""
    iou: Floats
    """(P,)"""

    def where(self, chosen: Flags) -> Pairs:
        """Those that are chosen."""
        return Pairs(self.predicted[chosen], self.truth[chosen], self.iou[chosen])


def pairs_of(truth: GroundTruth, predicted: BoxPredictions, *, across_classes: bool = False) -> Pairs:
    """Pair each detection with the objects of its image, of its own class or of all."""
    top = int(max(truth.label.max(initial=0), predicted.label.max(initial=0))) + 1
    mine = predicted.image if across_classes else predicted.image * top + predicted.label
    theirs = truth.image if across_classes else truth.image * top + truth.label
    order = np.argsort(theirs, kind="stable")
    sorted_ = theirs[order]
    first = np.searchsorted(sorted_, mine, "left")
    counts = np.searchsorted(sorted_, mine, "right") - first
    rows = np.repeat(np.arange(len(mine)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = order[np.repeat(first, counts) + within]
    return Pairs(rows, columns, _iou(truth, predicted, rows, columns))


def _iou(truth: GroundTruth, predicted: BoxPredictions, rows: Ints, columns: Ints) -> Floats:
    """Of pairs; with a crowd, the part of the detection that lies on it."""
    a, b = predicted.boxes[rows], truth.boxes[columns]
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    own = np.prod(a[:, 2:], axis=1)
    whole = np.where(truth.crowd[columns], own, own + np.prod(b[:, 2:], axis=1) - shared)
    iou: Floats = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return iou


def ranks(predicted: BoxPredictions, *, across_classes: bool = False) -> Ints:
    """Place of each detection, from 0, in its image and class by falling score; equal ones as they come."""
    top = int(predicted.label.max(initial=0)) + 1
    key = predicted.image if across_classes else predicted.image * top + predicted.label
    order = np.lexsort((-predicted.score, key))
    sorted_ = key[order]
    first = np.searchsorted(sorted_, sorted_, "left")
    places = np.empty(len(key), dtype=np.int64)
    places[order] = np.arange(len(key)) - first
    return places


def assign(
    pairs: Pairs, rank: Ints, crowd: Flags, ignored: Flags, thresholds: Floats, free: Flags | None = None
) -> Ints:
    """Match detections, best first, to the object that they overlap most.

    As in COCOeval: an object that counts comes before an ignored one, each is matched once, a crowd any
    number of times, and of two with equal IoU the later one is matched.

    Args:
        pairs: the objects that each may match.
        rank: (N,) turn of each detection; those that share an object have different ones.
        crowd: (M,)
        ignored: (M,) crowds, and objects that do not count.
        thresholds: (T,) least IoU.
        free: (M,) objects that may be matched; None: all.

    Returns:
        (T, N) rows of the ground truth, -1 without a match.
    """
    matched = np.full((len(thresholds), len(rank)), -1, dtype=np.int64)
    left = np.ones((len(thresholds), len(crowd)), dtype=bool)
    if free is not None:
        left &= free
    least = np.minimum(thresholds, _SURE)[:, None]
    near = np.flatnonzero(pairs.iou >= least.min())
    turns = rank[pairs.predicted[near]]
    near = near[np.argsort(turns, kind="stable")]
    start = 0
    for end in np.cumsum(np.bincount(turns)).tolist():
        part, start = near[start:end], end
        if not len(part):
            continue
        mine, theirs, iou = pairs.predicted[part], pairs.truth[part], pairs.iou[part]
        may = (left[:, theirs] | crowd[theirs]) & (iou >= least)  # (T, P of this turn)
        value = np.where(may, iou + 2.0 * ~ignored[theirs], -1.0)
        heads = np.flatnonzero(np.diff(mine, prepend=-1))
        best = np.maximum.reduceat(value, heads, axis=1)
        lengths = np.diff(heads, append=len(part))
        place = np.where(value == np.repeat(best, lengths, axis=1), np.arange(len(part)), -1)
        winner = np.maximum.reduceat(place, heads, axis=1)
        at, who = np.nonzero(best >= 0)
        chosen = theirs[winner[at, who]]
        matched[at, mine[heads[who]]] = chosen
        left[at, chosen] = False
    return matched

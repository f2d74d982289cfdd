"""Which class is taken for which: a confusion matrix of detections, and the quality of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msefpn.metrics.matching import Flags, Floats, Ints, Predicted, Truth, assign, pairs_of, ranks


@dataclass(frozen=True)
class Verdicts:
    """What each detection that is kept turned out to be. N: detections, M: objects, K: classes, I: images."""

    kept: Ints
    """(N,) rows of the `Predicted` that was looked at."""
    taken: Ints
    """(N,) the object that each takes, of its own class or another; -1: background."""
    right: Flags
    """(N,) that object is of its class."""
    left_out: Flags
    """(N,) it lies on a crowd: neither right nor wrong."""
    missed: Ints
    """Rows of the truth that no detection takes."""
    matrix: Ints
    """(K + 1, K + 1) rows: the truth's class, columns: the detection's; last: background."""
    quality: Floats
    """(I,) sum of the IoU of right detections / (right + half of the wrong + half of the missed), as in
    panoptic quality (arXiv 1801.00868, eq. 1); 1 for an empty image left empty."""
    wrongness: Floats
    """(I,) sum of the scores of wrong detections."""


def judge(
    truth: Truth, predicted: Predicted, classes: int, images: int, *, score: float, iou: float = 0.5
) -> Verdicts:
    """Give each detection at or over a score an object: one of its class where it can, else any that is left.

    Args:
        truth: the objects.
        predicted: the detections.
        classes: how many there are.
        images: how many there are.
        score: the least.
        iou: the least.
    """
    kept = np.flatnonzero(predicted.score >= score)
    chosen = predicted.where(kept)
    least = np.array([iou])
    same = assign(pairs_of(truth, chosen), ranks(chosen), truth.crowd, truth.crowd, least)[0]
    left_out = (same >= 0) & np.append(truth.crowd, False)[same]
    right = (same >= 0) & ~left_out
    free = ~truth.crowd
    free[same[right]] = False
    everyone = pairs_of(truth, chosen, across_classes=True)
    open_ = (same < 0)[everyone.predicted] & free[everyone.truth]
    rest = everyone.where(open_)
    no_crowd = np.zeros(len(free), dtype=bool)
    other = assign(rest, ranks(chosen, across_classes=True), no_crowd, no_crowd, least, free)[0]
    taken = np.where(right, same, np.where(left_out, -1, other))
    found = np.zeros(len(truth.label), dtype=bool)
    found[taken[taken >= 0]] = True
    missed = np.flatnonzero(~found & ~truth.crowd)
    counts, side = ~left_out, classes + 1
    actual = np.where(taken >= 0, np.append(truth.label, classes)[taken], classes)
    cells = np.concatenate([(actual * side + chosen.label)[counts], truth.label[missed] * side + classes])
    matrix = np.bincount(cells, minlength=side * side).reshape(side, side)
    overlap = _overlap(everyone.predicted, everyone.truth, everyone.iou, taken)
    wrong = counts & ~right
    hits, errors = (np.bincount(chosen.image[flag], minlength=images) for flag in (right, wrong))
    lost = np.bincount(truth.image[free], minlength=images)
    total = np.bincount(chosen.image[right], overlap[right], minlength=images)
    parts = hits + 0.5 * (errors + lost)
    quality = np.divide(total, parts, out=np.ones(images), where=parts > 0)
    wrongness = np.bincount(chosen.image[wrong], chosen.score[wrong], minlength=images).astype(np.float64)
    return Verdicts(kept, taken, right, left_out, missed, matrix, quality, wrongness)


def _overlap(rows: Ints, columns: Ints, iou: Floats, taken: Ints) -> Floats:
    """IoU of each detection with what it takes; 0 where that is nothing."""
    overlap = np.zeros(len(taken))
    mine = taken[rows] == columns
    overlap[rows[mine]] = iou[mine]
    return overlap

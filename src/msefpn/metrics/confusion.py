"""The confusion matrix of detections, and the quality of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msefpn.metrics.matching import BoxPredictions, Flags, Floats, GroundTruth, Ints, assign, pairs_of, ranks


@dataclass(frozen=True)
class DetectionOutcomes:
    """Which kept detections are correct. N: kept detections, K: classes, I: images."""

    kept: Ints
    """(N,) their rows in the `BoxPredictions`."""
    matched: Ints
    """(N,) the object that each matches, of its own class or another; -1: background."""
    correct: Flags
    """(N,) whether that object is of its class."""
    ignored: Flags
    """(N,) whether it lies on a crowd: neither correct nor wrong."""
    missed: Ints
    """Rows of the ground truth that no detection matches."""
    matrix: Ints
    """(K + 1, K + 1) rows: class of the object, columns: class of the detection; last: background."""
    quality: Floats
    """(I,) sum of the IoU of correct detections / (correct + wrong / 2 + missed / 2), as panoptic quality
    (arXiv 1801.00868, eq. 1); 1 for an image without objects and detections."""
    wrong_score: Floats
    """(I,) sum of the scores of wrong detections."""


def match_outcomes(
    truth: GroundTruth,
    predicted: BoxPredictions,
    classes: int,
    images: int,
    *,
    score: float,
    iou: float = 0.5,
) -> DetectionOutcomes:
    """Match each detection of at least a score to an object: of its class if possible, else of any other.

    Args:
        truth: the objects.
        predicted: the detections.
        classes: number of classes.
        images: number of images.
        score: least score of a kept detection.
        iou: least IoU of a match.
    """
    kept = np.flatnonzero(predicted.score >= score)
    chosen = predicted.where(kept)
    least = np.array([iou])
    same = assign(pairs_of(truth, chosen), ranks(chosen), truth.crowd, truth.crowd, least)[0]
    ignored = (same >= 0) & np.append(truth.crowd, False)[same]
    correct = (same >= 0) & ~ignored
    free = ~truth.crowd
    free[same[correct]] = False
    everyone = pairs_of(truth, chosen, across_classes=True)
    open_ = (same < 0)[everyone.predicted] & free[everyone.truth]
    rest = everyone.where(open_)
    no_crowd = np.zeros(len(free), dtype=bool)
    other = assign(rest, ranks(chosen, across_classes=True), no_crowd, no_crowd, least, free)[0]
    matched = np.where(correct, same, np.where(ignored, -1, other))
    found = np.zeros(len(truth.label), dtype=bool)
    found[matched[matched >= 0]] = True
    missed = np.flatnonzero(~found & ~truth.crowd)
    counts, side = ~ignored, classes + 1
    actual = np.where(matched >= 0, np.append(truth.label, classes)[matched], classes)
    cells = np.concatenate([(actual * side + chosen.label)[counts], truth.label[missed] * side + classes])
    matrix = np.bincount(cells, minlength=side * side).reshape(side, side)
    overlap = _overlap(everyone.predicted, everyone.truth, everyone.iou, matched)
    wrong = counts & ~correct
    hits, errors = (np.bincount(chosen.image[flag], minlength=images) for flag in (correct, wrong))
    lost = np.bincount(truth.image[free], minlength=images)
    total = np.bincount(chosen.image[correct], overlap[correct], minlength=images)
    parts = hits + 0.5 * (errors + lost)
    quality = np.divide(total, parts, out=np.ones(images), where=parts > 0)
    wrong_score = np.bincount(chosen.image[wrong], chosen.score[wrong], minlength=images).astype(np.float64)
    return DetectionOutcomes(kept, matched, correct, ignored, missed, matrix, quality, wrong_score)


def _overlap(rows: Ints, columns: Ints, iou: Floats, matched: Ints) -> Floats:
    """IoU of each detection with its object; 0 without one."""
    overlap = np.zeros(len(matched))
    mine = matched[rows] == columns
    overlap[rows[mine]] = iou[mine]
    return overlap

"""Kinds of errors and how much AP50 each costs: Bolya et al., TIDE, arXiv 2008.08115.

Each wrong detection at IoU 0.5 has one kind of error. A kind costs AP50 with its errors fixed, minus AP50.
The costs do not add up: fixing one kind may uncover another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msefpn.metrics.curves import mean_precision, precision_curves, precision_of
from msefpn.metrics.matching import BoxPredictions, Flags, Floats, GroundTruth, Ints, Pairs, pairs_of

FOREGROUND, BACKGROUND = 0.5, 0.1
"""A detection with this IoU or more is on an object, with less than the second on none (section 2.2)."""
ERROR_KINDS = {
    "class": "on an object of another class",
    "location": "right class, but IoU only 0.1 to 0.5",
    "both": "another class, and IoU only 0.1 to 0.5",
    "duplicate": "on an object that a better scored detection matches",
    "background": "on no object",
    "missed": "an object that no detection is on",
}
"""Kinds of errors with their meaning; all but the last are kinds of wrong detections."""


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a detector. N: detections, M: objects."""

    ap50: float
    """Without a fix; -1 without objects."""
    cost: dict[str, float]
    """Kind -> AP50 with these errors fixed, minus `ap50`."""
    counts: dict[str, int]
    """Kind -> number of errors, among detections of any score."""
    kind: NDArray[np.str_]
    """(N,) kind of each detection; empty for a correct and for an ignored one."""
    missed: Flags
    """(M,) objects that are an error of the kind 'missed'."""


def analyse_errors(truth: GroundTruth, predicted: BoxPredictions, classes: int) -> ErrorAnalysis:
    """Find the kind of each error and what it costs.

    A wrong detection gets the first kind that applies: it overlaps an object of its class by 0.5 (a
    duplicate, or a wrong class if it overlaps an object of another class more); an object of another class by
    0.5; of its class by 0.1; of another class by 0.1; none. Fixing a wrong class or location makes the
    detection the match of that object; of several, the best scored stays and the others are removed. Fixing
    another kind removes the detections. Fixing missed objects removes the objects.
    """
    curves = precision_curves(truth, predicted, classes, thresholds=np.array([FOREGROUND]))
    matched, counted = curves.matched[0], curves.counted[0]
    correct = counted & (matched >= 0)
    wrong = counted & (matched < 0)
    same, other = _nearest(truth, predicted)
    kind = np.full(len(matched), "", dtype="<U10")
    on_same, on_other = same.iou >= FOREGROUND, other.iou >= FOREGROUND
    kind[wrong] = np.select(
        [
            on_other & (other.iou > np.where(on_same, same.iou, 0)),
            on_same,
            same.iou >= BACKGROUND,
            other.iou >= BACKGROUND,
        ],
        ["class", "duplicate", "location", "both"],
        "background",
    )[wrong]
    target = np.where(kind == "class", other.truth, np.where(kind == "location", same.truth, -1))
    reachable = np.zeros(len(truth.label), dtype=bool)
    reachable[matched[correct]] = True
    reachable[target[target >= 0]] = True
    missed = ~reachable & ~truth.crowd
    state = _State(predicted.score, predicted.label, np.where(correct, matched, -1), counted)
    ap50 = mean_precision(curves.precision)
    objects = ~truth.crowd
    fixed = {
        name: _ap(state.moved(target, truth, kind == name), truth, classes, objects)
        if name in ("class", "location")
        else _ap(state.without(kind == name), truth, classes, objects)
        for name in ERROR_KINDS
        if name != "missed"
    }
    fixed["missed"] = _ap(state, truth, classes, objects & ~missed)
    counts = {name: int((kind == name).sum()) for name in ERROR_KINDS} | {"missed": int(missed.sum())}
    return ErrorAnalysis(ap50, {name: value - ap50 for name, value in fixed.items()}, counts, kind, missed)


def _nearest(truth: GroundTruth, predicted: BoxPredictions) -> tuple[Pairs, Pairs]:
    """For each detection the object of its own class, and of another, that it overlaps most; no crowds."""
    pairs = pairs_of(truth, predicted, across_classes=True)
    objects = ~truth.crowd[pairs.truth]
    own = truth.label[pairs.truth] == predicted.label[pairs.predicted]
    return _best(pairs, objects & own, len(predicted.score)), _best(
        pairs, objects & ~own, len(predicted.score)
    )


def _best(pairs: Pairs, among: Flags, detections: int) -> Pairs:
    """One pair for each detection: truth -1 and IoU 0 where there is none."""
    rows, columns, iou = pairs.where(among)
    order = np.lexsort((iou, rows))
    last = order[np.flatnonzero(np.diff(rows[order], append=-1))]
    best = Pairs(np.arange(detections), np.full(detections, -1), np.zeros(detections))
    best.truth[rows[last]] = columns[last]
    best.iou[rows[last]] = iou[last]
    return best


@dataclass(frozen=True)
class _State:
    """How detections count for AP."""

    score: Floats
    label: Ints
    matched: Ints
    """The object that each matches, -1 for a wrong detection."""
    counted: Flags

    def without(self, removed: Flags) -> _State:
        return _State(self.score, self.label, self.matched, self.counted & ~removed)

    def moved(self, target: Ints, truth: GroundTruth, chosen: Flags) -> _State:
        """Match chosen detections to their targets; of several on an object the best scored stays."""
        matched = np.where(chosen, target, self.matched)
        label = np.where(chosen, np.append(truth.label, 0)[matched], self.label)
        rows = np.flatnonzero(matched >= 0)
        order = rows[np.lexsort((rows, -self.score[rows], matched[rows]))]
        later = np.diff(matched[order], prepend=-1) == 0
        counted = self.counted.copy()
        counted[order[later]] = False
        return _State(self.score, label, matched, counted)


def _ap(state: _State, truth: GroundTruth, classes: int, remaining: Flags) -> float:
    """AP at one threshold; 1 for a class whose objects were all removed."""
    objects = np.bincount(truth.label[remaining], minlength=classes)
    before = np.bincount(truth.label[~truth.crowd], minlength=classes)
    values = []
    for label in np.flatnonzero(before):
        mine = state.label == label
        correct, counted = (state.matched[mine] >= 0)[None], state.counted[mine][None]
        removed = objects[label] == 0
        values.append(
            1.0
            if removed
            else float(precision_of(state.score[mine], correct, counted, int(objects[label])).mean())
        )
    return float(np.mean(values)) if values else -1.0

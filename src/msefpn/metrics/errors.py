"""What goes wrong, and how much AP each kind of error costs, after Bolya et al., TIDE, arXiv 2008.08115.

A detection that is no match at IoU 0.5 is one kind of error; AP50 with that kind of error mended, less AP50,
is what it costs. The kinds do not add up: mending one may uncover another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msefpn.metrics.curves import curves_of, mean_precision, precision_of
from msefpn.metrics.matching import Flags, Floats, Ints, Pairs, Predicted, Truth, pairs_of

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection is on an object, and under which it is on none (section 2.2)."""
KINDS = {
    "class": "on an object of another class",
    "place": "right class, but IoU only 0.1 to 0.5",
    "both": "another class, and IoU only 0.1 to 0.5",
    "duplicate": "on an object that a better detection has",
    "background": "on no object",
    "missed": "an object that no detection is on",
}
"""The kinds of error; all but the last are of detections."""


@dataclass(frozen=True)
class Errors:
    """The errors of a detector. N: detections, M: objects."""

    ap50: float
    """As it is; -1 where there is nothing to find."""
    cost: dict[str, float]
    """Kind -> AP50 with this kind mended, less `ap50`."""
    counts: dict[str, int]
    """Kind -> how many; of all detections, whatever their score."""
    kind: NDArray[np.str_]
    """(N,) of each detection; empty for a right one and one that is left out."""
    missed: Flags
    """(M,) an error of the kind 'missed'."""


def analyse(truth: Truth, predicted: Predicted, classes: int) -> Errors:
    """Find the kind of each error and what it costs.

    A wrong detection is looked at in this order: it overlaps an object of its class by 0.5 (a duplicate,
    unless it overlaps one of another class more: then the class is wrong); one of another class by 0.5; one
    of its class by 0.1; one of another class by 0.1; none. Mended, a wrong class or place makes a detection
    the match of that object; where several are, the best scored stays and the others go. The other wrong ones
    go, and missed objects are no more asked for.
    """
    curves = curves_of(truth, predicted, classes, thresholds=np.array([FOREGROUND]))
    taken, counted = curves.taken[0], curves.counted[0]
    right = counted & (taken >= 0)
    wrong = counted & (taken < 0)
    same, other = _nearest(truth, predicted)
    kind = np.full(len(taken), "", dtype="<U10")
    on_same, on_other = same.iou >= FOREGROUND, other.iou >= FOREGROUND
    kind[wrong] = np.select(
        [
            on_other & (other.iou > np.where(on_same, same.iou, 0)),
            on_same,
            same.iou >= BACKGROUND,
            other.iou >= BACKGROUND,
        ],
        ["class", "duplicate", "place", "both"],
        "background",
    )[wrong]
    target = np.where(kind == "class", other.truth, np.where(kind == "place", same.truth, -1))
    reachable = np.zeros(len(truth.label), dtype=bool)
    reachable[taken[right]] = True
    reachable[target[target >= 0]] = True
    missed = ~reachable & ~truth.crowd
    state = _State(predicted.score, predicted.label, np.where(right, taken, -1), counted)
    ap50 = mean_precision(curves.precision)
    ask = ~truth.crowd
    mended = {
        name: _ap(state.moved(target, truth, kind == name), truth, classes, ask)
        if name in ("class", "place")
        else _ap(state.without(kind == name), truth, classes, ask)
        for name in KINDS
        if name != "missed"
    }
    mended["missed"] = _ap(state, truth, classes, ask & ~missed)
    counts = {name: int((kind == name).sum()) for name in KINDS} | {"missed": int(missed.sum())}
    return Errors(ap50, {name: value - ap50 for name, value in mended.items()}, counts, kind, missed)


def _nearest(truth: Truth, predicted: Predicted) -> tuple[Pairs, Pairs]:
    """For each detection the object of its own, and of another class that it overlaps most; crowds aside."""
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
    """Detections as they count for AP."""

    score: Floats
    label: Ints
    taken: Ints
    """The object, -1 for a wrong one."""
    counted: Flags

    def without(self, gone: Flags) -> _State:
        return _State(self.score, self.label, self.taken, self.counted & ~gone)

    def moved(self, target: Ints, truth: Truth, chosen: Flags) -> _State:
        """Make chosen detections matches of their targets; of several on an object the best scored stays."""
        taken = np.where(chosen, target, self.taken)
        label = np.where(chosen, np.append(truth.label, 0)[taken], self.label)
        rows = np.flatnonzero(taken >= 0)
        order = rows[np.lexsort((rows, -self.score[rows], taken[rows]))]
        later = np.diff(taken[order], prepend=-1) == 0
        counted = self.counted.copy()
        counted[order[later]] = False
        return _State(self.score, label, taken, counted)


def _ap(state: _State, truth: Truth, classes: int, asked: Flags) -> float:
    """AP at one threshold; a class of which nothing is asked any more is found whole."""
    objects = np.bincount(truth.label[asked], minlength=classes)
    before = np.bincount(truth.label[~truth.crowd], minlength=classes)
    values = []
    for label in np.flatnonzero(before):
        mine = state.label == label
        right, counted = (state.taken[mine] >= 0)[None], state.counted[mine][None]
        gone = objects[label] == 0
        values.append(
            1.0
            if gone
            else float(precision_of(state.score[mine], right, counted, int(objects[label])).mean())
        )
    return float(np.mean(values)) if values else -1.0

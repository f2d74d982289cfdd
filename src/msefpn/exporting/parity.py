"""Whether an exported file detects what its run detects, on real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msefpn.config import parse_size
from msefpn.data.coco import CocoData, category_ids_for, truth_of
from msefpn.data.loader import eval_loader
from msefpn.exporting.plan import ParityLimits
from msefpn.inference.detect import Detects, Predictions, as_results, detect
from msefpn.metrics.coco import evaluate_coco
from msefpn.models.graph import padded
from msefpn.runs.console import Bar

FLOOR = 0.1
"""Detections below this score need no match: near the score threshold rounding decides which there are."""
_ODD = (3, 0.87)
"""Batch and share of the run's size of the second comparison, at sizes that were not traced."""


@dataclass(frozen=True)
class Comparison:
    """Two sets of detections on the same images."""

    objects: int
    """Detections of both sides with a score of `FLOOR` or more."""
    matched: float
    """The share of them that is matched."""
    score: float
    """Largest difference of the scores of two matched detections."""
    box: float
    """Largest difference of their corners, pixels of the image."""


def compare(before: Predictions, after: Predictions, iou: float) -> Comparison:
    """Pair detections of the same image and class one to one, by falling IoU."""
    partner = np.full(len(before.scores), -1)
    keys = [np.stack([found.image_ids, found.labels], axis=1) for found in (before, after)]
    for key in np.unique(keys[0], axis=0):
        left, right = ((rows == key).all(axis=1).nonzero()[0] for rows in keys)
        overlap = _iou(before.boxes[left], after.boxes[right])
        for place in np.argsort(-overlap, axis=None, kind="stable"):
            i, j = np.unravel_index(place, overlap.shape)
            if overlap[i, j] < iou:
                break
            if partner[left[i]] < 0 and right[j] not in partner[left]:
                partner[left[i]] = right[j]
    paired = partner >= 0
    other = partner[paired]
    alone = np.setdiff1d(np.arange(len(after.scores)), other)
    missing = int((before.scores[~paired] >= FLOOR).sum() + (after.scores[alone] >= FLOOR).sum())
    objects = int((before.scores >= FLOOR).sum() + (after.scores >= FLOOR).sum())
    counts = (before.scores[paired] >= FLOOR) | (after.scores[other] >= FLOOR)
    scores = np.abs(before.scores[paired] - after.scores[other])[counts]
    corners = np.abs(before.boxes[paired] - after.boxes[other])[counts]
    return Comparison(
        objects,
        1.0 if objects == 0 else 1 - missing / objects,
        float(scores.max(initial=0)),
        float(corners.max(initial=0)),
    )


@dataclass(frozen=True)
class Parity:
    """A detector and its exported file on the same images."""

    images: int
    ap_before: float
    """AP of the detector, 0..1."""
    ap_after: float
    """AP of the file, 0..1."""
    plain: Comparison
    """At the size of the evaluation, one image at a time."""
    odd: Comparison
    """Of some images at other sizes, as a batch."""
    sizes: tuple[str, str]
    """Batch x size of the two comparisons."""
    limits: ParityLimits

    @property
    def matched(self) -> float:
        """The smaller share of detections that both have."""
        return min(self.plain.matched, self.odd.matched)

    @property
    def passed(self) -> bool:
        """Whether the limits are met."""
        return self.matched >= self.limits.matched and self.ap_before - self.ap_after <= self.limits.drop

    def to_json(self) -> dict[str, Any]:
        """Return the values as FILE.parity.json holds them."""
        return {
            "passed": self.passed,
            "images": self.images,
            "AP": {"before": self.ap_before, "after": self.ap_after},
            "objects": self.plain.objects + self.odd.objects,
            "matched": self.matched,
            "largest_score_difference": max(self.plain.score, self.odd.score),
            "largest_box_difference": max(self.plain.box, self.odd.box),
            "sizes": {self.sizes[0]: asdict(self.plain), self.sizes[1]: asdict(self.odd)},
            "limits": asdict(self.limits),
            "floor": FLOOR,
        }


def check_parity(
    eager: Detects, exported: Detects, data: CocoData, limits: ParityLimits, size: str
) -> Parity:
    """Detect with both on the same images, once as in an evaluation and on some again at odd sizes.

    Args:
        eager: on the CPU.
        exported: on the CPU.
        data: the images, with their ground truth.
        limits: what the file must reach.
        size: longest x shortest side, pixels, that images are resized to fit into.
    """
    cpu = torch.device("cpu")
    long, short = parse_size(size)
    batch, share = _ODD
    odd = (int(long * share) | 1, int(short * share) | 1)
    few = data.subset(range(min(len(data), 2 * batch)))
    found: list[list[Predictions]] = []
    with Bar("compare", 2 * (len(data) + len(few))) as bar:
        for side in (eager, exported):
            smooth = eager.config.antialias
            plain = eval_loader(data, size=(long, short), batch=1, workers=0, antialias=smooth)
            other = eval_loader(few, size=odd, batch=batch, workers=0, antialias=smooth)
            # The graph needs small images padded; the detector gets the same, as padding changes the maps.
            alike = (item._replace(images=padded(item.images)) for item in other)
            found.append([detect(side, batches, cpu, bar.seen) for batches in (plain, alike)])
    ids = category_ids_for(eager.classes, data, "the run")
    truth = truth_of(data)
    before, after = (
        evaluate_coco(truth, as_results(side[0], ids), masks=eager.learns_masks).box.numbers["AP"]
        for side in found
    )
    return Parity(
        len(data),
        before,
        after,
        plain=compare(found[0][0], found[1][0], limits.iou),
        odd=compare(found[0][1], found[1][1], limits.iou),
        sizes=(f"1 x {long}x{short}", f"{batch} x {odd[0]}x{odd[1]}"),
        limits=limits,
    )


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every pair of boxes (n, 4) and (m, 4): (n, m)."""
    one, two = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    both = sides.clip(min=0).prod(axis=-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (one, two)]
    overlap: NDArray[np.float64] = both / np.maximum(areas[0] + areas[1] - both, 1e-9)
    return overlap

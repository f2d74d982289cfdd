"""Whether an exported detector still detects what the trained one does, on real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msefpn.config import parse_size
from msefpn.data.coco import CocoData
from msefpn.data.ground_truth import category_ids_for, truth_of
from msefpn.data.loader import eval_loader
from msefpn.export.plan import Limits
from msefpn.inference.detect import Detects, Predictions, as_results, detect
from msefpn.metrics.coco import evaluate_coco
from msefpn.models.graph import padded
from msefpn.runs.console import Bar

FLOOR = 0.1
"""Detections below this score need no partner: near the score threshold rounding decides which there are."""
_ODD = (3, 0.87)
"""Batch, and share of the run's size, of the images that are looked at once more, at sizes no one traced."""


@dataclass(frozen=True)
class Comparison:
    """Two sets of detections of the same images."""

    objects: int
    """Detections of both sides with a score of `FLOOR` or more."""
    matched: float
    """The share of them that has a partner."""
    score: float
    """Largest difference of two partners' scores."""
    box: float
    """Largest difference of two partners' corners, pixels of the image."""


def compare(before: Predictions, after: Predictions, iou: float) -> Comparison:
    """Pair detections of the same image and class one to one, those that overlap most first."""
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


def check_parity(
    eager: Detects, exported: Detects, data: CocoData, limits: Limits, size: str
) -> dict[str, Any]:
    """Let both detect on the same images, once as they are evaluated and some again at odd sizes.

    Args:
        eager: on the CPU.
        exported: likewise.
        data: the images, with their truth.
        limits: see there.
        size: what images are resized to fit into: 320 or 1333x800.

    Returns:
        Largest differences, AP before and after, what they were measured on, and `passed`.
    """
    cpu = torch.device("cpu")
    long, short = parse_size(size)
    batch, share = _ODD
    odd = (int(long * share) | 1, int(short * share) | 1)
    few = data.subset(range(min(len(data), 2 * batch)))
    found: list[list[Predictions]] = []
    with Bar("compare", 2 * (len(data) + len(few))) as bar:
        for side in (eager, exported):
            plainly = eval_loader(data, size=(long, short), batch=1, workers=0)
            oddly = eval_loader(few, size=odd, batch=batch, workers=0)
            # both see small images with the padding that the graph wants: more of it gives other maps
            alike = (item._replace(images=padded(item.images)) for item in oddly)
            found.append([detect(side, batches, cpu, bar.seen) for batches in (plainly, alike)])
    plain, other = (compare(*pair, limits.iou) for pair in zip(found[0], found[1], strict=True))
    ids = category_ids_for(eager.classes, data, "the run")
    masks = eager.config.learns_masks
    before, after = (
        evaluate_coco(truth_of(data), as_results(side[0], ids), masks=masks).box.numbers["AP"]
        for side in found
    )
    matched = min(plain.matched, other.matched)
    return {
        "passed": matched >= limits.matched and before - after <= limits.drop,
        "images": len(data),
        "AP": {"before": before, "after": after},
        "objects": plain.objects + other.objects,
        "matched": matched,
        "largest_score_difference": max(plain.score, other.score),
        "largest_box_difference": max(plain.box, other.box),
        "sizes": {f"1 x {long}x{short}": asdict(plain), f"{batch} x {odd[0]}x{odd[1]}": asdict(other)},
        "limits": asdict(limits),
        "floor": FLOOR,
    }


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every pair of boxes (n, 4) and (m, 4): (n, m)."""
    one, two = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    both = sides.clip(min=0).prod(axis=-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (one, two)]
    overlap: NDArray[np.float64] = both / np.maximum(areas[0] + areas[1] - both, 1e-9)
    return overlap

"""Soft-NMS: Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", arXiv 1704.04503."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msefpn.models.boxes import PAD_SCORE, pairwise_iou

LEAST_SCORE = 1e-3
"""A box whose score has fallen below this is dropped (mmdetection's `min_score`)."""


def soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, method: str, iou: float, sigma: float
) -> Tensor:
    """Lower the scores of boxes that overlap better ones of their group and image.

    The box with the highest score is taken out, and those that are left lose by their IoU with it: `linear`,
    from the IoU `iou` on, the factor 1 - IoU; `gaussian`, at any IoU, the factor exp(-IoU^2 / sigma); and so
    on with the highest of the scores that are left. It runs on the CPU.

    Args:
        boxes: (B, N, 4).
        scores: (B, N), 0..1.
        groups: (B, N) int64, class of each box.
        valid: (B, N) bool; other boxes neither lower a score nor stay.
        method: `linear` or `gaussian`.
        iou: see above.
        sigma: see above.

    Returns:
        (B, N) scores, `PAD_SCORE` for the boxes that do not stay.
    """
    found: Tensor = _soft_nms(boxes, scores, groups, valid, method, iou, sigma)
    return found


@torch.library.custom_op("msefpn::soft_nms", mutates_args=())
def _soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, method: str, iou: float, sigma: float
) -> Tensor:
    """As one operator, so that a compiled graph need not look into its loops."""
    lowered = torch.full_like(scores, PAD_SCORE)
    for image in range(len(boxes)):
        rows = valid[image].nonzero().squeeze(1)
        for group in groups[image, rows].unique().tolist():
            chosen = rows[groups[image, rows] == group]
            overlap = pairwise_iou(boxes[image, chosen], boxes[image, chosen]).cpu().numpy()
            if method == "linear":
                factors = np.where(overlap >= iou, 1 - overlap, 1)
            else:
                factors = np.exp(-(overlap**2) / sigma)
            found = _taken_in_turns(scores[image, chosen].cpu().numpy(), factors)
            lowered[image, chosen] = torch.from_numpy(found).to(scores)
    return lowered


@_soft_nms.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, method: str, iou: float, sigma: float
) -> Tensor:
    return torch.empty_like(scores)


def _taken_in_turns(scores: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The score (n,) of each box when it is taken; `factors` (n, n): what a taken one does to others."""
    left, taken = scores.copy(), np.full_like(scores, PAD_SCORE)
    for _ in range(len(scores)):
        best = left.argmax()
        if left[best] < LEAST_SCORE:
            break
        taken[best] = left[best]
        left[best] = 0
        left *= factors[best]
    return taken

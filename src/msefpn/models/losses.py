"""Losses, all summed: the heads divide by their own counts."""

import torch
import torch.nn.functional as F
from torch import Tensor


def box_loss(prediction: Tensor, target: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Sum of L1 (`beta` 0) or smooth-L1 distances of deltas (..., 4) where `mask` (...) holds.

    Smooth-L1 is quadratic below `beta` (Fast R-CNN, equation 3).
    """
    loss = F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    return (loss * mask[..., None]).sum()


def focal_loss(
    logits: Tensor,
    positive: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sum of the sigmoid focal loss (arXiv 1708.02002, equation 5).

    All entries are summed as negatives, then the few positive ones are corrected: no one-hot matrix is made.

    Args:
        logits: (B, N, K).
        positive: (B, N) bool, anchors with an object.
        labels: (B, N) int64, its class, where positive.
        weight: (B, N), of each anchor; 0: it takes no part.
        alpha: weight of the positives; negatives weigh 1 - alpha.
        gamma: focusing exponent.
    """
    as_negative = (1 - alpha) * logits.sigmoid().pow(gamma) * F.softplus(logits)  # (B, N, K)
    at = (*positive.nonzero(as_tuple=True), labels[positive])
    as_positive = alpha * (-logits[at]).sigmoid().pow(gamma) * F.softplus(-logits[at])
    correction = (as_positive - as_negative[at]) * weight[positive]
    return (as_negative.sum(dim=2) * weight).sum() + correction.sum()


def class_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Sum of softmax cross-entropies of logits (B, S, K) and labels (B, S) where `mask` (B, S) holds."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (loss * mask.flatten()).sum()


def object_loss(logits: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
    """Sum of binary cross-entropies of logits (B, S) where `mask` (B, S) holds."""
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return torch.where(mask, loss, 0).sum()

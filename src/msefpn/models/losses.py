"""Losses, all summed: the heads divide by their own counts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def box_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, beta: float, *, balanced: bool = False
) -> Tensor:
    """Sum of the distances of deltas (..., 4) where `mask` (...) holds.

    Args:
        prediction: (..., 4).
        target: (..., 4).
        mask: (...) bool.
        beta: smooth-L1 is quadratic below it (Fast R-CNN, equation 3); 0: L1. Balanced: where inliers end.
        balanced: balanced L1, see `balanced_l1`, in place of smooth-L1.
    """
    if balanced:
        loss = balanced_l1((prediction - target).abs(), beta)
    else:
        loss = F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    return (loss * mask[..., None]).sum()


def check_beta(beta: float, *, balanced: bool) -> None:
    """Raise ValueError for a beta that `box_loss` cannot take."""
    if balanced and beta <= 0:
        raise ValueError(f"balanced_loss divides by beta: it is {beta:g}, but must be above 0, such as 1")


def balanced_l1(x: Tensor, beta: float, *, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Balanced L1 of distances x, any shape (Libra R-CNN, arXiv 1904.02701, section 3.3).

    alpha / b (b x + 1) ln(b x / beta + 1) - alpha x for x < beta, else gamma x + gamma / b - alpha beta, with
    b = exp(gamma / alpha) - 1: inliers weigh more than under smooth-L1, whose gradient gamma bounds.
    """
    b = math.exp(gamma / alpha) - 1
    inlier = alpha / b * (b * x + 1) * (b * x / beta + 1).log() - alpha * x
    return torch.where(x < beta, inlier, gamma * x + gamma / b - alpha * beta)


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

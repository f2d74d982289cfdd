"""Losses of the heads, by name: boxes' and classes'. None is reduced: the heads weigh, sum and divide.

A loss of your own is a function, or a class whose objects are called like one (a module may learn):

    @register("loss", "log_cosh")
    def log_cosh(prediction, target, *, beta=1.0):
        return beta * ((prediction - target) / beta).cosh().log()

It is chosen by the options of a head, such as `box_loss: log_cosh` under `roi`.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from msefpn.plugins import find, register


class BoxLoss(Protocol):
    """A distance of box deltas, what `box_loss` of a head names."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The losses (..., 4), or (...) for whole boxes, of deltas (..., 4: x, y, w, h), see `boxes.encode`.

        Where it also takes `beta` by keyword, it is given the head's.
        """


class ClassLoss(Protocol):
    """What `class_loss` of a head names."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The losses (...) of logits (..., C) and labels (...) int64, finite for any finite logits.

        Of a head with a background class (RoIHead, SSDHead), labels are 0..C-1, background last, and scores
        are the softmax of the logits. Of one whose classes are independent (RPN with C = 1, RetinaHead,
        FCOSHead) scores are their sigmoid, and the label C says that there is no object.
        """


@register("loss", "l1")
def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 of each delta."""
    return F.l1_loss(prediction, target, reduction="none")


@register("loss", "smooth_l1")
def smooth_l1(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Smooth L1 of each delta (Fast R-CNN, equation 3): quadratic below `beta`; 0: L1."""
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)


@register("loss", "balanced_l1")
def balanced_l1(
    prediction: Tensor, target: Tensor, *, beta: float, alpha: float = 0.5, gamma: float = 1.5
) -> Tensor:
    """Balanced L1 of each delta (Libra R-CNN, arXiv 1904.02701, section 3.3).

    With x the distance and b = exp(gamma / alpha) - 1, it is alpha / b (b x + 1) ln(b x / beta + 1) - alpha x
    for x < beta, else gamma x + gamma / b - alpha beta: inliers weigh more than under smooth L1, whose
    gradient gamma bounds. Raises ValueError for a `beta` of 0.
    """
    if beta <= 0:
        raise ValueError(f"balanced_l1 divides by beta: it is {beta:g}, but must be above 0, such as 1")
    x = (prediction - target).abs()
    b = math.exp(gamma / alpha) - 1
    inlier = alpha / b * (b * x + 1) * (b * x / beta + 1).log() - alpha * x
    return torch.where(x < beta, inlier, gamma * x + gamma / b - alpha * beta)


@register("loss", "cross_entropy")
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy."""
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return loss.view_as(labels)


@register("loss", "binary_cross_entropy")
def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each class, summed over the classes."""
    target = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(dim=-1)


@register("loss", "focal")
def focal(logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5), summed over the classes.

    All classes count as negatives, then the label's own is corrected: no one-hot matrix is made.

    Args:
        logits: (..., C).
        labels: (...) int64; C: no object.
        alpha: weight of the positives; negatives weigh 1 - alpha.
        gamma: focusing exponent.
    """
    as_negative = (1 - alpha) * logits.sigmoid().pow(gamma) * F.softplus(logits)  # (..., C)
    classes = logits.shape[-1]
    index = labels.clamp(max=classes - 1)[..., None]
    own = logits.gather(-1, index)
    as_positive = alpha * (-own).sigmoid().pow(gamma) * F.softplus(-own)
    correction = (as_positive - as_negative.gather(-1, index)).squeeze(-1)
    return as_negative.sum(dim=-1) + torch.where(labels < classes, correction, 0)


def make_box_loss(name: str, beta: float) -> BoxLoss:
    """The box loss of a name, with a head's `beta` where it takes one.

    Raises:
        UserError: an unknown name.
        ValueError: it refuses the `beta`, or its result has another shape than `BoxLoss` says.
    """
    loss: BoxLoss = _make(name, beta=beta)
    deltas = torch.zeros(2, 3, 4, device="cpu")
    _check(f"box_loss '{name}'", loss, (deltas, deltas), ((2, 3, 4), (2, 3)), "deltas (2, 3, 4)")
    return loss


def make_class_loss(name: str) -> ClassLoss:
    """The class loss of a name.

    Raises:
        UserError: an unknown name.
        ValueError: its result has another shape than `ClassLoss` says.
    """
    loss: ClassLoss = _make(name)
    given = torch.zeros(2, 3, 4, device="cpu"), torch.zeros(2, 3, dtype=torch.long, device="cpu")
    _check(f"class_loss '{name}'", loss, given, ((2, 3),), "logits (2, 3, 4), labels (2, 3)")
    return loss


def weighted_sum(losses: Tensor, weight: Tensor) -> Tensor:
    """Sum of losses (...) or (..., 4), each times its weight (...), which may be bool."""
    return (losses * (weight if losses.ndim == weight.ndim else weight[..., None])).sum()


def _make(name: str, **given: Any) -> Any:
    loss = find("loss", name)
    takes = inspect.signature(loss).parameters
    options = {key: value for key, value in given.items() if key in takes}
    if isinstance(loss, type):
        return loss(**options)
    return functools.partial(loss, **options) if options else loss


def _check(
    what: str, loss: Callable[..., Any], given: tuple[Tensor, ...], known: Sequence[tuple[int, ...]], of: str
) -> None:
    """Raise ValueError where a loss fails on what it is given, or gives another shape than those known."""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = loss(*given)
    except ValueError:
        raise
    except Exception as error:  # a plug-in may raise anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{what} fails on {of} ({type(error).__name__}: {reason})") from error
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape not in known:
        expected = " or ".join(map(str, known))
        raise ValueError(f"{what} gives {shape} for {of}, but must give {expected}: do not reduce it")

"""A loss: log-cosh of box deltas, quadratic near zero and linear far away."""

import math

import torch.nn.functional as F
from torch import Tensor

from msefpn.plugins import register


@register("loss", "log_cosh")
def log_cosh(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the losses (..., 4) of deltas (..., 4)."""
    x = (prediction - target).abs()
    return x + F.softplus(-2 * x) - math.log(2)

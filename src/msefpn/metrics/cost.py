"""What a model costs by counting: parameters and multiply-accumulates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the number of all parameters, and of those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def count_macs(module: nn.Module, call: Callable[[], Any]) -> dict[str, int]:
    """Count the multiply-accumulates of convolutions, linear layers and matrix products.

    Args:
        module: whose parts are told apart.
        call: runs it once.

    Returns:
        The count of each of its children that computes something, by name.
    """
    with torch.no_grad(), FlopCounterMode(display=False, depth=2) as counter:
        call()
    flops = counter.get_flop_counts()
    names = {name: f"{type(module).__name__}.{name}" for name, _ in module.named_children()}
    return {name: sum(flops[path].values()) // 2 for name, path in names.items() if path in flops}

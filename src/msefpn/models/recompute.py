"""Gradient checkpointing of a backbone: maps that are computed again instead of kept."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from msefpn.errors import UserError
from msefpn.models.backbone import Backbone
from msefpn.models.fold import FoldedConv


def recompute(backbone: Backbone) -> None:
    """Keep, while training, only what goes into each block of the stages; the rest is computed again.

    Of a stage that is a sequence each block counts, else the stage as a whole. The gradients are the same,
    and so are the statistics of batch normalisation.

    Raises:
        UserError: the backbone does not name its stages.
    """
    blocks = [block for stage in backbone.stages() for block in _blocks(stage)]
    if not blocks:
        raise UserError(
            f"grad_checkpoint: the backbone '{backbone.name}' does not name its stages: leave it out, or "
            "give it the attribute stages"
        )
    for block in blocks:
        block.forward = functools.partial(_again, block, block.forward)
    for module in backbone.modules():
        if isinstance(module, FoldedConv):
            module.folds_again = False  # its hooks would keep what the checkpoint is to drop


def _blocks(stage: nn.Module) -> list[nn.Module]:
    """The parts of a stage that are computed one after the other."""
    inner = getattr(stage, "blocks", None)
    if isinstance(inner, nn.Sequential):
        return list(inner)
    return list(stage) if isinstance(stage, nn.Sequential) else [stage]


def _again(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], Any]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Let batch normalisation, which has seen these maps before, not count them twice."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm, norm.momentum, _copied(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()

"""Batch normalisation over the images of all processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msefpn.models.fold import FoldedConv, FoldedNorm, FoldedNormAct, share_state


class SyncNorm(nn.SyncBatchNorm):
    """Takes mean and variance over the images of all processes while it trains.

    Args:
        norm: the norm that it stands for, with the same parameters and statistics.

    Attributes:
        folded: whether a convolution does its work while the statistics are fixed, see `msefpn.models.fold`.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.folded = isinstance(norm, (FoldedNorm, FoldedNormAct))
        share_state(norm, self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...), unless a convolution has done it; then timm's activation, if any."""
        y = super().forward(x) if self.training or not self.folded else x
        activated: Tensor = self.act(self.drop(y))
        return activated


def synchronise_norms(module: nn.Module) -> int:
    """Let the batch normalisation whose statistics are trained see the images of all processes.

    Returns:
        How many norms were replaced; the names of parameters and buffers stay.
    """
    replaced: dict[int, Any] = {}
    for name, norm in list(module.named_modules()):
        if isinstance(norm, _BatchNorm) and norm.training:
            replaced[id(norm)] = SyncNorm(norm)
            module.set_submodule(name, replaced[id(norm)])
    for conv in module.modules():
        if isinstance(conv, FoldedConv) and id(conv.norm[0]) in replaced:
            conv.norm = (replaced[id(conv.norm[0])],)
    return len(replaced)

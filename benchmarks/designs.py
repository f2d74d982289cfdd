"""Designs of a pyramid that were tried, as a plug-in: `--plugin benchmarks/designs.py --neck trial`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks import FPN
from msefpn.necks.base import init_xavier
from msefpn.necks.layers import group_norm
from msefpn.plugins import register


class Context(nn.Module):
    """Each level gated by, and added to, a vector that C5's mean gives: F = L (1 + tanh(a)) + e.

    Args:
        c5_channels: channels of C5.
        channels: channels of the levels' maps.
        levels: their number.
    """

    def __init__(self, c5_channels: int, channels: int, levels: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(c5_channels, channels, 1)
        self.write = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 1) for _ in range(levels))

    def forward(self, c5: Tensor, local: list[Tensor]) -> list[Tensor]:
        """Change the levels' maps (B, channels, ...) by C5 (B, c5_channels, H, W)."""
        x = self.read(c5.mean((2, 3), keepdim=True))
        x = F.silu(x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt())
        parts = [write(x).chunk(2, dim=1) for write in self.write]
        return [level * (1 + a.tanh()) + e for level, (a, e) in zip(local, parts, strict=True)]


@register("neck", "trial")
class Trial(FPN):
    """FPN with one thing or several changed; the others are as in `FPN`.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output.
        extra_levels: coarser levels on top.
        norm: of the laterals.
        upsample: of the top-down path.
        batch_norm: laterals with batch normalisation.
        activation: SiLU after the laterals.
        norm_sums: group normalisation of the top-down sums.
        norm_outputs: group normalisation of the outputs.
        above: what the map from above counts in a sum, learned, at the start; 1: FPN's sum, not learned.
        context: with `Context` on the laterals.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        norm: str = "gn",
        upsample: str = "nearest",
        batch_norm: bool = False,
        activation: bool = False,
        norm_sums: bool = False,
        norm_outputs: bool = False,
        above: float = 1.0,
        context: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            in_strides,
            out_channels,
            start_level=start_level,
            extra_levels=extra_levels,
            norm=norm,
            upsample=upsample,
        )
        count = len(self.laterals)

        def norms(wanted: bool) -> nn.ModuleList:
            return nn.ModuleList(group_norm(out_channels) if wanted else nn.Identity() for _ in range(count))

        self.activation = activation
        self.batch_norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(count * batch_norm))
        self.sums, self.finished = norms(norm_sums), norms(norm_outputs)
        steps = count - 1 if above != 1 else 0
        self.above = nn.ParameterList(nn.Parameter(torch.full((), above)) for _ in range(steps))
        self.context = Context(self.in_channels[-1], out_channels, count) if context else None
        init_xavier(self)
        if self.context is not None:
            for layer in self.context.write:
                nn.init.zeros_(layer.get_parameter("weight"))  # starts as without it

    def laterals_of(self, features: list[Tensor]) -> list[Tensor]:
        """The changed laterals."""
        local = super().laterals_of(features)
        if self.batch_norms:
            local = [norm(x) for norm, x in zip(self.batch_norms, local, strict=True)]
        local = [F.silu(x) for x in local] if self.activation else local
        local = local if self.context is None else self.context(features[-1], local)
        return [*local[:-1], self.sums[-1](local[-1])]

    def fused(self, laterals: list[Tensor]) -> list[Tensor]:
        """The outputs, normalised where that is asked for."""
        return [norm(x) for norm, x in zip(self.finished, super().fused(laterals), strict=True)]

    def joined(self, step: int, local: Tensor, above: Tensor) -> Tensor:
        """The changed sum of a level and the one above."""
        weighed = above * self.above[step] if self.above else above
        total: Tensor = self.sums[step](super().joined(step, local, weighed))
        return total

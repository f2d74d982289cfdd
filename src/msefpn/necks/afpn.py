"""AFPN: Yang et al., "AFPN: Asymptotic Feature Pyramid Network for Object Detection", arXiv 2306.15988."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, Neck, init_xavier
from msefpn.necks.layers import cropped, resize_bilinear

UNITS = 4
"""Residual units after each fusion (section III-B)."""
COMPRESSED = 8
"""Channels that the weights of a fusion are made from, for each level."""


class Bring(nn.Module):
    """A level at another one's size and width (section III-B).

    From coarser: a 1x1 convolution, then bilinear. From finer: a convolution of kernel and stride 2, 4 or 8.

    Args:
        in_channels: channels of the level.
        out_channels: channels of the other one.
        steps: levels from the one to the other; negative: from the coarser to the finer.
    """

    def __init__(self, in_channels: int, out_channels: int, steps: int) -> None:
        super().__init__()
        side = 2 ** max(steps, 0)
        self.conv: nn.Module = nn.Identity()
        if steps:
            self.conv = _block(in_channels, out_channels, side, stride=side)
        self.side, self.coarser = side, steps < 0

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Bring x (B, in_channels, h, w) to (B, out_channels, H, W), the size of `like`."""
        if self.coarser:
            return resize_bilinear(self.conv(x), like=like)
        if self.side == 1:
            return x
        rows, columns = (-(-size // self.side) * self.side - size for size in x.shape[-2:])
        brought: Tensor = self.conv(nn.functional.pad(x, (0, columns, 0, rows)))
        return cropped(brought, like=like)


class AdaptiveFusion(nn.Module):
    """Adaptive spatial fusion of levels at one place (section III-C): the sum of w_l X_l.

    The weights w are for each cell, softmax over the levels of a 1x1 convolution of all of them.

    Args:
        channels: channels of each map.
        levels: their number.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.compress = nn.ModuleList(_block(channels, COMPRESSED, 1) for _ in range(levels))
        self.weigh = nn.Conv2d(levels * COMPRESSED, levels, 1)
        self.conv = _block(channels, channels, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuse maps (B, channels, H, W) to one."""
        small = [compress(x) for compress, x in zip(self.compress, maps, strict=True)]
        weights = self.weigh(torch.cat(small, dim=1)).softmax(dim=1).to(maps[0].dtype)
        fused = torch.stack([x * weights[:, level : level + 1] for level, x in enumerate(maps)]).sum(dim=0)
        mixed: Tensor = self.conv(fused)
        return mixed

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        weights = outputs["weigh"][0].softmax(dim=1).split(1, dim=1)
        return [InnerMap(f"weight of level {i}", "gate", weight) for i, weight in enumerate(weights)]


class Residual(nn.Module):
    """A residual unit of two 3x3 convolutions, as in ResNet.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _block(channels, channels, 3, padding=1)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, channels, H, W) to the same shape."""
        mixed: Tensor = self.second(self.first(x))
        return (mixed + x).relu()


class Stage(nn.Module):
    """Every one of some levels, fused from all of them, then four residual units.

    Args:
        channels: channels of the levels, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = len(channels)
        self.bring = nn.ModuleList(
            nn.ModuleList(Bring(own, width, place - level) for level, own in enumerate(channels))
            for place, width in enumerate(channels)
        )
        self.fuse = nn.ModuleList(AdaptiveFusion(width, len(channels)) for width in channels)
        self.units = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(UNITS))) for width in channels
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Levels (B, channels[i], H_i, W_i) to levels of the same shapes."""
        fused = []
        for i, own in enumerate(maps):
            bring: Any = self.bring[i]
            brought = [part(x, like=own) for part, x in zip(bring, maps, strict=True)]
            fused.append(self.units[i](self.fuse[i](brought)))
        return fused


class AFPN(Neck):
    """Asymptotic pyramid: the two finest levels are fused first, then with the next coarser, and so on.

    The backbone's levels are first reduced, as published to an eighth of their channels, but not to fewer
    than 8; in the end a 1x1 convolution brings each to the pyramid's width. Batch normalisation and ReLU
    follow every convolution but that one, and that of the weights.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        reduction: what the channels of the backbone's levels are divided by.

    Raises:
        ValueError: fewer than two levels, or a reduction below 1.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        reduction: int = 8,
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        inputs = self.in_channels[start_level:]
        if len(inputs) < 2:
            raise ValueError("afpn fuses at least two levels: lower start_level")
        if reduction < 1:
            raise ValueError(f"reduction {reduction} must be at least 1")
        widths = [max(COMPRESSED, channels // reduction) for channels in inputs]
        self.reduce = nn.ModuleList(_block(*pair, 1) for pair in zip(inputs, widths, strict=True))
        self.stages = nn.ModuleList(Stage(widths[:count]) for count in range(2, len(widths) + 1))
        self.outputs = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        inputs = features[self.start_level :]
        maps = [reduce(x) for reduce, x in zip(self.reduce, inputs, strict=True)]
        for stage in self.stages:
            assert isinstance(stage, Stage)
            maps = [*stage(maps[: stage.levels]), *maps[stage.levels :]]
        pyramid = [conv(x) for conv, x in zip(self.outputs, maps, strict=True)]
        return self.with_extra(features, pyramid)


def _block(
    in_channels: int, out_channels: int, side: int, *, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolution, batch normalisation and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, side, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

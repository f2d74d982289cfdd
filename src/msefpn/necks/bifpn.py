"""BiFPN: Tan et al., "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020, arXiv 1911.09070."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msefpn.necks.base import Neck
from msefpn.necks.layers import ExtraLevels, cropped, max_half
from msefpn.necks.upsample import make_upsampler


class WeightedFusion(nn.Module):
    """Fast normalised fusion (section 3.3, O = sum of w_i x_i / (eps + sum of w_j)), then a convolution.

    The weights are one scalar for each input, kept positive by a ReLU. A swish, a 3x3 depthwise and a 1x1
    convolution and batch normalisation follow.

    Args:
        channels: channels of every map.
        inputs: number of maps that are fused.
        weighted: else a plain sum (EfficientDet D6 and D7).
    """

    def __init__(self, channels: int, inputs: int, *, weighted: bool = True) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs)) if weighted else None
        self.conv = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1),
            _norm(channels),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuse maps of one size, (B, C, H, W) each, into one."""
        stacked = torch.stack(maps)  # (inputs, B, C, H, W)
        if self.weights is None:
            fused = stacked.sum(dim=0)
        else:
            weights = self.weights.relu()
            weights = (weights / (weights.sum() + 1e-4)).to(stacked.dtype)
            fused = torch.tensordot(weights, stacked, dims=1)
        mixed: Tensor = self.conv(fused)
        return mixed


class BiFPNCell(nn.Module):
    """One top-down and one bottom-up pass (equations of section 3.3, figure 2d).

        M_i = fuse(P_i, up(M_{i+1})), M_top = P_top
        O_i = fuse(P_i, M_i, down(O_{i-1})), O_finest = M_finest, O_top = fuse(P_top, down(O_{top-1}))

    Args:
        channels: channels of every map.
        levels: number of maps.
        weighted: see `WeightedFusion`.
        upsample: of the top-down pass, as in `FPN`.
    """

    def __init__(
        self, channels: int, levels: int, *, weighted: bool = True, upsample: str = "nearest"
    ) -> None:
        super().__init__()
        inner = range(levels - 1)
        self.upsamplers = nn.ModuleList(make_upsampler(upsample, channels) for _ in inner)
        self.top_down = nn.ModuleList(WeightedFusion(channels, 2, weighted=weighted) for _ in inner)
        self.bottom_up = nn.ModuleList(
            WeightedFusion(channels, 3 if i < levels - 2 else 2, weighted=weighted) for i in inner
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H_i, W_i), finest first, to maps of the same shapes."""
        middle = list(maps)
        for i in range(len(maps) - 2, -1, -1):
            middle[i] = self.top_down[i]([maps[i], self.upsamplers[i](middle[i + 1], like=maps[i])])
        out = middle[:1]
        for i in range(1, len(maps)):
            below = cropped(max_half(out[-1]), like=maps[i])
            own = [maps[i], middle[i]] if i < len(maps) - 1 else [maps[i]]
            out.append(self.bottom_up[i - 1]([*own, below]))
        return out


class PooledC5(ExtraLevels):
    """Extra levels of BiFPN: 1x1 convolution and batch normalisation of C5, then 3x3 stride-2 max-pooling."""

    def __init__(self, c5_channels: int, out_channels: int, count: int) -> None:
        super().__init__(c5_channels, out_channels)
        self.count = count
        self.conv = _projection(c5_channels, out_channels)

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        """`count` maps, see `ExtraLevels.forward`."""
        maps = [self.conv(c5)]
        for _ in range(self.count):
            maps.append(max_half(maps[-1]))
        return maps[1:]


class BiFPN(Neck):
    """Weighted bi-directional feature pyramid: cells stacked, extra levels fused like the others.

    The authors' code projects an input once for each node that reads it; the paper does not say so, and here
    it is projected once. Nothing is training-only.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map (D0..D7: 64, 88, 112, 160, 224, 288, 384, 384).
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: as many coarser levels as in `FPN`, but made as the paper makes them, by pooling C5.
        cells: number of cells (D0..D7: 3, 4, 5, 6, 7, 7, 8, 8).
        weighted: see `WeightedFusion`.
        norm_momentum: share of a batch in the statistics of batch normalisation. The authors' 0.01 suits
            their 300 epochs; after a few hundred steps the statistics are still those of the start.
        upsample: of the top-down passes, as in `FPN`.

    Raises:
        ValueError: fewer than two levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        cells: int = 3,
        weighted: bool = True,
        norm_momentum: float = 0.01,
        upsample: str = "nearest",
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        if len(self.out_strides) < 2:
            raise ValueError("BiFPN fuses at least two levels: lower start_level")
        if cells < 1:
            raise ValueError(f"cells {cells} must be at least 1")
        inputs = self.in_channels[start_level:]
        self.projections = nn.ModuleList(_projection(channels, out_channels) for channels in inputs)
        if self.extra.count:
            self.extra = PooledC5(in_channels[-1], out_channels, self.extra.count)
        levels = len(self.out_strides)
        self.cells = nn.Sequential(
            *(BiFPNCell(out_channels, levels, weighted=weighted, upsample=upsample) for _ in range(cells))
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        inputs = features[self.start_level :]
        maps = [project(x) for project, x in zip(self.projections, inputs, strict=True)]
        fused: list[Tensor] = self.cells(self.with_extra(features, maps))
        return fused


def _projection(channels: int, out_channels: int) -> nn.Module:
    if channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1), _norm(out_channels))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)

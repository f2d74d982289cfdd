"""AugFPN: Guo et al., "AugFPN: Improving Multi-scale Feature Learning", CVPR 2020, arXiv 1912.05384."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, init_xavier
from msefpn.necks.fpn import FPN

TENTHS = (1, 2, 3)
"""The ratio-invariant pooling's sizes, in tenths of C5's."""


class AdaptiveSpatialFusion(nn.Module):
    """Weigh maps cell by cell and sum them (section 3.2; soft RoI selection uses it too, section 3.3).

        y = sum of w_i x_i, w = sigmoid(conv3x3(relu(conv1x1([x_1 .. x_n]))))

    Args:
        channels: channels of each map.
        count: number n of maps.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(count * channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, count, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuse `count` maps (B, C, H, W) into one."""
        weights = self.weigh(torch.cat(maps, dim=1)).split(1, dim=1)  # count maps (B, 1, H, W)
        return torch.stack([w * x for w, x in zip(weights, maps, strict=True)]).sum(dim=0)


class ResidualAugmentation(nn.Module):
    """Residual feature augmentation (section 3.2): context of C5 for its lateral.

    C5 is average-pooled to 0.1, 0.2 and 0.3 of its sides, rounded down, at least 1: cells of the image's own
    aspect ratio. Each goes through a 1x1 convolution, back to C5's size bilinearly (corners aligned) and into
    an adaptive spatial fusion.

    Args:
        in_channels: channels of C5.
        out_channels: channels of the pyramid.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in TENTHS)
        self.fuse = AdaptiveSpatialFusion(out_channels, len(TENTHS))

    def forward(self, c5: Tensor) -> Tensor:
        """Context (B, out_channels, H, W) of c5 (B, in_channels, H, W)."""
        context = [_pooled(c5, *pair) for pair in zip(self.reduce, TENTHS, strict=True)]
        fused: Tensor = self.fuse(context)
        return fused

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        weights = outputs["fuse.weigh"][0].split(1, dim=1)
        pairs = zip(TENTHS, weights, strict=True)
        return [InnerMap(f"weight of C5 pooled to 0.{tenth}", "gate", weight) for tenth, weight in pairs]


def _pooled(c5: Tensor, reduce: nn.Module, tenths: int) -> Tensor:
    """Pool c5 (B, C, H, W) to tenths of its sides, reduce its channels, bring it back to its size."""
    height, width = c5.shape[-2:]
    if torch.compiler.is_compiling():
        # A map whose side is 1 for small images only splits a graph of dynamic size. All steps are linear and
        # the weights of each resizing sum to 1, so that they may change places.
        rows, columns = (_pool_and_back(side, tenths, c5) for side in (height, width))
        resized: Tensor = rows @ reduce(c5) @ columns.T
        return resized
    size = (max(height * tenths // 10, 1), max(width * tenths // 10, 1))
    small = reduce(F.adaptive_avg_pool2d(c5, size))
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=True)


def _pool_and_back(side: int, tenths: int, like: Tensor) -> Tensor:
    """(side, side): the matrix of average-pooling to tenths of `side` and of interpolating back."""
    count = torch.full((), side * tenths // 10, device=like.device).clamp(min=1)  # a tensor: it has no guards
    steps = torch.full((), side - 1, device=like.device).clamp(min=1)
    cell = torch.arange(side, device=like.device)

    def window(index: Tensor) -> Tensor:
        start: Tensor = index * side // count
        end: Tensor = ((index + 1) * side + count - 1) // count
        inside: Tensor = (cell >= start[:, None]) & (cell < end[:, None])
        return inside.to(like.dtype) / (end - start)[:, None]

    position: Tensor = cell * (count - 1) / steps
    low = position.floor()
    fraction = (position - low)[:, None].to(like.dtype)
    low = low.long()
    return (1 - fraction) * window(low) + fraction * window((low + 1).minimum(count - 1))


class AugFPN(FPN):
    """FPN with residual feature augmentation, and laterals to supervise.

    Consistent supervision (section 3.1) is training-only and belongs to the detector: it pools its regions
    from the laterals before the top-down sums, which `forward_with_aux` gives. Soft RoI selection (section
    3.3) is a pooling of the two-stage head.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        norm: of the laterals, as in `FPN`.
        upsample: of the top-down path, as in `FPN`.
    """

    aux = ("laterals",)

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        norm: str = "none",
        upsample: str = "nearest",
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
        self.augment = ResidualAugmentation(in_channels[-1], out_channels)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        return self.forward_with_aux(features)[0]

    def forward_with_aux(self, features: list[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Fuse the maps.

        Returns:
            The pyramid as `forward` gives it, and under `laterals` the backbone's levels (B, out_channels,
            H_i, W_i) before the augmentation and the top-down sums.
        """
        laterals = self.laterals_of(features)
        merged = [*laterals[:-1], laterals[-1] + self.augment(features[-1])]
        return self.with_extra(features, self.fused(merged)), {"laterals": laterals}

"""Layers that several necks share."""

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_choice(argument: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError for a value that an argument does not have."""
    if value not in known:
        raise ValueError(f"{argument} '{value}' is unknown: known: {', '.join(known)}")


def group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Group normalisation with `groups` groups, or the largest divisor of `channels` below that.

    A group has two channels at least: of one channel and one cell nothing would be left.
    """
    most = min(groups, max(1, channels // 2))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"none": nn.Identity, "gn": group_norm}
"""Norms of laterals, by name: constructors that take the channels."""


class Lateral(nn.Conv2d):
    """1x1 convolution of a level to the pyramid's width, then a norm or none.

    Args:
        in_channels: channels of the level's map.
        out_channels: channels of the pyramid.
        norm: `none`, or `gn` for group normalisation.

    Raises:
        ValueError: another norm.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "none") -> None:
        check_choice("norm", norm, tuple(NORMS))
        super().__init__(in_channels, out_channels, 1)
        self.norm: nn.Module = NORMS[norm](out_channels)

    def forward(self, input: Tensor) -> Tensor:
        """Bring a map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        local = super().forward(input)
        normal: Tensor = self.norm(local)
        return normal.to(local.dtype)  # autocast leaves norms in float32


def rounded_width(channels: int, ratio: int) -> int:
    """`channels / ratio` rounded to the nearest multiple of 8, at least 8."""
    return max(8, math.floor(channels / ratio / 8 + 0.5) * 8)


def float32(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Switch autocast off for x's device where it is on."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def is_exporting() -> bool:
    """Whether a graph is being exported; torch 2.6 only says whether one is being traced at all."""
    return bool(getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)())


def upsample_nearest(x: Tensor, like: Tensor) -> Tensor:
    """Resize x (B, C, h, w) to the height and width of `like`, nearest neighbour: FPN's top-down step."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def resize_bilinear(x: Tensor, like: Tensor) -> Tensor:
    """Resize x (B, C, h, w) to the height and width of `like`, bilinear, align_corners off."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """x (B, C, h, w) without the last row and column that `like` (B, C, H, W) lacks.

    A stride-2 layer rounds sides up; a backbone may have rounded them down.
    """
    return x[:, :, : like.shape[2], : like.shape[3]]


def every_second(x: Tensor) -> Tensor:
    """Every second row and column of x (B, C, H, W), by index: torch 2.11 exports no strided view."""
    rows, columns = (torch.arange(0, side, 2, device=x.device) for side in x.shape[2:])
    return x.index_select(2, rows).index_select(3, columns)


def max_half(x: Tensor) -> Tensor:
    """3x3 max-pooling of stride 2 of x (B, C, H, W), sides rounded up."""
    if not torch.compiler.is_compiling():
        return F.max_pool2d(x, 3, stride=2, padding=1)
    return every_second(F.max_pool2d(x, 3, stride=1, padding=1))  # torch 2.11 asks if sides are even


def max_down(x: Tensor, like: Tensor, ratio: int) -> Tensor:
    """Adaptive max-pooling of x (B, C, h, w) to the size of `like`, whose stride is `ratio` times x's.

    Cell i of n covers the cells from floor(i * N / n) to ceil((i + 1) * N / n) of N.
    """
    if not torch.compiler.is_compiling():
        return F.adaptive_max_pool2d(x, like.shape[2:])
    for dim in (2, 3):  # the operator's size cannot be a symbol: gather each window, take its maximum
        count, total = like.shape[dim], x.shape[dim]
        cell = torch.arange(count, device=x.device)
        start, end = cell * total // count, ((cell + 1) * total + count - 1) // count
        window = torch.arange(2 * ratio + 1, device=x.device)  # no window is longer
        index = torch.minimum(start[:, None] + window, end[:, None] - 1)  # (count, 2 * ratio + 1)
        x = x.index_select(dim, index.flatten()).unflatten(dim, (count, 2 * ratio + 1)).amax(dim + 1)
    return x


def mean_down(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average-pooling of x (B, C, H, W) to `size` (h, w).

    In an exported graph by a product with the rows' and the columns' weights: there the operator keeps the
    windows of the sizes that were traced, and is silently wrong at others.
    """
    if not is_exporting():
        return F.adaptive_avg_pool2d(x, size)
    rows, columns = (_window_means(total, count, x) for total, count in zip(x.shape[2:], size, strict=True))
    # not by matmul: its broadcasting asks of the sizes what cannot be proved of all
    return F.linear(F.linear(x, columns).transpose(2, 3), rows).transpose(2, 3)


def _window_means(total: int, count: int, like: Tensor) -> Tensor:
    """(count, total): the weights that average `total` cells to `count`; windows as in `max_down`."""
    cell = torch.arange(count, device=like.device)[:, None]
    start, end = cell * total // count, ((cell + 1) * total + count - 1) // count
    place = torch.arange(total, device=like.device)
    return ((place >= start) & (place < end)).to(like.dtype) / (end - start)


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means of x (B, C, H, W) over the width, (B, C, H, 1), and over the height, (B, C, 1, W).

    On the CPU by pooling: there `mean` over one side of a channels_last map takes over ten times as long. An
    exported graph would keep the sides that were traced as the pooling's.
    """
    if not x.is_cpu or is_exporting():
        return x.mean(dim=3, keepdim=True), x.mean(dim=2, keepdim=True)
    return F.adaptive_avg_pool2d(x, (x.shape[2], 1)), F.adaptive_avg_pool2d(x, (1, x.shape[3]))


class ExtraLevels(nn.Module):
    """Levels coarser than the backbone's; here none: the pyramid ends with the backbone's coarsest level.

    Args:
        c5_channels: channels of C5.
        out_channels: channels of the pyramid.
    """

    count = 0
    """Number of levels."""

    def __init__(self, c5_channels: int, out_channels: int) -> None:
        super().__init__()

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        """Maps (B, out_channels, ...), each half the size of the one before, rounded up.

        Args:
            c5: the backbone's coarsest map, (B, c5_channels, H5, W5).
            p5: the pyramid's map of that level, (B, out_channels, H5, W5).
        """
        return []


class PoolP5(ExtraLevels):
    """P6 is every second cell of P5: the extra level of two-stage heads (FPN, section 4.1, footnote 2)."""

    count = 1

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        """One map, see `ExtraLevels.forward`."""
        return [every_second(p5)]


class ConvC5(ExtraLevels):
    """P6 = 3x3 stride-2 convolution of C5, P7 the same of P6, no ReLU between: mmdetection's RetinaNet."""

    count = 2

    def __init__(self, c5_channels: int, out_channels: int) -> None:
        super().__init__(c5_channels, out_channels)
        self.p6 = nn.Conv2d(c5_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        """Two maps, see `ExtraLevels.forward`."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


class ConvC5Relu(ConvC5):
    """P6 = 3x3 stride-2 convolution of C5, P7 the same of relu(P6): detectron2's RetinaNet."""

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        """Two maps, see `ExtraLevels.forward`."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


class ConvP5Relu(ExtraLevels):
    """P6 = 3x3 stride-2 convolution of P5, P7 the same of relu(P6): torchvision's RetinaNet."""

    count = 2

    def __init__(self, c5_channels: int, out_channels: int) -> None:
        super().__init__(c5_channels, out_channels)
        self.p6 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        """Two maps, see `ExtraLevels.forward`."""
        p6 = self.p6(p5)
        return [p6, self.p7(F.relu(p6))]


EXTRA_LEVELS: dict[str, type[ExtraLevels]] = {
    "none": ExtraLevels,
    "pool": PoolP5,
    "conv_c5": ConvC5,
    "conv_c5_relu": ConvC5Relu,
    "conv_p5_relu": ConvP5Relu,
}

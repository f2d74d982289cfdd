"""Upsampling of a coarse map to the next finer level, for any top-down path: fixed, or learned from content.

All are plain operators of torch, and export.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import OwnStart
from msefpn.necks.layers import check_choice, resize_bilinear, upsample_nearest

GROUPS = 4
"""Groups of channels that are sampled at points of their own."""


class Upsampler(nn.Module):
    """Base of the upsamplers; `forward` gives a new map, which the caller may change.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Resize x (B, C, h, w) to (B, C, H, W), the height and width of `like`, about twice x's."""
        raise NotImplementedError


class Nearest(Upsampler):
    """The nearest cell: FPN's."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """See `Upsampler.forward`."""
        return upsample_nearest(x, like)


class Bilinear(Upsampler):
    """Bilinear interpolation, align_corners off."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """See `Upsampler.forward`."""
        return resize_bilinear(x, like)


class CARAFE(OwnStart, Upsampler):
    """Content-aware reassembly: Wang et al., ICCV 2019, arXiv 1905.02188, section 3.

    Each cell of the finer map is a weighted mean of the 5 x 5 cells around its place in the coarse one. The
    weights are predicted there (section 3.2), one kernel for each of the 2 x 2 cells that it becomes:

        W = softmax(conv3x3(conv1x1(X)));  X'(2i + a, 2j + b) = sum over n, m of W_ab(n, m) X(i + n, j + m)

    Args:
        channels: channels of the map.
    """

    hidden, size = 64, 5
    """Channels that the kernels are predicted from (C_m), and their side (k_up)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.compress = nn.Conv2d(channels, self.hidden, 1)
        self.encode = nn.Conv2d(self.hidden, self.size**2 * 4, 3, padding=1)

    def start(self, generator: torch.Generator | None) -> None:
        """Nearly equal weights, as the authors' code has them."""
        nn.init.normal_(self.encode.weight, std=0.001, generator=generator)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """See `Upsampler.forward`."""
        kernels = self.encode(self.compress(x)).unflatten(1, (self.size**2, 4)).softmax(dim=1)
        fine = reassembled(x.unsqueeze(2), kernels.to(x.dtype))  # (B, C, 4, h, w)
        return sized(F.pixel_shuffle(fine.flatten(1, 2), 2), like)


class DySample(OwnStart, Upsampler):
    """Sampling at learned points: Liu et al., ICCV 2023, arXiv 2308.15085, section 3.

    A cell of the finer map is the coarse one at a point S = G + O, bilinear between its cells, where G is the
    point that bilinear upsampling takes and O an offset, in cells, from a 1x1 convolution `f` of X. There is
    one offset for each of 4 groups of channels.

        static scope:   O = 0.25 f(X)
        dynamic scope:  O = 0.5 sigmoid(g(X)) f(X)

    Args:
        channels: channels of the map; divisible by 4.
        shuffle_first: shuffle X's channels to the finer map's cells before the convolutions (`DySample-S`),
            not the offsets behind them.
        dynamic: with the dynamic scope (`DySample+`, `DySample-S+`).

    Raises:
        ValueError: channels that cannot be divided.
    """

    def __init__(self, channels: int, *, shuffle_first: bool = False, dynamic: bool = False) -> None:
        super().__init__(channels)
        if channels % GROUPS:
            raise ValueError(f"dysample divides channels by 4: {channels} must be divisible by 4")
        self.shuffle_first = shuffle_first
        read, made = (channels // 4, 2 * GROUPS) if shuffle_first else (channels, 8 * GROUPS)
        self.offset = nn.Conv2d(read, made, 1)
        self.scope = nn.Conv2d(read, made, 1, bias=False) if dynamic else None

    def start(self, generator: torch.Generator | None) -> None:
        """Nearly bilinear, with the dynamic scope at the static one's."""
        nn.init.normal_(self.offset.weight, std=0.001, generator=generator)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """See `Upsampler.forward`."""
        read = F.pixel_shuffle(x, 2) if self.shuffle_first else x
        offset = self.offset(read)
        offset = offset * (0.25 if self.scope is None else 0.5 * self.scope(read).sigmoid())
        offset = offset if self.shuffle_first else F.pixel_shuffle(offset, 2)
        return sized(sample_at(x, offset.unflatten(1, (GROUPS, 2))), like)


def sample_at(x: Tensor, offset: Tensor) -> Tensor:
    """Sample x at the places of the cells of a map over the same area, each moved by its own offset.

    Args:
        x: (B, C, h, w).
        offset: (B, groups, 2, H, W), x and y in cells of x, for each of `groups` groups of channels.

    Returns:
        (B, C, H, W), bilinear between cells; beyond the map lie copies of its edge.
    """
    count, groups, _, *size = offset.shape
    axes, steps = [], []
    for total, side in ((size[1], x.shape[3]), (size[0], x.shape[2])):
        cells = torch.arange(total, device=x.device, dtype=offset.dtype)
        axes.append((cells + 0.5) * 2 / torch.full((), total, device=x.device, dtype=offset.dtype) - 1)
        steps.append(2 / torch.full((), side, device=x.device, dtype=offset.dtype))
    places = torch.stack(torch.meshgrid(*axes, indexing="xy"))  # (2, H, W), -1 to 1 over x
    grid = places + offset * torch.stack(steps).view(2, 1, 1)
    grid = grid.flatten(0, 1).permute(0, 2, 3, 1).to(x.dtype)  # (B * groups, H, W, 2)
    split = x.unflatten(1, (groups, x.shape[1] // groups)).flatten(0, 1)
    sampled = F.grid_sample(split, grid, "bilinear", "border", align_corners=False)
    joined: Tensor = sampled.unflatten(0, (count, groups)).flatten(1, 2)
    return joined


def reassembled(x: Tensor, kernels: Tensor, dilation: int = 1) -> Tensor:
    """Weigh the cells around each cell of x (B, C, 1, H, W) by kernels (B, side * side, n, H, W).

    Returns (B, C, n, H, W). Neighbours are `dilation` cells apart; beyond the map lie zeros.
    """
    side, (height, width) = math.isqrt(kernels.shape[1]), x.shape[-2:]
    padded = F.pad(x, [side // 2 * dilation] * 4)
    total: Tensor | None = None
    for tap in range(side**2):
        row, column = (place * dilation for place in divmod(tap, side))
        cells = padded[..., row : row + height, column : column + width] * kernels[:, tap : tap + 1]
        total = cells if total is None else total + cells
    assert total is not None
    return total


def sized(x: Tensor, like: Tensor) -> Tensor:
    """x at the size of `like`, which a backbone's rounding may have left a row or a column away."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return upsample_nearest(x, like)


_KINDS: dict[str, tuple[Callable[..., Upsampler], dict[str, Any]]] = {
    "nearest": (Nearest, {}),
    "bilinear": (Bilinear, {}),
    "carafe": (CARAFE, {}),
    "dysample": (DySample, {}),
    "dysample_plus": (DySample, {"dynamic": True}),
    "dysample_s": (DySample, {"shuffle_first": True}),
    "dysample_s_plus": (DySample, {"shuffle_first": True, "dynamic": True}),
}
UPSAMPLERS = tuple(_KINDS)
"""Their names."""


def make_upsampler(name: str, channels: int) -> Upsampler:
    """The upsampler of that name for a map of `channels`. Raises ValueError."""
    check_choice("upsample", name, UPSAMPLERS)
    kind, options = _KINDS[name]
    return kind(channels, **options)

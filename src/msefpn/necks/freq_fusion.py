"""FreqFusion: Chen et al., "Frequency-aware Feature Fusion for Dense Image Prediction", arXiv 2408.12879."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import OwnStart, init_xavier
from msefpn.necks.fpn import FPN
from msefpn.necks.layers import upsample_nearest
from msefpn.necks.upsample import GROUPS, reassembled, sample_at

LOW, HIGH = 5, 3
"""Sides of the low-pass and of the high-pass kernels."""
HIDDEN = 64
"""Channels of Z."""


class FrequencyFusion(OwnStart):
    """Sum of a level and the one above, each filtered by kernels that are predicted for each cell.

        Z      = conv1x1(X), conv1x1(Y), joined by what both predict, Y's resized to X's size
        W_low  = softmax(conv3x3(Z)), 5 x 5;  Y' = the cells of Y weighed by W_low, upsampled (ALPF)
        W_high = softmax(conv3x3(Z)), 3 x 3;  X' = X + (X - the cells of X weighed by W_high) (AHPF)
        O      = D sigmoid(A), D and A 3x3 convolutions of Z and of its cosine similarities to the 8
                 neighbours; Y'' = Y' at the cells' places moved by O, one offset for 4 groups of channels
        T      = X' + Y''

    Args:
        channels: channels of both maps; divisible by 4.

    Raises:
        ValueError: channels that cannot be divided.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % GROUPS:
            raise ValueError(f"freq_fusion divides channels by 4: {channels} must be divisible by 4")
        self.compress_fine = nn.Conv2d(channels, HIDDEN, 1)
        self.compress_coarse = nn.Conv2d(channels, HIDDEN, 1)
        self.low = nn.Conv2d(HIDDEN, LOW**2, 3, padding=1)
        self.high = nn.Conv2d(HIDDEN, HIGH**2, 3, padding=1)
        self.direction = nn.Conv2d(HIDDEN + 8, 2 * GROUPS, 3, padding=1)
        self.size = nn.Conv2d(HIDDEN + 8, 2 * GROUPS, 3, padding=1)

    def start(self, generator: torch.Generator | None) -> None:
        """Nearly equal weights, and nearly no offset."""
        for layer in (self.low, self.high, self.direction):
            nn.init.normal_(layer.weight, std=0.001, generator=generator)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Fuse fine (B, C, H, W) and coarse (B, C, h, w) to (B, C, H, W)."""
        z_fine, z_coarse = self.compress_fine(fine), self.compress_coarse(coarse)
        low = self.low(z_fine) + upsample_nearest(self.low(z_coarse), like=fine)
        high = self.high(z_fine) + upsample_nearest(self.high(z_coarse), like=fine)
        above = upsample_nearest(coarse, like=fine)
        above = _filtered(above, low, dilation=2)  # Y's own cells, which are two apart
        sharp = 2 * fine - _filtered(fine, high)
        z = z_fine + upsample_nearest(z_coarse, like=fine)
        read = torch.cat([z, _similarities(z)], dim=1)
        offset = self.direction(read) * self.size(read).sigmoid()
        return sharp.add_(sample_at(above, offset.unflatten(1, (GROUPS, 2))))


def _filtered(x: Tensor, scores: Tensor, dilation: int = 1) -> Tensor:
    """x (B, C, H, W), its cells weighed by the softmax of scores (B, side * side, H, W)."""
    kernels = scores.softmax(dim=1).to(x.dtype).unsqueeze(2)
    return reassembled(x.unsqueeze(2), kernels, dilation).squeeze(2)


def _similarities(x: Tensor) -> Tensor:
    """(B, 8, H, W): cosine similarity of each cell of x (B, C, H, W) to its eight neighbours; outside 0."""
    unit = F.normalize(x, dim=1)
    height, width = x.shape[-2:]
    padded = F.pad(unit, [1] * 4)
    places = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    moved = (padded[..., row : row + height, column : column + width] for row, column in places)
    return torch.stack([(unit * neighbour).sum(dim=1) for neighbour in moved], dim=1)


class FreqFusion(FPN):
    """FPN whose top-down sums are frequency-aware fusions: T_i = fusion(conv1x1(C_i), T_{i+1}).

    Written from the paper's equations: its three parts (section 4) share Z, and the offsets move the coarser
    map alone.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map; divisible by 4.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        norm: of the laterals, as in `FPN`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        norm: str = "none",
    ) -> None:
        super().__init__(
            in_channels,
            in_strides,
            out_channels,
            start_level=start_level,
            extra_levels=extra_levels,
            norm=norm,
        )
        self.fusions = nn.ModuleList(FrequencyFusion(out_channels) for _ in self.laterals[1:])
        init_xavier(self)

    def joined(self, step: int, local: Tensor, above: Tensor) -> Tensor:
        """T_i of a level and the one above."""
        fused: Tensor = self.fusions[step](local, above)
        return fused

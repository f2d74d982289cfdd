"""What heads that predict in every cell share: towers of convolutions, the best pairs of cell and class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msefpn.models.boxes import PAD_SCORE, top_candidates
from msefpn.necks.layers import group_norm


def tower(channels: int, depth: int, *, norm: bool, bias: bool) -> nn.Sequential:
    """3x3 convolutions, each with group normalisation, if asked for, and a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias))
        if norm:
            layers.append(group_norm(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def by_cell(x: Tensor, values: int) -> Tensor:
    """A prediction (B, A * values, H, W) of A anchors in each cell as (B, H * W * A, values)."""
    cells: Tensor = x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))
    return cells


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score, anchor and label, each (B, n), of the best pairs of scores (B, N, K).

    The best n pairs are among the n anchors whose best class scores highest, so the full N * K sort is not
    needed.
    """
    classes = scores.shape[2]
    peak, anchor = top_candidates(scores.amax(dim=2), count)
    pairs = scores.gather(1, anchor[..., None].expand(-1, -1, classes))
    pairs = torch.where(peak[..., None] > PAD_SCORE, pairs, PAD_SCORE).flatten(1)  # (B, n * K)
    score, pair = top_candidates(pairs, count)
    return score, anchor.gather(1, pair // classes), pair % classes

"""SEM of MSE-FPN (Guo et al., Sci. Rep. 13:7178, 2023): one map of semantics from several levels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import InnerMap
from msefpn.necks.layers import check_choice, float32, mean_down, rounded_width


class SEM(nn.Module):
    """Semantic enhancement module: one map of semantics from several levels.

    The levels are average-pooled to half the coarsest map's size, rounded up, and concatenated to M
    (B, C, h, w), C the sum of their channels, or, after a 1x1 convolution, `width`; N = h * w. A spatial
    branch a (B, 1, h, w) weighs V = Wv M, a channel branch m (B, C, 1, 1) weighs M:

        R = (Wq M)^T (Wk M), normalised per sample over its N x N entries
        a = sigmoid(mean of R over queries)
        m = sigmoid(W2 relu(W1 mean(M)))
        G = a * V + m * M

    Args:
        in_channels: channels of the levels that are read, finest first.
        branches: `both`, `spatial` (G = a * V), `channel` (G = m * M) or `conv` (G = 1x1 convolution of M,
            the ablation without SEM).
        combine: `add` (a * V + m * M), `cascade` (m * (a * V) + M) or `residual` (M + a * V + m * M).
        score_norm: normalise the scores R `before` or `after` the mean over queries.
        attention: what is made of R: `mean`, a = sigmoid(mean of R over queries), as above; `sigmoid`,
            a = mean of sigmoid(R); or `mix`, which mixes the cells: a * V is the mean of R V over keys.
        width: channels that M is reduced to; None: it is not.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        branches: str = "both",
        combine: str = "add",
        score_norm: str = "before",
        attention: str = "mean",
        width: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("branches", branches, ("both", "spatial", "channel", "conv"))
        check_choice("combine", combine, ("add", "cascade", "residual"))
        check_choice("score_norm", score_norm, ("before", "after"))
        check_choice("attention", attention, ("mean", "sigmoid", "mix"))
        if combine != "add" and branches != "both":
            raise ValueError(f"combine '{combine}' joins two branches, but branches is '{branches}'")
        if score_norm != "before" and branches not in ("both", "spatial"):
            raise ValueError(
                f"score_norm '{score_norm}' needs the spatial branch, but branches is '{branches}'"
            )
        if attention != "mean" and (branches not in ("both", "spatial") or score_norm != "before"):
            raise ValueError(
                f"attention '{attention}' needs the spatial branch and score_norm 'before', but branches is "
                f"'{branches}' and score_norm '{score_norm}'"
            )
        self.branches, self.combine, self.score_norm = branches, combine, score_norm
        self.attention = attention
        self.groups = tuple(in_channels) if width is None else ()
        concatenated = sum(in_channels)
        self.channels = channels = concatenated if width is None else width
        self.reduce = nn.Identity() if width is None else nn.Conv2d(concatenated, width, 1)
        if branches in ("both", "spatial"):
            self.query = nn.Conv2d(channels, rounded_width(channels, 8), 1)
            self.key = nn.Conv2d(channels, rounded_width(channels, 8), 1)
            self.value = nn.Conv2d(channels, channels, 1)
        if branches in ("both", "channel"):
            hidden = rounded_width(channels, 16)
            self.channel_gate = nn.Sequential(
                nn.Conv2d(channels, hidden, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, channels, 1),
                nn.Sigmoid(),
            )
        if branches == "conv":
            self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, features: list[Tensor], coarsest: Tensor) -> Tensor:
        """Gather the semantics.

        Args:
            features: the levels that are read, (B, in_channels[i], H_i, W_i).
            coarsest: the backbone's coarsest map, (B, C5, H5, W5): it sets the size.

        Returns:
            G, (B, C, ceil(H5 / 2), ceil(W5 / 2)).
        """
        height, width = coarsest.shape[-2:]
        size = ((height + 1) // 2, (width + 1) // 2)
        pooled = [mean_down(x, size) for x in features]
        m: Tensor = self.reduce(torch.cat(pooled, dim=1))  # (B, C, h, w)
        if self.branches == "conv":
            mixed: Tensor = self.conv(m)
            return mixed
        if self.branches == "channel":
            return self.channel_weight(m) * m
        enhanced = self._enhanced(m)
        if self.branches == "spatial":
            return enhanced
        weight = self.channel_weight(m)
        if self.combine == "cascade":
            return weight * enhanced + m
        gathered = enhanced + weight * m
        return gathered + m if self.combine == "residual" else gathered

    def _enhanced(self, m: Tensor) -> Tensor:
        """The spatial branch's a * V of M (B, C, h, w), of the same shape."""
        value: Tensor = self.value(m)
        if self.attention != "mix":
            return self.spatial_weight(m) * value
        scores = self._scores(m)  # (B, N queries, N keys)
        with float32(m):
            mixed = value.flatten(2).to(scores.dtype) @ scores.transpose(1, 2) / scores.shape[2]
        enhanced: Tensor = mixed.to(value.dtype).unflatten(2, m.shape[-2:])
        return enhanced

    def channel_weight(self, m: Tensor) -> Tensor:
        """The channel branch's weights (B, C, 1, 1) of M (B, C, h, w)."""
        weight: Tensor = self.channel_gate(m.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        return weight

    def spatial_weight(self, m: Tensor) -> Tensor:
        """The spatial branch's attention a (B, 1, h, w) of M (B, C, h, w)."""
        scores = self._scores(m)
        with float32(m):
            if self.attention == "sigmoid":
                weights = scores.sigmoid().mean(dim=1)  # (B, N)
            else:
                pooled = scores.mean(dim=1)  # (B, N)
                if self.score_norm == "after":
                    pooled = F.layer_norm(pooled, pooled.shape[1:])
                weights = pooled.sigmoid()
        weight: Tensor = weights.to(m.dtype).unflatten(1, m.shape[-2:]).unsqueeze(1)
        return weight

    def _scores(self, m: Tensor) -> Tensor:
        """The scores R (B, N queries, N keys) of M (B, C, h, w); float32 at least, also under autocast."""
        query: Tensor = self.query(m).flatten(2)  # (B, C', N)
        key: Tensor = self.key(m).flatten(2)  # (B, C', N)
        precise = torch.promote_types(m.dtype, torch.float32)
        with float32(m):
            query, key = query.to(precise), key.to(precise)
            scores = query.transpose(1, 2) @ key
            return F.layer_norm(scores, scores.shape[1:]) if self.score_norm == "before" else scores

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        m, maps = outputs["reduce"][0], [InnerMap("SEM semantics G", "map", outputs[""][0])]
        if self.branches in ("both", "spatial") and self.attention != "mix":
            maps.insert(0, InnerMap("SEM attention", "gate", self.spatial_weight(m)))
        if self.branches in ("both", "channel"):
            maps.append(InnerMap("SEM channel weights", "channels", self.channel_weight(m), self.groups))
        return maps

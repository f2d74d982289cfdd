"""Residual MSE-FPN, which is ours: the three ideas of MSE-FPN as corrections of FPN that start at nothing.

MSE-FPN (Guo et al., Sci. Rep. 13:7178, 2023) gathers semantics of several levels, injects them into each
level and gates the top-down path. Here that is added to FPN's own signals, which stay as they are until
training finds a use for more.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, OwnStart, init_xavier
from msefpn.necks.fpn import FPN
from msefpn.necks.layers import mean_down, resize_bilinear, strip_means

HEADS = 4
READ = 3
"""Levels, the coarsest, that the semantics are gathered from and injected into."""


class Tokens(nn.Module):
    """Semantics G of several levels: their pooled cells, mixed by a transformer's layer.

        X = sum over levels of linear(rms(pool(C_i)));  Y = X + depthwise3x3(X)
        Z = Y + attention(rms(Y));  G = rms(Z + MLP(rms(Z)))

    Args:
        in_channels: channels of the levels that are read.
        width: channels of G; divisible by 4.
    """

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Linear(channels, width, bias=False) for channels in in_channels)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Gather levels (B, in_channels[i], H_i, W_i), the coarsest last.

        Returns:
            G, (B, width, ceil(H / 2), ceil(W / 2)) of the coarsest's H and W.
        """
        height, width = features[-1].shape[-2:]
        size = ((height + 1) // 2, (width + 1) // 2)
        cells = [mean_down(x, size).flatten(2).transpose(1, 2) for x in features]  # (B, N, C_i)
        parts = [linear(_rms(x)) for linear, x in zip(self.reduce, cells, strict=True)]
        x = torch.stack(parts).sum(dim=0)  # (B, N, width)
        placed = self.position(x.transpose(1, 2).unflatten(2, size))
        x = x + placed.flatten(2).transpose(1, 2)
        query, key, value = self.qkv(_rms(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, width / heads)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        x = _rms(x + self.mlp(_rms(x)))
        semantics: Tensor = x.transpose(1, 2).unflatten(2, size)
        return semantics

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        return [InnerMap("semantics G", "map", outputs[""][0])]


class Injection(OwnStart):
    """F = N (1 + up(tanh(A G))) + up(E G), A and E 1x1 convolutions that start at zero.

    Args:
        semantic_channels: channels of G.
        channels: channels of the level's map N.
    """

    def __init__(self, semantic_channels: int, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(semantic_channels, channels, 1)
        self.embedding = nn.Conv2d(semantic_channels, channels, 1)

    def start(self, generator: torch.Generator | None) -> None:
        """Begin as F = N."""
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, local: Tensor, semantics: Tensor) -> Tensor:
        """Inject semantics (B, semantic_channels, h, w) into local (B, channels, H, W)."""
        gate = resize_bilinear(self.gate(semantics).tanh(), like=local)
        embedding = resize_bilinear(self.embedding(semantics), like=local)
        return torch.addcmul(local + embedding, local, gate)

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        gate, embedding = outputs["gate"][0].tanh() / 2 + 0.5, outputs["embedding"][0]
        return [InnerMap("injection gate", "gate", gate), InnerMap("injection embedding", "map", embedding)]


class StripGate(OwnStart):
    """Gate of a map on its way down: X = T (1 + tanh(u) tanh(v)), u of each row and v of each column.

    Both are two layers on the normalised strips of T and of the finer map that X is added to; the layer of u
    starts at zero.

    Args:
        channels: channels of both maps.
        hidden: channels between the layers.
    """

    def __init__(self, channels: int, hidden: int = 32) -> None:
        super().__init__()
        self.own = nn.Conv2d(channels, hidden, 1)
        self.finer = nn.Conv2d(channels, hidden, 1, bias=False)
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def start(self, generator: torch.Generator | None) -> None:
        """Begin as X = T."""
        nn.init.zeros_(self.rows.weight)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """Gate x (B, C, h, w) by itself and the next finer map (B, C, H, W)."""
        height, width = x.shape[-2:]
        rows, columns = (_rms_channels(strip) for strip in strip_means(x))
        finer_rows, finer_columns = strip_means(finer)
        finer_rows = _rms_channels(mean_down(finer_rows, (height, 1)))
        finer_columns = _rms_channels(mean_down(finer_columns, (1, width)))
        u: Tensor = self.rows((self.own(rows) + self.finer(finer_rows)).relu()).tanh()  # (B, C, h, 1)
        v: Tensor = self.columns((self.own(columns) + self.finer(finer_columns)).relu()).tanh()
        return torch.addcmul(x, x, u * v)

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        product = outputs["rows"][0].tanh() * outputs["columns"][0].tanh()
        return [InnerMap("strip gate", "gate", product / 2 + 0.5)]


class ResMSEFPN(FPN):
    """FPN with residual semantics and gates; starts as the FPN with the same options.

        F_i = Injection(L_i, Tokens(C)) at the three coarsest levels, L_i FPN's laterals
        T_{i-1} = F_{i-1} + up(StripGate(T_i, F_{i-1}));  P_i = conv3x3(T_i)

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        norm: of the laterals, as in `FPN`.
        semantics: width of the semantics that are injected; 0: none.
        gates: with gates on the top-down path.
        upsample: of the top-down path, as in `FPN`.

    Raises:
        ValueError: an unknown choice, or a width that the heads of attention cannot share.
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
        semantics: int = 128,
        gates: bool = True,
        upsample: str = "nearest",
    ) -> None:
        if semantics % HEADS or semantics < 0:
            raise ValueError(f"semantics {semantics} must be 0 or a multiple of {HEADS}")
        super().__init__(
            in_channels,
            in_strides,
            out_channels,
            start_level=start_level,
            extra_levels=extra_levels,
            norm=norm,
            upsample=upsample,
        )
        levels = len(self.laterals)
        self.tokens = Tokens(self.in_channels[-READ:], semantics) if semantics else None
        injected = min(READ, levels) if semantics else 0
        self.injections = nn.ModuleList(Injection(semantics, out_channels) for _ in range(injected))
        self.gates = nn.ModuleList(StripGate(out_channels) for _ in range(levels - 1 if gates else 0))
        init_xavier(self)

    def start_from(self, fpn: FPN) -> None:
        """Take the weights of an FPN, so that the pyramid is the FPN's until training changes it.

        Raises:
            ValueError: the FPN has other inputs, outputs, norms or upsampling.
        """
        fpn.check_start(self, "norm", "upsample")
        self.load_state_dict(fpn.state_dict(), strict=False)

    def laterals_of(self, features: list[Tensor]) -> list[Tensor]:
        """F_i of each level."""
        local = super().laterals_of(features)
        if self.tokens is None:
            return local
        semantics = self.tokens(features[-READ:])
        first = len(local) - len(self.injections)
        injected = [inject(x, semantics) for inject, x in zip(self.injections, local[first:], strict=True)]
        return local[:first] + injected

    def joined(self, step: int, local: Tensor, above: Tensor) -> Tensor:
        """T_i of a level and the one above, which is gated first."""
        gated = self.gates[step](above, local) if len(self.gates) else above
        return super().joined(step, local, gated)


def _rms(x: Tensor) -> Tensor:
    """x (..., C) over the root of the mean of its squares, without weights."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def _rms_channels(x: Tensor) -> Tensor:
    """x (B, C, h, w) over the root of the mean of its squares at each cell."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()

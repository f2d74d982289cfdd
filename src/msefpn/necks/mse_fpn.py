"""MSE-FPN: a feature pyramid whose levels are given semantics of several levels, and gated.

Guo et al., "Multi-scale semantic enhancement network for object detection", Sci. Rep. 13:7178, 2023.

SEM gathers semantics from several backbone maps, SIM injects them into each level in place of FPN's 1x1
lateral, GCG gates each level of the top-down path. Where the paper's text leaves a choice open, the choice is
a constructor argument, the default first; `docs/mse-fpn.md` lists them.
"""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, Neck, init_xavier
from msefpn.necks.gates import CAG, CBAM, GMU, CoordinateAttention, Gate, NoGate
from msefpn.necks.layers import (
    float32,
    group_norm,
    mean_down,
    resize_bilinear,
    rounded_width,
    strip_means,
    upsample_nearest,
)


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
        width: channels that M is reduced to; None: it is not.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        branches: str = "both",
        combine: str = "add",
        score_norm: str = "before",
        width: int | None = None,
    ) -> None:
        super().__init__()
        _choose("branches", branches, ("both", "spatial", "channel", "conv"))
        _choose("combine", combine, ("add", "cascade", "residual"))
        _choose("score_norm", score_norm, ("before", "after"))
        if combine != "add" and branches != "both":
            raise ValueError(f"combine '{combine}' joins two branches, but branches is '{branches}'")
        if score_norm != "before" and branches not in ("both", "spatial"):
            raise ValueError(
                f"score_norm '{score_norm}' needs the spatial branch, but branches is '{branches}'"
            )
        self.branches, self.combine, self.score_norm = branches, combine, score_norm
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
        enhanced: Tensor = self.spatial_weight(m) * self.value(m)
        if self.branches == "spatial":
            return enhanced
        weight = self.channel_weight(m)
        if self.combine == "cascade":
            return weight * enhanced + m
        gathered = enhanced + weight * m
        return gathered + m if self.combine == "residual" else gathered

    def channel_weight(self, m: Tensor) -> Tensor:
        """The channel branch's weights (B, C, 1, 1) of M (B, C, h, w)."""
        weight: Tensor = self.channel_gate(m.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        return weight

    def spatial_weight(self, m: Tensor) -> Tensor:
        """The spatial branch's attention a (B, 1, h, w) of M (B, C, h, w).

        The scores and their statistics are float32, also under autocast.
        """
        query: Tensor = self.query(m).flatten(2)  # (B, C', N)
        key: Tensor = self.key(m).flatten(2)  # (B, C', N)
        precise = torch.promote_types(m.dtype, torch.float32)
        with float32(m):
            query, key = query.to(precise), key.to(precise)
            scores = query.transpose(1, 2) @ key  # (B, N queries, N keys)
            if self.score_norm == "before":
                scores = F.layer_norm(scores, scores.shape[1:])
            pooled = scores.mean(dim=1)  # (B, N)
            if self.score_norm == "after":
                pooled = F.layer_norm(pooled, pooled.shape[1:])
        weight: Tensor = pooled.sigmoid().to(m.dtype).unflatten(1, m.shape[-2:]).unsqueeze(1)
        return weight

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        m, maps = outputs["reduce"][0], [InnerMap("SEM semantics G", "map", outputs[""][0])]
        if self.branches in ("both", "spatial"):
            maps.insert(0, InnerMap("SEM attention", "gate", self.spatial_weight(m)))
        if self.branches in ("both", "channel"):
            maps.append(InnerMap("SEM channel weights", "channels", self.channel_weight(m), self.groups))
        return maps


class SIM(nn.Module):
    """Semantic injection module of one level: F = local * up(sigmoid(gate)) + up(embedding).

    local is a 1x1 convolution of the level's map; gate and embedding are 1x1 convolutions of the semantics,
    each with group normalisation, resized bilinearly to the level's size.

    Args:
        in_channels: channels of the level's map.
        semantic_channels: channels of the semantics G.
        out_channels: channels of F.
        width: channels inside, with a 1x1 convolution to `out_channels` after them; None: `out_channels`,
            and none.
    """

    def __init__(
        self, in_channels: int, semantic_channels: int, out_channels: int, width: int | None = None
    ) -> None:
        super().__init__()
        inner = out_channels if width is None else width
        self.local = nn.Conv2d(in_channels, inner, 1)
        self.gate = nn.Sequential(nn.Conv2d(semantic_channels, inner, 1, bias=False), group_norm(inner))
        self.embedding = nn.Sequential(nn.Conv2d(semantic_channels, inner, 1, bias=False), group_norm(inner))
        self.reduce = nn.Identity() if width is None else nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """Inject semantics (B, semantic_channels, h, w) into x (B, in_channels, H, W).

        Returns F, (B, out_channels, H, W).
        """
        local = self.local(x)
        # autocast leaves norms in float32: the small maps go back to 16 bits before they grow
        gate = resize_bilinear(self.gate(semantics).sigmoid().to(local.dtype), like=x)
        embedding = resize_bilinear(self.embedding(semantics).to(local.dtype), like=x)
        injected: Tensor = self.reduce(embedding.addcmul_(local, gate))
        return injected

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        gate, embedding = outputs["gate"][0].sigmoid(), outputs["embedding"][0]
        return [InnerMap("SIM gate", "gate", gate), InnerMap("SIM embedding", "map", embedding)]


class AddedSemantics(nn.Module):
    """The ablation without SIM: F = 1x1 convolution of the level + up(1x1 convolution of the semantics)."""

    def __init__(self, in_channels: int, semantic_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(in_channels, out_channels, 1)
        self.semantics = nn.Conv2d(semantic_channels, out_channels, 1)

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """Add semantics (B, semantic_channels, h, w) to x (B, in_channels, H, W): (B, out_channels, H, W)."""
        local: Tensor = self.local(x)
        return local + resize_bilinear(self.semantics(semantics), like=x)

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        return [InnerMap("added semantics", "map", outputs["semantics"][0])]


class GCG(Gate):
    """Gated channel guidance of one level: X * sigmoid(FC1(mean over width) FC2(mean over height)).

    The product of the two strips is the outer product, channel by channel; no residual.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows = nn.Conv2d(channels, channels, 1)
        self.columns = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, H, W)."""
        over_width, over_height = strip_means(x)
        rows: Tensor = self.rows(over_width)  # (B, C, H, 1)
        columns: Tensor = self.columns(over_height)  # (B, C, 1, W)
        return (rows * columns).sigmoid_() * x

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        return [InnerMap("GCG gate", "gate", (outputs["rows"][0] * outputs["columns"][0]).sigmoid())]


GATES: dict[str, type[GCG | CAG | CoordinateAttention | CBAM | GMU | NoGate]] = {
    "gcg": GCG,
    "cag": CAG,
    "coordinate": CoordinateAttention,
    "cbam": CBAM,
    "gmu": GMU,
    "none": NoGate,
}


class MSEFPN(Neck):
    """Multi-scale semantic enhancement feature pyramid.

        G = SEM(maps);  F_i = SIM_i(C_i, G)
        T_top = GCG(F_top);  T_i = GCG_i(F_i + up(T_{i+1}));  P_i = conv3x3(T_i)

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        preset: `shared`, every SIM reads all of G; `lean`, the same at a small `width`, which is not the
            paper's; or `split`, SIM_i reads the slice of G that came from C_i.
        width: channels that SEM works at; None: those of the maps that it reads together, but for `lean`
            `out_channels`.
        sem: branches of SEM (`both`, `spatial`, `channel`), `conv` for a 1x1 convolution in its place, or
            `none` for FPN's plain laterals.
        sem_strides: strides of the maps that SEM reads; None: the three coarsest for `shared`, all that
            become outputs for `split` (which allows nothing else).
        combine: how SEM joins its branches, see `SEM`.
        score_norm: where SEM normalises its scores, see `SEM`.
        sim: `inject` (SIM), `wide` (SIM at the level's own width, then a 1x1 convolution) or `add` (the
            semantics through a 1x1 convolution, added to the lateral).
        gate: `gcg`, or in its place `cag`, `coordinate`, `cbam`, `gmu` or `none`.
        gate_at: gate the `merged` map, or the `lateral` map before the sum: T_i = GCG_i(F_i) + up(T_{i+1}).

    Raises:
        ValueError: an unknown choice, or choices that do not go together.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        preset: str = "shared",
        width: int | None = None,
        sem: str = "both",
        sem_strides: Sequence[int] | None = None,
        combine: str = "add",
        score_norm: str = "before",
        sim: str = "inject",
        gate: str = "gcg",
        gate_at: str = "merged",
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        _choose("preset", preset, ("shared", "lean", "split"))
        _choose("sem", sem, ("both", "spatial", "channel", "conv", "none"))
        _choose("sim", sim, ("inject", "wide", "add"))
        _choose("gate", gate, tuple(GATES))
        _choose("gate_at", gate_at, ("merged", "lateral"))
        if GATES[gate].joins and gate_at == "lateral":
            raise ValueError(f"gate '{gate}' joins two maps: it needs gate_at 'merged'")
        if sem == "none":
            _refuse_semantics(
                preset=preset,
                width=width,
                sem_strides=sem_strides,
                combine=combine,
                score_norm=score_norm,
                sim=sim,
            )
        if preset == "split" and width is not None:
            raise ValueError(f"width {width} leaves no slices of the levels: preset 'split' needs width None")
        width = out_channels if preset == "lean" and width is None else width
        self.preset, self.gate_at = preset, gate_at
        injected = self.in_channels[start_level:]
        self.sem: SEM | None = None
        if sem == "none":
            self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in injected)
        else:
            self.sem_levels = self._sem_levels(sem_strides)
            read = [self.in_channels[level] for level in self.sem_levels]
            self.sem = SEM(read, branches=sem, combine=combine, score_norm=score_norm, width=width)
            self.semantic_split = injected if preset == "split" else [self.sem.channels]
            widths = injected if preset == "split" else [self.sem.channels] * len(injected)
            self.laterals = nn.ModuleList(
                _injection(sim, channels, width, out_channels)
                for channels, width in zip(injected, widths, strict=True)
            )
        self.gates = nn.ModuleList(GATES[gate](out_channels) for _ in injected[:-1])
        self.gates.append((NoGate if GATES[gate].joins else GATES[gate])(out_channels))
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in injected)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        merged = self._top_down(self._laterals(features))
        pyramid = [conv(x) for conv, x in zip(self.outputs, merged, strict=True)]
        return self.with_extra(features, pyramid)

    def _laterals(self, features: list[Tensor]) -> list[Tensor]:
        inputs = features[self.start_level :]
        if self.sem is None:
            return [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        gathered = self.sem([features[level] for level in self.sem_levels], features[-1])
        semantics = list(gathered.split(self.semantic_split, dim=1))
        if self.preset != "split":
            semantics = semantics * len(inputs)
        return [lateral(x, own) for lateral, x, own in zip(self.laterals, inputs, semantics, strict=True)]

    def _top_down(self, laterals: list[Tensor]) -> list[Tensor]:
        merged = list(laterals)
        gates: list[Gate] = list(self.gates)  # type: ignore[arg-type]  # a ModuleList forgets its items' type
        merged[-1] = gates[-1](merged[-1])
        for i in range(len(merged) - 2, -1, -1):
            above = upsample_nearest(merged[i + 1], like=merged[i])
            if self.gate_at == "merged":
                merged[i] = gates[i].fuse(merged[i], above)
            else:
                merged[i] = gates[i](merged[i]) + above
        return merged

    def _sem_levels(self, strides: Sequence[int] | None) -> list[int]:
        injected = list(range(self.start_level, len(self.in_strides)))
        if strides is None:
            return injected if self.preset == "split" else list(range(len(self.in_strides)))[-3:]
        if not strides:
            raise ValueError("sem_strides names no map: known: " + ", ".join(map(str, self.in_strides)))
        if unknown := [stride for stride in strides if stride not in self.in_strides]:
            raise ValueError(f"sem_strides {unknown} are none of the input strides {self.in_strides}")
        levels = sorted(self.in_strides.index(stride) for stride in set(strides))
        if self.preset == "split" and levels != injected:
            allowed = self.in_strides[self.start_level :]
            raise ValueError(
                f"preset 'split' needs sem_strides {allowed}, the injected levels: got {list(strides)}"
            )
        return levels


def _injection(sim: str, channels: int, semantic_channels: int, out_channels: int) -> nn.Module:
    if sim == "add":
        return AddedSemantics(channels, semantic_channels, out_channels)
    return SIM(channels, semantic_channels, out_channels, width=channels if sim == "wide" else None)


def _refuse_semantics(**options: object) -> None:
    """Raise ValueError for an option that only SEM or SIM reads."""
    defaults = inspect.signature(MSEFPN).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise ValueError(f"{name} {value!r} needs semantics, but sem is 'none'")


def _choose(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{argument} '{value}' is unknown: known: {', '.join(known)}")

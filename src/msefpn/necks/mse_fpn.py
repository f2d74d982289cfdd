"""MSE-FPN: a feature pyramid whose levels are given semantics of several levels, and gated.

Guo et al., "Multi-scale semantic enhancement network for object detection", Sci. Rep. 13:7178, 2023.

SEM gathers semantics from several backbone maps, SIM injects them into each level in place of FPN's 1x1
lateral, GCG gates each level of the top-down path. Where the paper's text leaves a choice open, the choice is
a constructor argument, the default first; `docs/mse-fpn.md` lists them.
"""

import functools
import inspect
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from msefpn.necks.base import InnerMap, Neck, init_xavier
from msefpn.necks.fpn import FPN
from msefpn.necks.gates import GATES, GCG, Gate, NoGate
from msefpn.necks.layers import Lateral, check_choice, group_norm, resize_bilinear
from msefpn.necks.sem import SEM
from msefpn.necks.upsample import make_upsampler


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
        identity: the gate is 1 + tanh in place of the sigmoid, see `start_as_identity`.
        norm: of the 1x1 convolution of the level's map, or with a `width` of the one to `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        semantic_channels: int,
        out_channels: int,
        width: int | None = None,
        *,
        identity: bool = False,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.identity = identity
        inner = out_channels if width is None else width
        self.local = Lateral(in_channels, inner, norm if width is None else "none")
        self.gate = nn.Sequential(nn.Conv2d(semantic_channels, inner, 1, bias=False), group_norm(inner))
        self.embedding = nn.Sequential(nn.Conv2d(semantic_channels, inner, 1, bias=False), group_norm(inner))
        self.reduce = nn.Identity() if width is None else Lateral(width, out_channels, norm)

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """Inject semantics (B, semantic_channels, h, w) into x (B, in_channels, H, W).

        Returns F, (B, out_channels, H, W).
        """
        local = self.local(x)
        # autocast leaves norms in float32: the small maps go back to 16 bits before they grow
        gate = self.gate(semantics)
        gate = 1 + gate.tanh() if self.identity else gate.sigmoid()
        gate = resize_bilinear(gate.to(local.dtype), like=x)
        embedding = resize_bilinear(self.embedding(semantics).to(local.dtype), like=x)
        injected: Tensor = self.reduce(embedding.addcmul_(local, gate))
        return injected

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        gate, embedding = outputs["gate"][0], outputs["embedding"][0]
        gate = gate.tanh() / 2 + 0.5 if self.identity else gate.sigmoid()
        return [InnerMap("SIM gate", "gate", gate), InnerMap("SIM embedding", "map", embedding)]

    def start_as_identity(self) -> None:
        """Make F the 1x1 convolution alone: the norms of gate and embedding give zero."""
        for norm in (self.gate[1], self.embedding[1]):
            assert isinstance(norm, nn.GroupNorm)
            nn.init.zeros_(norm.weight)
        if not isinstance(self.reduce, nn.Identity):
            nn.init.dirac_(self.local.weight)

    @property
    def lateral(self) -> nn.Module:
        """The convolution that is FPN's lateral at the start."""
        return self.local if isinstance(self.reduce, nn.Identity) else self.reduce


class AddedSemantics(nn.Module):
    """The ablation without SIM: F = 1x1 convolution of the level + up(1x1 convolution of the semantics)."""

    def __init__(
        self, in_channels: int, semantic_channels: int, out_channels: int, norm: str = "none"
    ) -> None:
        super().__init__()
        self.local = Lateral(in_channels, out_channels, norm)
        self.semantics = nn.Conv2d(semantic_channels, out_channels, 1)

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """Add semantics (B, semantic_channels, h, w) to x (B, in_channels, H, W): (B, out_channels, H, W)."""
        local: Tensor = self.local(x)
        return local + resize_bilinear(self.semantics(semantics), like=x)

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        return [InnerMap("added semantics", "map", outputs["semantics"][0])]

    def start_as_identity(self) -> None:
        """Make the semantics zero."""
        nn.init.zeros_(self.semantics.weight)

    @property
    def lateral(self) -> nn.Module:
        """The convolution that is FPN's lateral at the start."""
        return self.local


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
        attention: what SEM makes of its scores, see `SEM`.
        sim: `inject` (SIM), `wide` (SIM at the level's own width, then a 1x1 convolution) or `add` (the
            semantics through a 1x1 convolution, added to the lateral).
        gate: `gcg`, or in its place `cag`, `coordinate`, `cbam`, `gmu` or `none`.
        gate_at: gate the `merged` map; the `lateral` before the sum, T_i = GCG_i(F_i) + up(T_{i+1}); the map
            `above` alone, T_i = F_i + GCG_i(up(T_{i+1})); or the sums `after` the whole top-down pass,
            P_i = conv3x3(GCG_i(T_i)).
        gate_init: weights of GCG at the start: `xavier`, or `linear`, those of a linear layer, with which its
            product of strips is a third.
        start: `paper`, or `identity`, which is ours: the gates of SIM and GCG are 1 + tanh in place of the
            sigmoid, and gates and embeddings start at one and zero. The neck then starts as an FPN of the
            same laterals, and can take the weights of one, see `start_from`.
        norm: of the laterals, as in `FPN`.
        upsample: of the top-down path, as in `FPN`.

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
        attention: str = "mean",
        sim: str = "inject",
        gate: str = "gcg",
        gate_at: str = "merged",
        gate_init: str = "xavier",
        start: str = "paper",
        norm: str = "none",
        upsample: str = "nearest",
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        check_choice("preset", preset, ("shared", "lean", "split"))
        check_choice("sem", sem, ("both", "spatial", "channel", "conv", "none"))
        check_choice("sim", sim, ("inject", "wide", "add"))
        _check_gate(gate, gate_at, gate_init, start)
        if sem == "none":
            _refuse_semantics(
                preset=preset,
                width=width,
                sem_strides=sem_strides,
                combine=combine,
                score_norm=score_norm,
                attention=attention,
                sim=sim,
            )
        if preset == "split" and width is not None:
            raise ValueError(f"width {width} leaves no slices of the levels: preset 'split' needs width None")
        width = out_channels if preset == "lean" and width is None else width
        self.preset, self.gate_at, self.start = preset, gate_at, start
        self.norm, self.upsample = norm, upsample
        injected = self.in_channels[start_level:]
        self.sem: SEM | None = None
        if sem == "none":
            self.laterals = nn.ModuleList(Lateral(channels, out_channels, norm) for channels in injected)
        else:
            self.sem_levels = self._sem_levels(sem_strides)
            read = [self.in_channels[level] for level in self.sem_levels]
            self.sem = SEM(
                read,
                branches=sem,
                combine=combine,
                score_norm=score_norm,
                attention=attention,
                width=width,
            )
            self.semantic_split = injected if preset == "split" else [self.sem.channels]
            widths = injected if preset == "split" else [self.sem.channels] * len(injected)
            self.laterals = nn.ModuleList(
                _injection(sim, channels, width, out_channels, norm, identity=start == "identity")
                for channels, width in zip(injected, widths, strict=True)
            )
        self.gates = self._make_gates(len(injected), gate, gate_init)
        self.upsamplers = nn.ModuleList(make_upsampler(upsample, out_channels) for _ in injected[1:])
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in injected)
        init_xavier(self)
        if start == "identity":
            for part in (*self.laterals, *self.gates):
                if isinstance(part, (SIM, AddedSemantics, GCG)):
                    part.start_as_identity()

    def _make_gates(self, count: int, gate: str, gate_init: str) -> nn.ModuleList:
        """The gates of `count` levels, finest first; nothing for a coarsest one that has nothing to gate."""
        make_gate: Callable[[int], Gate] = GATES[gate]
        if gate == "gcg":
            make_gate = functools.partial(
                GCG, identity=self.start == "identity", linear=gate_init == "linear"
            )
        gates = nn.ModuleList(make_gate(self.out_channels) for _ in range(count - 1))
        alone = GATES[gate].joins or self.gate_at == "above"
        gates.append((NoGate if alone else make_gate)(self.out_channels))
        return gates

    def start_from(self, fpn: FPN) -> None:
        """Take the weights of an FPN, so that the pyramid is the FPN's until training changes it.

        The new parts get a gradient from the second step on at the latest: what starts at zero at the first,
        what lies before it at the second.

        Raises:
            ValueError: `start` is not `identity`, or the FPN has other inputs or outputs.
        """
        if self.start != "identity":
            raise ValueError(f"start is '{self.start}': the neck starts as an FPN with start 'identity' only")
        fpn.check_start(self, "norm", "upsample")
        for part, given in zip(self.laterals, fpn.laterals, strict=True):
            lateral = part.lateral if isinstance(part, (SIM, AddedSemantics)) else part
            lateral.load_state_dict(given.state_dict())
        self.upsamplers.load_state_dict(fpn.upsamplers.state_dict())
        self.outputs.load_state_dict(fpn.outputs.state_dict())
        self.extra.load_state_dict(fpn.extra.state_dict())

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
        if self.gate_at != "after":
            merged[-1] = gates[-1](merged[-1])
        for i in range(len(merged) - 2, -1, -1):
            above = self.upsamplers[i](merged[i + 1], like=merged[i])
            if self.gate_at == "merged":
                merged[i] = gates[i].fuse(merged[i], above)
            elif self.gate_at == "lateral":
                merged[i] = gates[i](merged[i]) + above
            elif self.gate_at == "above":
                merged[i] = merged[i] + gates[i](above)
            else:
                merged[i] = merged[i] + above
        if self.gate_at == "after":
            return [gate(x) for gate, x in zip(gates, merged, strict=True)]
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


def _check_gate(gate: str, gate_at: str, gate_init: str, start: str) -> None:
    """Raise ValueError for options of the gates that are unknown or do not go together."""
    check_choice("gate", gate, tuple(GATES))
    check_choice("gate_at", gate_at, ("merged", "lateral", "above", "after"))
    check_choice("gate_init", gate_init, ("xavier", "linear"))
    check_choice("start", start, ("paper", "identity"))
    if start == "identity" and not GATES[gate].has_identity:
        able = " or ".join(f"'{name}'" for name, kind in GATES.items() if kind.has_identity)
        raise ValueError(f"start 'identity' is not possible with gate '{gate}': it needs gate {able}")
    if gate == "none" and gate_at != "merged":
        raise ValueError(f"gate_at '{gate_at}' needs a gate, but gate is 'none'")
    if GATES[gate].joins and gate_at != "merged":
        raise ValueError(f"gate '{gate}' joins two maps: it needs gate_at 'merged'")
    if gate != "gcg" and gate_init != "xavier":
        raise ValueError(f"gate_init '{gate_init}' is GCG's: gate '{gate}' needs gate_init 'xavier'")


def _injection(
    sim: str, channels: int, semantic_channels: int, out_channels: int, norm: str, *, identity: bool
) -> nn.Module:
    if sim == "add":
        return AddedSemantics(channels, semantic_channels, out_channels, norm)
    width = channels if sim == "wide" else None
    return SIM(channels, semantic_channels, out_channels, width, identity=identity, norm=norm)


def _refuse_semantics(**options: object) -> None:
    """Raise ValueError for an option that only SEM or SIM reads."""
    defaults = inspect.signature(MSEFPN).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise ValueError(f"{name} {value!r} needs semantics, but sem is 'none'")

"""What a neck takes in, does and gives out for one image, by hooks that are removed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msefpn.necks import Neck
from msefpn.necks.ac_fpn import AM
from msefpn.necks.aug_fpn import TENTHS, AdaptiveSpatialFusion
from msefpn.necks.bfp import NonLocal
from msefpn.necks.gates import CAG, CBAM, GMU, CoordinateAttention
from msefpn.necks.mse_fpn import GCG, SEM, SIM, AddedSemantics

LATERALS = ("laterals", "projections", "plain", "skips")
"""Lists of a neck's modules that bring each level to the pyramid's width, finest first."""
OUTPUTS = "outputs"
"""List of a neck's modules that smooth the merged maps."""
Maps = dict[int, Tensor]
"""A map (C, H, W), float32, on the CPU, for each level by its stride in pixels."""


class Call(NamedTuple):
    """One call of a module."""

    inputs: tuple[Any, ...]
    output: Any


Calls = dict[str, list[Call]]
"""The calls of each watched module, by its name in the neck."""


class Part(NamedTuple):
    """A map, a gate or an attention that is made inside a neck."""

    name: str
    """What it is, such as `SIM gate`; alike for all levels."""
    kind: str
    """`map`, `gate` (0 to 1, 0.5 is neutral) or `channels`, a gate without cells."""
    values: Tensor
    """(C, h, w), over the whole padded image."""
    stride: int | None = None
    """Of the level that it belongs to; None: of none, or of all."""
    groups: tuple[tuple[int, int], ...] = ()
    """Of SEM's channels: stride of the level that they come from, and their number, in order."""


@dataclass(frozen=True)
class Capture:
    """What one forward pass of a neck showed."""

    stages: dict[str, Maps] = field(default_factory=dict)
    """`C`, the inputs; `F`, these at the pyramid's width, after SIM where there is one; `T`, after the
    top-down path, before the 3x3 convolutions; `P`, the outputs; `P of FPN`, those of a stack's first neck.
    F and T where the neck has them."""
    parts: list[Part] = field(default_factory=list)


@contextlib.contextmanager
def watching(neck: Neck) -> Iterator[Capture]:
    """Give a Capture that holds, once the body has ended, what the neck did for one image in it, eagerly."""
    capture, calls, handles = Capture(), Calls(), []

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.setdefault(name, []).append(Call(inputs, output))

    try:
        for name in _watched(neck):
            handles.append(neck.get_submodule(name).register_forward_hook(partial(note, name)))
        yield capture
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        capture.stages.update(_stages(neck, calls))
        capture.parts.extend(_parts(neck, calls))


def _watched(neck: Neck) -> list[str]:
    """Names of the modules whose calls are needed."""
    members = _members(neck)
    names = ["", *(name for name, _ in members)]
    for prefix, member in members:
        names += [
            _joined(prefix, name) for name in (*_listed(member, LATERALS), *_listed(member, (OUTPUTS,)))
        ]
    for name, module in neck.named_modules():
        names += [_joined(name, child) for child in _children(module)]
    return list(dict.fromkeys(names))


def _members(neck: Neck) -> list[tuple[str, Neck]]:
    """The necks of a stack with their names, or the one."""
    stacked = getattr(neck, "members", None)
    return [("", neck)] if stacked is None else [(f"members.{i}", member) for i, member in enumerate(stacked)]


def _listed(neck: Neck, lists: Sequence[str]) -> list[str]:
    return [f"{name}.{i}" for name in lists for i in range(len(getattr(neck, name, ())))]


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name and child else name or child


def _stages(neck: Neck, calls: Calls) -> dict[str, Maps]:
    features, pyramid = calls[""][-1].inputs[0], calls[""][-1].output
    stages = {"C": _by_stride(neck.in_strides, features)}
    members = _members(neck)
    prefix, first = members[0]
    inner = first.in_strides[first.start_level :]
    for key, lists in (("F", LATERALS), ("T", (OUTPUTS,))):
        names = [_joined(prefix, name) for name in _listed(first, lists)]
        if names and all(name in calls for name in names):
            last = [calls[name][-1] for name in names]
            stages[key] = _by_stride(inner, [call.output if key == "F" else call.inputs[0] for call in last])
    for (_, before), (name, member) in pairwise(members):
        stages[f"P of {type(before).__name__}"] = _by_stride(member.in_strides, calls[name][-1].inputs[0])
    stages["P"] = _by_stride(neck.out_strides, pyramid)
    return stages


def _by_stride(strides: Sequence[int], maps: Sequence[Tensor]) -> Maps:
    return {stride: _single(x) for stride, x in zip(strides, maps, strict=False)}


def _single(x: Tensor) -> Tensor:
    return x[0].detach().float().cpu()


def _parts(neck: Neck, calls: Calls) -> list[Part]:
    found = []
    for name, module in neck.named_modules():
        seen = [call for child in _children(module) for call in calls.get(_joined(name, child), [])]
        if seen:
            parts = _READERS[type(module)][1](module, seen, neck, calls)
            stride = _stride_of(neck, name)
            found += [part._replace(stride=stride, values=_single(part.values)) for part in parts]
    return found


def _stride_of(neck: Neck, name: str) -> int | None:
    """The stride of the level that an item of a list of modules, one for each level, belongs to."""
    prefix, member = next((p, m) for p, m in reversed(_members(neck)) if name.startswith(p))
    listed, _, index = name.removeprefix(prefix).strip(".").partition(".")
    levels = member.in_strides[member.start_level :]
    number = index.partition(".")[0]
    if not number.isdigit() or len(getattr(member, listed)) != len(levels):
        return None
    return levels[int(number)]


Reader = Callable[[Any, list[Call], Neck, Calls], list[Part]]


def _sem(sem: SEM, seen: list[Call], neck: Neck, calls: Calls) -> list[Part]:
    reduced, whole = seen
    parts = [Part("SEM semantics G", "map", whole.output)]
    if sem.branches in ("both", "spatial"):
        parts.insert(0, Part("SEM attention", "gate", sem.spatial_weight(reduced.output)))
    if sem.branches in ("both", "channel"):
        inputs = dict(zip(map(id, calls[""][-1].inputs[0]), neck.in_strides, strict=True))
        groups = tuple((inputs[id(x)], x.shape[1]) for x in whole.inputs[0])
        own = groups if isinstance(sem.reduce, nn.Identity) else ()
        parts.append(Part("SEM channel weights", "channels", sem.channel_weight(reduced.output), groups=own))
    return parts


def _sim(sim: SIM, seen: list[Call], neck: Neck, calls: Calls) -> list[Part]:
    gate, embedding = (call.output for call in seen)
    return [Part("SIM gate", "gate", gate.sigmoid()), Part("SIM embedding", "map", embedding)]


def _named(name: str, kind: str, weight: Callable[..., Tensor]) -> Reader:
    """A reader of one part, a function of the outputs of the calls that were watched."""

    def read(module: nn.Module, seen: list[Call], neck: Neck, calls: Calls) -> list[Part]:
        values = weight(*(call.output for call in seen))
        return [Part(name, "channels" if kind == "gate" and values.shape[2:] == (1, 1) else kind, values)]

    return read


def _fusion(fusion: AdaptiveSpatialFusion, seen: list[Call], neck: Neck, calls: Calls) -> list[Part]:
    weights = seen[-1].output.split(1, dim=1)
    return [Part(f"weight of C5 pooled to 0.{n}", "gate", w) for n, w in zip(TENTHS, weights, strict=True)]


def _attention(am: AM, seen: list[Call], neck: Neck, calls: Calls) -> list[Part]:
    names = ("CxAM attention", "CnAM attention")
    return [Part(name, "gate", call.output) for name, call in zip(names, seen, strict=True)]


_READERS: dict[type[nn.Module], tuple[tuple[str, ...], Reader]] = {
    SEM: (("reduce", ""), _sem),
    SIM: (("gate", "embedding"), _sim),
    AddedSemantics: (("semantics",), _named("added semantics", "map", lambda x: x)),
    GCG: (("rows", "columns"), _named("GCG gate", "gate", lambda rows, columns: (rows * columns).sigmoid())),
    CAG: (
        ("fc_avg", "fc_max"),
        _named("CAG gate", "gate", lambda average, most: (average.relu() + most.relu()).sigmoid()),
    ),
    CoordinateAttention: (
        ("rows", "columns"),
        _named("Coordinate Attention gate", "gate", lambda r, c: r.sigmoid() * c.sigmoid().transpose(2, 3)),
    ),
    CBAM: (
        ("mlp", "spatial"),
        _named("CBAM gate", "gate", lambda a, m, cells: (a + m).sigmoid() * cells.sigmoid()),
    ),
    GMU: (("gate",), _named("GMU gate", "gate", lambda z: z.sigmoid())),
    AM: (("context", "content"), _attention),
    AdaptiveSpatialFusion: (("weigh",), _fusion),
    NonLocal: (("",), _named("balanced map", "map", lambda x: x)),
}
"""For a type of module the children whose calls are watched (`` is itself), and what they tell."""


def _children(module: nn.Module) -> tuple[str, ...]:
    return _READERS[type(module)][0] if type(module) in _READERS else ()

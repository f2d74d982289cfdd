"""What a neck takes in, does and gives out for one image, by hooks that are removed afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msefpn.errors import UserError
from msefpn.necks import InnerMap, Neck, Stack

LATERALS = ("laterals", "projections", "plain", "skips")
"""Lists of a neck's modules that bring each level to the pyramid's width, finest first."""
SMOOTHING = "outputs"
"""List of a neck's modules that smooth the merged maps."""
LevelMaps = dict[int, Tensor]
"""A map (C, H, W), float32, on the CPU, for each level by its stride in pixels."""


class Call(NamedTuple):
    """One call of a module."""

    inputs: tuple[Any, ...]
    output: Any


Calls = dict[str, list[Call]]
"""The calls of each watched module, by its name in the neck."""


class NeckPart(NamedTuple):
    """An inner map of a neck with its place."""

    name: str
    """See `InnerMap`, also for kind and text."""
    kind: str
    values: Tensor
    """(C, h, w), float32, on the CPU, over the whole padded image."""
    module: str
    """Class of the module that made it."""
    stride: int | None = None
    """Stride of its level; None: of no level, or of all."""
    groups: tuple[tuple[int, int], ...] = ()
    """Of `channels`: stride of the level that they come from, and their number, in order."""
    text: str = ""


@dataclass(frozen=True)
class NeckRecord:
    """What one forward pass of a neck showed."""

    stages: dict[str, LevelMaps] = field(default_factory=dict)
    """`C`, the inputs; `F`, these at the pyramid's width, after SIM where there is one; `T`, after the
    top-down path, before the 3x3 convolutions; `P`, the outputs; `P of FPN`, those of the first neck of a
    stack. F and T where the neck has the lists `LATERALS` and `SMOOTHING`."""
    parts: list[NeckPart] = field(default_factory=list)


@contextlib.contextmanager
def watching(neck: Neck) -> Iterator[NeckRecord]:
    """Record what a neck does for one image in the body, in eager mode; complete once the body has ended."""
    record, calls, handles = NeckRecord(), Calls(), []

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.setdefault(name, []).append(Call(inputs, output))

    try:
        for name in _watched(neck):
            handles.append(neck.get_submodule(name).register_forward_hook(partial(note, name)))
        yield record
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        record.stages.update(_stages(neck, calls))
        record.parts.extend(_parts(neck, calls))


def _watched(neck: Neck) -> list[str]:
    """Names of the modules whose calls are needed."""
    members = _members(neck)
    names = ["", *(name for name, _ in members)]
    for prefix, member in members:
        names += [_joined(prefix, name) for name in _listed(member, (*LATERALS, SMOOTHING))]
    for name, module in neck.named_modules():
        if hasattr(module, "inner_maps"):
            names += [_joined(name, inner) for inner, _ in module.named_modules()]
    return list(dict.fromkeys(names))


def _members(neck: Neck) -> list[tuple[str, Neck]]:
    """The necks of a stack with their names, or the one."""
    if not isinstance(neck, Stack):
        return [("", neck)]
    return [(f"members.{i}", member) for i, member in enumerate(neck.members) if isinstance(member, Neck)]


def _listed(neck: Neck, lists: Sequence[str]) -> list[str]:
    """Names of the modules in the lists of a neck that have one of these names."""
    found = [(name, getattr(neck, name, None)) for name in lists]
    return [f"{name}.{i}" for name, of in found if isinstance(of, nn.ModuleList) for i in range(len(of))]


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name and child else name or child


def _stages(neck: Neck, calls: Calls) -> dict[str, LevelMaps]:
    features, pyramid = calls[""][-1].inputs[0], calls[""][-1].output
    stages = {"C": _by_stride(neck.in_strides, features)}
    members = _members(neck)
    prefix, first = members[0]
    for key, lists in (("F", LATERALS), ("T", (SMOOTHING,))):
        names = [_joined(prefix, name) for name in _listed(first, lists)]
        last = [calls[name][-1] for name in names if name in calls]
        maps = [call.output if key == "F" else call.inputs[0] for call in last]
        inner = first.in_strides[first.start_level :]
        if maps and len(maps) == len(names) and _fit(maps, features[first.start_level :]):
            stages[key] = _by_stride(inner, maps)
    for (_, before), (name, member) in pairwise(members):
        stages[f"P of {type(before).__name__}"] = _by_stride(member.in_strides, calls[name][-1].inputs[0])
    stages["P"] = _by_stride(neck.out_strides, pyramid)
    return stages


def _fit(maps: Sequence[Any], levels: Sequence[Tensor]) -> bool:
    """Whether these are maps of the finest levels: a neck of one's own may use the names for other things."""
    return len(maps) <= len(levels) and all(
        isinstance(x, Tensor) and x.shape[2:] == level.shape[2:]
        for x, level in zip(maps, levels, strict=False)
    )


def _by_stride(strides: Sequence[int], maps: Sequence[Tensor]) -> LevelMaps:
    return {stride: _single(x) for stride, x in zip(strides, maps, strict=False)}


def _single(x: Tensor) -> Tensor:
    return x[0].detach().float().cpu()


def _parts(neck: Neck, calls: Calls) -> list[NeckPart]:
    """The inner maps of all modules that show some."""
    found = []
    for name, module in neck.named_modules():
        if not hasattr(module, "inner_maps"):
            continue
        inner = {child: calls.get(_joined(name, child), []) for child, _ in module.named_modules()}
        outputs = {child: [call.output for call in of] for child, of in inner.items() if of}
        if not outputs:
            continue
        label, stride = type(module).__name__, _stride_of(neck, name)
        for part in _shown_by(module, outputs):
            groups = _groups(part, inner[""], calls[""][-1].inputs[0], neck.in_strides)
            values = _single(part.values)
            found.append(NeckPart(part.name, part.kind, values, label, stride, groups, part.text))
    return found


def _shown_by(module: Any, outputs: dict[str, list[Any]]) -> list[InnerMap]:
    """What a module shows. Raises UserError where its method fails."""
    try:
        maps: list[InnerMap] = list(module.inner_maps(outputs))
        if any(part.kind not in ("map", "gate", "channels") or part.values.dim() != 4 for part in maps):
            raise ValueError("a map needs the kind map, gate or channels, and values (B, C, h, w)")
    except Exception as error:  # a plug-in may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"inner_maps of {type(module).__name__} fails ({reason}): fix it") from None
    return maps


def _groups(
    part: InnerMap, own: Sequence[Call], features: Sequence[Tensor], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Whose channels they are: the module's first input is a list of some of the neck's inputs."""
    if not part.groups or not own:
        return ()
    stride_of = dict(zip(map(id, features), strides, strict=True))
    read = [stride_of.get(id(x)) for x in own[-1].inputs[0]]
    return tuple((s, count) for s, count in zip(read, part.groups, strict=True) if s is not None)


def _stride_of(neck: Neck, name: str) -> int | None:
    """The stride of the level of an item in a list of modules, one for each level."""
    prefix, member = next((p, m) for p, m in reversed(_members(neck)) if name.startswith(p))
    listed, _, index = name.removeprefix(prefix).strip(".").partition(".")
    levels = member.in_strides[member.start_level :]
    number, items = index.partition(".")[0], getattr(member, listed, None) if listed else None
    if not number.isdigit() or not isinstance(items, nn.ModuleList) or len(items) != len(levels):
        return None
    return levels[int(number)]

"""A neck's maps and gates as plain arrays for the page, each with a line that says what it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from msefpn.explain.hooks import Capture, Part
from msefpn.explain.maps import Bars, Block, Panel, Section, inside
from msefpn.inference.detect import Predictions


class Seen(NamedTuple):
    """What a detector made of one picture."""

    capture: Capture
    found: Predictions | None
    """Detections; None where it was not asked for any, or wants regions given."""
    size: tuple[int, int]
    """Height and width of the picture as the detector saw it, pixels."""
    padded: tuple[int, int]
    """The same with its padding."""


def level_name(stride: int) -> str:
    """The number of a level as FPN counts them: stride 8 is level 3."""
    return f"{math.log2(stride):g}"


_STAGES = {
    "C": (
        "C: what the neck takes in",
        "The backbone's maps. On this page all maps of a kind share one colour scale, which leaves out the "
        "outermost 1 % of their cells; cells are drawn as they are, without smoothing.",
    ),
    "F": ("F: at the pyramid's width", "Each level before the top-down path; after SIM where there is one."),
    "T": ("T: after the top-down path", "Each level with those above it, before the 3x3 convolutions."),
    "P": ("P: what the neck gives out", "What the heads read."),
}
_PARTS = {
    "SEM attention": ("SEM", "Its spatial branch: where the semantics of several levels are let through."),
    "SEM semantics G": ("SEM", "What it hands to every SIM."),
    "SEM channel weights": (
        "SEM",
        "Its channel branch: how much of each channel is kept, by where it came from.",
    ),
    "SIM gate": ("SIM", "What the 1x1 lateral is multiplied with, made from SEM's semantics."),
    "SIM embedding": ("SIM", "What is added to the gated lateral, made from SEM's semantics."),
    "added semantics": ("SIM", "What is added to the lateral in SIM's place."),
    "GCG gate": ("GCG", "What a level is multiplied with once the level above is added: rows times columns."),
    "CAG gate": ("CAG", "Channel guidance: a weight for each channel."),
    "Coordinate Attention gate": ("Coordinate Attention", "A weight for each row times one for each column."),
    "CBAM gate": ("CBAM", "A weight for each channel times one for each cell."),
    "GMU gate": ("GMU", "The share of the level itself; the rest is taken from the level above."),
    "CxAM attention": ("AM", "Where the context of C5 is let through, as the context itself has it."),
    "CnAM attention": ("AM", "The same, as C5 has it."),
    "balanced map": ("BFP", "All levels gathered at stride 16 and refined; it is added to each."),
}
"""The module that makes a part, which is its heading, and what the part is."""
_CONTEXT = ("Context", "How much of this context of C5 is taken.")
"""What a part of another name is."""
_BEFORE_F = ("SEM", "SIM", "AM", "Context")


def sections(runs: Sequence[tuple[str, Seen]]) -> list[Section]:
    """What the page shows, in the order in which necks compute it: names of runs, and what each saw."""
    modules: dict[str, list[Block]] = {}
    for name in dict.fromkeys(part.name for _, seen in runs for part in seen.capture.parts):
        module = _PARTS.get(name, _CONTEXT)[0]
        modules.setdefault(module, []).extend(_part(name, runs))
    stages = dict.fromkeys(key for _, seen in runs for key in seen.capture.stages)
    early = [name for name in modules if name in _BEFORE_F]
    late = [name for name in modules if name not in early]
    between = [key for key in stages if key not in _STAGES]
    found = []
    for key in ["C", *early, "F", *late, "T", *between, "P"]:
        if key in modules:
            found.append(Section(f"{key}: inside the neck", key, "", modules[key]))
        elif key in stages:
            title, text = _STAGES.get(key, (key, "What the first neck gives to the second."))
            found.append(Section(title, key, text, [_stage(key, runs)]))
    return found


def _stage(key: str, runs: Sequence[tuple[str, Seen]]) -> Block:
    rows = []
    for name, seen in runs:
        panels = [
            _energy(f"{key[0]}{level_name(stride)}", x, _reach(x, seen, stride), f"stride {stride}")
            for stride, x in seen.capture.stages.get(key, {}).items()
        ]
        rows += [(name, panels)] if panels else []
    return Block("", "", "energy", rows)


def _part(name: str, runs: Sequence[tuple[str, Seen]]) -> list[Block]:
    """A part of all runs that have it; a gate of several channels also by how far these differ."""
    _, text = _PARTS.get(name, _CONTEXT)
    every = [(run, seen, [part for part in seen.capture.parts if part.name == name]) for run, seen in runs]
    own = [(run, seen, parts) for run, seen, parts in every if parts]
    kind = own[0][2][0].kind
    if kind == "channels":
        return [Block(name, text, kind, bars=[(run, _bars(parts)) for run, _, parts in own])]
    draw = _part_energy if kind == "map" else _gate
    found = [Block(name, text, "energy" if kind == "map" else kind, _rows(own, draw))]
    if kind == "gate" and any(len(part.values) > 1 for _, _, parts in own for part in parts):
        about = "How far the gates of a cell's channels lie apart: low where all channels are treated alike."
        found.append(Block(f"{name}: spread", about, "spread", _rows(own, _spread)))
    return found


def _rows(
    own: Sequence[tuple[str, Seen, list[Part]]], draw: Callable[[Part, Seen], Panel]
) -> list[tuple[str, list[Panel]]]:
    return [(run, [draw(part, seen) for part in parts]) for run, seen, parts in own]


def _part_energy(part: Part, seen: Seen) -> Panel:
    return _energy(_label(part), part.values, _reach(part.values, seen))


def _label(part: Part) -> str:
    return "all levels" if part.stride is None else f"level {level_name(part.stride)}"


def _energy(label: str, x: Tensor, reach: tuple[float, float], about: str = "") -> Panel:
    """Root mean square over the channels of x (C, h, w), relative to its mean over the picture."""
    energy = x.square().mean(dim=0).sqrt()
    mean = float(inside(energy.numpy(), reach).mean())
    note = f"{len(x)} channels, mean {mean:.3g}"
    return Panel(label, f"{about}, {note}" if about else note, (energy / max(mean, 1e-12)).numpy(), reach)


def _gate(part: Part, seen: Seen) -> Panel:
    return _plain(part, seen, part.values.mean(dim=0))


def _spread(part: Part, seen: Seen) -> Panel:
    return _plain(part, seen, part.values.std(dim=0, correction=0))


def _plain(part: Part, seen: Seen, values: Tensor) -> Panel:
    reach = _reach(part.values, seen)
    return Panel(_label(part), f"mean {inside(values.numpy(), reach).mean():.2f}", values.numpy(), reach)


def _bars(parts: Sequence[Part]) -> list[Bars]:
    found = []
    for part in parts:
        weights = part.values.flatten().numpy()
        ends = np.cumsum([count for _, count in part.groups])
        if part.groups:
            split = np.split(weights, ends[:-1])
            names = [f"from C{level_name(stride)}" for stride, _ in part.groups]
            found += [Bars(label, values) for label, values in zip(names, split, strict=True)]
        else:
            found.append(Bars(_label(part), weights))
    return found


def _reach(x: Tensor, seen: Seen, stride: int | None = None) -> tuple[float, float]:
    """How far the cells of x (C, h, w) reach, in heights and widths of the picture."""
    covered = seen.padded if stride is None else (x.shape[1] * stride, x.shape[2] * stride)
    return covered[0] / seen.size[0], covered[1] / seen.size[1]

"""The sections of an `explain` page: a neck's maps and gates as arrays, each with its description."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from msefpn.explaining.hooks import NeckPart, NeckRecord
from msefpn.explaining.maps import MapBlock, MapPanel, MapSection, WeightBars, inside
from msefpn.inference.detect import Predictions


class Observation(NamedTuple):
    """What a detector did with one image."""

    record: NeckRecord
    predictions: Predictions | None
    """Detections; None if not requested, or if the detector needs proposals."""
    size: tuple[int, int]
    """Height and width of the image after resizing, pixels."""
    padded: tuple[int, int]
    """Height and width with padding, pixels."""


def level_name(stride: int) -> str:
    """The number of a level as FPN counts them: stride 8 is level 3."""
    return f"{math.log2(stride):g}"


_STAGES = {
    "C": (
        "C: input of the neck",
        "The backbone's maps. On this page all maps of a kind share one colour scale, from the 1st to the "
        "99th percentile of their cells. Cells are drawn without smoothing.",
    ),
    "F": ("F: at the pyramid's width", "Each level before the top-down path, after SIM if there is one."),
    "T": ("T: after the top-down path", "Each level merged with those above, before the 3x3 convolutions."),
    "P": ("P: output of the neck", "The maps that the heads read."),
}
_PARTS = {
    "SEM attention": (
        "SEM",
        "The spatial branch: the weight of each cell of the semantics of several levels.",
    ),
    "SEM semantics G": ("SEM", "The output, which every SIM reads."),
    "SEM channel weights": (
        "SEM",
        "The channel branch: the weight of each channel, by the level it comes from.",
    ),
    "SIM gate": ("SIM", "The gate that the 1x1 lateral is multiplied with, computed from SEM's semantics."),
    "SIM embedding": ("SIM", "The map that is added to the gated lateral, computed from SEM's semantics."),
    "added semantics": ("SIM", "The map that is added to the lateral, in place of SIM."),
    "GCG gate": (
        "GCG",
        "The gate that a level is multiplied with after adding the level above: rows times columns.",
    ),
    "CAG gate": ("CAG", "Channel guidance: a weight for each channel."),
    "Coordinate Attention gate": ("Coordinate Attention", "A weight for each row times one for each column."),
    "CBAM gate": ("CBAM", "A weight for each channel times one for each cell."),
    "GMU gate": ("GMU", "The share of the level itself; the rest is taken from the level above."),
    "CxAM attention": ("AM", "The weight of each cell of C5's context, computed from the context."),
    "CnAM attention": ("AM", "The weight of each cell of C5's context, computed from C5."),
    "balanced map": ("BFP", "All levels averaged at stride 16 and refined; it is added to each level."),
}
"""Heading and description of the inner maps of this package's necks."""
_CONTEXT = ("Context", "The weight of each cell of this context of C5.")
_BEFORE_F = ("SEM", "SIM", "AM", "Context")


def map_sections(runs: Sequence[tuple[str, Observation]]) -> list[MapSection]:
    """What the page shows, in the order in which necks compute it: names of runs, and what each saw."""
    modules: dict[str, list[MapBlock]] = {}
    parts = {part.name: part for _, observed in runs for part in observed.record.parts}
    for part in parts.values():
        heading, text = _described(part)
        modules.setdefault(heading, []).extend(_part(part.name, text, runs))
    stages = dict.fromkeys(key for _, observed in runs for key in observed.record.stages)
    early = [name for name in modules if name in _BEFORE_F]
    late = [name for name in modules if name not in early]
    between = [key for key in stages if key not in _STAGES]
    found = []
    for key in ["C", *early, "F", *late, "T", *between, "P"]:
        if key in modules:
            found.append(MapSection(f"{key}: inside the neck", key, "", modules[key]))
        elif key in stages:
            title, text = _STAGES.get(key, (key, "The output of the first neck, which the second reads."))
            found.append(MapSection(title, key, text, [_stage(key, runs)]))
    return found


def _stage(key: str, runs: Sequence[tuple[str, Observation]]) -> MapBlock:
    rows = []
    for name, observed in runs:
        panels = [
            _energy(f"{key[0]}{level_name(stride)}", x, _reach(x, observed, stride), f"stride {stride}")
            for stride, x in observed.record.stages.get(key, {}).items()
        ]
        rows += [(name, panels)] if panels else []
    return MapBlock("", "", "energy", rows)


def _described(part: NeckPart) -> tuple[str, str]:
    """Heading and description of an inner map."""
    if part.name.startswith("weight of C5 pooled to"):
        return _CONTEXT
    return _PARTS.get(part.name, (part.module, part.text))


def _part(name: str, text: str, runs: Sequence[tuple[str, Observation]]) -> list[MapBlock]:
    """An inner map of all runs that have it; for a gate of several channels also their deviation."""
    every = [
        (run, observed, [part for part in observed.record.parts if part.name == name])
        for run, observed in runs
    ]
    own = [(run, observed, parts) for run, observed, parts in every if parts]
    kind = own[0][2][0].kind
    if kind == "channels":
        return [MapBlock(name, text, kind, bars=[(run, _bars(parts)) for run, _, parts in own])]
    draw = _part_energy if kind == "map" else _gate
    found = [MapBlock(name, text, "energy" if kind == "map" else kind, _rows(own, draw))]
    if kind == "gate" and any(len(part.values) > 1 for _, _, parts in own for part in parts):
        about = "How much the gates of a cell's channels differ: low where all channels are treated equally."
        found.append(MapBlock(f"{name}: deviation over channels", about, "spread", _rows(own, _spread)))
    return found


def _rows(
    own: Sequence[tuple[str, Observation, list[NeckPart]]], draw: Callable[[NeckPart, Observation], MapPanel]
) -> list[tuple[str, list[MapPanel]]]:
    return [(run, [draw(part, observed) for part in parts]) for run, observed, parts in own]


def _part_energy(part: NeckPart, observed: Observation) -> MapPanel:
    return _energy(_label(part), part.values, _reach(part.values, observed))


def _label(part: NeckPart) -> str:
    return "all levels" if part.stride is None else f"level {level_name(part.stride)}"


def _energy(label: str, x: Tensor, reach: tuple[float, float], about: str = "") -> MapPanel:
    """Root mean square over the channels of x (C, h, w), relative to its mean over the image."""
    energy = x.square().mean(dim=0).sqrt()
    mean = float(inside(energy.numpy(), reach).mean())
    note = f"{len(x)} channels, mean {mean:.3g}"
    return MapPanel(label, f"{about}, {note}" if about else note, (energy / max(mean, 1e-12)).numpy(), reach)


def _gate(part: NeckPart, observed: Observation) -> MapPanel:
    return _plain(part, observed, part.values.mean(dim=0))


def _spread(part: NeckPart, observed: Observation) -> MapPanel:
    return _plain(part, observed, part.values.std(dim=0, correction=0))


def _plain(part: NeckPart, observed: Observation, values: Tensor) -> MapPanel:
    reach = _reach(part.values, observed)
    return MapPanel(_label(part), f"mean {inside(values.numpy(), reach).mean():.2f}", values.numpy(), reach)


def _bars(parts: Sequence[NeckPart]) -> list[WeightBars]:
    found = []
    for part in parts:
        weights = part.values.flatten().numpy()
        ends = np.cumsum([count for _, count in part.groups])
        if part.groups:
            split = np.split(weights, ends[:-1])
            names = [f"from C{level_name(stride)}" for stride, _ in part.groups]
            found += [WeightBars(label, values) for label, values in zip(names, split, strict=True)]
        else:
            found.append(WeightBars(_label(part), weights))
    return found


def _reach(x: Tensor, observed: Observation, stride: int | None = None) -> tuple[float, float]:
    """How far the cells of x (C, h, w) reach, in heights and widths of the image."""
    covered = observed.padded if stride is None else (x.shape[1] * stride, x.shape[2] * stride)
    return covered[0] / observed.size[0], covered[1] / observed.size[1]

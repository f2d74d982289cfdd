"""How similar neighbouring levels of a pyramid are, at each stage of a neck."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F

from msefpn.explaining.panels import Observation, level_name
from msefpn.metrics.similarity import Estimate, Moments, contrast, moments

LevelPair = tuple[str, int]
"""A stage, `C` for example, and the stride of the finer one of two neighbouring levels."""


def level_moments(observed: Observation) -> dict[LevelPair, Moments]:
    """HSIC of neighbouring levels at each stage, (3,); only of the backbone's levels.

    The finer map is averaged to the cells of the coarser one; cells whose centre is padding are ignored.
    """
    moments_of: dict[LevelPair, Moments] = {}
    levels = observed.record.stages["C"]
    for stage, maps in observed.record.stages.items():
        for stride in [s for s in maps if 2 * s in maps and 2 * s in levels]:
            coarse = maps[2 * stride]
            fine = F.adaptive_avg_pool2d(maps[stride], (coarse.shape[1], coarse.shape[2]))
            rows, columns = (max(1, math.ceil(side / (2 * stride) - 0.5)) for side in observed.size)
            x, y = (m[:, :rows, :columns].flatten(1).T.numpy() for m in (fine, coarse))
            moments_of[stage, stride] = moments(x, y)
    return moments_of


def level_similarity(names: Sequence[str], measured: Sequence[dict[LevelPair, Moments]]) -> dict[str, Any]:
    """CKA of neighbouring levels by stage, for each pair of levels and their mean, and two runs' difference.

    Args:
        names: of the runs.
        measured: moments (images, 3) of each run.
    """
    common = [{s for k, s in own if k == "C"} & {s for k, s in own if k == "P"} for own in measured]
    pairs = sorted(set.intersection(*common))
    table = []
    for name, own in zip(names, measured, strict=True):
        stages = list(dict.fromkeys(stage for stage, _ in own))
        for levels in ([pair] for pair in pairs):
            table.append(_row(name, levels, own, stages))
        table.append(_row(name, pairs, own, stages))
    result = {"images": len(next(iter(measured[0].values()))), "runs": table}
    if len(measured) == 2 and pairs:
        result["difference"] = _difference(names, measured, pairs)
    return result


def _row(
    name: str, levels: Sequence[int], own: dict[LevelPair, Moments], stages: Sequence[str]
) -> dict[str, Any]:
    """CKA at each stage that has these pairs of levels, their mean, and the change from C to P."""
    has = [stage for stage in stages if all((stage, level) in own for level in levels)]
    row = {stage: _as_json(contrast(_mean_over(stage, levels, own, 1))) for stage in has}
    change = contrast([*_mean_over("P", levels, own, 1), *_mean_over("C", levels, own, -1)])
    label = "mean" if len(levels) != 1 else f"{level_name(levels[0])}–{level_name(2 * levels[0])}"
    return {"run": name, "levels": label, "stages": row, "change": _as_json(change)}


def _difference(
    names: Sequence[str], measured: Sequence[dict[LevelPair, Moments]], pairs: Sequence[int]
) -> dict[str, Any]:
    """The second run's mean minus the first's, at each stage of both, and for the change."""
    first, second = measured
    common = [
        stage
        for stage in dict.fromkeys(stage for stage, _ in second)
        if all((stage, level) in own for own in measured for level in pairs)
    ]
    terms = {
        stage: [*_mean_over(stage, pairs, second, 1), *_mean_over(stage, pairs, first, -1)]
        for stage in common
    }
    before = [(-factor, of) for factor, of in terms["C"]]
    stages = {stage: _as_json(contrast(own)) for stage, own in terms.items()}
    return {
        "of": [names[1], names[0]],
        "stages": stages,
        "change": _as_json(contrast([*terms["P"], *before])),
    }


def _mean_over(
    stage: str, levels: Sequence[int], own: dict[LevelPair, Moments], factor: float
) -> list[tuple[float, Moments]]:
    return [(factor / len(levels), own[stage, level]) for level in levels]


def _as_json(estimate: Estimate) -> dict[str, Any]:
    """Numbers for json, which has no NaN."""
    numbers = dataclasses.asdict(estimate)
    return {
        key: None if value is None or not math.isfinite(value) else round(value, 5)
        for key, value in numbers.items()
        if key != "images"
    }

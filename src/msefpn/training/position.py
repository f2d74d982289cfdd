"""The position of a training within an epoch, which a state holds besides the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from msefpn.models import Detector

_PLAIN: dict[str, type] = {"batches": int, "of": int, "images": int, "seconds": float, "sums": dict}

Statistics = list[list[dict[str, Tensor]]]
"""Of each process: means and variances of its batch normalisations, and of their averages."""


@dataclass(frozen=True)
class Position:
    """How far an epoch is, after an optimizer step."""

    batches: int
    """Batches of each process that are done; all: only the evaluation is left."""
    of: int
    """Batches of each process in the epoch."""
    images: int
    """Images of this epoch that all processes have learned from."""
    seconds: float
    """That they took."""
    sums: dict[str, float]
    """Sum of each loss over the batches of the first process."""
    statistics: Statistics
    """Empty where there is one process, or none that differs from the first."""

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Position | None:
        """What `fault_of` has checked; None for the state of a whole epoch."""
        values = state.get("within")
        return None if values is None else cls(**values)

    def to_state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return vars(self)


def fault_of(values: Any, accumulate: Any) -> str:
    """What is wrong with a position that a state holds; empty: nothing. Values are finite and plain.

    Args:
        values: under `within`.
        accumulate: passes of a step.
    """
    if values is None:
        return ""
    if not isinstance(values, dict) or values.keys() != {*_PLAIN, "statistics"}:
        return "within does not hold the values of a position"
    for key, kind in _PLAIN.items():
        if type(values[key]) is not kind:
            return f"within.{key} is not of type {kind.__name__}"
    if not 1 <= values["batches"] <= values["of"] or values["images"] < 1 or values["seconds"] < 0:
        return f"within names batch {values['batches']} of {values['of']}"
    if type(accumulate) is int and values["batches"] % accumulate and values["batches"] < values["of"]:
        return f"within.batches is not a multiple of {accumulate}"
    if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in values["sums"].values()):
        return "within.sums are not numbers"
    parts = values["statistics"]
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        return "within.statistics is not a list of lists"
    tensors = [one for part in parts for one in part]
    if not all(isinstance(one, dict) and all(map(torch.is_tensor, one.values())) for one in tensors):
        return "within.statistics holds something other than tensors"
    return ""


def fits(position: Position | None, weights: Mapping[str, Tensor], averages: bool) -> bool:
    """Whether the statistics of a position are those of a detector with these weights."""
    if position is None:
        return True
    return all(
        len(part) == 1 + averages
        and all(
            name in weights and value.shape == weights[name].shape and value.dtype == weights[name].dtype
            for tensors in part
            for name, value in tensors.items()
        )
        and all(tensors.keys() == position.statistics[0][0].keys() for tensors in part)
        for part in position.statistics
    )


def statistics_of(detector: Detector) -> list[str]:
    """Names of what batch normalisation learns in each process from its own images."""
    return [
        f"{name}.{statistic}"
        for name, module in detector.named_modules()
        if isinstance(module, _BatchNorm) and module.training
        for statistic in ("running_mean", "running_var")
    ]


def restore_statistics(
    weights: Sequence[Mapping[str, Tensor]],
    kept: Sequence[Sequence[Mapping[str, Tensor]]],
    rank: int,
    world: int,
) -> None:
    """Restore the statistics of this process, in place; for another number of processes, their mean."""
    if not kept:
        return
    for place, tensors in enumerate(weights):
        parts = [part[place] for part in kept]
        for name, value in parts[0].items():
            if len(kept) == world:
                tensors[name].copy_(parts[rank][name])
            else:
                tensors[name].copy_(torch.stack([part[name] for part in parts]).mean(0, dtype=value.dtype))

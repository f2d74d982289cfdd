"""What each process of a training wants, and what all of them do: the same, at the same step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import distributed

from msefpn.errors import UserError
from msefpn.structures import Batch


class Wishes(NamedTuple):
    """What a process wants after the step that it does now."""

    fail: bool = False
    """One of its losses is not finite."""
    stop: bool = False
    """It was told to end."""
    keep: bool = False
    """A state is due, or was asked for."""
    asked: bool = False
    """SIGUSR1 has asked for it."""

    def together(self, device: torch.device, world: int) -> Wishes:
        """What at least one of the processes wants; called in all of them: one small exchange."""
        if world == 1:
            return self
        counts = torch.tensor([float(wish) for wish in self], device=device)
        distributed.all_reduce(counts)
        return Wishes(*(counts > 0).tolist())


def infinite(losses: Mapping[str, float]) -> list[str]:
    """Names of the losses that are not finite."""
    return [name for name, value in losses.items() if not math.isfinite(value)]


def refuse_infinite(losses: Mapping[str, float], batch: Batch, step: int, rank: int, world: int) -> None:
    """Raise for a loss that is not finite in one of the processes; called in all of them.

    Args:
        losses: of this process.
        batch: its images.
        step: steps that are done.
        rank: of this process.
        world: number of processes.

    Raises:
        UserError: in the first process, with the images of the process that has it.
        DistError: in the others: the first one tells.
    """
    own = infinite(losses), batch.ids.tolist()
    faults: list[Any] = [own]
    if world > 1:
        faults = [None] * world
        distributed.all_gather_object(faults, own)
    for names, ids in faults:
        if names and rank > 0:
            raise distributed.DistError
        if names:
            raise UserError(
                f"{', '.join(names)} not finite at step {step + 1} with the images of id {ids}: lower --lr "
                "or look at these images; the last state is kept"
            )

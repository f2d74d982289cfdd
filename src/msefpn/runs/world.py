"""The processes of a run: how many there are, which one this is, and where they meet; imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from msefpn.errors import UserError

OWN = "MSEFPN_STARTED_BY"
"""Variable of the processes that the first process of a run has started itself: its id."""


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    """Number of this process, 0..size - 1; the first one writes and prints."""
    size: int = 1
    local_rank: int = 0
    """Its number among those of its node; 0 prints what stops the node."""
    address: str = "127.0.0.1"
    """Host of the first process."""
    port: int = 0
    """Where the first process listens; 0: nowhere, or it is agreed on by `shared_store`."""
    launcher: str = ""
    """What started the processes, for messages; empty: the first process does it itself."""
    shared_store: bool = False
    """Whether torchrun listens at the port, with a store by which the first process tells its own."""
    parent: int = 0
    """Id of the first process where that has started this one; 0: something else has."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0


_world: World | None = None


def enter(world: World) -> None:
    """Say which process this is, from now on."""
    global _world
    _world = world


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return _world is None or _world.first


def tells_mistakes() -> bool:
    """Whether this process prints what stopped it: the first of each node, for the others stop with it."""
    if _world is not None:
        return _world.local_rank == 0
    try:
        return launched(os.environ).local_rank == 0
    except UserError:
        return True


def launched(environment: Mapping[str, str]) -> World:
    """The processes that torchrun, Slurm's srun or another launcher has started.

    Reads the usual variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without these, the
    variables that `srun` sets in each task of a Slurm step with several tasks.

    Raises:
        UserError: some of the variables are missing, or contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE")
        world = World() if size == 1 else _usual(environment, size)
    elif "SLURM_STEP_ID" in environment and _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        world = _slurm(environment)
    else:
        return World()
    if not (0 <= world.rank < world.size and 0 <= world.local_rank <= world.rank):
        raise UserError(
            f"{world.launcher} says process {world.rank} of {world.size}, {world.local_rank} of its node: "
            "processes count from 0: correct its variables"
        )
    return world


def _usual(environment: Mapping[str, str], size: int) -> World:
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}: set all four for each process, "
            "or none to start the processes of one machine with --devices"
        )
    parent = _number(environment, OWN, 0)
    torchrun = "TORCHELASTIC_RUN_ID" in environment
    return World(
        _number(environment, "RANK"),
        size,
        _number(environment, "LOCAL_RANK", 0),
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT"),
        "msefpn" if parent else "torchrun" if torchrun else "the launcher (WORLD_SIZE)",
        not parent and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        parent,
    )


def _slurm(environment: Mapping[str, str]) -> World:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job = environment.get("SLURM_JOB_ID", "")
    # The same in each process, and another one for each job of a machine that several share.
    port = 15000 + int(job[-4:]) if job.isdecimal() else 12910
    return World(
        _number(environment, "SLURM_PROCID"),
        _number(environment, "SLURM_STEP_NUM_TASKS"),
        _number(environment, "SLURM_LOCALID"),
        environment.get("MASTER_ADDR") or first_host(nodes) or "127.0.0.1",
        _number(environment, "MASTER_PORT", port),
        "Slurm",
    )


def first_host(nodes: str) -> str:
    """The first host of Slurm's list, such as node01 of node[01-04,7]-ib,other."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found is not None else ""


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise UserError(f"the variable {name} is {text!r}: it must be a whole number; correct or unset it")
    return int(text)

"""The processes of a training that has several, and the start of those of one machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.runs.meeting import meeting
from msefpn.runs.peers import Peers
from msefpn.runs.world import OWN, World
from msefpn.training.plan import Plan


@contextlib.contextmanager
def processes_of(peers: Peers | None, plan: Plan) -> Iterator[Peers]:
    """The processes of a planned training.

    Args:
        peers: those that a launcher has started; None: the body starts those of this machine with
            `start_others`.
        plan: what each of them was asked for.

    Raises:
        UserError: other processes were started than the configuration asks for.
    """
    if peers is not None:
        peers.timeout = plan.config.timeout
        check_world(plan.config, peers.world)
        yield peers
        return
    check_world(plan.config, World())
    with meeting(World(), plan.config.timeout) as own:
        own.tell("out", str(plan.out.absolute()))
        yield own


def check_world(config: Config, world: World) -> None:
    """Raise UserError where other processes were started than the configuration asks for."""
    asked = f"nodes {config.nodes} x devices {config.devices}"
    if world.size == 1:
        if config.nodes > 1:
            raise UserError(
                f"nodes {config.nodes}: this process knows of no other machine: start the same command "
                "on each with torchrun or srun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and "
                "MASTER_PORT for each process"
            )
        return
    if world.size != config.processes:
        raise UserError(
            f"{world.launcher} has started {world.size} processes, but {asked} are "
            f"{config.processes}: give --nodes and --devices as they were started"
        )
    if world.rank % config.devices != world.local_rank:
        raise UserError(
            f"{world.launcher} says that process {world.rank} is number {world.local_rank} of its node, but "
            f"of {asked} it is number {world.rank % config.devices}: set LOCAL_RANK, and start the "
            "same number of processes on each node"
        )


def start_others(config: Config, peers: Peers) -> None:
    """Start the other processes of this machine where nothing else has; each runs the same command.

    Raises:
        UserError: the program was not started from a file or a module, so that it cannot be started again.
    """
    if peers.world.size > 1:
        return
    command = _command()

    def begin(port: int) -> Sequence[subprocess.Popen[bytes]]:
        usual = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(config.devices),
            OWN: str(os.getpid()),
        }
        return [
            subprocess.Popen(command, env=os.environ | usual | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(1, config.devices)
        ]

    peers.start(World(size=config.devices), begin)


def _command() -> list[str]:
    """The command line of this program. Raises UserError."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not Path(sys.argv[0]).is_file():
        raise UserError(
            "several devices need a program that can be started once for each: run msefpn train, or call "
            "msefpn.train in a file, not in a notebook or python -c"
        )
    return [sys.executable, *sys.argv]

"""One training of a grid, in a process of its own that ends with the grid's: it reads its task as json."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from msefpn import plugins
from msefpn.errors import UserError
from msefpn.plain import one_line
from msefpn.runs.folder import RESUME, TO_RESUME, TRAINING, DataFiles
from msefpn.runs.meeting import meeting
from msefpn.runs.memory import keep_freed_memory
from msefpn.runs.signals import interruptible
from msefpn.runs.world import launched, tells_mistakes
from msefpn.training.plan import Plan, plan_training
from msefpn.writing import settle, working_in

AGAIN = "then run the same command again"
"""What the user can do after a grid, or a training of it, could not write to its folder: it goes on there."""
PR_SET_PDEATHSIG = 1


def command(recipe: Path, seed: int, out: Path, files: DataFiles, changed: dict[str, str | int]) -> list[str]:
    """The command line of a trial.

    Args:
        recipe: YAML file of the row.
        seed: of this trial.
        out: its run folder. A run that is there is resumed, unless it has not finished an epoch.
        files: what it reads.
        changed: device and workers, which a resumed run may do differently.
    """
    task = {
        "parent": os.getpid(),
        "recipe": str(recipe),
        "seed": seed,
        "out": str(out),
        "files": {key: str(path) for key, path in files.given().items()},
        "follow_links": files.follow_links,
        "changed": changed,
        "plugins": plugins.loaded(),
    }
    return [sys.executable, "-m", "msefpn.ablation.worker", json.dumps(task)]


def main() -> int:
    """Train as the task says; return the exit code: 0, 2 for a user's mistake, 130 where it was stopped."""
    try:
        with interruptible():
            _train()
    except UserError as error:
        text = str(error).replace(TO_RESUME, AGAIN)
        if tells_mistakes():
            print("error:", one_line(text), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _train() -> None:
    world = launched(os.environ)
    with meeting(world) if world.size > 1 else contextlib.nullcontext() as peers:
        task = json.loads(sys.argv[1])
        if world.first:  # the others end with this one
            _end_with(task["parent"])
        keep_freed_memory()
        plan = _plan(task, first=world.first)

        from msefpn.training.train import train  # noqa: PLC0415  slow to import

        train(plan, peers)


def _plan(task: dict[str, Any], *, first: bool) -> Plan:
    """The training of a task. Raises UserError."""
    out = Path(task["out"])
    settle(out)
    resume = (out / RESUME).exists()
    if not resume and first and out.exists():
        with working_in(out, TRAINING):
            shutil.rmtree(out, ignore_errors=True)  # of an attempt that was killed in its first epoch
    own = {} if resume else {"recipe": task["recipe"], "files": task["files"]}
    options = task["changed"] | ({} if resume else {"seed": task["seed"]})
    plugins.load(task["plugins"])
    return plan_training(
        None,
        {key: Path(path) for key, path in own.get("files", {}).items()},
        recipe=own.get("recipe"),
        out=out,
        resume=resume,
        steps=None,
        options={key: value for key, value in options.items() if value is not None},
        follow_links=task["follow_links"],
        first=first,
    )


def _end_with(parent: int) -> None:
    """Let the system end this process with its parent, also where that is killed; Linux only."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # files are replaced whole: no time is needed to end well
    if sys.platform != "win32" and os.getppid() != parent:
        sys.exit(130)


if __name__ == "__main__":
    sys.exit(main())

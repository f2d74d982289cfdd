"""`msefpn train`."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.commands.arguments import SplitFiles, as_path, as_text, configured, files_of, takes
from msefpn.config import Config
from msefpn.places import as_address


@takes(SplitFiles, Config, without=("plugins",))
def train(
    data: Any = None,
    *,
    recipe: str | Path | None = None,
    set: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    callbacks: Sequence[Any] = (),
    fix_names: bool = False,
    follow_links: bool = False,
    **options: Any,
) -> Path:
    """Train a detector and return its run folder; RUN/report.html shows it.

    An option that is not given is the recipe's. Each epoch is evaluated and kept; a run that was stopped is
    continued with `resume`. With several `devices` the calling script runs once in each process.

    Args:
        data: folder with train.json + train/ and val.json + val/, or in COCO's, Pascal VOC's, YOLO's or a
            plug-in's layout; from Python also a data set object, see `msefpn.data` (default: a built-in set)
        recipe: name or YAML file of the other options' values (default: faster_rcnn_r50_mse_fpn_1x, or
            quickstart for the built-in set)
        set: further settings as key=value or key.path=value, such as neck_options.gate=none
        out: run folder, or its address s3://..., gs://... (default: the first free one of runs/train-1,
            runs/train-2, ...)
        resume: continue the run in the out folder
        steps: number of steps after which to stop; for trials
        callbacks: objects like `msefpn.training.callbacks.Callback`; Python only
        fix_names: where a picture is missing, take the one of a similar name (other case, slashes, folders)
        follow_links: follow symbolic links that lead out of the data folder

    Returns:
        The run folder; its address where that was given.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    files = files_of(options)
    values, objects = configured(options, set)

    from msefpn.runs.world import launched
    from msefpn.training.data import read_early
    from msefpn.training.plan import plan_training

    world, peers, remote_run = launched(os.environ), None, None
    folder = as_path(out)
    with contextlib.ExitStack() as around:
        if world.size > 1:
            from msefpn.runs.meeting import meeting

            peers = around.enter_context(meeting(world, values.get("timeout")))
        if peers is not None or as_address(out) is not None:
            from msefpn.runs.address import working_folder

            folder, remote_run = around.enter_context(working_folder(out, peers, resume=resume))
        plan = plan_training(
            data,
            files,
            recipe=as_text(recipe),
            out=folder,
            resume=resume,
            steps=steps,
            options=values,
            fix_names=fix_names,
            follow_links=follow_links,
            first=world.first,
        )
        if peers is not None:
            peers.tell("out", str(plan.out.absolute()))
        early = read_early(plan) if peers is None else None

        from msefpn.reporting.report import report_training
        from msefpn.training.train import train as run_training

        run = run_training(plan, peers, [*objects, *callbacks], early, remote_run)
        if remote_run is not None:
            report_training(run)
            remote_run.send()
    if world.first and remote_run is None:
        report_training(run)
    return run if out is None or as_address(out) is None else Path(out)

"""Training: data and a configuration into a run folder."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from msefpn.config import Config, to_yaml
from msefpn.data.coco import CocoData
from msefpn.data.faults import FaultReport
from msefpn.errors import UserError
from msefpn.models import Detector, build, init_weights
from msefpn.runs.console import TrainingScreen, say
from msefpn.runs.folder import (
    BEST,
    CONFIG,
    RESUME,
    check_out,
    is_first_process,
    new_folder,
    write_run,
    write_text,
)
from msefpn.training.checks import check_devices, check_initial_weights, pick_precision
from msefpn.training.plan import Plan
from msefpn.training.recorder import Recorder, read_resume


def train(plan: Plan) -> Path:
    """Train as planned and return the run folder.

    Raises:
        UserError: before anything is written, where the request cannot be met; later only for a loss that is
            not finite, an image that has become unreadable, or a full disk.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    config, first = plan.config, is_first_process()
    device = check_devices(config)
    precision = pick_precision(config.precision, device)
    torch.manual_seed(config.seed)
    detector = build(config, plan.train.classes, plan.train.category_ids)
    state = _read_state(plan)
    told = []
    if state is not None:
        detector.load_state_dict(state["detector"])
    else:
        report = init_weights(detector, config.init)
        check_initial_weights(detector, report)
        told = ["initial weights: random"] if config.init == "none" else str(report).splitlines()
    from msefpn.training.lightning import Training, fit  # noqa: PLC0415  slow to import: after all that can be refused

    if first:
        _prepare_folder(plan, detector)
        say(*_data_lines("train", plan.train, plan.reports["train"]))
        say(*_data_lines("val", plan.val, plan.reports["val"]))
        say(*told, *_plan_lines(config, device, precision, plan.out, state))
    done = 0 if state is None else int(state["epoch"])
    best = None if state is None else state["best"]
    training = Training(
        detector,
        config,
        plan.train,
        plan.val,
        fingerprint=_fingerprint(plan.train),
        state=state,
        recorder=Recorder(plan.out, best, done, 0 if state is None else state["step"]) if first else None,
        screen=TrainingScreen(config.epochs, done) if first else None,
        steps=plan.steps,
    )
    try:
        fit(training, device, precision, done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: go on with msefpn train --resume --out {plan.out}") from None
    if first:
        _say_what_next(plan, training.recorder)
    return plan.out


def _read_state(plan: Plan) -> dict[str, Any] | None:
    """The state to go on from; None for a new run, and for one that was stopped in its first epoch."""
    path = plan.out / RESUME
    if not plan.resume or not path.exists():
        return None
    state = read_resume(path)
    file = plan.sources.train_json
    kept = tuple(state["classes"]), tuple(state["category_ids"])
    if kept != (plan.train.classes, plan.train.category_ids):
        raise UserError(
            f"the run '{plan.out}' is of other classes than {file}: restore the data, or start a new run"
        )
    if state["data"] != _fingerprint(plan.train):
        raise UserError(
            f"{file} has changed since the run '{plan.out}' began: restore it, or start a new run"
        )
    if plan.steps is not None and state["step"] >= plan.steps:
        raise UserError(f"the run '{plan.out}' has done {state['step']} steps: give more with --steps")
    if state["epoch"] >= plan.config.epochs:
        raise UserError(f"the run '{plan.out}' has all its {state['epoch']} epochs: give more with --epochs")
    return state


def _fingerprint(data: CocoData) -> int:
    """Changes with the images, boxes, masks and proposals."""
    value = zlib.crc32("\n".join(data.names).encode())
    columns: list[NDArray[Any]] = [data.ids, data.sizes, data.offsets, data.boxes, data.labels, data.crowd]
    columns += [] if data.masks is None else [data.masks.text]
    columns += [] if data.proposals is None else [data.proposals.offsets, data.proposals.boxes]
    for column in columns:
        value = zlib.crc32(column.tobytes(), value)
    return value


def _prepare_folder(plan: Plan, detector: Detector) -> None:
    if plan.resume:
        write_text(plan.out / CONFIG, to_yaml(plan.config))
        return
    weights = sum(tensor.nbytes for tensor in detector.state_dict().values())
    # best, last, and the state twice while it is replaced: weights, averages and AdamW's two moments.
    check_out(plan.out, room=weights * (2 + 2 * 4))
    with new_folder(plan.out):
        write_run(plan.out, plan.config, plan.sources)


def _data_lines(split: str, data: CocoData, report: FaultReport) -> list[str]:
    line = f"{split}: {len(data)} images, {len(data.boxes)} boxes, {len(data.classes)} classes ({data.file})"
    faults = report.summary()
    return [line] + [f"  {'; '.join(faults)}"] * bool(faults)


def _plan_lines(
    config: Config, device: torch.device, precision: str, out: Path, state: dict[str, Any] | None
) -> list[str]:
    drops = (
        f"x 0.1 after epochs {', '.join(map(str, config.milestones))}" if config.milestones else "constant"
    )
    schedule = "cosine to zero" if config.schedule == "cosine" else drops
    lines = [
        f"model: {config.detector}, {config.backbone}, {config.neck}, size {config.size}, "
        f"on {config.devices} x {device.type}, {precision}",
        f"lr: {config.lr:g} per 16 images x {config.batch}/16 = {config.scaled_lr:g}; "
        f"{config.warmup} steps of warm-up; {schedule}",
        f"run: {out}",
    ]
    return lines if state is None else [*lines, f"goes on after epoch {state['epoch']}"]


def _say_what_next(plan: Plan, recorder: Recorder | None) -> None:
    best = recorder.best if recorder is not None else None
    if best is not None:
        say(f"best: AP {best['AP']:.3f}, AP50 {best['AP50']:.3f} in epoch {best['epoch']}: {plan.out / BEST}")
    say(
        f"detect:   msefpn predict {plan.out} {plan.sources.val_images}",
        f"evaluate: msefpn evaluate {plan.out}",
    )
    if plan.builtin:
        say(
            "your own data: msefpn train --data DIR --recipe small_data, where DIR holds train.json + train/ "
            "and val.json + val/ (COCO format; look at it first with msefpn check DIR)"
        )

"""Training: a configuration and data into a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from msefpn.config import AUTO_BATCH, Config, to_yaml
from msefpn.data.coco import CocoData
from msefpn.data.faults import FaultReport
from msefpn.inference.detect import inputs_read
from msefpn.inference.device import check_devices, pick_precision
from msefpn.models import Detector, build, check_initial_weights, init_weights, probe, styled
from msefpn.models.convolution import pick_method
from msefpn.models.recompute import recompute
from msefpn.runs.address import RemoteRun
from msefpn.runs.console import percent, say
from msefpn.runs.folder import (
    BEST,
    CONFIG,
    TO_RESUME,
    TRAINING,
    DataFiles,
    check_out,
    new_run,
)
from msefpn.runs.peers import Peers
from msefpn.runs.signals import interruptible
from msefpn.training.alike import check_alike
from msefpn.training.anchors import resolve_anchors
from msefpn.training.callbacks import Run, make_callbacks
from msefpn.training.data import Early, SplitData, read_data
from msefpn.training.fingerprint import DataMarks
from msefpn.training.largest import settle_batch
from msefpn.training.launch import processes_of, start_others
from msefpn.training.plan import Plan
from msefpn.training.position import Position
from msefpn.training.recorder import Recorder
from msefpn.training.resume import change_of_processes, state_to_resume
from msefpn.writing import working_in, write_text

if TYPE_CHECKING:
    from msefpn.training.lightning import Training


def train(
    plan: Plan,
    peers: Peers | None = None,
    callbacks: Iterable[Any] = (),
    early: Early = None,
    remote_run: RemoteRun | None = None,
) -> Path:
    """Train as planned and return the run folder.

    Args:
        plan: what is asked for.
        peers: the other processes, where a launcher has started them; None: this one trains alone, or starts
            those of its machine.
        callbacks: objects like `msefpn.training.callbacks.Callback`, besides those of the configuration.
        early: what `read_early` gave.
        remote_run: uploads the run folder; None where that is on this machine.

    Raises:
        UserError: before anything is written, where the request cannot be met; later only for a loss that is
            not finite, an image that has become unreadable, a full disk, or where another process has left.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says how to resume.
    """
    with interruptible() as stop, stop.heeding_requests(), contextlib.ExitStack() as around:
        if peers is not None or plan.config.processes > 1:
            peers = around.enter_context(processes_of(peers, plan))
        first = peers is None or peers.first
        if first and plan.resume:
            around.enter_context(working_in(plan.out, TRAINING))
        with contextlib.nullcontext() if peers is None else peers.in_turn():
            plan, files, training, told = _prepare(plan, peers, callbacks, early)
            if training.recorder is not None and remote_run is not None:
                training.recorder.send = remote_run.send
        device = check_devices(plan.config)
        if peers is not None:
            start_others(plan.config, peers)
        try:
            if peers is not None:
                check_alike(peers, plan, training.marks, training.state, device)
            if first:
                around.enter_context(_folder(plan, files, training.detector))
                if remote_run is not None:
                    remote_run.send()
                say(*told)
            if peers is not None:
                peers.tell("folder")
            from msefpn.training.engine import fit  # noqa: PLC0415  slow to import: last

            fit(training, peers, device, pick_precision(plan.config.precision, device))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: resume with msefpn train --resume --out {plan.out}"
            ) from None
    if first:
        _say_what_next(plan, files, training.recorder)
    return plan.out


def _prepare(
    plan: Plan, peers: Peers | None, callbacks: Iterable[Any], early: Early
) -> tuple[Plan, DataFiles, Training, list[str]]:
    """The plan with all choices made, its files, what is trained, and what the user is told of it.

    Nothing is written, but for data in other formats. Raises UserError.
    """
    config, adopted = (plan.config, []) if plan.resume else styled(plan.config)
    first = peers is None or peers.first
    device = check_devices(config)
    precision = pick_precision(config.precision, device)
    watching = make_callbacks(config, callbacks)
    probed = probe(config)
    read = early if isinstance(early, SplitData) else read_data(plan, inputs_read(probed), early)
    files, (train_data, train_report), (val_data, val_report) = read
    told = [*_data_lines("train", train_data, train_report), *_data_lines("val", val_data, val_report)]
    on_anchors: list[str] = []
    if not plan.resume:
        strides = getattr(getattr(probed, "neck", None), "out_strides", ())
        config, on_anchors = resolve_anchors(config, train_data, strides)
    torch.manual_seed(config.seed)
    detector = build(config, train_data.classes, train_data.category_ids)
    detector.convolution = config.convolution
    if config.grad_checkpoint:
        recompute(detector.backbone)
    on_batch: list[str] = []
    if config.batch == AUTO_BATCH:
        config, line = settle_batch(config, detector, train_data, device, precision, peers)
        detector.config = replace(detector.config, batch=config.batch)
        on_batch = [line]
    plan = replace(plan, config=config)
    marks = DataMarks.of(train_data, val_data, pictures=peers is None or peers.world.local_rank == 0)
    state = state_to_resume(plan, detector, train_data, val_data, marks) if plan.resume else None
    run, on_weights = _begin(detector, Run(plan.out, config, train_data.classes), state)
    from msefpn.training.lightning import Training  # noqa: PLC0415  slow to import: last

    training = Training(
        detector,
        run,
        train_data,
        val_data,
        state=state,
        marks=marks,
        recorder=Recorder(plan.out, run.best, step=run.step, states=config.keep) if first else None,
        callbacks=watching if first else None,
        steps=plan.steps,
    )
    told += [*on_weights, *adopted, *on_anchors, *on_batch, *_plan_lines(plan, run, device, precision)]
    if plan.resume:
        told += _resumed_lines(state, config)
    return plan, files, training, told


def _begin(detector: Detector, run: Run, state: dict[str, Any] | None) -> tuple[Run, list[str]]:
    """Give a detector its first weights, or those of a state; how far the run is, and what they are."""
    if state is not None:
        detector.load_state_dict(state["detector"])
        return replace(run, epoch=state["epoch"], step=state["step"], best=state["best"] or None), []
    report = init_weights(detector, run.config.init)
    check_initial_weights(detector, report)
    return run, ["initial weights: random"] if run.config.init == "none" else str(report).splitlines()


@contextlib.contextmanager
def _folder(plan: Plan, files: DataFiles, detector: Detector) -> Iterator[None]:
    """The run folder, made for a new run, with the configuration of this training."""
    if plan.resume:
        write_text(plan.out / CONFIG, to_yaml(plan.config), TO_RESUME, durable=True)
        yield
        return
    weights = sum(tensor.nbytes for tensor in detector.state_dict().values())
    # best, last and the newest state, each twice while it is replaced, and the older states: a state holds
    # weights, averages and AdamW's two moments.
    check_out(plan.out, room=weights * (2 * (2 + 4) + 4 * (plan.config.keep - 1)))
    with new_run(plan.out, plan.config, files):
        yield


def _data_lines(split: str, data: CocoData, report: FaultReport) -> list[str]:
    line = f"{split}: {len(data)} images, {len(data.boxes)} boxes, {len(data.classes)} classes ({data.file})"
    faults = report.summary()
    return [line] + [f"  {'; '.join(faults)}"] * bool(faults)


def _plan_lines(plan: Plan, run: Run, device: torch.device, precision: str) -> list[str]:
    config, schedule = plan.config, "constant"
    if config.schedule == "cosine":
        schedule = "cosine to zero"
    elif config.milestones:
        schedule = f"x 0.1 after epochs {', '.join(map(str, config.milestones))}"
    lines = [
        f"model: {config.detector}, {config.backbone}, {config.neck}, size {config.size}, "
        f"on {f'{config.nodes} x ' * (config.nodes > 1)}{config.devices} x {device.type}, {precision}",
        f"lr: {config.lr:g} per 16 images x {config.batch}/16 = {config.scaled_lr:g}; "
        f"{_warmup(config)}; {schedule}",
        f"run: {plan.out}",
    ]
    if device.type == "cpu":
        processor = torch.backends.cpu.get_cpu_capability()
        few = "" if config.convolution == "library" else ", gradients of few pixels alone"
        lines.insert(1, f"convolutions: {pick_method(config.convolution, device)}{few}; {processor}")
    return lines


def _resumed_lines(state: dict[str, Any] | None, config: Config) -> list[str]:
    """Where a resumed run goes on."""
    if state is None:
        return ["no epoch was finished: it starts anew"]
    position = Position.of_state(state)
    line = f"resumed after epoch {state['epoch']}"
    if position is not None:
        done = f"batch {position.batches} of {position.of}"
        line = f"resumed after step {state['step']} ({done}) of epoch {state['epoch'] + 1}"
    return [line, *filter(None, [change_of_processes(state, config)])]


def _warmup(config: Config) -> str:
    if 0 < config.warmup < 1:
        return f"warm-up for {100 * config.warmup:g} % of the steps"
    return f"{config.warmup:g} steps of warm-up"


def _say_what_next(plan: Plan, files: DataFiles, recorder: Recorder | None) -> None:
    best = recorder.best if recorder is not None else None
    if best is not None:
        numbers = f"AP {percent(best['AP'])}, AP50 {percent(best['AP50'])}"
        say(f"best: {numbers} in epoch {best['epoch']}: {plan.out / BEST}")
    say(
        f"detect:   msefpn predict {plan.out} {files.val_images}",
        f"evaluate: msefpn evaluate {plan.out}",
    )
    if plan.builtin:
        say(
            "your own data: msefpn train --data DIR --recipe small_data, where DIR holds train.json + train/ "
            "and val.json + val/ (COCO format; look at it first with msefpn check DIR)"
        )

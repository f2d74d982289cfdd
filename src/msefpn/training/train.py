"""Training: a configuration and data into a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from msefpn.config import Config, to_yaml
from msefpn.data.coco import CocoData, read_coco
from msefpn.data.datasets import materialise
from msefpn.data.faults import FaultReport
from msefpn.data.formats import ReadLog
from msefpn.data.formats.write import as_coco, with_fixed_names
from msefpn.data.ground_truth import category_ids_for
from msefpn.data.locate import has_splits, locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.data.synthetic import draw_builtin_set
from msefpn.errors import UserError
from msefpn.inference.device import check_devices, pick_precision
from msefpn.links import check_links, roots_of
from msefpn.models import Detector, build, check_initial_weights, init_weights, probe, styled
from msefpn.models.convolution import pick_method
from msefpn.reading import real_path
from msefpn.runs.console import percent, say
from msefpn.runs.folder import (
    BEST,
    CONFIG,
    TO_RESUME,
    TRAINING,
    DataFiles,
    check_out,
    is_first_process,
    new_run,
    tell_out,
)
from msefpn.training.anchors import resolve_anchors
from msefpn.training.callbacks import Run, make_callbacks
from msefpn.training.plan import Plan, names_data
from msefpn.training.recorder import Recorder
from msefpn.training.resume import DataMarks, state_to_resume
from msefpn.writing import working_in, write_text

if TYPE_CHECKING:
    from msefpn.training.lightning import Training

BUILTIN = "builtin-data"
"""Folder of the built-in set, beside the run."""


def train(plan: Plan, callbacks: Iterable[Any] = ()) -> Path:
    """Train as planned and return the run folder.

    Args:
        plan: what is asked for.
        callbacks: objects like `msefpn.training.callbacks.Callback`, beside those of the configuration.

    Raises:
        UserError: before anything is written, where the request cannot be met; later only for a loss that is
            not finite, an image that has become unreadable, or a full disk.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says how to resume.
    """
    first = is_first_process()
    with contextlib.ExitStack() as alone:
        if first and plan.resume:
            alone.enter_context(working_in(plan.out, TRAINING))
        plan, files, training, told = _prepare(plan, callbacks)
        if first:
            alone.enter_context(_folder(plan, files, training.detector))
            tell_out(plan.out)
            say(*told)
        from msefpn.training.lightning import fit  # noqa: PLC0415  slow to import: last

        device = check_devices(plan.config)
        try:
            fit(training, device, pick_precision(plan.config.precision, device))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: resume with msefpn train --resume --out {plan.out}"
            ) from None
    if first:
        _say_what_next(plan, files, training.recorder)
    return plan.out


def _prepare(plan: Plan, callbacks: Iterable[Any]) -> tuple[Plan, DataFiles, Training, list[str]]:
    """The plan with all choices made, its files, what is trained, and what the user is told of it.

    Nothing is written, but for data in other formats. Raises UserError.
    """
    config, adopted = (plan.config, []) if plan.resume else styled(plan.config)
    plan, first = replace(plan, config=config), is_first_process()
    device = check_devices(config)
    precision = pick_precision(config.precision, device)
    watching = make_callbacks(config, callbacks)
    parts = probe(config)
    files, (train_data, train_report), (val_data, val_report) = read_data(plan, parts)
    on_anchors: list[str] = []
    if not plan.resume:
        strides = getattr(getattr(parts, "neck", None), "out_strides", ())
        config, on_anchors = resolve_anchors(config, train_data, strides)
        plan = replace(plan, config=config)
    torch.manual_seed(config.seed)
    detector = build(config, train_data.classes, train_data.category_ids)
    detector.convolution = config.convolution
    marks = DataMarks.of(train_data, val_data)
    state = state_to_resume(plan, detector, train_data, val_data, marks)
    told = [*_data_lines("train", train_data, train_report), *_data_lines("val", val_data, val_report)]
    run = Run(plan.out, config, train_data.classes)
    if state is not None:
        detector.load_state_dict(state["detector"])
        run = replace(run, epoch=state["epoch"], step=state["step"], best=state["best"])
    else:
        report = init_weights(detector, config.init)
        check_initial_weights(detector, report)
        told += ["initial weights: random"] if config.init == "none" else str(report).splitlines()
        told += adopted
    from msefpn.training.lightning import Training  # noqa: PLC0415  slow to import: last

    training = Training(
        detector,
        run,
        train_data,
        val_data,
        state=state,
        marks=marks,
        recorder=Recorder(plan.out, run.best) if first else None,
        callbacks=watching if first else None,
        steps=plan.steps,
    )
    return plan, files, training, [*told, *on_anchors, *_plan_lines(plan, run, device, precision)]


def read_data(
    plan: Plan, detector: Detector
) -> tuple[DataFiles, tuple[CocoData, FaultReport], tuple[CocoData, FaultReport]]:
    """Files and content of both splits, with masks and given proposals if the detector takes them."""
    if plan.run_files is None:
        files = find_files(
            plan.data,
            plan.given,
            plan.out.parent,
            builtin=plan.builtin,
            fix_names=plan.fix_names,
            follow_links=plan.follow_links,
        )
        check_proposals(files, detector)
        return files, *read_splits(files, masks=detector.learns_masks)
    given = {key: real_path(path) for key, path in plan.given.items()}
    if plan.data is not None or names_data(plan.given):
        follow = plan.follow_links or plan.run_files.follow_links
        given |= find_files(
            plan.data, plan.given, plan.out.parent, fix_names=plan.fix_names, follow_links=follow
        ).resolved()
    if not given.items() <= plan.run_files.resolved().items():
        raise UserError(
            f"the data given is not that of the run '{plan.out}': a resumed run keeps its data; leave it out"
        )
    return plan.run_files, *read_splits(plan.run_files, masks=detector.learns_masks)


def find_files(
    data: Any,
    given: Mapping[str, Path],
    parent: Path,
    *,
    builtin: bool = False,
    fix_names: bool = False,
    follow_links: bool = False,
) -> DataFiles:
    """The files of both splits: the given ones, and the others by convention.

    Args:
        data: a data set's folder or file in any format, or a data set object; None: `given` names all.
        given: by the fields of `DataFiles`.
        parent: folder for what is made of other formats and objects, and for the built-in set.
        builtin: take the built-in set, which is drawn if it is not there.
        fix_names: take the picture of a similar name where one is missing.
        follow_links: follow symbolic links that lead out of the data folder.

    Raises:
        UserError: a split is missing, a link leads out, or nothing of the data can be used.
    """
    if builtin:
        data = parent / BUILTIN
        if not data.is_dir():
            draw_builtin_set(data)
    refuse_unread(data, given.get("train_json"), given.get("val_json"))
    if isinstance(data, (str, Path)):
        check_links(Path(data), follow=follow_links)
    for split in ("train", "val"):
        if (file := given.get(f"{split}_json")) is not None:
            check_links(*roots_of(file, given.get(f"{split}_images")), follow=follow_links)
    if data is not None:
        needed = [split for split in ("train", "val") if f"{split}_json" not in given]
        if not isinstance(data, (str, Path)):
            follow_links = True  # the object has named them
            data, log = materialise(data, parent / "converted")
            _say_first(log)
        elif fix_names or not has_splits(Path(data), needed):
            data, log = as_coco(
                Path(data), parent / "converted", needed, fix_names=fix_names, follow_links=follow_links
            )
            _say_first(log)
    found = {key: path for key, path in given.items() if key.endswith("_proposals")}
    for split in ("train", "val"):
        place = locate_split(data, split, given.get(f"{split}_json"), given.get(f"{split}_images"))
        if place is None:
            raise UserError(
                f"no {split} split: give --{split}-json and --{split}-images, or a folder with --data"
            )
        if fix_names and f"{split}_json" in given:
            place, log = with_fixed_names(*place, parent / "converted")
            _say_first(log)
        found[f"{split}_json"], found[f"{split}_images"] = place
    return DataFiles(**found, follow_links=follow_links)


def _say_first(log: ReadLog) -> None:
    if is_first_process():
        say(*log.lines())


def read_splits(
    files: DataFiles, *, masks: bool
) -> tuple[tuple[CocoData, FaultReport], tuple[CocoData, FaultReport]]:
    """Training and validation data, with masks where asked for, and with the proposals that are given.

    Raises:
        UserError: the data cannot be used, or the splits' classes differ.
    """
    files.check_links()
    train, train_report = read_coco(files.train_json, files.train_images, masks=masks)
    val, val_report = read_coco(files.val_json, files.val_images, masks=masks)
    category_ids_for(train.classes, val, f"the training data {train.file}")
    if files.train_proposals is not None:
        train = with_proposals(train, files.train_proposals)
    if files.val_proposals is not None:
        val = with_proposals(val, files.val_proposals)
    return (train, train_report), (val, val_report)


def check_proposals(files: DataFiles, detector: Detector) -> None:
    """Raise UserError where a detector lacks required proposals, or has unused ones."""
    given = [path for path in (files.train_proposals, files.val_proposals) if path is not None]
    name = detector.config.detector
    if detector.takes_proposals and len(given) < 2:
        raise UserError(
            f"{name} needs proposals: add --train-proposals and --val-proposals, files in COCO's result "
            "format, such as the predictions.json of msefpn evaluate"
        )
    if given and not detector.takes_proposals:
        raise UserError(f"{name} finds its own proposals: leave them out, or use fast_rcnn")


@contextlib.contextmanager
def _folder(plan: Plan, files: DataFiles, detector: Detector) -> Iterator[None]:
    """The run folder, made for a new run, with the configuration of this training."""
    if plan.resume:
        write_text(plan.out / CONFIG, to_yaml(plan.config), TO_RESUME, durable=True)
        yield
        return
    weights = sum(tensor.nbytes for tensor in detector.state_dict().values())
    # best, last and the state, each twice while it is replaced: a state holds weights, averages and AdamW's
    # two moments.
    check_out(plan.out, room=weights * 2 * (2 + 4))
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
        f"on {config.devices} x {device.type}, {precision}",
        f"lr: {config.lr:g} per 16 images x {config.batch}/16 = {config.scaled_lr:g}; "
        f"{_warmup(config)}; {schedule}",
        f"run: {plan.out}",
    ]
    if device.type == "cpu":
        processor = torch.backends.cpu.get_cpu_capability()
        few = "" if config.convolution == "library" else ", gradients of few pixels alone"
        lines.insert(1, f"convolutions: {pick_method(config.convolution, device)}{few}; {processor}")
    if plan.resume:
        began = f"resumed after epoch {run.epoch}" if run.epoch else "no epoch was finished: it starts anew"
        lines.append(began)
    return lines


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

"""From what the user asked for to what is to be done, checked as far as that goes without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msefpn.checkpoint import read_about
from msefpn.config import Config, load_recipe, parse_size
from msefpn.data.coco import CocoData, read_coco
from msefpn.data.faults import FaultReport
from msefpn.data.ground_truth import category_ids_for
from msefpn.data.locate import locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.data.synthetic import draw_builtin_set
from msefpn.errors import UserError, unknown_name
from msefpn.prediction.request import check_given, in_coco
from msefpn.runs.folder import (
    CONFIG,
    LAST,
    RESUME,
    Sources,
    check_out,
    default_recipe,
    free_folder,
    is_first_process,
    read_run,
)

_CHANGEABLE = ("epochs", "device", "devices", "workers")
"""What a resumed run may do otherwise."""
_OUT = "MSEFPN_OUT"
"""Tells the other processes of a run its folder."""


@dataclass(frozen=True)
class Plan:
    """A training, as far as it can be prepared without torch."""

    config: Config
    sources: Sources
    out: Path
    resume: bool
    builtin: bool
    """Whether the data is the built-in set."""
    train: CocoData
    val: CocoData
    reports: dict[str, FaultReport]
    """'train' and 'val': what was fixed or dropped."""
    steps: int | None
    """Stop after that many; None: at the end."""


def plan_training(
    data: str | Path | None,
    files: Mapping[str, str | Path | None],
    *,
    recipe: str | Path | None,
    out: str | Path | None,
    resume: bool,
    steps: int | None,
    options: Mapping[str, Any],
) -> Plan:
    """Resolve recipe, options and folder and read the data; draws the built-in set if it is not there.

    Args:
        data: a data folder; None where `files` name all, or for the built-in set.
        files: `Sources`' keys, given explicitly.
        recipe: name or file; None: `default_recipe`.
        out: the run folder; None: the first free one under `runs`.
        resume: go on with the run in `out`.
        steps: stop after that many.
        options: `Config`'s keys, None where not given.

    Raises:
        UserError: something of it cannot be.
    """
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}: it must be at least 1")
    given = {key: Path(path) for key, path in files.items() if path is not None}
    place = None if data is None else Path(data)
    builtin = place is None and not names_data(given) and not resume
    if resume:
        config, sources, folder = _resumed(place, given, recipe, out, options)
    else:
        config = load_recipe(str(recipe or default_recipe(builtin)), **options)
        folder = _new_out(out)
        sources = sources_of(place, given, folder.parent, config)
    check_proposals(config, sources)
    (train, train_report), (val, val_report) = read_splits(sources, masks=config.learns_masks)
    reports = {"train": train_report, "val": val_report}
    return Plan(config, sources, folder, resume, builtin, train, val, reports, steps)


def check_proposals(config: Config, sources: Sources) -> None:
    """Raise UserError where a detector has not the proposals that it needs, or has some that it reads not."""
    given = {"train_proposals", "val_proposals"} & sources.given().keys()
    if config.takes_proposals and len(given) < 2:
        raise UserError(
            f"{config.detector} looks at given regions: add --train-proposals and --val-proposals, files in "
            "COCO's result format, such as the predictions.json of msefpn evaluate"
        )
    if given and not config.takes_proposals:
        raise UserError(f"{config.detector} finds its own regions: leave out the proposals, or use fast_rcnn")


def read_splits(
    sources: Sources, *, masks: bool
) -> tuple[tuple[CocoData, FaultReport], tuple[CocoData, FaultReport]]:
    """Training and validation data, with masks where asked for, and with the proposals that are given.

    Raises UserError, also where their classes differ.
    """
    train, train_report = read_coco(sources.train_json, sources.train_images, masks=masks)
    val, val_report = read_coco(sources.val_json, sources.val_images, masks=masks)
    category_ids_for(train.classes, val, f"the training data {train.file}")
    if sources.train_proposals is not None:
        train = with_proposals(train, sources.train_proposals)
    if sources.val_proposals is not None:
        val = with_proposals(val, sources.val_proposals)
    return (train, train_report), (val, val_report)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation, as far as it can be prepared without torch."""

    run: Path
    data: CocoData
    out: Path
    size: tuple[int, int] | None
    """Longest and shortest side, pixels; None: the run's."""
    batch: int | None
    """None: the run's."""
    workers: int


def plan_evaluation(
    run: Path,
    data: Path | None,
    *,
    split: str,
    file: Path | None,
    images: Path | None,
    out: Path | None,
    proposals: Path | None,
    batch: int | None,
    size: str | None,
    workers: int,
) -> Evaluation:
    """Find and read what a run is to be evaluated on: the given files, those of `data`, or the run's own.

    Raises UserError.
    """
    if batch is not None and batch < 1:
        raise UserError(f"batch is {batch}: it must be at least 1")
    if workers < 0:
        raise UserError(f"workers is {workers}: it must be at least 0")
    if split not in ("train", "val"):
        raise unknown_name("split", split, ("train", "val"))
    if not run.exists():
        raise UserError(f"run '{run}' does not exist: name the folder that 'msefpn train' wrote")
    sides = None if size is None else parse_size(size)
    config = read_about(run).config
    folder = run if run.is_dir() else run.parent
    refuse_unread(data, file)
    out = out or free_folder(folder / "evaluate")
    data = None if data is None else in_coco(data, out.parent, split)
    place = locate_split(data, split, file, images)
    if place is None:
        sources = read_run(folder)[1]
        if split == "train":
            place, known = (sources.train_json, sources.train_images), sources.train_proposals
        else:
            place, known = (sources.val_json, sources.val_images), sources.val_proposals
        proposals = proposals or known
    check_given(config, proposals is not None, run)
    check_out(out)
    read, _ = read_coco(*place, masks=config.learns_masks)
    if proposals is not None:
        read = with_proposals(read, proposals)
    return Evaluation(run, read, out, sides, batch, workers)


def _resumed(
    data: Path | None,
    files: Mapping[str, Path],
    recipe: str | Path | None,
    out: str | Path | None,
    options: Mapping[str, Any],
) -> tuple[Config, Sources, Path]:
    """Configuration, files and folder of the run to go on with."""
    if out is None:
        raise UserError("resume needs the run to go on with: add --out RUN")
    folder = Path(out)
    config, sources = read_run(folder)
    if not (folder / RESUME).exists() and (folder / LAST).exists():
        raise UserError(f"'{folder}' has no {RESUME}: start a new run with --init {folder / LAST}")
    if recipe is not None:
        raise UserError(
            "recipe cannot be given with resume: a resumed run keeps its configuration; leave it out"
        )
    asked = {key: value for key, value in options.items() if value is not None}
    wished = load_recipe(str(folder / CONFIG), **asked)
    for key in asked:
        old, new = getattr(config, key), getattr(wished, key)
        if old != new and key not in _CHANGEABLE:
            raise UserError(
                f"{key} {new} contradicts the run's {key} {old}: a resumed run keeps its configuration; "
                f"leave it out, or start a new run with --init {folder / LAST}"
            )
    if not _is_same(data, files, sources, folder.parent):
        raise UserError(
            f"the data given is not that of the run '{folder}': a resumed run keeps its data; leave it out"
        )
    return wished, sources, folder


def _new_out(out: str | Path | None) -> Path:
    if not is_first_process():
        inherited = os.environ.get(_OUT, out)
        if inherited is None:
            raise UserError("several processes need to know the run folder: add --out RUN")
        return Path(inherited)
    folder = free_folder(Path("runs/train")) if out is None else Path(out)
    check_out(folder)
    os.environ[_OUT] = str(folder.absolute())
    return folder


def _builtin_set(parent: Path, config: Config) -> Path:
    """The folder of the built-in set, drawn if it is not there: `draw` makes it whole or not at all.

    Raises UserError, before it is drawn, where the configuration cannot be trained.
    """
    folder = parent / "builtin-data"
    if not folder.is_dir():
        from msefpn.training.checks import check_config  # noqa: PLC0415  slow to import

        check_config(config)
        draw_builtin_set(folder)
    return folder


def sources_of(data: Path | None, files: Mapping[str, Path], parent: Path, config: Config) -> Sources:
    """The files of both splits; where none is named those of the built-in set, which is drawn into `parent`.

    Raises UserError.
    """
    builtin = data is None and not names_data(files)
    return _find(_builtin_set(parent, config) if builtin else data, files, parent)


def _is_same(data: Path | None, files: Mapping[str, Path], sources: Sources, parent: Path) -> bool:
    """Whether what is given, where anything is, is what a run reads; proposals need not be given again."""
    given = {key: path.resolve() for key, path in files.items() if path is not None}
    if data is not None or names_data(files):
        given |= _find(data, files, parent).resolved()
    return given.items() <= sources.resolved().items()


def names_data(files: Mapping[str, Path]) -> bool:
    """Whether these files, `Sources`' keys, are images or annotations."""
    return any(not key.endswith("_proposals") for key in files)


def _find(data: Path | None, files: Mapping[str, Path], parent: Path) -> Sources:
    """The files of both splits: the given ones, and the others by convention, see `in_coco`."""
    refuse_unread(data, files.get("train_json"), files.get("val_json"))
    if data is not None:
        needed = [split for split in ("train", "val") if f"{split}_json" not in files]
        data = in_coco(data, parent, *needed)
    found = {key: path for key, path in files.items() if key.endswith("_proposals")}
    for split in ("train", "val"):
        place = locate_split(data, split, files.get(f"{split}_json"), files.get(f"{split}_images"))
        if place is None:
            raise UserError(
                f"no {split} split: give --{split}-json and --{split}-images, or a folder with --data"
            )
        found[f"{split}_json"], found[f"{split}_images"] = place
    return Sources(**found)

"""The training and the validation split: where their files are, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msefpn.data.coco import CocoData, read_coco
from msefpn.data.datasets import materialise
from msefpn.data.faults import FaultReport
from msefpn.data.formats.write import as_coco
from msefpn.data.ground_truth import category_ids_for
from msefpn.data.locate import locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.data.synthetic import draw_builtin_set
from msefpn.errors import UserError
from msefpn.models import Detector
from msefpn.runs.console import say
from msefpn.runs.folder import DataFiles, is_first_process

BUILTIN = "builtin-data"
"""Folder of the built-in set, beside the run."""


def find_files(data: Any, given: Mapping[str, Path], parent: Path, *, builtin: bool = False) -> DataFiles:
    """The files of both splits: the given ones, and the others by convention.

    Args:
        data: a data set's folder or file in any format, or a data set object; None: `given` names all.
        given: by the fields of `DataFiles`.
        parent: folder for what is made of other formats and objects, and for the built-in set.
        builtin: take the built-in set, which is drawn if it is not there.

    Raises:
        UserError: a split is missing, or nothing of the data can be used.
    """
    if builtin:
        data = parent / BUILTIN
        if not data.is_dir():
            draw_builtin_set(data)
    refuse_unread(data, given.get("train_json"), given.get("val_json"))
    if data is not None:
        needed = [split for split in ("train", "val") if f"{split}_json" not in given]
        if isinstance(data, (str, Path)):
            data, log = as_coco(Path(data), parent / "converted", needed)
        else:
            data, log = materialise(data, parent / "converted")
        if is_first_process():
            say(*log.lines())
    found = {key: path for key, path in given.items() if key.endswith("_proposals")}
    for split in ("train", "val"):
        place = locate_split(data, split, given.get(f"{split}_json"), given.get(f"{split}_images"))
        if place is None:
            raise UserError(
                f"no {split} split: give --{split}-json and --{split}-images, or a folder with --data"
            )
        found[f"{split}_json"], found[f"{split}_images"] = place
    return DataFiles(**found)


def read_splits(
    files: DataFiles, *, masks: bool
) -> tuple[tuple[CocoData, FaultReport], tuple[CocoData, FaultReport]]:
    """Training and validation data, with masks where asked for, and with the proposals that are given.

    Raises:
        UserError: the data cannot be used, or the splits' classes differ.
    """
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

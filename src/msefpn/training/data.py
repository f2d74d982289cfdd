"""The data of a training: files and content of both splits; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msefpn.data.coco import CocoData, category_ids_for
from msefpn.data.datasets import materialise
from msefpn.data.faults import FaultReport
from msefpn.data.formats import ReadLog, needs_no_copy
from msefpn.data.formats.write import as_coco, with_fixed_names
from msefpn.data.locate import has_splits, locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.data.reader import read_coco, reads_quickly
from msefpn.data.synthetic import draw_builtin_set
from msefpn.errors import UserError
from msefpn.links import check_links, roots_of
from msefpn.names import DetectorInputs, known_inputs
from msefpn.reading import real_path
from msefpn.runs.console import Bar, say
from msefpn.runs.folder import DataFiles
from msefpn.runs.world import is_first_process
from msefpn.training.plan import Plan, names_data

BUILTIN = "builtin-data"
"""Folder of the built-in set, beside the run."""


class SplitData(NamedTuple):
    """Files and content of both splits, and what was wrong and fixed."""

    files: DataFiles
    train: tuple[CocoData, FaultReport]
    val: tuple[CocoData, FaultReport]


Early = SplitData | DataFiles | None
"""What was read, or at least found, before anything that is slow to import; None: neither."""


def read_early(plan: Plan) -> Early:
    """Read the data before anything that is slow to import, where that is quick and writes nothing.

    So a fault of the data is told at once; and large data is not read before all else is known to be good.

    Raises:
        UserError: as `read_data`.
    """
    inputs = known_inputs(plan.config.detector)
    if plan.builtin or plan.fix_names or inputs is None or not is_in_place(plan.data):
        return None
    return read_if_quick(_files_of(plan, inputs), masks=inputs.masks)


def is_in_place(data: Any) -> bool:
    """Whether data is read where it is, and not written in another form."""
    return data is None or (isinstance(data, (str, Path)) and needs_no_copy(Path(data)))


def read_if_quick(files: DataFiles, *, masks: bool) -> SplitData | DataFiles:
    """Both splits as of `read_splits` if they are small, else their files as they are."""
    return read_splits(files, masks=masks) if reads_quickly(files.train_json, files.val_json) else files


def read_data(plan: Plan, inputs: DetectorInputs, found: DataFiles | None = None) -> SplitData:
    """Files and content of both splits, as a training reads them.

    Args:
        plan: what is asked for.
        inputs: what its detector reads.
        found: its files; None: they are looked for.

    Raises:
        UserError: the data cannot be found or used.
    """
    return read_splits(found or _files_of(plan, inputs), masks=inputs.masks)


def _files_of(plan: Plan, inputs: DetectorInputs) -> DataFiles:
    """The files of both splits. Raises UserError where a resumed run is given others than its own."""
    if plan.run_files is None:
        files = find_files(
            plan.data,
            plan.given,
            plan.out.parent,
            builtin=plan.builtin,
            fix_names=plan.fix_names,
            follow_links=plan.follow_links,
        )
        check_proposals(files, inputs)
        return files
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
    return plan.run_files


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


def read_splits(files: DataFiles, *, masks: bool) -> SplitData:
    """Training and validation data, with masks where asked for, and with the proposals that are given.

    Raises:
        UserError: the data cannot be used, or the splits' classes differ.
    """
    files.check_links()
    how: dict[str, Any] = {"masks": masks, "progress": Bar if is_first_process() else None}
    train, train_report = read_coco(files.train_json, files.train_images, **how)
    val, val_report = read_coco(files.val_json, files.val_images, **how)
    category_ids_for(train.classes, val, f"the training data {train.file}")
    if files.train_proposals is not None:
        train = with_proposals(train, files.train_proposals)
    if files.val_proposals is not None:
        val = with_proposals(val, files.val_proposals)
    return SplitData(files, (train, train_report), (val, val_report))


def check_proposals(files: DataFiles, inputs: DetectorInputs) -> None:
    """Raise UserError where a detector lacks required proposals, or has unused ones."""
    given = [path for path in (files.train_proposals, files.val_proposals) if path is not None]
    name = inputs.detector
    if inputs.proposals and len(given) < 2:
        raise UserError(
            f"{name} needs proposals: add --train-proposals and --val-proposals, files in COCO's result "
            "format, such as the predictions.json of msefpn evaluate"
        )
    if given and not inputs.proposals:
        raise UserError(f"{name} finds its own proposals: leave them out, or use fast_rcnn")

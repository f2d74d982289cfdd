"""COCO json, read like the other formats; its content is kept as it is."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from msefpn.data.formats.base import (
    SPLIT_NAMES,
    LabelFault,
    LoadedDataset,
    ReadLog,
    Split,
    read_all,
    read_text,
    size_of,
)
from msefpn.data.locate import find_split
from msefpn.errors import UserError


def is_coco(path: Path) -> bool:
    """Whether a folder has a split in COCO's format, or a file is one."""
    if path.is_dir():
        return bool(_places(path, None))
    try:
        content = json.loads(read_text(path))
    except (LabelFault, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "annotations" in content


def read_coco_source(path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read the splits of a folder, or one json; images that are missing or broken are skipped and named.

    Args:
        path: the folder or the json.
        images: folder of the images of a json; None: the folder named like the json, else the json's own.
        log: takes what has to be reported.

    Raises:
        UserError: a fault that only the user can fix.
    """
    splits = {name: _split(file, folder, log) for name, (file, folder) in _places(path, images).items()}
    return LoadedDataset(path, "coco", splits, log)


class CocoFormat:
    """COCO: a json for each split."""

    holds = staticmethod(is_coco)
    read = staticmethod(read_coco_source)


def _places(path: Path, images: Path | None) -> dict[str, tuple[Path, Path]]:
    """Split -> its json and its images."""
    if path.is_file():
        beside = path.parent / path.stem
        folder = images or (beside if beside.is_dir() else path.parent)
        return {SPLIT_NAMES.get(path.stem, "train"): (path, folder)}
    found = {}
    for split in ("train", "val", "test"):
        try:
            found[split] = find_split(path, split)
        except UserError:
            continue
    if "test" in found and found["test"] == found.get("val"):
        found.pop("val")  # find_split takes a test split where there is no other
    return found


def _split(file: Path, folder: Path, log: ReadLog) -> Split:
    try:
        content: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is not a complete json ({error}): write it again") from None
    listed = content.get("images") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UserError(f"'{file}' has no list of images: is it COCO json?")
    sound = read_all(partial(_sound, folder=folder), listed, log)
    known = {item["id"] for item in sound if isinstance(item, dict) and isinstance(item.get("id"), int)}
    if isinstance(notes := content.get("annotations"), list):
        kept = [note for note in notes if not isinstance(note, dict) or note.get("image_id") in known]
        log.count(len(notes) - len(kept), f"annotations in {file} are of missing images: skipped")
        content = content | {"annotations": kept}
    return Split(file, folder, content | {"images": sound})


def _sound(item: Any, *, folder: Path) -> Any:
    """An entry whose image can be read; anything else is left to `scan_coco`. Raises LabelFault."""
    if isinstance(item, dict) and isinstance(item.get("file_name"), str):
        file = folder / item["file_name"]
        if not Path(os.path.abspath(file)).is_relative_to(folder.absolute()):
            raise LabelFault(f"{file}: leads out of the image folder '{folder}'")
        size_of(file)
    return item

"""Create ML: one json list for all images of a split, with centres and sides in pixels."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from msefpn.data.finding import SimilarNames, examples, images_in
from msefpn.data.formats.base import (
    SPLIT_NAMES,
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    fitted,
    is_within,
    label_json,
    read_all,
    split_folders,
    tell_left_out,
)
from msefpn.data.repair import hint
from msefpn.data.values import is_number
from msefpn.errors import UserError

_KEYS = ("x", "y", "width", "height")


def is_createml(path: Path) -> bool:
    """Whether a json file is, or a folder holds, annotations in this format."""
    return bool(_files(path))


def read_createml(path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read a json file, or a folder with one for each split.

    Args:
        path: the json, a folder with one, or one with a folder for each split.
        images: folder of the images; None: beside the json.
        log: takes what has to be reported.

    Raises:
        UserError: nothing can be used.
    """
    splits = {}
    for split, (file, content) in _files(path).items():
        folder = _folder(file, split, images)
        names = Counter(posixpath.normpath(str(_name(item))) for item in content if isinstance(item, dict))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise UserError(f"{file}: the image '{twice[0]}' is listed twice: put its annotations together")
        items = list(enumerate(content, 1))
        splits[split] = read_all(
            partial(_read, file=file, pictures=SimilarNames(folder), log=log), items, log
        )
        bare = [image.name for image in images_in(folder) if image.name not in names]
        log.count(len(bare), f"images are not listed in {file.name} and are skipped ({examples(bare)})")
        tell_left_out(folder, log)
    return assemble(path, "createml", splits, None, log)


class CreateMLFormat:
    """Create ML: one json list for all images of a split."""

    holds = staticmethod(is_createml)
    read = staticmethod(read_createml)


def _files(path: Path) -> dict[str, tuple[Path, list[Any]]]:
    """Split -> its json and what that lists."""
    if path.is_file():
        content = _load(path)
        return {} if content is None else {SPLIT_NAMES.get(path.stem, "train"): (path, content)}
    found: dict[str, tuple[Path, list[Any]]] = {}
    for split, folder in split_folders(path).items():
        for file in [*sorted(folder.glob("*.json")), *_beside(folder, path)]:
            content = _load(file)
            if content is not None:
                found.setdefault(SPLIT_NAMES.get(file.stem, split), (file, content))
    return found


def _beside(folder: Path, root: Path) -> list[Path]:
    """The json of a split that is beside its folder."""
    return (
        [root / f"{folder.name}.json"] if folder != root and (root / f"{folder.name}.json").is_file() else []
    )


def _load(file: Path) -> list[Any] | None:
    """What a json lists, if it is of this format."""
    try:
        content = label_json(file)
    except LabelFault:
        return None
    listed = isinstance(content, list) and any(isinstance(item, dict) and _name(item) for item in content)
    return content if listed else None


def _folder(file: Path, split: str, images: Path | None) -> Path:
    if images is not None:
        return images
    return next(
        (folder for folder in (file.parent / file.stem, file.parent / split) if folder.is_dir()), file.parent
    )


def _name(item: dict[str, Any]) -> Any:
    """The image's name; the key has changed with the versions of the format."""
    return item.get("image") or item.get("imagefilename")


def _read(item: tuple[int, Any], *, file: Path, pictures: SimilarNames, log: ReadLog) -> LabelledImage:
    """One entry of the list. Raises LabelFault."""
    where, folder = f"{file}: entry {item[0]}", pictures.root
    entry = item[1]
    if not isinstance(entry, dict) or not isinstance(_name(entry), str):
        raise LabelFault(f"{where} does not name an image")
    where = f"{file}: {_name(entry)}"
    notes = entry.get("annotations", entry.get("annotation"))
    if not isinstance(notes, list):
        raise LabelFault(f"{where} has no list of annotations")
    image = folder / _name(entry)
    if not is_within(image, folder):
        raise UserError(f"{where} leads out of '{folder}': name the folder of the images with --images")
    if not os.path.isfile(image):
        similar = pictures.find(_name(entry))
        if len(similar) != 1 or not log.fix_names:
            raise LabelFault(f"{where}: the image is missing{hint([str(path) for path in similar])}")
        image = similar[0]
        log.tell("names of pictures were corrected", f"{_name(entry)} -> {image.relative_to(folder)}")
    objects = []
    for number, note in enumerate(notes, 1):
        if not isinstance(note, dict) or not isinstance(note.get("label"), str) or not note["label"]:
            raise LabelFault(f"{where}: annotation {number} has no label")
        place = note.get("coordinates")
        sides: list[Any] = [place.get(key) for key in _KEYS] if isinstance(place, dict) else []
        if len(sides) != 4 or not all(is_number(side) for side in sides):
            raise LabelFault(f"{where}: annotation {number} has no x, y, width and height")
        x, y, width, height = sides
        objects.append(LabelledObject(note["label"], (x - width / 2, y - height / 2, width, height)))
    return fitted(image, None, objects, file, log)

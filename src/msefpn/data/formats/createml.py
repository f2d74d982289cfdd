"""Create ML: a json list for all images of a split or of a folder in it, with centres and sides in pixels."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from msefpn.data.formats.pairs import labels_in
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
        path: the json, a folder with some, also in folders below, or one with a folder for each split.
        images: folder of the images; None: beside the json.
        log: takes what has to be reported.

    Raises:
        UserError: nothing can be used.
    """
    splits = {}
    for split, lists in _files(path).items():
        found: list[LabelledImage] = []
        listed: set[str] = set()
        there: set[Path] = set()
        for one in lists:
            folder = _folder(one, split, images)
            names = Counter(
                posixpath.normpath(str(_name(item))) for item in one.content if isinstance(item, dict)
            )
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise UserError(
                    f"{one.file}: the image '{twice[0]}' is listed twice: put its annotations together"
                )
            read = partial(_read, file=one.file, pictures=SimilarNames(folder), log=log)
            found += read_all(read, list(enumerate(one.content, 1)), log)
            listed |= {os.path.abspath(folder / name) for name in names}
            there.update(images_in(folder, deep=True))
        listed |= {os.path.abspath(image.file) for image in found}
        bare = sorted(image for image in there if os.path.abspath(image) not in listed)
        in_lists = examples(one.file.name for one in lists)
        shown = examples(image.name for image in bare)
        log.count(len(bare), f"images are not listed in {in_lists} and are skipped ({shown})")
        for folder in {_folder(one, split, images) for one in lists}:
            tell_left_out(folder, log)
        splits[split] = found
    return assemble(path, "createml", splits, None, log)


class CreateMLFormat:
    """Create ML: one json list for all images of a split."""

    holds = staticmethod(is_createml)
    read = staticmethod(read_createml)


class _List(NamedTuple):
    """A json and what it lists."""

    file: Path
    base: Path
    """The folder of its split."""
    content: list[Any]


def _files(path: Path) -> dict[str, list[_List]]:
    """Split -> its jsons: those of its folder and of those below it, else the one beside it."""
    if path.is_file():
        content = _load(path)
        return (
            {}
            if content is None
            else {SPLIT_NAMES.get(path.stem, "train"): [_List(path, path.parent, content)]}
        )
    found: dict[str, list[_List]] = {}
    for split, folder in split_folders(path).items():
        beside = path / f"{folder.name}.json"
        for files, base in ((labels_in(folder, ".json"), folder), ([beside], path)):
            lists = [_List(file, base, content) for file in files if (content := _load(file)) is not None]
            for one in lists:
                found.setdefault(SPLIT_NAMES.get(one.file.stem, split), []).append(one)
            if lists or folder == path:
                break
    return found


def _load(file: Path) -> list[Any] | None:
    """What a json lists, if it is of this format."""
    try:
        content = label_json(file)
    except LabelFault:
        return None
    listed = isinstance(content, list) and any(isinstance(item, dict) and _name(item) for item in content)
    return content if listed else None


def _folder(one: _List, split: str, images: Path | None) -> Path:
    """The folder that the names of a list count from; below `images` the one of its path, if it is there."""
    if images is not None:
        same = images / one.file.parent.relative_to(one.base)
        return same if same.is_dir() else images
    places = (one.file.parent / name for name in (one.file.stem, split))
    return next((folder for folder in places if folder.is_dir()), one.file.parent)


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

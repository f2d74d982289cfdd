"""Pascal VOC: an xml file for each image, in VOC's own folders or beside the images, or in folders below.

Coordinates are VOC's: whole pixels counted from 1, the last one inclusive, so that (1, 1, width, height) is
the whole image (development kit of VOC2012, section on annotations). Many tools write the same file with
corners counted from 0, the last one exclusive: a file with a corner that is less than 1 or has decimals is
read that way. Each file is judged by itself, so that no file moves the boxes of another.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from msefpn.data.formats.base import (
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    fitted,
    label_text,
    read_all,
    split_folders,
    tell_left_out,
)
from msefpn.data.formats.pairs import PairedFolders, labels_in
from msefpn.data.values import flag_of
from msefpn.errors import UserError
from msefpn.reading import MAX_TEXT, parse_xml, read_bytes, reason_of

_LABELS = ("Annotations", "annotations", "annots", "xmls", "labels")
_IMAGES = ("JPEGImages", "images", "Images", "imgs")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Place(NamedTuple):
    """Where the xml files of some images are."""

    labels: Path
    images: Path
    lists: Path | None
    """The folder of the lists, which say what is in a split."""


def is_voc(root: Path) -> bool:
    """Whether a folder holds annotations in this format."""
    return bool(_places(root, None))


def read_voc(root: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read a folder; its splits are the lists in ImageSets/Main, or folders named like a split.

    Args:
        root: the folder, `VOCdevkit` or a year in it, or one of xml files.
        images: folder of the images; None: VOC's JPEGImages, `images`, or where the xml files are.
        log: takes what has to be reported.

    Raises:
        UserError: nothing can be used.
    """
    splits: dict[str, list[LabelledImage]] = {}
    counting: list[int] = []
    for name, place in _places(root, images).items():
        pictures = PairedFolders(place.labels, place.images, ".xml", log)
        listed = _files(name, place, pictures.files, log)
        for split, files in listed.items():
            splits[split] = read_all(partial(_read, pictures=pictures, counting=counting), files, log)
        if place.lists is None or not listed.keys() - {name}:
            pictures.tell_bare([one.file for split in listed for one in splits[split]])
        tell_left_out(place.images, log)
    log.notes += _counting(counting)
    objects = [one for labelled in splits.values() for image in labelled for one in image.objects]
    difficult = sum(one.flags.get("difficult", 0) for one in objects)
    log.count(difficult, "objects are marked as difficult: kept")
    return assemble(root, "voc", splits, None, log)


def _counting(found: Sequence[int]) -> list[str]:
    """Which counting was taken, for how many of the files with objects."""
    ones, zeros = found.count(1), found.count(0)
    if not zeros:
        return [f"corners count from 1, the last pixel inclusive, as in VOC ({ones} files)"] * bool(ones)
    why = "they have decimals or a corner under 1"
    if not ones:
        return [f"corners count from 0 here, not from 1 as in VOC: read that way ({zeros} files: {why})"]
    return [
        f"corners count from 0 here in {zeros} files, as {why}, and from 1 as in VOC in {ones}: read file by "
        "file; if one tool wrote all of them, the boxes of one kind are off by a pixel"
    ]


class VocFormat:
    """Pascal VOC: an xml file for each image."""

    holds = staticmethod(is_voc)
    read = staticmethod(read_voc)


def _places(root: Path, images: Path | None) -> dict[str, _Place]:
    """Split -> where it is; the lists, where there are some, say more."""
    years = [folder for folder in sorted(root.glob("VOC20*")) if folder.is_dir()]
    home = years[0] if len(years) == 1 else root
    for labels in (home / name for name in _LABELS):
        if labels_in(labels, ".xml"):
            beside = next((home / name for name in _IMAGES if (home / name).is_dir()), labels)
            lists = home / "ImageSets" / "Main"
            return {"train": _Place(labels, images or beside, lists if lists.is_dir() else None)}
    folders = split_folders(root).items()
    return {name: _Place(folder, images or folder, None) for name, folder in folders if _has_labels(folder)}


def _has_labels(folder: Path) -> bool:
    """Whether there are xml files; below the folder, where anything may be, whether the first is VOC's."""
    if labels_in(folder, ".xml", deep=False):
        return True
    for file in labels_in(folder, ".xml"):
        try:
            return parse_xml(read_bytes(file, MAX_TEXT)).tag == "annotation"
        except (ValueError, OSError):
            continue
    return False


def _files(name: str, place: _Place, there: Sequence[Path], log: ReadLog) -> dict[str, list[Path]]:
    """Split -> its xml files, which may be missing; `there` are those that there are."""
    found = {}
    for split in ("train", "val", "test", "trainval") if place.lists else ():
        assert place.lists is not None
        if (file := place.lists / f"{split}.txt").is_file():
            lines = [line.strip() for line in _text(file).splitlines()]
            listed = [_listed(place.labels, line) for line in lines if line]
            found[split] = list(dict.fromkeys(listed))
            log.count(len(listed) - len(found[split]), f"lines of {file.name} name a file again: read once")
    whole = found.pop("trainval", None)
    if whole is not None and not {"train", "val"} & found.keys():
        found["train"] = whole
    if found:
        listed_all = {file for files in found.values() for file in files} | set(whole or ())
        rest = [file for file in there if file not in listed_all]
        log.count(len(rest), "xml files are in no list of ImageSets/Main and are skipped")
    else:
        found[name] = list(there)
    return found


def _text(file: Path) -> str:
    """A list of ImageSets. Raises UserError."""
    try:
        return label_text(file)
    except LabelFault as fault:
        raise UserError(f"{fault}: save the list as UTF-8, a name in each line") from None


def _listed(labels: Path, line: str) -> Path:
    """The xml file that a list names; a flag may follow the name."""
    ways = [labels / f"{name}{end}" for name in (line, line.split()[0]) for end in (".xml", ".XML")]
    return next((way for way in ways if os.path.isfile(way)), ways[2])


def _read(file: Path, *, pictures: PairedFolders, counting: list[int]) -> LabelledImage:
    """One xml file; the number that its corners count from is added to `counting`. Raises LabelFault."""
    if not file.is_file():
        raise LabelFault(f"{file}: the xml file is missing")
    try:
        root = parse_xml(read_bytes(file, MAX_TEXT))
    except ValueError as error:
        raise LabelFault(f"{file}: {error}") from None
    except OSError as error:
        raise LabelFault(f"{file}: {reason_of(error)}") from None
    if root.tag != "annotation":
        raise LabelFault(f"{file}: has no <annotation>")
    image = pictures.of(file, root.findtext("filename", "").strip())
    objects = [
        _object(item, f"{file}: object {number}") for number, item in enumerate(root.findall("object"), 1)
    ]
    first = _first(objects)
    found = fitted(image, _stated(root), [_from_zero(one, first) for one in objects], file, pictures.log)
    if objects:
        counting.append(first)
    return found


def _first(objects: Sequence[LabelledObject]) -> int:
    """The number that the corners of a file count from, 0 or 1; see the module."""
    numbers = [side for one in objects for side in one.box]
    return int(all(side.is_integer() for side in numbers) and all(min(one.box[:2]) >= 1 for one in objects))


def _stated(root: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width that an xml states; None where it does not."""
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    try:
        height, width = (round(float(side)) for side in sides)
    except (ValueError, OverflowError):
        return None
    return (height, width) if min(height, width) > 0 else None


def _object(item: ElementTree.Element, where: str) -> LabelledObject:
    label = item.findtext("name", "").strip()
    if not label:
        raise LabelFault(f"{where} has no name")
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    if None in texts:
        raise LabelFault(f"{where} has no {_CORNERS[texts.index(None)]}")
    left, top, right, bottom = _numbers([str(text) for text in texts], where)
    flags = {"difficult": 1} if flag_of(item.findtext("difficult", "0")) else {}
    return LabelledObject(label, (left, top, right - left, bottom - top), flags=flags)


def _numbers(texts: Sequence[str], where: str) -> list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise LabelFault(f"{where}: {error}") from None
    if not all(map(math.isfinite, numbers)):
        raise LabelFault(f"{where}: a corner is not a finite number")
    return numbers


def _from_zero(one: LabelledObject, first: int) -> LabelledObject:
    """An object with its corners counted from 0, the last pixel exclusive."""
    left, top, width, height = one.box
    return one._replace(box=(left - first, top - first, width + first, height + first))

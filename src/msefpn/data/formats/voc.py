"""Pascal VOC: an xml file for each image, in VOC's own folders or beside the images.

Coordinates are VOC's: whole pixels counted from 1, the last one inclusive, so that (1, 1, width, height) is
the whole image (development kit of VOC2012, section on annotations). Many tools write the same file with
corners counted from 0; a data set in which any corner is 0 is read that way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from xml.etree import ElementTree

from msefpn.data.formats.base import (
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    images_in,
    read_all,
    size_of,
    split_folders,
)

_LABELS = ("Annotations", "annotations")
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
    for name, place in _places(root, images).items():
        known = _index(place.images)
        for split, files in _files(name, place, known, log).items():
            splits[split] = read_all(partial(_read, known=known), files, log)
    objects = [one for labelled in splits.values() for image in labelled for one in image.objects]
    first = 0 if any(min(one.box[:2]) == 0 for one in objects) else 1
    if first == 0:
        log.notes.append("corners count from 0 here, not from 1 as in VOC: read that way")
    difficult = sum(one.flags.get("difficult", 0) for one in objects)
    log.count(difficult, "objects are marked as difficult: kept")
    counted = {split: [_from_zero(one, first) for one in labelled] for split, labelled in splits.items()}
    return assemble(root, "voc", counted, None, log)


class VocFormat:
    """Pascal VOC: an xml file for each image."""

    holds = staticmethod(is_voc)
    read = staticmethod(read_voc)


def _places(root: Path, images: Path | None) -> dict[str, _Place]:
    """Split -> where it is; the lists, where there are some, say more."""
    years = [folder for folder in sorted(root.glob("VOC20*")) if folder.is_dir()]
    home = years[0] if len(years) == 1 else root
    for labels in (home / name for name in _LABELS):
        if any(labels.glob("*.xml")):
            beside = next((home / name for name in _IMAGES if (home / name).is_dir()), labels)
            lists = home / "ImageSets" / "Main"
            return {"train": _Place(labels, images or beside, lists if lists.is_dir() else None)}
    folders = split_folders(root).items()
    return {
        name: _Place(folder, images or folder, None) for name, folder in folders if any(folder.glob("*.xml"))
    }


def _files(name: str, place: _Place, known: Mapping[str, Path], log: ReadLog) -> dict[str, list[Path]]:
    """Split -> its xml files, which may be missing."""
    found = {}
    for split in ("train", "val", "test", "trainval") if place.lists else ():
        assert place.lists is not None
        if (file := place.lists / f"{split}.txt").is_file():
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
            found[split] = [_listed(place.labels, line) for line in lines if line]
    whole = found.pop("trainval", None)
    if whole is not None and not {"train", "val"} & found.keys():
        found["train"] = whole
    if not found:
        found[name] = sorted(place.labels.glob("*.xml"))
        stems = {file.stem for file in found[name]}
        bare = sorted({file.name for file in known.values() if file.stem not in stems})
        log.count(len(bare), f"images have no xml file and are skipped, {', '.join(bare[:3])} among them")
    return found


def _listed(labels: Path, line: str) -> Path:
    """The xml file that a list names; a flag may follow the name."""
    whole = labels / f"{line}.xml"
    return whole if whole.is_file() else labels / f"{line.split()[0]}.xml"


def _index(folder: Path) -> dict[str, Path]:
    """Image files by name, and by name without suffix."""
    files = images_in(folder)
    return {file.stem: file for file in reversed(files)} | {file.name: file for file in files}


def _read(file: Path, *, known: Mapping[str, Path]) -> LabelledImage:
    """One xml file; corners as they stand there. Raises LabelFault."""
    if not file.is_file():
        raise LabelFault(f"{file}: the xml file is missing")
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise LabelFault(f"{file}: is not a complete xml ({error})") from None
    if root.tag != "annotation":
        raise LabelFault(f"{file}: has no <annotation>")
    named = PureWindowsPath(root.findtext("filename", "").strip()).name  # either slash
    own = named if PureWindowsPath(named).stem == file.stem else file.stem
    image = known.get(own) or known.get(file.stem) or known.get(named)
    if image is None:
        raise LabelFault(f"{file}: its image is missing ('{named or file.stem}')")
    objects = [
        _object(item, f"{file}: object {number}") for number, item in enumerate(root.findall("object"), 1)
    ]
    return LabelledImage(image, size_of(image, _stated(root)), tuple(objects))


def _stated(root: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width that an xml states; None where it does not."""
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    return (int(sides[0]), int(sides[1])) if all(side.isdecimal() for side in sides) else None


def _object(item: ElementTree.Element, where: str) -> LabelledObject:
    label = item.findtext("name", "").strip()
    if not label:
        raise LabelFault(f"{where} has no name")
    texts = [item.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    if None in texts:
        raise LabelFault(f"{where} has no {_CORNERS[texts.index(None)]}")
    left, top, right, bottom = _numbers([str(text) for text in texts], where)
    flags = {"difficult": 1} if item.findtext("difficult", "0").strip() == "1" else {}
    return LabelledObject(label, (left, top, right - left, bottom - top), flags=flags)


def _numbers(texts: Sequence[str], where: str) -> list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise LabelFault(f"{where}: {error}") from None
    if not all(map(math.isfinite, numbers)):
        raise LabelFault(f"{where}: a corner is not a finite number")
    return numbers


def _from_zero(image: LabelledImage, first: int) -> LabelledImage:
    """The image with its corners counted from 0, the last pixel exclusive."""
    objects = [
        one._replace(box=(one.box[0] - first, one.box[1] - first, one.box[2] + first, one.box[3] + first))
        for one in image.objects
    ]
    return image._replace(objects=tuple(objects))

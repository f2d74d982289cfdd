"""What the readers of annotation formats have in common: labelled images into COCO's content.

supervision has readers of these formats too, but they stop at the first broken file and round to float32;
here a broken file is named and skipped, and the rest is read.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from msefpn import reading
from msefpn.data.coco import CocoData, kept_content, scan_coco
from msefpn.data.faults import FaultReport
from msefpn.data.finding import describe_unread, examples, unread_in
from msefpn.data.images import ImageFault, read_header
from msefpn.data.looking import Looking
from msefpn.data.repair import resized
from msefpn.data.values import is_rounding
from msefpn.errors import UserError
from msefpn.reading import reason_of

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""Names of folders and lists that are splits -> the split."""
_DIGITS = 4
"""Decimals of a pixel that are kept: what a text format adds by its rounding is less."""

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class LabelFault(Exception):  # noqa: N818  (a fault in the sense of `faults`)
    """An annotation file that cannot be used; the message says where and why in a few words."""


class LabelledObject(NamedTuple):
    """One object as it is labelled."""

    label: str
    box: tuple[float, float, float, float]
    """x, y, width, height; pixels of the image."""
    polygons: tuple[tuple[float, ...], ...] = ()
    """Its outline: x, y, x, y, ...; none where only the box is known."""
    flags: Mapping[str, Any] = {}
    """Further keys of its annotation."""


class LabelledImage(NamedTuple):
    """One image with its objects."""

    file: Path
    size: tuple[int, int]
    """Height and width as it is decoded, pixels."""
    objects: tuple[LabelledObject, ...]


@dataclass
class ReadLog:
    """What the reader of a data set has to report."""

    skipped: list[str] = field(default_factory=list)
    """Files that are skipped, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """What was read differently from what the files say; a sentence each."""
    told: dict[str, list[str]] = field(default_factory=dict)
    """What happened to several files -> these; `settle` makes notes of it."""
    follow_links: bool = False
    """Whether the files of a data set may lead out of its folder."""
    fix_names: bool = False
    """Whether the reader takes the picture of a similar name where one is missing."""

    def tell(self, what: str, example: str) -> None:
        """Note that something happened to a file; called from threads."""
        self.told.setdefault(what, []).append(example)

    def settle(self) -> None:
        """Turn what was told into notes, with counts and examples."""
        for what, names in sorted(self.told.items()):
            self.notes.append(f"{len(names)} {what} ({examples(sorted(names))})")
        self.told.clear()

    def count(self, number: int, text: str) -> None:
        """Note how often something happened, unless never."""
        if number:
            self.notes.append(f"{number} {text}")

    def lines(self, most: int = 10) -> list[str]:
        """All of it as text: the notes, then at most `most` of the skipped files."""
        lines = [*self.notes, *(f"skipped: {text}" for text in self.skipped[:most])]
        lines += [f"skipped: {len(self.skipped) - most} more"] * (len(self.skipped) > most)
        return lines


@dataclass(frozen=True)
class Split:
    """One split, as COCO's json has it."""

    file: Path
    """Where its labels come from."""
    folder: Path
    """The folder of the images."""
    content: dict[str, Any]
    """COCO's object; each file name is that of a file under `folder`."""

    def scan(self, *, decode: bool = False, masks: bool = False) -> tuple[CocoData | None, FaultReport]:
        """As `scan_coco`."""
        return scan_coco(self.file, self.folder, Looking(decode), masks=masks, content=self.content)[:2]

    def read(self, log: ReadLog) -> CocoData:
        """Images and boxes, fixed where possible; what was dropped is noted. Raises UserError."""
        data, report = self.scan()
        report.raise_if_stopped()
        assert data is not None
        log.notes += report.summary(changes_only=True)
        return data

    def cleaned(self, log: ReadLog) -> Split:
        """Without the images and annotations that `read` drops."""
        return replace(self, content=kept_content(self.content, self.read(log)))


@dataclass(frozen=True)
class LoadedDataset:
    """A data set that was read."""

    path: Path
    format: str
    splits: dict[str, Split]
    """'train', 'val' and 'test', those that there are."""
    log: ReadLog

    def split(self, name: str) -> Split:
        """A split; the test split stands in for a missing 'val'. Raises UserError."""
        found = self.splits.get(name) or (self.splits.get("test") if name == "val" else None)
        if found is None:
            raise UserError(
                f"'{self.path}', read as {self.format}, has no {name} split, only {', '.join(self.splits)}: "
                f"'msefpn split {self.path} --out NEW' makes one"
            )
        return found


def assemble(
    path: Path,
    format: str,
    splits: Mapping[str, Sequence[LabelledImage]],
    classes: Sequence[str] | None,
    log: ReadLog,
) -> LoadedDataset:
    """Put the labelled images of a folder together.

    Args:
        path: where they come from.
        format: name of the format.
        splits: 'train', 'val' or 'test' -> its images.
        classes: names in their order; None: those that occur, by name.
        log: what the reader had to report.

    Raises:
        UserError: nothing is left.
    """
    log.settle()
    splits = {name: _once_each(found, log) for name, found in splits.items()}
    for name, images in splits.items():
        if images and not any(image.objects for image in images):
            log.skipped.append(f"split {name}: no object is labelled in its {len(images)} images")
    splits = {name: found for name, found in splits.items() if any(one.objects for one in found)}
    if not splits:
        why = f": {log.skipped[0]}" if log.skipped else ""
        raise UserError(f"nothing in '{path}' can be used{why}: fix the annotations, or give another folder")
    if classes is None:
        seen = {item.label for images in splits.values() for one in images for item in one.objects}
        classes = sorted(seen)
    contents = {name: _split(path, images, classes) for name, images in splits.items()}
    return LoadedDataset(path, format, contents, log)


def _once_each(labelled: Sequence[LabelledImage], log: ReadLog) -> list[LabelledImage]:
    """The images that are labelled once; the others are named: which labels are meant cannot be decided."""
    count = Counter(os.path.abspath(image.file) for image in labelled)
    for name, times in count.items():
        if times > 1:
            log.skipped.append(f"{name}: has labels in {times} places: leave those that are meant")
    return [image for image in labelled if count[os.path.abspath(image.file)] == 1]


def _split(path: Path, labelled: Sequence[LabelledImage], classes: Sequence[str]) -> Split:
    """COCO's content; ids count from 1."""
    # abspath: no '..' may be left in a name, the images are copied to it
    files = [Path(os.path.abspath(image.file)) for image in labelled]
    folder = Path(os.path.commonpath([file.parent for file in files]))
    id_of = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file, image) in enumerate(zip(files, labelled, strict=True), 1):
        height, width = image.size
        name = file.relative_to(folder).as_posix()
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for item in image.objects:
            box = [round(side, _DIGITS) for side in item.box]
            note: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image_id}
            note |= {"category_id": id_of[item.label], "bbox": box, "iscrowd": 0}
            note["area"] = round(_area(item), _DIGITS)
            if item.polygons:
                note["segmentation"] = [[round(number, _DIGITS) for number in line] for line in item.polygons]
            annotations.append({**note, **item.flags})
    categories = [{"id": number, "name": name} for name, number in id_of.items()]
    return Split(path, folder, {"images": images, "annotations": annotations, "categories": categories})


def _area(item: LabelledObject) -> float:
    """Square pixels: of the outline (the shoelace formula), else of the box."""
    if not item.polygons:
        return item.box[2] * item.box[3]
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # of corners that lie too far out: see below
        for line in item.polygons:
            x, y = np.array(line[::2]), np.array(line[1::2])
            total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total if math.isfinite(total) else item.box[2] * item.box[3]


def bounds(polygons: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """The box (x, y, width, height) around polygons of x, y, x, y, ..."""
    numbers = [number for line in polygons for number in line]
    left, top = min(numbers[::2]), min(numbers[1::2])
    return left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top


def fitted(
    file: Path, stated: tuple[int, int] | None, objects: Sequence[LabelledObject], where: Path, log: ReadLog
) -> LabelledImage:
    """An image with its objects, these rescaled where it was resized by one factor after labelling.

    Args:
        file: the image.
        stated: height and width in the annotation file, which its coordinates refer to; None: not stated.
        objects: as they stand there.
        where: the annotation file.
        log: told of a rescaling.

    Raises:
        LabelFault: the image cannot be read, or the sizes differ by no one factor.
    """
    size, found = size_of(file, stated), tuple(objects)
    what = "keep" if stated is None else resized(stated, size, [list(item.box) for item in objects])
    if stated is not None and what != "keep":
        sizes = f"{stated[1]} x {stated[0]} stated, {size[1]} x {size[0]} real"
        if what == "drop":
            raise LabelFault(
                f"{where}: {sizes}, and no factor between them: correct the size, or restore {file.name}"
            )
        found = tuple(scaled(item, size[1] / stated[1], size[0] / stated[0]) for item in objects)
        log.tell("pictures were resized after labelling: boxes are rescaled", f"{where}: {sizes}")
    elif stated is not None and not is_rounding(stated, size):
        log.tell(
            "label files state another size, but hold boxes that fit the picture alone: kept as they are",
            str(where),
        )
    return LabelledImage(file, size, found)


def scaled(item: LabelledObject, x: float, y: float) -> LabelledObject:
    """An object with its coordinates multiplied by x and y."""
    left, top, width, height = item.box
    lines = tuple(
        tuple(number * (y if place % 2 else x) for place, number in enumerate(line)) for line in item.polygons
    )
    return item._replace(box=(left * x, top * y, width * x, height * y), polygons=lines)


def read_all(read: Callable[[_Item], _Found], items: Iterable[_Item], log: ReadLog) -> list[_Found]:
    """Read items in threads, in order; one that cannot be read is named in the log and skipped."""

    def attempt(item: _Item) -> _Found | LabelFault:
        try:
            return read(item)
        except LabelFault as fault:
            return fault

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(attempt, items))
    log.skipped += [str(one) for one in found if isinstance(one, LabelFault)]
    return [one for one in found if not isinstance(one, LabelFault)]


def size_of(file: Path, stated: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of an image as it is decoded, see `read_header`. Raises LabelFault."""
    try:
        return read_header(file, stated).size
    except FileNotFoundError:
        raise LabelFault(f"{file}: the image is missing") from None
    except (OSError, ImageFault) as error:
        raise LabelFault(f"{file}: {' '.join(str(error).split())}") from None


def label_text(file: Path) -> str:
    """The text of a label file. Raises LabelFault."""
    try:
        return reading.read_text(file)
    except ValueError as error:
        raise LabelFault(f"{file}: {error}") from None
    except OSError as error:
        raise LabelFault(f"{file}: {reason_of(error)}") from None


def label_json(file: Path) -> Any:
    """What a json file says. Raises LabelFault."""
    try:
        return reading.parse_json(reading.read_bytes(file, reading.MAX_JSON))
    except ValueError as error:
        raise LabelFault(f"{file}: {error}") from None
    except OSError as error:
        raise LabelFault(f"{file}: {reason_of(error)}") from None


def tell_left_out(folder: Path, log: ReadLog) -> None:
    """Note the pictures of a folder and those below it that are not read for their suffix."""
    log.notes += [text] if (text := describe_unread(unread_in(folder, deep=True))) else []


def is_within(file: Path, root: Path) -> bool:
    """Whether a path, `..` resolved but not links, lies in a folder."""
    return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(root))


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, for subfolders named like a split; else the folder itself is `train`."""
    found: dict[str, Path] = {}
    for name, split in SPLIT_NAMES.items():
        if (root / name).is_dir():
            found.setdefault(split, root / name)
    return found or {"train": root}

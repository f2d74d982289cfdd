"""YOLO: a text file for each image, one object a line, and a yaml file that names classes and splits.

A line is a class id and centre, width and height, or the corners of a polygon, as shares of the sides. CVAT's
YOLO 1.1 has `obj.data`, which names the files of classes and images, in place of the yaml file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from msefpn.data.coco import CocoData
from msefpn.data.finding import IMAGE_SUFFIXES, examples, files_in, images_in
from msefpn.data.formats.base import (
    SPLIT_NAMES,
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    bounds,
    is_within,
    label_text,
    read_all,
    size_of,
    split_folders,
    tell_left_out,
)
from msefpn.data.formats.pairs import labels_in
from msefpn.errors import UserError
from msefpn.reading import read_yaml

_ABOUT = "data.yaml"
_YAML = (".yaml", ".yml")
_DARKNET = "obj.data"
_LISTED = ("classes.txt", "obj.names", "labels/classes.txt")
"""The names of the classes, a line each, where there is no yaml file."""
_OVER = 0.01
"""A coordinate may be so far outside of 0 to 1: files round, boxes stick out."""


def is_yolo(path: Path) -> bool:
    """Whether a folder holds annotations in this format, or a file is its yaml."""
    return _about(path) is not None or (path.is_dir() and _class_list(path) is not None)


def read_yolo(path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read a folder, or its yaml. An image without a text file has no objects, as in YOLO's trainers.

    Args:
        path: the folder or the yaml file.
        images: must be None: the yaml file and the folders' names say where images are.
        log: takes what has to be reported.

    Raises:
        UserError: the yaml file is wrong, or nothing can be used.
    """
    if images is not None:
        raise UserError("--images cannot be used with YOLO: its labels are found by the paths of the images")
    file = _about(path)
    root = path if path.is_dir() else path.parent
    about = {} if file is None else _load(file)
    classes = _class_names(about, file) if file is not None else _class_lines(root)
    found = _named(about, file, log) if file is not None else {}
    found = found or _conventional(root)
    posed = "kpt_shape" in about
    splits: dict[str, list[LabelledImage]] = {}
    bare: list[Path] = []
    paired = _paired(found, root, log)
    for split, images_of in paired.items():
        splits[split] = read_all(partial(_read, classes=classes, posed=posed), images_of, log)
        bare += [one.file for one in splits[split] if not _label_file(one.file).is_file()]
    total = sum(map(len, splits.values()))
    if bare and len(bare) == total:
        raise UserError(
            f"none of the {total} images in '{root}' has a label file: '{_label_file(bare[0])}' and the like "
            "are missing: put them there"
        )
    if bare:
        log.count(len(bare), f"images have no label file and count as empty, {bare[0]} among them")
    return assemble(path, "yolo", splits, classes, log)


class YoloFormat:
    """YOLO: a text file for each image, and a yaml file."""

    holds = staticmethod(is_yolo)
    read = staticmethod(read_yolo)


def _about(path: Path) -> Path | None:
    """The yaml file that names the classes: data.yaml, else the only other."""
    if path.is_file():
        return path if path.suffix.lower() in _YAML or path.name == _DARKNET else None
    files = labels_in(path, *_YAML, deep=False)
    named = [file for file in files if _names_classes(file)]
    first = next((file for file in named if file.name == _ABOUT), None)
    if first is not None or len(named) > 1:
        return first
    return next((file for file in (*named, path / _DARKNET) if file.is_file()), None)


def _names_classes(file: Path) -> bool:
    try:
        return "names" in _load(file)
    except UserError:
        return file.name == _ABOUT  # reading it will say what is wrong


def _load(file: Path) -> dict[str, Any]:
    """The yaml file, all values as texts: a class may be called `no` or `1`; or what obj.data says."""
    if file.name == _DARKNET:
        return _darknet(file)
    content = read_yaml(file, "fix it", texts=True)
    if not isinstance(content, dict):
        raise UserError(f"'{file}' has no keys: write names: and train: into it")
    return content


def _darknet(file: Path) -> dict[str, Any]:
    """CVAT's obj.data as the yaml file would say it; its paths may begin with `data/`, for this folder."""
    rows = (line.split("=", 1) for line in label_text(file).splitlines() if "=" in line)
    said = {key.strip(): value.strip() for key, value in rows}
    root = file.parent
    places = [
        root / name
        for name in (said.get("names", ""), said.get("names", "").removeprefix("data/"), "obj.names")
    ]
    names = next((place for place in places if os.path.isfile(place)), None)
    if names is None:
        raise UserError(f"'{file}' names '{said.get('names', '')}', which does not exist: restore obj.names")
    lines = [line.strip() for line in label_text(names).splitlines()]
    lists = {key: value for key, value in said.items() if key in SPLIT_NAMES}
    return {"names": [line for line in lines if line], **lists}


def _paired(found: dict[str, list[Path]], root: Path, log: ReadLog) -> dict[str, list[Path]]:
    """Split -> images that have a label file of their own; those that share one are skipped and named.

    Label files without an image are named and counted too, and pictures that are not read.
    """
    owners: dict[Path, set[Path]] = {}
    for image in (image for images in found.values() for image in images):
        owners.setdefault(_label_file(image), set()).add(image)
    shared = {file: sorted(images) for file, images in owners.items() if len(images) > 1 and file.is_file()}
    for file, images in sorted(shared.items()):
        names = examples(map(str, images))
        log.skipped.append(f"{file}: serves {len(images)} pictures, {names}: leave one of them")
    places = {file.parent for file in owners}
    whole = root / "labels"
    texts = {file for place in places if place.is_dir() for file in files_in(place)}
    texts |= set(files_in(whole, deep=True)) if whole.is_dir() else set()
    known = {os.path.abspath(file) for file in owners}
    rest = [file for file in sorted(texts) if os.path.abspath(file) not in known]
    lost = [file for file in rest if _is_label(file) and not _has_picture(file)]
    if lost:
        log.count(len(lost), f"label files have no picture and are skipped ({examples(map(str, lost))})")
    stems = {file.with_suffix("") for file in owners}
    other = [file for file in rest if file.with_suffix("") in stems and _is_label(file)]
    if other:
        what = "label files end otherwise than the one that is read, .txt or .TXT, and are skipped"
        log.count(len(other), f"{what} ({examples(map(str, other))})")
    for folder in sorted({image.parent for images in found.values() for image in images}):
        tell_left_out(folder, log)
    return {
        split: [image for image in images if _label_file(image) not in shared]
        for split, images in found.items()
    }


def _is_label(file: Path) -> bool:
    """Whether a text file has lines as label files have; an empty one has, in a folder of labels."""
    if file.suffix.lower() != ".txt" or file.name == _LISTED[0]:
        return False
    try:
        words = next((line.split() for line in label_text(file).splitlines() if line.strip()), [])
        return len([float(word) for word in words]) >= 5 if words else "labels" in file.parts
    except ValueError:
        return False
    except LabelFault:
        return "labels" in file.parts


def _has_picture(file: Path) -> bool:
    """Whether there is an image that a label file belongs to, which may be in no split."""
    image = _beside(file, "labels", "images")
    return any(
        image.with_name(image.stem + end).is_file()
        for suffix in IMAGE_SUFFIXES
        for end in (suffix, suffix.upper())
    )


def _class_names(about: dict[str, Any], file: Path) -> list[str]:
    names = about.get("names")
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise UserError(
                f"'{file}': names must number the classes from 0 without a gap, not {sorted(names)}"
            )
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"'{file}': names must be a list of class names, or numbers with class names")
    if str(about.get("nc", len(names))) != str(len(names)):
        raise UserError(f"'{file}': nc is {about['nc']}, but there are {len(names)} names: fix one of them")
    return _once(names, file)


def _class_list(root: Path) -> Path | None:
    return next((file for name in _LISTED if (file := root / name).is_file()), None)


def _class_lines(root: Path) -> list[str]:
    file = _class_list(root)
    if file is None:
        raise UserError(f"'{root}' has no {_ABOUT} with the classes' names: write names: and train: into one")
    try:
        lines = [line.strip() for line in label_text(file).splitlines()]
    except LabelFault as fault:
        raise UserError(f"{fault}: write the names of the classes into it, a line each") from None
    return _once([line for line in lines if line], file)


def _once(names: list[str], file: Path) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        raise UserError(f"'{file}': " + (f"class '{twice}' is named twice" if names else "names no classes"))
    return names


def _named(about: dict[str, Any], file: Path, log: ReadLog) -> dict[str, list[Path]]:
    """Split -> images, for the splits that the yaml file names."""
    found = {}
    for key, split in SPLIT_NAMES.items():
        given = about.get(key) or []
        images: list[Path] = []
        for item in given if isinstance(given, list) else [given]:
            if not isinstance(item, str):
                raise UserError(f"'{file}': {key} must be a folder, a list file, or several of these")
            place = _resolve(item, about, file)
            if place is not None and not log.follow_links and not is_within(place, file.parent):
                raise UserError(
                    f"'{file}': {key} names '{place}', which is outside of '{file.parent}': put the yaml "
                    "file into the folder of the data, or, where you trust it, add --follow-links"
                )
            if place is not None:
                images += _images_at(place, (file.parent, file.parent / str(about.get("path") or ".")))
            elif key != "train":
                log.notes.append(f"{key}: '{item}' of {file.name} does not exist: skipped")
            else:
                raise UserError(f"'{file}': {key} names '{item}', which does not exist: fix the path")
        if images:
            found[split] = list(dict.fromkeys(images))
    return found


def _resolve(item: str, about: dict[str, Any], file: Path) -> Path | None:
    """Where a path of the yaml file leads: as it says, or beside it, where the data set was moved."""
    root = file.parent
    base = root / str(about.get("path") or ".")
    # '../train/images' is what some exporters write for 'train/images'
    places = [base / item, root / item, root / item.removeprefix("../"), root / item.removeprefix("data/")]
    return next((place for place in places if os.path.exists(place)), None)


def _images_at(place: Path, roots: tuple[Path, Path]) -> list[Path]:
    """The images of a folder, or those that a list file names; `roots`: of the data, by place and by yaml."""
    if place.is_dir():
        return images_in(place, deep=True)
    try:
        lines = [line.strip() for line in label_text(place).splitlines()]
    except LabelFault as fault:
        raise UserError(f"{fault}: name a folder, or a file with a path in each line") from None
    found = []
    for line in filter(None, lines):
        # CVAT's lists count from the folder above: data/obj_train_data/1.jpg
        ways = [place.parent / line, *(root / line for root in roots), roots[0] / line.removeprefix("data/")]
        image = next((way for way in ways if os.path.isfile(way)), ways[0])
        if not any(is_within(image, root) for root in (place.parent, *roots)):
            raise UserError(
                f"'{place}' names {line}, which leads out of '{roots[0]}': name the folder of the images as "
                "path: in the yaml file"
            )
        found.append(Path(os.path.abspath(image)) if ".." in image.parts else image)
    return list(dict.fromkeys(found))


def _conventional(root: Path) -> dict[str, list[Path]]:
    """Split -> images in images/train or train/images, in images, or in the folder itself."""
    home = root / "images" if (root / "images").is_dir() else root
    found = {split: images_in(folder, deep=True) for split, folder in split_folders(home).items()}
    if not any(found.values()):
        raise UserError(f"no image in '{home}' and its folders: name them in {_ABOUT} under train: and val:")
    return found


def _label_file(image: Path) -> Path:
    """Of the same name with .txt or .TXT, in `labels` where the image is in `images`."""
    file = _beside(image, "images", "labels").with_suffix(".txt")
    upper = file.with_suffix(".TXT")
    return upper if not file.is_file() and upper.is_file() else file


def _beside(file: Path, folder: str, other: str) -> Path:
    """The path with the last folder of that name replaced by the other."""
    parts = list(file.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == folder:
            parts[place] = other
            break
    return Path(*parts)


def _read(image: Path, *, classes: Sequence[str], posed: bool) -> LabelledImage:
    """One image and its text file. Raises LabelFault."""
    height, width = size_of(image)
    file = _label_file(image)
    lines = label_text(file).splitlines() if file.is_file() else []
    objects = [
        _object(line.split(), (width, height), classes, posed, f"{file}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return LabelledImage(image, (height, width), tuple(objects))


def _object(
    words: Sequence[str], size: tuple[int, int], classes: Sequence[str], posed: bool, where: str
) -> LabelledObject:
    """One line; `size`: width and height; `posed`: key points follow the box. Raises LabelFault."""
    try:
        number, *shares = map(float, words)
    except ValueError as error:
        raise LabelFault(f"{where}: {error}") from None
    if not number.is_integer() or not 0 <= number < len(classes):
        raise LabelFault(f"{where}: class {words[0]}, but there are {len(classes)} classes, from 0")
    shares = shares[:4] if posed else shares
    if not all(-_OVER <= share <= 1 + _OVER for share in shares):
        raise LabelFault(
            f"{where}: a number is not within 0 to 1: coordinates are shares of the image's sides"
        )
    label = classes[int(number)]
    if len(shares) == 4:
        x, y = shares[0] * size[0], shares[1] * size[1]
        extent = shares[2] * size[0], shares[3] * size[1]
        return LabelledObject(label, (x - extent[0] / 2, y - extent[1] / 2, *extent))
    if len(shares) < 6 or len(shares) % 2:
        raise LabelFault(f"{where}: {len(words)} numbers: a box has 5, a polygon 7, 9, 11, ...")
    outline = tuple(share * size[place % 2] for place, share in enumerate(shares))
    return LabelledObject(label, bounds([outline]), (outline,))


def label_lines(data: CocoData, index: int, order: Sequence[int]) -> str:
    """The text file of an image: its boxes, crowd regions aside; `order`: number to write for each label."""
    height, width = data.sizes[index].tolist()
    boxes, labels, crowd = data.boxes_of(index)
    lines = []
    for (left, top, right, bottom), label, region in zip(boxes.tolist(), labels, crowd, strict=True):
        if not region:
            middle = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            shares = (*middle, (right - left) / width, (bottom - top) / height)
            lines.append(" ".join([str(order[label]), *(f"{share:.10g}" for share in shares)]))
    return "".join(f"{line}\n" for line in lines)


def about_text(classes: Iterable[str], splits: Iterable[str]) -> str:
    """The yaml file; without `path`, its paths are relative to itself."""
    content: dict[str, Any] = {split: f"images/{split}" for split in splits}
    content["names"] = dict(enumerate(classes))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

"""A data set that was read, written as a folder of COCO json or YOLO text files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msefpn.data.coco import CocoData
from msefpn.data.folders import unfinished_folder
from msefpn.data.formats import ReadLog, Split, detect_format, open_source
from msefpn.data.formats.coco import coco_split
from msefpn.data.formats.yolo import about_text, label_lines
from msefpn.errors import UserError
from msefpn.reading import real_path

_ABOUT = "data.yaml"


def write_coco(splits: Mapping[str, Split], out: Path, *, link: bool) -> None:
    """Write SPLIT.json and SPLIT/ for each split: what `--data` takes. Images are copied, or linked to."""
    for name, split in splits.items():
        (out / name).mkdir()
        for item in split.content["images"]:
            _place(split.folder / item["file_name"], out / name / item["file_name"], link)
        (out / f"{name}.json").write_text(_json(split), encoding="utf-8")


def write_yolo(splits: Mapping[str, Split], out: Path, log: ReadLog, *, link: bool) -> None:
    """Write data.yaml, images/SPLIT and labels/SPLIT; one text file for each image, also for an empty one.

    What YOLO's files cannot hold is left out and noted. Raises UserError where the splits' classes differ.
    """
    read = {name: split.read(log) for name, split in splits.items()}
    first, *others = read
    classes = read[first].classes
    for name in others:
        if set(read[name].classes) != set(classes):
            raise UserError(
                f"the splits have different classes: {first} {classes}, {name} {read[name].classes}: "
                "give all of them the same"
            )
    for name, data in read.items():
        order = [classes.index(one) for one in data.classes]
        log.count(int(data.crowd.sum()), f"crowd regions of {name} are left out: YOLO has none")
        for index, file_name in _file_names(data):
            image, text = out / "images" / name / file_name, out / "labels" / name / file_name
            _place(data.path_of(index), image, link)
            text.parent.mkdir(parents=True, exist_ok=True)
            text.with_suffix(".txt").write_text(label_lines(data, index, order), encoding="utf-8")
    if any(note.get("segmentation") for split in splits.values() for note in split.content["annotations"]):
        log.notes.append("outlines of objects are left out: the lines hold their boxes")
    (out / _ABOUT).write_text(about_text(classes, read), encoding="utf-8")


def bytes_of(splits: Mapping[str, Split]) -> int:
    """Size of all image files."""
    return sum(
        (split.folder / item["file_name"]).stat().st_size
        for split in splits.values()
        for item in split.content["images"]
    )


def as_coco(
    data: Path, cache: Path, needed: Sequence[str], *, fix_names: bool = False, follow_links: bool = False
) -> tuple[Path, ReadLog]:
    """The folder in COCO's layout of a data set: itself, or one made from another format.

    The jsons go into a folder of `cache` that is named after their content, beside links to the folders of
    the images: the same labels give the same folder, changed ones another.

    Args:
        data: folder of a data set, or its yaml or json file.
        cache: folder for what is made; created if needed.
        needed: the splits, 'train' or 'val', that must be there.
        fix_names: take the picture of a similar name where one is missing; COCO's jsons are made anew too.
        follow_links: see `open_source`.

    Returns:
        The folder, and what the user has to know; nothing is printed.

    Raises:
        UserError: nothing can be used, a split is missing, or the cache cannot be written.
    """
    if not data.exists() or (format := detect_format(data)) is None:
        return data, ReadLog()
    if format == "coco" and not fix_names:
        return data, ReadLog()
    source = open_source(data, format, fix_names=fix_names, follow_links=follow_links)
    for name in needed:
        source.split(name)
    folder = _cached(source.splits, real_path(data if data.is_dir() else data.parent).name, cache)
    source.log.notes.append(f"'{data}' is read as {format}; its COCO json: {folder}")
    return folder, source.log


def with_fixed_names(file: Path, folder: Path, cache: Path) -> tuple[tuple[Path, Path], ReadLog]:
    """A json and its image folder, made anew in `cache` with the names of the pictures that are there.

    Raises UserError as `as_coco`.
    """
    log = ReadLog(fix_names=True)
    made = _cached({file.stem: coco_split(file, folder, log)}, file.stem, cache)
    log.notes.append(f"'{file}' with the names of the pictures: {made / file.name}")
    return (made / file.name, made / file.stem), log


def _cached(splits: Mapping[str, Split], name: str, cache: Path) -> Path:
    """The folder of `cache` for these splits, written where it is not there. Raises UserError."""
    texts = {split: _json(part) for split, part in splits.items()}
    content = [(texts[split], str(part.folder)) for split, part in splits.items()]
    mark = hashlib.sha256(repr(content).encode()).hexdigest()[:8]
    folder = cache / f"{name}-{mark}"
    if not folder.is_dir():
        try:
            _write_links(splits, texts, folder)
        except OSError as error:
            raise UserError(
                f"'{folder}', for the COCO json of '{name}', cannot be written: {error.strerror or error}: "
                "give another --out"
            ) from None
    return folder


def _write_links(splits: Mapping[str, Split], texts: Mapping[str, str], folder: Path) -> None:
    """Write the jsons beside links to the images: all of it or nothing."""
    with unfinished_folder(folder) as work:
        for name, split in splits.items():
            (work / f"{name}.json").write_text(texts[name], encoding="utf-8")
            (work / name).symlink_to(real_path(split.folder), target_is_directory=True)
        work.replace(folder)


def _json(split: Split) -> str:
    return json.dumps(split.content, ensure_ascii=False)


def _place(file: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(os.path.abspath(file))
    else:
        shutil.copyfile(file, target)


def _file_names(data: CocoData) -> Iterator[tuple[int, Path]]:
    """Index and file name of each image; numbered where two would share a text file."""
    taken: set[Path] = set()
    for index, name in enumerate(map(Path, data.names)):
        unique, number = name, 2
        while unique.with_suffix("") in taken:
            unique, number = name.with_stem(f"{name.stem}-{number}"), number + 1
        taken.add(unique.with_suffix(""))
        yield index, unique

"""A data set that was read, written as a folder of COCO json or YOLO text files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msefpn.data.coco import CocoData
from msefpn.data.formats import Log, Part, detect_format, open_source
from msefpn.data.formats.yolo import about_text, label_lines
from msefpn.errors import UserError

_ABOUT = "data.yaml"


def write_coco(parts: Mapping[str, Part], out: Path, *, link: bool) -> None:
    """Write SPLIT.json and SPLIT/ for each split: what `--data` takes. Images are copied, or linked to."""
    for split, part in parts.items():
        (out / split).mkdir()
        for item in part.content["images"]:
            _place(part.folder / item["file_name"], out / split / item["file_name"], link)
        (out / f"{split}.json").write_text(_json(part), encoding="utf-8")


def write_yolo(parts: Mapping[str, Part], out: Path, log: Log, *, link: bool) -> None:
    """Write data.yaml, images/SPLIT and labels/SPLIT; one text file for each image, also for an empty one.

    What YOLO's boxes have no place for is left out and noted. Raises UserError for classes that differ.
    """
    read = {split: part.read(log) for split, part in parts.items()}
    classes = next(iter(read.values())).classes
    for split, data in read.items():
        if data.classes != classes:
            raise UserError(
                f"the splits have other classes: {next(iter(read))} {classes}, {split} {data.classes}"
            )
        log.count(int(data.crowd.sum()), f"crowd regions of {split} are left out: YOLO has none")
        for index, name in _names(data):
            image, text = out / "images" / split / name, out / "labels" / split / name
            _place(data.path_of(index), image, link)
            text.parent.mkdir(parents=True, exist_ok=True)
            text.with_suffix(".txt").write_text(label_lines(data, index), encoding="utf-8")
    if any(note.get("segmentation") for part in parts.values() for note in part.content["annotations"]):
        log.notes.append("outlines of objects are left out: the lines hold their boxes")
    (out / _ABOUT).write_text(about_text(classes, read), encoding="utf-8")


def bytes_of(parts: Mapping[str, Part]) -> int:
    """Size of all image files."""
    return sum(
        (part.folder / item["file_name"]).stat().st_size
        for part in parts.values()
        for item in part.content["images"]
    )


def as_coco(data: Path, cache: Path, needed: Sequence[str]) -> tuple[Path, Log]:
    """The folder in COCO's layout of a data set: itself, or one made of what another format has.

    The jsons go into a folder of `cache` that is named after their content, beside links to the folders of
    the images: the same labels give the same folder, changed ones another.

    Args:
        data: folder of a data set, or its yaml or json file.
        cache: folder for what is made; made itself where it is needed.
        needed: the splits, 'train' or 'val', that must be there.

    Raises:
        UserError: nothing can be used, a split is missing, or the cache cannot be written.
    """
    if not data.exists() or (format := detect_format(data)) in (None, "coco"):
        return data, Log()
    source = open_source(data, format)
    for split in needed:
        source.part(split)
    texts = {split: _json(part) for split, part in source.parts.items()}
    mark = hashlib.sha256(
        repr([(texts[split], str(part.folder)) for split, part in source.parts.items()]).encode()
    )
    name = (data if data.is_dir() else data.parent).resolve().name
    folder = cache / f"{name}-{mark.hexdigest()[:8]}"
    if not folder.is_dir():
        try:
            _write_links(source.parts, texts, folder)
        except OSError as error:
            raise UserError(
                f"'{folder}', for the COCO json of '{data}', cannot be written: {error.strerror or error}: "
                "name another out folder"
            ) from None
    source.log.notes.append(f"'{data}' is read as {format}; its COCO json: {folder}")
    return folder, source.log


def _write_links(parts: Mapping[str, Part], texts: Mapping[str, str], folder: Path) -> None:
    """Write the jsons beside links to the images: all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        work.chmod(0o755)
        for split, part in parts.items():
            (work / f"{split}.json").write_text(texts[split], encoding="utf-8")
            (work / split).symlink_to(part.folder.resolve(), target_is_directory=True)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _json(part: Part) -> str:
    return json.dumps(part.content, ensure_ascii=False)


def _place(file: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(os.path.abspath(file))
    else:
        shutil.copyfile(file, target)


def _names(data: CocoData) -> Iterator[tuple[int, Path]]:
    """Index and file name of each image; numbered where two would share a text file."""
    taken: set[Path] = set()
    for index, name in enumerate(map(Path, data.names)):
        unique, number = name, 2
        while unique.with_suffix("") in taken:
            unique, number = name.with_stem(f"{name.stem}-{number}"), number + 1
        taken.add(unique.with_suffix(""))
        yield index, unique

"""COCO json, read like the other formats; what it says is made plain as for training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from msefpn.data.coco import kept_content, scan_coco
from msefpn.data.faults import FaultReport
from msefpn.data.finding import unlisted
from msefpn.data.formats.base import SPLIT_NAMES, LabelFault, LoadedDataset, ReadLog, Split, label_json
from msefpn.data.formats.pairs import labels_in
from msefpn.data.locate import find_split
from msefpn.data.looking import Looking
from msefpn.errors import UserError

_SKIPPED = ("unreadable image", "size of another picture")
_HEAD = 20
"""Images by which the folder of a json's images is found."""


def is_coco(path: Path) -> bool:
    """Whether a folder has a split in COCO's format, or a file is one."""
    return bool(coco_places(path, None)) if path.is_dir() else _content(path) is not None


def read_coco_source(path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read the splits of a folder, or one json; images that are missing or broken are skipped and named.

    Args:
        path: the folder or the json.
        images: folder of the images of a json; None: the folder named like the json, else the json's own.
        log: takes what has to be reported.

    Raises:
        UserError: a fault that only the user can fix.
    """
    places = coco_places(path, images)
    splits = {name: coco_split(file, folder, log) for name, (file, folder) in places.items()}
    parts = splits.values()
    files = [part.folder / item["file_name"] for part in parts for item in part.content["images"]]
    log.notes += unlisted([*files, *(Path(text.partition(": ")[0]) for text in log.skipped)])
    return LoadedDataset(path, "coco", splits, log)


class CocoFormat:
    """COCO: a json for each split."""

    holds = staticmethod(is_coco)
    read = staticmethod(read_coco_source)


def coco_places(path: Path, images: Path | None) -> dict[str, tuple[Path, Path]]:
    """Split -> its json and its images.

    A folder without splits may have one json of any name, beside its images or in `annotations`: as Label
    Studio (result.json), CVAT and Datumaro (instances_default.json) and others write it.
    """
    if path.is_file():
        content = _content(path)
        return {} if content is None else {split_of(path): (path, images or _folder_of(path, content))}
    found = {}
    for split in ("train", "val", "test"):
        try:
            found[split] = find_split(path, split)
        except UserError:
            continue
    if "test" in found and found["test"] == found.get("val"):
        found.pop("val")  # find_split takes a test split where there is no other
    if found:
        return {name: (file, images or folder) for name, (file, folder) in found.items()}
    jsons = [
        file for folder in (path, path / "annotations") for file in labels_in(folder, ".json", deep=False)
    ]
    held = [(file, content) for file in jsons if (content := _content(file)) is not None]
    if len(held) != 1:
        return {}
    file, content = held[0]
    return {split_of(file): (file, images or _folder_of(file, content))}


def split_of(file: Path) -> str:
    """The split that a json is by its name; `train` where that says nothing."""
    return SPLIT_NAMES.get(file.stem.removeprefix("instances_"), "train")


def _content(file: Path) -> dict[str, Any] | None:
    """What a file holds, if it is COCO's."""
    try:
        content = label_json(file)
    except LabelFault:
        return None
    return content if isinstance(content, dict) and "annotations" in content else None


def _folder_of(file: Path, content: dict[str, Any]) -> Path:
    """The folder of a json's images: of those that tools use, the one in which most of the first ones are."""
    listed = content.get("images")
    heads = listed[:_HEAD] if isinstance(listed, list) else []
    named = [item.get("file_name") for item in heads if isinstance(item, dict)]
    names = [name for name in named if isinstance(name, str)]
    home, split = file.parent, file.stem.removeprefix("instances_")
    tops = [home, home.parent] if home.name == "annotations" else [home]
    below = [*dict.fromkeys((file.stem, split)), *(f"images/{split}", "images", ".")]
    places = [place for top in tops for name in below if (place := top / name).is_dir()]
    return max(places, key=lambda place: sum(_is_there(place, name) for name in names))


def _is_there(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False


def coco_split(file: Path, folder: Path, log: ReadLog) -> Split:
    """One json as it was made plain; images that are missing or broken are skipped. Raises UserError."""
    data, report, content, *_ = scan_coco(file, folder, Looking(skip=True), fix_names=log.fix_names)
    stops = [fault for fault in report.stops if fault.kind != "no boxes"]
    if stops or content is None:
        report.raise_if_stopped()
    assert content is not None
    lost = {item["id"] for item in content["images"]} - set(() if data is None else data.ids.tolist())
    of_lost = sum(note.get("image_id") in lost for note in content["annotations"])
    skipped = [fault for fault in report.faults if fault.kind in _SKIPPED]
    log.skipped += [f"{folder / fault.file}: {fault.text}" for fault in skipped]
    if data is None:
        raise UserError(_nothing_left(file, content, report, log))
    log.count(of_lost, f"annotations in {file} are of images that are skipped: skipped too")
    told = FaultReport(file)
    told.faults = [fault for fault in report.faults if fault.kind not in _SKIPPED]
    log.notes += [f"{file.name}: {text}" for text in told.summary(changes_only=True)]
    log.notes += [f"{file.name}: {fault.file}" for fault in report.of("corrected name")[:3]]
    return _rebased(Split(file, folder, kept_content(content, data)))


def _nothing_left(file: Path, content: dict[str, Any], report: FaultReport, log: ReadLog) -> str:
    count = len(content["images"])
    if count and len(log.skipped) >= count:
        return (
            f"none of the {count} images of '{file}' can be used, such as {log.skipped[0]}: give their folder"
        )
    return f"{file}: {report.stops[0].text}: annotate at least one object"


def _rebased(split: Split) -> Split:
    """The split with a folder that all of its images are in."""
    names = [item["file_name"] for item in split.content["images"]]
    if not any(name.startswith("../") for name in names):
        return split
    files = [os.path.abspath(split.folder / name) for name in names]
    folder = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
    images = [
        item | {"file_name": Path(file).relative_to(folder).as_posix()}
        for item, file in zip(split.content["images"], files, strict=True)
    ]
    return Split(split.file, folder, split.content | {"images": images})

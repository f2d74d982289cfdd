"""What a COCO json says in a way that cannot be taken as it stands: made plain, or named.

All of it is done to the json's content, so that what is read, converted and divided is the same.
"""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.faults import FaultReport
from msefpn.data.finding import SimilarNames
from msefpn.data.masks import box_of_mask, resized_mask
from msefpn.data.values import common_factor, flag_of, is_box, is_number, is_rounding
from msefpn.reading import real_path, shown

_FEW_CORNERS = 16
"""Numbers of a polygon up to which it is looked at whether it has an area."""

_Size = tuple[int, int]
"""Height and width, pixels."""


class PictureNames:
    """The file names of a json, as paths from the image folder.

    Args:
        file: the json.
        folder: of the images.
        fix: take a picture of a similar name where one is missing.
    """

    def __init__(self, file: Path, folder: Path, *, fix: bool) -> None:
        self.folder, self.fix = folder, fix
        above = Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(file.parent))
        self.root = file.parent if above else folder
        self.fixed: list[str] = []
        """Names that were corrected."""

    def inside(self, name: str) -> str | None:
        """A name as a path from the image folder; None: it leads out of it, and out of the json's folder."""
        path = posixpath.normpath(name)
        if not os.path.isabs(name) and not path.startswith("../"):
            return None if PureWindowsPath(name).drive and not os.path.exists(self.folder / name) else path
        for base, root, target in (
            (self.folder.absolute(), self.root.absolute(), os.path.abspath(self.folder / path)),
            (real_path(self.folder), real_path(self.root), real_path(self.folder / path)),
        ):
            if Path(target).is_relative_to(os.path.abspath(root)):
                return Path(os.path.relpath(target, os.path.abspath(base))).as_posix()
        return None

    @functools.cached_property
    def _pictures(self) -> SimilarNames:
        return SimilarNames(self.root)

    def similar(self, name: str) -> list[str]:
        """Pictures that a name may mean, of the image folder, else of the json's; paths from the former."""
        found = [
            Path(os.path.relpath(file.absolute(), self.folder.absolute())).as_posix()
            for file in self._pictures.find(name)
        ]
        own = [path for path in found if not path.startswith("../")]
        return own or found


def sound_images(
    raw: list[Any], names: PictureNames, report: FaultReport
) -> tuple[list[Any], dict[Any, Any]]:
    """The entries of `images` with names from the image folder, each file once.

    Returns:
        The entries, and id -> id of the entry that it was merged into.
    """
    entries: list[Any] = []
    first: dict[str, Any] = {}
    merged: dict[Any, Any] = {}
    for item in raw:
        if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
            entries.append(item)  # it is reported when it is read
            continue
        name, where = item["file_name"], f"image {shown(item.get('id'))}"
        path = names.inside(name)
        if path is None or not os.path.isfile(names.folder / path):
            found = names.similar(name) if path is None or names.fix else []
            if names.fix and len(found) == 1:
                names.fixed.append(f"{name} -> {found[0]}")
                path = found[0]
            elif path is None:
                report.add("outside image", name, where, f"leads out of '{names.root}'{hint(found)}")
                path = name
        if path in first and isinstance(item.get("id"), int) and item["id"] != first[path]["id"]:
            merged[item["id"]] = first[path]["id"]
            sizes = [[one.get(side) for side in ("width", "height")] for one in (first[path], item)]
            if sizes[0] != sizes[1]:
                text = f"is {sizes[1]} here and {sizes[0]} as image {first[path]['id']}"
                report.add("image of two sizes", path, where, text)
            report.add("image listed again", path, where, f"is also image {first[path]['id']}")
            continue
        if "id" in item:
            first.setdefault(path, item)
        entries.append(item if path == name else item | {"file_name": path})
    return entries, merged


def hint(found: Sequence[str]) -> str:
    """What a message adds where pictures of a similar name are there."""
    if not found:
        return ""
    more = f" and {len(found) - 1} more places" if len(found) > 1 else ""
    use = "; --fix-names takes it" if len(found) == 1 else ""
    return f"; a picture of that name is {found[0]}{more}{use}"


def sound_notes(
    raw: Iterable[tuple[int, Any]], merged: dict[Any, Any], report: FaultReport
) -> list[tuple[int, Any]]:
    """The annotations with `iscrowd` as 0 or 1, a box, and polygons that have an area; unclear ones dropped.

    Args:
        raw: the json's, with their place in its list.
        merged: see `sound_images`; of annotations that became equal, one is kept.
        report: what was done is added to it.
    """
    kept: list[tuple[int, Any]] = []
    seen: set[Any] = set()
    targets = set(merged.values())
    for index, item in raw:
        if not isinstance(item, dict):
            kept.append((index, item))
            continue
        image, where = item.get("image_id"), f"annotation {shown(item.get('id', index))}"
        note, name = item, f"image {shown(image)}"
        if isinstance(image, int) and image in merged:
            note = note | {"image_id": merged[image]}
        if merged and note.get("image_id") in targets:
            key = repr([note["image_id"], note.get("category_id"), note.get("bbox")])
            if key in seen:
                report.add("repeated annotation", name, where, f"bbox {shown(note.get('bbox'))}")
                continue
            seen.add(key)
        crowd = note.get("iscrowd", 0)
        flag = flag_of(crowd)
        if flag is None:
            report.add("unclear iscrowd", name, where, f"iscrowd is {shown(crowd)}")
            continue
        if type(crowd) is not int:
            note = note | {"iscrowd": int(flag)}
        kept.append((index, _with_outline(note, name, where, report)))
    return kept


def _with_outline(note: dict[str, Any], name: str, where: str, report: FaultReport) -> dict[str, Any]:
    """An annotation without its degenerate polygons, and with a box if there is an outline."""
    shape = note.get("segmentation")
    if isinstance(shape, list) and shape:
        good = [line for line in shape if not is_degenerate(line)]
        if good and len(good) < len(shape):
            report.add("degenerate polygon", name, where, f"{len(shape) - len(good)} of {len(shape)}")
            note, shape = note | {"segmentation": good}, good
    if note.get("bbox") in (None, []) and shape:
        box = _box_of(shape)
        if box is not None:
            report.add("object without a box", name, where)
            return note | {"bbox": box}
    return note


def is_degenerate(line: Any) -> bool:
    """Whether a polygon of numbers has no area; anything but a polygon is judged elsewhere."""
    if not isinstance(line, list):
        return False
    if len(line) < 6 or len(line) % 2:
        return True
    return len(line) <= _FEW_CORNERS and all(map(is_number, line)) and has_no_area(line)


def has_no_area(line: Sequence[float]) -> bool:
    """Whether a polygon of numbers x, y, x, y, ... is a line or a point; that of many corners is not."""
    if len(line) > _FEW_CORNERS:
        return False
    x, y = line[::2], line[1::2]
    twice = sum(x[n - 1] * y[n] - x[n] * y[n - 1] for n in range(len(x)))
    return bool(abs(twice) < 1e-9)


def _box_of(shape: Any) -> list[float] | None:
    """The box around polygons or run lengths; None where these are wrong."""
    if isinstance(shape, dict):
        return box_of_mask(shape)
    numbers = [line for line in shape if isinstance(line, list) and len(line) >= 6 and len(line) % 2 == 0]
    if not numbers or not all(is_number(number) for line in numbers for number in line):
        return None
    x = [number for line in numbers for number in line[::2]]
    y = [number for line in numbers for number in line[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def resized(stated: _Size, real: _Size, boxes: Sequence[Any]) -> str:
    """What to do where an image's stated size is not the real one.

    Returns:
        "keep" the boxes: the sizes differ by rounding, or a box fits the real size alone; "scale" them: one
        factor leads from one to the other; "drop" the image: nothing says which is right.
    """
    if is_rounding(stated, real):
        return "keep"
    corners = np.array(
        [[box[0] + box[2], box[1] + box[3]] for box in boxes if is_box(box)], dtype=np.float64
    ).reshape(-1, 2)
    beyond = (corners > np.array(stated[::-1]) + 1).any()
    if beyond and not (corners > np.array(real[::-1]) + 1).any():
        return "keep"
    return "scale" if common_factor(stated, real) else "drop"


def rescaled(note: dict[str, Any], stated: _Size, real: _Size) -> dict[str, Any]:
    """An annotation of an image that was resized after labelling, in pixels of the image as it is."""
    y, x = (there / said for said, there in zip(stated, real, strict=True))
    new = dict(note)
    box: Any = note.get("bbox")
    if is_box(box):
        new["bbox"] = [box[0] * x, box[1] * y, box[2] * x, box[3] * y]
    if is_number(area := note.get("area")):
        new["area"] = area * x * y
    shape = note.get("segmentation")
    if isinstance(shape, list):
        new["segmentation"] = [
            [
                number * (y if place % 2 else x) if is_number(number) else number
                for place, number in enumerate(line)
            ]
            if isinstance(line, list)
            else line
            for line in shape
        ]
    elif isinstance(shape, dict) and shape.get("size") == list(stated):
        new["segmentation"] = resized_mask(shape, real) or shape
    if isinstance(points := note.get("keypoints"), list) and all(map(is_number, points)):
        new["keypoints"] = [number * (x, y, 1)[place % 3] for place, number in enumerate(points)]
    return new


def judge_sizes(
    boxes_of: Callable[[set[int]], dict[int, list[Any]]],
    ids: Sequence[int] | NDArray[np.int64],
    names: Sequence[str],
    stated: NDArray[np.int64],
    sizes: NDArray[np.int64],
    usable: NDArray[np.bool_],
    report: FaultReport,
) -> dict[int, tuple[_Size, _Size]]:
    """Report the images whose stated size is not the real one.

    Args:
        boxes_of: the boxes of the images of these ids, as the json has them.
        ids: of the N images.
        names: their files.
        stated: (N, 2) height and width that the json states; 0: it states none.
        sizes: (N, 2) as they are.
        usable: (N,) which images can be read; changed for those whose sizes contradict each other.
        report: what was found is added to it.

    Returns:
        Stated and real size of the images whose annotations are to be rescaled, by their id.
    """
    rows = np.flatnonzero(usable & (stated > 0).all(1) & (stated != sizes).any(1))
    if not len(rows):
        return {}
    boxes = boxes_of({int(ids[row]) for row in rows.tolist()})
    scale: dict[int, tuple[_Size, _Size]] = {}
    kinds = {
        "keep": "size differs from the json",
        "scale": "resized image",
        "drop": "size of another picture",
    }
    for row in rows.tolist():
        id = int(ids[row])
        said, real = (int(stated[row, 0]), int(stated[row, 1])), (int(sizes[row, 0]), int(sizes[row, 1]))
        what = resized(said, real, boxes.get(id, []))
        text = f"{real[1]} x {real[0]}, the json says {said[1]} x {said[0]}"
        report.add(kinds[what], names[row], f"image {id}", text)
        if what == "scale":
            scale[id] = said, real
        usable[row] &= what != "drop"
    return scale


def boxes_by_image(raw: Iterable[Any], ids: set[int]) -> dict[int, list[Any]]:
    """The boxes of some images in a json's annotations, by the image's id."""
    boxes: dict[int, list[Any]] = {}
    for item in raw:
        if isinstance(item, dict) and isinstance(item.get("image_id"), int) and item["image_id"] in ids:
            boxes.setdefault(item["image_id"], []).append(item.get("bbox"))
    return boxes


def fit_annotations(raw: list[Any], scale: dict[int, tuple[_Size, _Size]]) -> list[Any]:
    """The annotations in pixels of the images as they are; `scale`: see `judge_sizes`."""
    if not scale:
        return raw
    return [
        rescaled(item, *scale[item["image_id"]])
        if isinstance(item, dict) and isinstance(item.get("image_id"), int) and item["image_id"] in scale
        else item
        for item in raw
    ]

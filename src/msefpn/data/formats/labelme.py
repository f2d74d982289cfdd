"""LabelMe: a json file for each image, with shapes in pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from msefpn.data.formats.base import (
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    bounds,
    images_in,
    is_number,
    read_all,
    read_text,
    size_of,
    split_folders,
)

_CORNERS_OF_CIRCLE = 32
_FLAT = ("point", "points", "line", "linestrip")
"""Shapes without an area."""


def is_labelme(root: Path) -> bool:
    """Whether a folder holds annotations in this format: whether the first json does that can be read."""
    for folder in split_folders(root).values():
        for file in sorted(folder.glob("*.json")):
            try:
                content = json.loads(read_text(file))
            except (LabelFault, ValueError):
                continue
            return isinstance(content, dict) and "shapes" in content
    return False


def read_labelme(root: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read a folder; its splits are the subfolders named like one.

    Shapes of one label and group are one object.

    Args:
        root: the folder of the json files, or of a folder of them for each split.
        images: folder of the images; None: where the json files say, or beside them.
        log: takes what has to be reported.

    Raises:
        UserError: nothing can be used.
    """
    splits = {}
    flat: list[str] = []
    for split, folder in split_folders(root).items():
        files = sorted(folder.glob("*.json"))
        splits[split] = read_all(partial(_read, images=images, flat=flat), files, log)
        used = {image.file.resolve() for image in splits[split]}
        stems = {file.stem for file in files}
        bare = [file for file in images_in(folder) if file.resolve() not in used and file.stem not in stems]
        log.count(len(bare), "images have no json file and are skipped")
    log.count(len(flat), f"shapes without an area are skipped ({', '.join(sorted(set(flat)))})")
    return assemble(root, "labelme", splits, None, log)


class LabelMeFormat:
    """LabelMe: a json file for each image."""

    holds = staticmethod(is_labelme)
    read = staticmethod(read_labelme)


def _read(file: Path, *, images: Path | None, flat: list[str]) -> LabelledImage:
    """One json file; kinds of shapes that are skipped are added to `flat`. Raises LabelFault."""
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise LabelFault(f"{file}: is not a complete json ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise LabelFault(f"{file}: has no list of shapes")
    named = str(content.get("imagePath") or "")
    base = PureWindowsPath(named).name  # either slash
    beside = [file.parent / named.replace("\\", "/"), file.parent / base]
    places = [images / base] if images else beside
    image = next((place for place in places if base and place.is_file()), None)
    if image is None:
        raise LabelFault(f"{file}: its image is missing ('{named}')")
    height, width = content.get("imageHeight"), content.get("imageWidth")
    stated = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    objects: dict[tuple[str, Any], list[tuple[float, ...]]] = {}
    for number, shape in enumerate(content["shapes"], 1):
        where = f"{file}: shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
            raise LabelFault(f"{where} has no label")
        kind, group = shape.get("shape_type", "polygon"), shape.get("group_id")
        if kind in _FLAT:
            flat.append(kind)
            continue
        key = (shape["label"], number if group is None else f"group {group}")
        objects.setdefault(key, []).append(_outline(kind, shape.get("points"), where))
    found = tuple(LabelledObject(label, bounds(lines), tuple(lines)) for (label, _), lines in objects.items())
    return LabelledImage(image.resolve(), size_of(image, stated), found)


def _outline(kind: str, points: Any, where: str) -> tuple[float, ...]:
    """The polygon x, y, x, y, ... of a shape. Raises LabelFault."""
    pairs = _points(points, where)
    if kind == "circle":
        if len(pairs) != 2:
            raise LabelFault(f"{where}: a circle has a centre and a point, this has {len(pairs)} points")
        (x, y), edge = pairs
        radius = math.dist((x, y), edge)
        turns = [2 * math.pi * step / _CORNERS_OF_CIRCLE for step in range(_CORNERS_OF_CIRCLE)]
        pairs = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    elif kind in ("rectangle", "mask"):
        if len(pairs) not in (2, 4):
            raise LabelFault(f"{where}: a {kind} has 2 corners, this has {len(pairs)} points")
        left, top, width, height = bounds(pairs)
        right, bottom = left + width, top + height
        pairs = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind not in ("polygon", "rotation", "oriented_rectangle"):
        raise LabelFault(f"{where} is of an unknown type, '{kind}'")
    if len(pairs) < 3:
        raise LabelFault(f"{where}: a polygon of {len(pairs)} points")
    return tuple(number for pair in pairs for number in pair)


def _points(points: Any, where: str) -> list[tuple[float, float]]:
    def sound(pair: Any) -> bool:
        return isinstance(pair, Sequence) and len(pair) == 2 and all(map(is_number, pair))

    if not isinstance(points, list) or not all(map(sound, points)):
        raise LabelFault(f"{where}: its points are not pairs of numbers")
    return [(float(x), float(y)) for x, y in points]

"""LabelMe: a json file for each image, with shapes in pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msefpn.data.formats.base import (
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    bounds,
    fitted,
    is_within,
    label_json,
    read_all,
    split_folders,
    tell_left_out,
)
from msefpn.data.formats.pairs import PairedFolders, labels_in
from msefpn.data.values import is_number
from msefpn.errors import UserError

_CORNERS_OF_CIRCLE = 32
_FLAT = ("point", "points", "line", "linestrip")
"""Shapes without an area."""


def is_labelme(root: Path) -> bool:
    """Whether a folder holds annotations in this format: whether the first json does that can be read."""
    for folder in split_folders(root).values():
        for file in labels_in(folder, ".json"):
            try:
                content = label_json(file)
            except LabelFault:
                continue
            return isinstance(content, dict) and "shapes" in content
    return False


def read_labelme(root: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
    """Read a folder; its splits are the subfolders named like one.

    Shapes of one label and group are one object.

    Args:
        root: the folder of the json files, which may be in folders below, or of a folder of them for each
            split.
        images: folder of the images; None: where the json files say, or beside them.
        log: takes what has to be reported.

    Raises:
        UserError: nothing can be used.
    """
    splits = {}
    flat: list[str] = []
    for split, folder in split_folders(root).items():
        pictures = PairedFolders(folder, images or folder, ".json", log)
        read = partial(_read, root=root, pictures=pictures, given=images, flat=flat)
        found = read_all(read, pictures.files, log)
        pictures.tell_bare([image.file for image in found])
        tell_left_out(images or folder, log)
        splits[split] = found
    log.count(len(flat), f"shapes without an area are skipped ({', '.join(sorted(set(flat)))})")
    return assemble(root, "labelme", splits, None, log)


class LabelMeFormat:
    """LabelMe: a json file for each image."""

    holds = staticmethod(is_labelme)
    read = staticmethod(read_labelme)


def _read(
    file: Path, *, root: Path, pictures: PairedFolders, given: Path | None, flat: list[str]
) -> LabelledImage:
    """One json file; kinds of shapes that are skipped are added to `flat`. Raises LabelFault."""
    content = label_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise LabelFault(f"{file}: has no list of shapes")
    named = str(content.get("imagePath") or "")
    place = file.parent / named.replace("\\", "/")
    there = place if given is None and named and os.path.isfile(place) else None
    if there is not None and not is_within(there, root) and not pictures.beside(file).by_stem.get(file.stem):
        raise UserError(f"{file}: imagePath '{named}' leads out of '{root}': name the folder with --images")
    image = pictures.of(file, named, there if there is not None and is_within(there, root) else None)
    height: Any = content.get("imageHeight")
    width: Any = content.get("imageWidth")
    known = is_number(height) and is_number(width) and min(height, width) >= 1
    stated = (round(height), round(width)) if known else None
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
        outline = _outline(kind, shape.get("points"), where)
        if min(bounds([outline])[2:]) > 0:
            objects.setdefault(key, []).append(outline)
        else:
            flat.append(f"{kind} without area")
    found = tuple(LabelledObject(label, bounds(lines), tuple(lines)) for (label, _), lines in objects.items())
    return fitted(image, stated, found, file, pictures.log)


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

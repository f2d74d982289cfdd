"""The records of a COCO json, one by one: faults are reported with their place, the rest becomes arrays."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.boxes import Annotations
from msefpn.data.faults import FaultReport
from msefpn.data.masks import Masks, encode_segmentation
from msefpn.data.values import is_number
from msefpn.reading import shown

_KINDS = {int: "a whole number", str: "a text", list: "a list"}


def _has_keys(item: Any, keys: dict[str, type], where: str, report: FaultReport) -> bool:
    """Check that a json object has the keys with values of the types, and report what is wrong."""
    if not isinstance(item, dict):
        report.add("wrong value", str(report.file), where, "is not an object")
        return False
    found = len(report.faults)
    for key, kind in keys.items():
        if key not in item:
            report.add("missing key", str(report.file), where, f"has no '{key}'")
        elif kind is int and type(item[key]) is int and not is_id(item[key]):
            text = f"'{key}' is {shown(item[key])}, which is too large: 64 bits hold it"
            report.add("wrong value", str(report.file), where, text)
        elif not isinstance(item[key], kind) or (kind is int and not is_id(item[key])):
            text = f"'{key}' is {shown(item[key])}, not {_KINDS[kind]}"
            report.add("wrong value", str(report.file), where, text)
    return len(report.faults) == found


def is_id(value: Any) -> bool:
    """Whether a value of a json is a whole number of 64 bits."""
    return type(value) is int and abs(value) < 1 << 63


def _where(kind: str, index: int, item: Any, plural: str) -> str:
    id = item.get("id") if isinstance(item, dict) else None
    return f"{plural}[{index}]" if id is None else f"{kind} {id[:80] if isinstance(id, str) else shown(id)}"


def read_categories(raw: list[Any], report: FaultReport) -> dict[int, str]:
    """Category id -> name, in the order of the ids."""
    classes: dict[int, str] = {}
    for index, item in enumerate(raw):
        where = _where("category", index, item, "categories")
        if not _has_keys(item, {"id": int, "name": str}, where, report):
            continue
        if item["id"] in classes or item["name"] in classes.values():
            report.add("duplicate category", str(report.file), where, f"'{item['name']}'")
        classes[item["id"]] = item["name"]
    if not raw:
        report.add("no categories", str(report.file), text="'categories' is empty")
    return dict(sorted(classes.items()))


def image_entries(raw: list[Any], report: FaultReport) -> tuple[list[int], list[str], NDArray[np.int64]]:
    """Ids, file names and stated sizes (N, 2) of the images: height and width, 0 where there is none."""
    ids: list[int] = []
    names: list[str] = []
    stated: list[tuple[int, int]] = []
    seen: dict[int, str] = {}
    for index, item in enumerate(raw):
        where = _where("image", index, item, "images")
        if not _has_keys(item, {"id": int, "file_name": str}, where, report):
            continue
        name = item["file_name"]
        if item["id"] in seen:
            report.add("duplicate image id", name, where, f"is also that of {seen[item['id']]}")
        seen[item["id"]] = name
        ids.append(item["id"])
        names.append(name)
        stated.append(stated_size(item.get("height"), item.get("width")) or (0, 0))
    if not raw:
        report.add("no images", str(report.file), text="'images' is empty")
    return ids, names, np.array(stated, dtype=np.int64).reshape(-1, 2)


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """The size of an entry of `images`, whole pixels; None where it states none that an image can have."""
    known = all(is_number(side) and 1 <= side < 1e6 for side in (height, width))
    return (int(height), int(width)) if known else None


def is_bbox(value: Any) -> bool:
    """Whether a value of a json is a list of 4 numbers, which need not be finite."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(side, float) or is_number(side) for side in value)
    )


def read_annotations(
    raw: Iterable[tuple[int, Any]],
    position_of: Callable[[int], int | None],
    classes: dict[int, str],
    names: Sequence[str],
    report: FaultReport,
) -> Annotations:
    """The entries of `annotations` that refer to a known image and category.

    Args:
        raw: their place in the list, and what is there.
        position_of: place of an image by its id; None: there is none.
        classes: category id -> name, in the order of the labels.
        names: of the images.
        report: takes the faults.
    """
    label_of = {id: label for label, id in enumerate(classes)}
    # Typed arrays: a list of numbers would hold millions of Python objects.
    note, image, label, crowd, row = array("q"), array("q"), array("q"), array("b"), array("q")
    boxes, areas = array("d"), array("d")
    segments: list[Any] = []
    for index, item in raw:
        where = _where("annotation", index, item, "annotations")
        if not _has_keys(item, {"image_id": int, "category_id": int, "bbox": list}, where, report):
            continue
        position, box = position_of(item["image_id"]), item["bbox"]
        if position is None:
            report.add("unknown image", str(report.file), where, f"image_id {item['image_id']}")
        elif item["category_id"] not in label_of:
            report.add("unknown category", names[position], where, f"category_id {item['category_id']}")
        elif not is_bbox(box):
            report.add("bbox without 4 numbers", names[position], where, shown(box))
        else:
            row.append(index)
            note.append(item["id"] if is_id(item.get("id")) else -1 - index)
            image.append(position)
            label.append(label_of[item["category_id"]])
            boxes.extend(box)
            areas.append(area_of(item))
            crowd.append(item.get("iscrowd", 0) == 1)
            segments.append(item.get("segmentation"))
    return Annotations(
        ids=np.array(note, dtype=np.int64),
        image=np.array(image, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.array(areas, dtype=np.float64),
        crowd=np.array(crowd, dtype=np.bool_),
        segments=segments,
        row=np.array(row, dtype=np.int64),
    )


def read_masks(
    notes: Annotations,
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    usable: NDArray[np.bool_],
    names: Sequence[str],
    report: FaultReport,
) -> Masks:
    """The masks of the usable annotations in `rows`; an empty one where there is none, or no usable image."""
    counts = []
    for row in rows:
        image, segments, text = notes.image[row], notes.segments[row], b""
        where = f"annotation {notes.ids[row]}"
        if usable[image] and not segments:
            report.add("no mask", names[image], where, "has no segmentation")
        elif usable[image]:
            try:
                text = encode_segmentation(segments, (int(sizes[image, 0]), int(sizes[image, 1])))
            except ValueError as error:
                report.add("broken mask", names[image], where, str(error))
        counts.append(text)
    return Masks.pack(counts)


def area_of(annotation: dict[str, Any]) -> float:
    """The area that an annotation states; NaN where it states none, or an impossible one."""
    area: Any = annotation.get("area")
    return float(area) if is_number(area) and area > 0 else math.nan

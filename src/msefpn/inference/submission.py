"""Detections for COCO's evaluation server: a zip file with one json, whose names and content it prescribes.

https://cocodataset.org/#upload and #format-results: `detections_<split>_<method>_results.json` inside a zip
file of the same name; image ids of the split, category ids of COCO, boxes x, y, width, height in pixels.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.data.coco import CocoData
from msefpn.data.faults import counted
from msefpn.errors import UserError
from msefpn.writing import replacing

SPLITS = ("test-dev2017", "val2017")
"""Splits that the server evaluates; the second is for trying an upload."""
CATEGORIES = frozenset(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
"""COCO's 80 category ids of things."""
_FILE = re.compile(rf"(image_info|instances)_({'|'.join(SPLITS)})\.json")
_METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNLABELLED = "image_info"


def check_method(method: str) -> None:
    """Raise UserError where a text cannot be the method's name in the file name."""
    if not _METHOD.fullmatch(method):
        raise UserError(f"submit is '{method}': name the method with letters, digits, '.', '-' and '_'")


def coco_split_of(file: Path) -> str:
    """The split that COCO's own name of an annotation file tells. Raises UserError for another name."""
    found = _FILE.fullmatch(file.name)
    if found is None:
        raise UserError(
            f"'{file}' is not a file that COCO's server evaluates: with --submit, give --json "
            "image_info_test-dev2017.json or instances_val2017.json as COCO names them, and --images"
        )
    return found[2]


def has_truth(file: Path) -> bool:
    """Whether a file of `coco_split_of` has annotations."""
    return not file.name.startswith(_UNLABELLED)


def check_images(data: CocoData) -> None:
    """Raise UserError where a submission for these images would be refused or incomplete."""
    if data.left_out:
        some = ", ".join(map(str, sorted(data.left_out)[:3]))
        raise UserError(
            f"{data.file}: {counted('unreadable image', len(data.left_out))} (id {some}): a submission needs "
            "all images: restore the files"
        )
    if wrong := sorted(set(data.category_ids) ^ CATEGORIES):
        raise UserError(
            f"{data.file}: its category ids are not COCO's 80 (such as {wrong[0]}): take COCO's own file"
        )


def check_results(results: Sequence[dict[str, Any]], data: CocoData) -> None:
    """Raise UserError where COCO's server would refuse detections.

    Args:
        results: as of `msefpn.inference.detect.as_results`.
        data: the images that they are of.
    """
    if not results:
        raise UserError(f"{data.file}: nothing was detected, and COCO's server refuses an empty list")
    ids = set(data.ids.tolist())
    for place, item in enumerate(results):
        where = f"detection {place} of image {item['image_id']}"
        if item["image_id"] not in ids:
            raise UserError(f"{where}: no such image in {data.file}: detect on the images of that file")
        if item["category_id"] not in CATEGORIES:
            raise UserError(f"{where}: category {item['category_id']} is not one of COCO's: use its classes")
        numbers = [*item["bbox"], item["score"]]
        if not all(map(math.isfinite, numbers)) or min(item["bbox"][2:]) < 0 or not 0 <= item["score"] <= 1:
            raise UserError(f"{where}: bbox {item['bbox']} and score {item['score']} are not valid")


def write_submission(folder: Path, method: str, results: Sequence[dict[str, Any]], data: CocoData) -> Path:
    """Check detections, write the zip file for COCO's server into a folder, and return its path.

    Raises:
        UserError: the server would refuse it, or the file cannot be written.
    """
    check_results(results, data)
    name = f"detections_{coco_split_of(data.file)}_{method}_results"
    path = folder / f"{name}.zip"
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.json", json.dumps(results))
    return path

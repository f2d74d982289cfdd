"""Regions that are given beforehand, from a file in COCO's result format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.coco import CocoData, Regions
from msefpn.errors import UserError

MOST = 2000
"""The best regions of an image that are kept (mmdetection's number for training)."""
_OUTSIDE = 1.0
"""Regions that stick out of their image by more, in pixels, are those of another; files round."""


def with_proposals(data: CocoData, file: Path) -> CocoData:
    """Give the images of a split their proposals.

    Args:
        data: the images.
        file: json list of objects with `image_id`, `bbox` (x, y, width, height; pixels) and `score`, such as
            the predictions.json of an evaluation.

    Raises:
        UserError: no such list, an image that the data has not, or a region that does not fit its image.
    """
    index_of = {int(id): index for index, id in enumerate(data.ids)}
    images, boxes, scores = _columns(file, _read(file), index_of, f"{data.file} has not")
    limit = data.sizes[images][:, ::-1]  # (R, 2) width, height
    outside = (boxes[:, :2] < -_OUTSIDE).any(1) | (boxes[:, 2:] > limit + _OUTSIDE).any(1)
    for row in np.flatnonzero(outside):
        name, (width, height) = data.names[images[row]], limit[row]
        raise UserError(
            f"{file}: entry {row} reaches out of {name}, which is {width} x {height} px: are these the "
            f"proposals of other images? Give those of {data.file}"
        )
    boxes = np.clip(boxes, 0, np.tile(limit, 2))
    return replace(data, proposals=_grouped(images, boxes, scores, len(data)))


def proposals_by_name(file: Path, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """The proposals (r, 4), xyxy, of each of the images that have these file names, folders aside.

    Args:
        file: as in `with_proposals`, each object also with `file_name`, such as the predictions.json of a
            prediction.
        names: of the images.

    Raises:
        UserError: no such list, or an image without any.
    """
    entries = _read(file)
    index_of = {name: index for index, name in enumerate(names)}
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{file}: entry {row} has no 'file_name': give predictions of msefpn predict")
    chosen = [entry | {"image_id": Path(entry["file_name"]).name} for entry in entries]
    chosen = [entry for entry in chosen if entry["image_id"] in index_of]
    columns = _columns(file, chosen, index_of, "is not asked for")
    regions = _grouped(*columns, len(names))
    for index, name in enumerate(names):
        if not len(regions.of(index)):
            raise UserError(f"{file} has no proposal for {name}: give the proposals of these images")
    return [regions.of(index) for index in range(len(names))]


def _read(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"proposals {file}: {error.strerror or 'cannot be read'}: give a json file") from None
    except ValueError as error:
        raise UserError(f"proposals {file} are no JSON ({error}): write the file again") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"proposals {file} are no list of COCO results: give one, not empty")
    return content


def _columns(
    file: Path, entries: list[Any], index_of: dict[Any, int], unknown: str
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Index of the image (R,), xyxy (R, 4) and score (R,) of the entries."""
    images, boxes, scores = [], [], []
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"image_id", "bbox", "score"} <= entry.keys():
            raise UserError(f"{file}: entry {row} has not all of 'image_id', 'bbox' and 'score': add them")
        if entry["image_id"] not in index_of:
            raise UserError(
                f"{file}: entry {row} is of image {entry['image_id']}, which {unknown}: "
                "give the proposals of these images"
            )
        numbers = entry["bbox"], entry["score"]
        try:
            box, score = np.array(numbers[0], dtype=np.float64), float(numbers[1])
        except (TypeError, ValueError):
            box, score = np.zeros(0), np.nan
        if box.shape != (4,) or not np.isfinite([*box, score]).all() or (box[2:] <= 0).any():
            raise UserError(f"{file}: entry {row} has bbox {numbers[0]} and score {numbers[1]}: mend them")
        images.append(index_of[entry["image_id"]])
        boxes.append([*box[:2], *(box[:2] + box[2:])])
        scores.append(score)
    return np.array(images, dtype=np.int64), np.array(boxes).reshape(-1, 4), np.array(scores)


def _grouped(
    images: NDArray[np.int64], boxes: NDArray[np.float64], scores: NDArray[np.float64], count: int
) -> Regions:
    """By image, best first, at most `MOST` of each."""
    order = np.lexsort((-scores, images))
    images = images[order]
    first = np.searchsorted(images, np.arange(count))
    kept = np.arange(len(images)) - first[images] < MOST
    lengths = np.bincount(images[kept], minlength=count)
    return Regions(np.concatenate([[0], np.cumsum(lengths)]), boxes[order][kept].astype(np.float32))

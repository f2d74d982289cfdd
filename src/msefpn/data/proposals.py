"""Proposals from a file in COCO's result format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.boxes import Regions
from msefpn.data.coco import CocoData
from msefpn.errors import UserError
from msefpn.reading import MAX_JSON, parse_json, read_bytes, real_path

MAX_PROPOSALS = 2000
"""The best regions of an image that are kept (mmdetection's number for training)."""
_ROUNDING = 1.0
"""Regions that stick out of their image by more, in pixels, are those of another image; files round."""


def with_proposals(data: CocoData, file: Path) -> CocoData:
    """Give the images of a split their proposals; an image may have none.

    Args:
        data: the images.
        file: json list of objects with `image_id`, `bbox` (x, y, width, height; pixels) and `score`, such as
            the predictions.json of an evaluation.

    Raises:
        UserError: not such a list, an image that is not in the data, or a region that does not fit its image.
    """
    index_of = {int(id): index for index, id in enumerate(data.ids)}

    def find(entry: dict[str, Any]) -> int | None:
        id = entry.get("image_id")
        if type(id) is int and id in data.left_out:
            return None
        if type(id) is not int or id not in index_of:
            raise UserError(f"is of image {id!r}, which is not in {data.file}: give proposals for its images")
        return index_of[id]

    return replace(data, proposals=_regions(file, _entries(file), find, data.names, data.sizes))


def proposals_of_files(
    file: Path, images: Sequence[Path], sizes: Sequence[tuple[int, int]]
) -> list[NDArray[np.float32]]:
    """The proposals (r, 4), xyxy, of each of these image files; one may have none.

    Args:
        file: as in `with_proposals`, each object also with `file_name`, such as the predictions.json of a
            prediction. Where none of these paths leads to the images, the bare names do.
        images: the files.
        sizes: their height and width, pixels.

    Raises:
        UserError: not such a list, images of the same name that only their folders tell apart, or a region
            that does not fit its image.
    """
    entries = _entries(file)
    named = {entry["file_name"] for entry in entries if _has_name(entry)}
    places = {real_path(path): index for index, path in enumerate(images)}
    by_path = any(real_path(name) in places for name in named)
    if not by_path:
        for paths in (images, [Path(name) for name in named]):
            name, count = Counter(path.name for path in paths).most_common(1)[0] if paths else ("", 0)
            if count > 1:
                raise UserError(f"{file}: which of the {count} images {name} is meant? Rename them")
        places = {Path(path.name): index for index, path in enumerate(images)}

    def find(entry: dict[str, Any]) -> int | None:
        if not _has_name(entry):
            raise UserError("has no 'file_name': give predictions of msefpn predict")
        path = Path(entry["file_name"])
        return places.get(real_path(path) if by_path else Path(path.name))

    regions = _regions(file, entries, find, list(map(str, images)), np.array(sizes, dtype=np.int64))
    if not len(regions.boxes):
        raise UserError(f"{file} has no proposal for {images[0]}: give the proposals of predict --score 0")
    return [regions.of(index) for index in range(len(images))]


def _has_name(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("file_name"), str)


def _entries(file: Path) -> list[Any]:
    try:
        content = parse_json(read_bytes(file, MAX_JSON))
    except OSError as error:
        raise UserError(f"proposals {file}: {error.strerror or 'cannot be read'}: give a json file") from None
    except ValueError as error:
        raise UserError(f"proposals {file} are not JSON ({error}): write the file again") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"proposals {file} are not a list of COCO results: give one that is not empty")
    return content


def _regions(
    file: Path,
    entries: list[Any],
    find: Callable[[dict[str, Any]], int | None],
    names: Sequence[str],
    sizes: NDArray[np.int64],
) -> Regions:
    """The regions of a file, by image.

    Args:
        file: for messages.
        entries: what it holds.
        find: index of the image that an entry is of, None where it is not used; its UserError is given
            the entry's number.
        names: of the images.
        sizes: (N, 2), their height and width, pixels.
    """
    images, boxes, scores = [], [], []
    for row, entry in enumerate(entries):
        try:
            box, score = _numbers(entry)
            image = find(entry)
            if image is None or (box[2:] == 0).any():  # so small that it was rounded away
                continue
            height, width = sizes[image].tolist()
            corners = [*box[:2], *(box[:2] + box[2:])]
            if min(corners) < -_ROUNDING or (corners > np.array([width, height] * 2) + _ROUNDING).any():
                raise UserError(
                    f"reaches out of {names[image]}, which is {width} x {height} px: are these the proposals "
                    "of other images? Give those of these images"
                )
        except UserError as error:
            raise UserError(f"{file}: entry {row} {error}") from None
        images.append(image)
        boxes.append(np.clip(corners, 0, [width, height] * 2))
        scores.append(score)
    return _by_image(np.array(images, dtype=np.int64), np.array(boxes), np.array(scores), len(names))


def _numbers(entry: Any) -> tuple[NDArray[np.float64], float]:
    """x, y, width, height and score. Raises UserError."""
    if not isinstance(entry, dict) or not {"bbox", "score"} <= entry.keys():
        raise UserError("lacks 'bbox' or 'score': add it")
    box, score = entry["bbox"], entry["score"]
    if isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in [*box, score]):
        numbers = [float(x) if abs(x) < 1e9 else np.inf for x in [*box, score]]  # NaN is not below either
        if np.isfinite(numbers).all() and min(numbers[2:4]) >= 0:
            return np.array(numbers[:4]), numbers[4]
    raise UserError(f"has bbox {str(box)[:60]} and score {str(score)[:20]}: fix them")


def _by_image(
    images: NDArray[np.int64], boxes: NDArray[np.float64], scores: NDArray[np.float64], count: int
) -> Regions:
    """Regions (R, 4) of images (R,), best first, at most `MAX_PROPOSALS` of each."""
    order = np.lexsort((-scores, images))
    images = images[order]
    first = np.searchsorted(images, np.arange(count))
    kept = np.arange(len(images)) - first[images] < MAX_PROPOSALS
    lengths = np.bincount(images[kept], minlength=count)
    boxes = boxes.reshape(-1, 4)[order][kept]
    return Regions(np.concatenate([[0], np.cumsum(lengths)]), boxes.astype(np.float32))

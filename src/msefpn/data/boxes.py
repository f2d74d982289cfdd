"""The boxes of an annotation file: which are faulty, and what is done about them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.faults import FaultReport

_ROUNDING = 1.0
"""Boxes that stick out by less, in pixels, are clipped without a report: annotation files round."""


@dataclass(frozen=True)
class Annotations:
    """The annotations of a file that refer to a known image and category. A: annotations."""

    ids: NDArray[np.int64]
    image: NDArray[np.int64]  # (A,) index into the images
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]  # (A, 4) x, y, width, height
    areas: NDArray[np.float64]  # (A,) square pixels; NaN where the file gives none
    crowd: NDArray[np.bool_]
    segments: list[Any]
    """(A,) their `segmentation` as it is in the json; None where there is none."""
    row: NDArray[np.int64]  # (A,) place in the json's list


@dataclass(frozen=True)
class Regions:
    """Boxes that may hold an object, of N images, best first. R: of all images together."""

    offsets: NDArray[np.int64]
    """(N + 1,) those of image i are offsets[i] to offsets[i + 1]."""
    boxes: NDArray[np.float32]
    """(R, 4) xyxy, pixels of the image as it is decoded."""

    def of(self, index: int) -> NDArray[np.float32]:
        """The regions (r, 4) of one image."""
        return self.boxes[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: NDArray[np.int64]) -> "Regions":
        """The regions of the images at `indices`, in that order."""
        counts = np.diff(self.offsets)[indices]
        parts = [self.of(index) for index in indices]
        return Regions(np.concatenate([[0], np.cumsum(counts)]), np.concatenate([self.boxes[:0], *parts]))


def find_usable_boxes(
    notes: Annotations, sizes: NDArray[np.int64], ids: list[int], names: list[str], report: FaultReport
) -> NDArray[np.bool_]:
    """Report faulty boxes, each under its first fault, and return which (A,) to keep."""
    start, extent = notes.boxes[:, :2], notes.boxes[:, 2:]
    with np.errstate(invalid="ignore"):
        end = start + extent
        limit = sizes[notes.image][:, ::-1]
        inside = _inside(start, extent, limit)
        repeated, same_id = _repeats(notes)
        out = np.maximum(-start, end - limit).max(1, initial=0) > _ROUNDING
        dropped = {
            "NaN box": ~np.isfinite(notes.boxes).all(1),
            "inverted box": (extent < 0).any(1),
            "zero-area box": (extent == 0).any(1),
            "outside box": (inside <= 0).any(1),
            "box under 1 px": (inside < 1).any(1),
            "repeated annotation": repeated,
        }
        clipped = {
            "box larger than the image": (extent > limit + _ROUNDING).any(1),
            "box partly outside": out,
        }
    kept = np.ones(len(notes.ids), dtype=np.bool_)
    for faults, keep in ((dropped, False), (clipped, True)):
        unnamed = kept.copy()
        for kind, found in faults.items():
            for row in np.flatnonzero(found & unnamed):
                name, numbers = names[notes.image[row]], [_short(side) for side in notes.boxes[row].tolist()]
                report.add(kind, name, f"annotation {notes.ids[row]}", f"bbox {numbers}")
            unnamed &= ~found
        if not keep:
            kept = unnamed
    for row in np.flatnonzero(same_id & kept):
        report.add("duplicate annotation id", names[notes.image[row]], f"annotation {notes.ids[row]}")
    for row in _equals(notes, np.flatnonzero(kept)):
        numbers = [_short(side) for side in notes.boxes[row].tolist()]
        report.add("equal box", names[notes.image[row]], f"annotation {notes.ids[row]}", f"bbox {numbers}")
    return kept


def clip_annotations(
    notes: Annotations, rows: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return corners (R, 4), clipped to their images, and areas (R,) of the usable annotations in `rows`.

    The areas are the annotated ones, which may be those of masks, also where the box is clipped; else those
    of the boxes.
    """
    start, extent, limit = notes.boxes[rows, :2], notes.boxes[rows, 2:], sizes[notes.image[rows]][:, ::-1]
    stated = notes.areas[rows]
    corners = np.clip(np.concatenate([start, start + extent], 1), 0, np.tile(limit, 2))
    return corners, np.where(np.isnan(stated), _inside(start, extent, limit).prod(1), stated)


def _inside(
    start: NDArray[np.float64], extent: NDArray[np.float64], limit: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Width and height (A, 2) of boxes clipped to images of width and height `limit` (A, 2).

    Not from the clipped corners: rounding would move a box of exactly 32 x 32 px over COCO's limit of small
    ones, and one of 1 px under the least that is kept.
    """
    clipped: NDArray[np.float64] = extent - np.maximum(-start, 0) - np.maximum(start + extent - limit, 0)
    return clipped


def _equals(notes: Annotations, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows whose image, class and box an earlier one has too."""
    if not len(rows):
        return rows
    keys = np.concatenate([notes.image[rows, None], notes.label[rows, None], notes.boxes[rows]], 1)
    _, first = np.unique(keys, axis=0, return_index=True)
    again = np.ones(len(rows), dtype=np.bool_)
    again[first] = False
    return rows[again]


def _repeats(notes: Annotations) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which annotations (A,) have the id of an earlier one: with all else the same too, and otherwise."""
    repeated, same_id = np.zeros((2, len(notes.ids)), dtype=np.bool_)
    order = np.argsort(notes.ids, kind="stable")
    for place in np.flatnonzero(np.diff(notes.ids[order]) == 0):
        first, second = order[place], order[place + 1]
        same = notes.image[first] == notes.image[second] and notes.label[first] == notes.label[second]
        same = same and bool((notes.boxes[first] == notes.boxes[second]).all())
        (repeated if same else same_id)[second] = True
    return repeated, same_id


def _short(number: float) -> float | int:
    if not math.isfinite(number):
        return number
    return round(number, 2) if number % 1 else int(number)

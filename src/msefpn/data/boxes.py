"""The boxes of an annotation file: which are faulty, and what is done about them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.faults import FaultReport

_ROUNDING = 1.0
"""Boxes that stick out by less, in pixels, are clipped without a report: annotation files round."""
_BLOCK = 1 << 20
"""Rows that are judged at a time: temporary arrays of all rows would take as much memory as the rows."""
_DROPPED = (
    "NaN box",
    "inverted box",
    "zero-area box",
    "outside box",
    "box under 1 px",
    "repeated annotation",
)
_CLIPPED = ("box larger than the image", "box partly outside")


@dataclass(frozen=True)
class Annotations:
    """The annotations of a file that refer to a known image and category. A: annotations."""

    ids: NDArray[np.int64]
    image: NDArray[np.integer[Any]]  # (A,) index into the images
    label: NDArray[np.integer[Any]]
    boxes: NDArray[np.float64]  # (A, 4) x, y, width, height
    areas: NDArray[np.float64]  # (A,) square pixels; NaN where the file gives none
    crowd: NDArray[np.bool_]
    segments: list[Any]
    """(A,) their `segmentation` as it is in the json; None where there is none."""
    row: NDArray[np.int64] | None = None  # (A,) place in the json's list; None: not known


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
    notes: Annotations, sizes: NDArray[np.int64], names: Sequence[str], report: FaultReport
) -> NDArray[np.bool_]:
    """Report faulty boxes, each under its first fault, and return which (A,) to keep."""
    repeated, same_id = _repeats(notes)
    found: dict[str, list[int]] = {kind: [] for kind in (*_DROPPED, *_CLIPPED)}
    kept = np.ones(len(notes.ids), dtype=np.bool_)
    for rows in _blocks(len(kept)):
        faults = _faults(notes, rows, sizes)
        faults["repeated annotation"] = repeated[rows]
        for kinds, keep in ((_DROPPED, False), (_CLIPPED, True)):
            unnamed = kept[rows].copy()
            for kind in kinds:
                found[kind] += (np.flatnonzero(faults[kind] & unnamed) + rows.start).tolist()
                unnamed &= ~faults[kind]
            if not keep:
                kept[rows] = unnamed
    for kind, places in found.items():
        for row in places:
            _report_box(kind, row, notes, names, report)
    for row in np.flatnonzero(same_id & kept).tolist():
        report.add("duplicate annotation id", names[notes.image[row]], f"annotation {notes.ids[row]}")
    for row in _equals(notes, kept).tolist():
        _report_box("equal box", row, notes, names, report)
    return kept


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(count, start + _BLOCK)) for start in range(0, count, _BLOCK))


def _faults(notes: Annotations, rows: slice, sizes: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Kind of fault -> which of these rows have it."""
    boxes = notes.boxes[rows]
    start, extent = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore"):
        limit = sizes[notes.image[rows]][:, ::-1]
        inside = _inside(start, extent, limit)
        beyond = np.maximum(-start, start + extent - limit)
        return {
            "NaN box": ~np.isfinite(boxes).all(1),
            "inverted box": (extent < 0).any(1),
            "zero-area box": (extent == 0).any(1),
            "outside box": (inside <= 0).any(1),
            "box under 1 px": (inside < 1).any(1),
            "box larger than the image": (extent > limit + _ROUNDING).any(1),
            "box partly outside": beyond.max(1, initial=0) > _ROUNDING,
        }


def _report_box(kind: str, row: int, notes: Annotations, names: Sequence[str], report: FaultReport) -> None:
    numbers = [_short(side) for side in notes.boxes[row].tolist()]
    report.add(kind, names[notes.image[row]], f"annotation {notes.ids[row]}", f"bbox {numbers}")


def clip_annotations(
    notes: Annotations, rows: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return corners (R, 4), clipped to their images, and areas (R,) of the usable annotations in `rows`.

    The areas are the annotated ones, which may be those of masks, also where the box is clipped; else those
    of the boxes.
    """
    corners, areas = np.empty((len(rows), 4), np.float32), np.empty(len(rows))
    for part in _blocks(len(rows)):
        own = rows[part]
        boxes, limit, stated = notes.boxes[own], sizes[notes.image[own]][:, ::-1], notes.areas[own]
        start, extent = boxes[:, :2], boxes[:, 2:]
        corners[part] = np.clip(np.concatenate([start, start + extent], 1), 0, np.tile(limit, 2))
        areas[part] = np.where(np.isnan(stated), _inside(start, extent, limit).prod(1), stated)
    return corners, areas


def _inside(
    start: NDArray[np.float64], extent: NDArray[np.float64], limit: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Width and height (A, 2) of boxes clipped to images of width and height `limit` (A, 2).

    Not from the clipped corners: rounding would move a box of exactly 32 x 32 px over COCO's limit of small
    ones, and one of 1 px under the least that is kept.
    """
    clipped: NDArray[np.float64] = extent - np.maximum(-start, 0) - np.maximum(start + extent - limit, 0)
    return clipped


def _equals(notes: Annotations, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rows whose image, class and box an earlier one has too, of those that are kept."""
    marks = np.zeros(len(kept), np.uint64)
    for rows in _blocks(len(kept)):
        columns = (*notes.boxes[rows].T, notes.image[rows], notes.label[rows])
        for column in columns:
            bits = (column + 0.0).view(np.uint64)  # -0.0 becomes 0.0
            marks[rows] = (marks[rows] ^ (bits ^ (bits >> np.uint64(32)))) * np.uint64(0x9E3779B97F4A7C15)
    chosen = marks[kept]
    chosen.sort()
    shared = np.unique(chosen[1:][chosen[1:] == chosen[:-1]])
    return _really_equal(notes, np.flatnonzero(kept & np.isin(marks, shared)))


def _really_equal(notes: Annotations, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of a few rows whose image, class and box an earlier one has too."""
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
    if (notes.ids[1:] > notes.ids[:-1]).all():  # as files mostly have them
        return repeated, same_id
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

"""COCO json into compact arrays, with every fault found, named and, where possible, fixed; and back."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msefpn.data.boxes import Annotations, Regions, clip_annotations, find_usable_boxes
from msefpn.data.faults import FaultReport, counted
from msefpn.data.looking import LOOKING, Looked, Looking, look_at_images
from msefpn.data.masks import Masks, decode_masks, run_lengths
from msefpn.data.packed import PackedNames
from msefpn.data.records import image_entries, read_annotations, read_categories, read_masks
from msefpn.data.repair import (
    PictureNames,
    boxes_by_image,
    fit_annotations,
    judge_sizes,
    sound_images,
    sound_notes,
)
from msefpn.errors import UserError
from msefpn.reading import MAX_JSON, parse_json, read_bytes


@dataclass(frozen=True)
class CocoData:
    """The images and boxes of one split. N: images, M: boxes, K: classes."""

    file: Path
    """The json."""
    folder: Path
    """The folder of the images."""
    names: PackedNames
    """(N) file names, relative to `folder`."""
    ids: NDArray[np.int64]
    """(N,) image ids of the json."""
    sizes: NDArray[np.int64]
    """(N, 2) height and width of each image as it is decoded, pixels."""
    offsets: NDArray[np.int64]
    """(N + 1,) the boxes of image i are offsets[i] to offsets[i + 1]."""
    boxes: NDArray[np.float32]
    """(M, 4) xyxy, pixels of the image as it is decoded."""
    areas: NDArray[np.float64]
    """(M,) square pixels: the annotation's, which may be that of a mask, else the box's."""
    labels: NDArray[np.int64]
    """(M,) 0..K-1, in the order of the category ids."""
    crowd: NDArray[np.bool_]
    """(M,) a region with many objects, not one object."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: Masks | None = None
    """M; None where they were not read."""
    proposals: Regions | None = None
    """Given ones of the N images; None where there are none."""
    annotated: NDArray[np.bool_] | None = None
    """(N,) images that an annotation belongs to, also one that is left out; None: those that have boxes."""
    left_out: frozenset[int] = frozenset()
    """Ids of the images of the json that cannot be read."""
    rows: NDArray[np.int64] | None = None
    """(M,) place of each box's annotation in `Scan.content`; None where that was not kept."""

    def __len__(self) -> int:
        return len(self.names)

    def path_of(self, index: int) -> Path:
        """Path of an image file."""
        return self.folder / self.names[index]

    def boxes_of(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Boxes (G, 4), labels (G,) and crowd flags (G,) of one image."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes[part], self.labels[part], self.crowd[part]

    def masks_of(self, index: int) -> NDArray[np.uint8]:
        """The masks (G, H, W) of one image, 1 on the object; they must have been read."""
        assert self.masks is not None
        rows = range(self.offsets[index], self.offsets[index + 1])
        height, width = self.sizes[index].tolist()
        return decode_masks(self.masks.counts(rows), (height, width))

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> CocoData:
        """Return the images at `indices`, in that order, with their boxes."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], counts)
        return replace(
            self,
            names=self.names.take(chosen),
            ids=self.ids[chosen],
            sizes=self.sizes[chosen],
            offsets=offsets,
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            rows=None if self.rows is None else self.rows[rows],
            masks=None if self.masks is None else self.masks.take(rows),
            proposals=None if self.proposals is None else self.proposals.take(chosen),
            annotated=None if self.annotated is None else self.annotated[chosen],
        )


class Scan(NamedTuple):
    """What was read of a split."""

    data: CocoData | None
    """None where a fault stops a run."""
    report: FaultReport
    content: dict[str, Any] | None = None
    """The json's content after repairs, to which `CocoData.rows` refers; None: it was not kept."""
    names: Sequence[str] = ()
    """Of all its images, usable or not."""
    looked: Looked | None = None
    """What was found of these; None where none were looked at."""
    digest: str = ""
    """SHA-256 of the json; empty where it was not read from a file."""


def scan_coco(
    file: Path,
    folder: Path,
    how: Looking = LOOKING,
    *,
    masks: bool = False,
    content: dict[str, Any] | None = None,
    fix_names: bool = False,
    truth: bool = True,
) -> Scan:
    """Read an annotation file as a whole, and check its images.

    Args:
        file: see `msefpn.data.reader.read_coco`.
        folder: likewise.
        how: how the images are looked at.
        masks: see `read_coco`.
        content: what the json would hold, where `file` is of another format.
        fix_names: take the picture of a similar name where one is missing.
        truth: read the annotations; otherwise they are ignored, and the json needs none.
    """
    report = FaultReport(file)
    whole, digest = _load(file, report, truth=truth) if content is None else (content, "")
    if whole is None:
        return Scan(None, report)
    classes = read_categories(whole["categories"], report)
    if not folder.is_dir():
        report.add("missing folder", str(folder), text="does not exist")
        return Scan(None, report)
    finder = PictureNames(file, folder, fix=fix_names)
    entries, merged = sound_images(whole["images"], finder, report)
    for text in finder.fixed:
        report.add("corrected name", text)
    ids, names, stated = image_entries(entries, report)
    pairs = sound_notes(enumerate(whole["annotations"]), merged, report)
    places, raw = np.array([place for place, _ in pairs], np.int64), [item for _, item in pairs]
    looked = look_at_images(finder, ids, names, stated, report, how)
    sizes, usable = looked.sizes, looked.usable
    boxes_of = functools.partial(boxes_by_image, raw)
    raw = fit_annotations(raw, judge_sizes(boxes_of, ids, names, stated, sizes, usable, report))
    plain = whole | {"images": entries, "annotations": raw}
    position_of = {id: index for index, id in enumerate(ids)}.get
    notes = read_annotations(zip(places.tolist(), raw, strict=True), position_of, classes, names, report)
    assert notes.row is not None
    notes = replace(notes, row=np.searchsorted(places, notes.row))
    listed = ListedImages(file, folder, np.array(ids, dtype=np.int64), names, sizes, usable)
    data = arranged(listed, classes, notes, len(raw), report, masks=masks, truth=truth)
    return Scan(data, report, plain, names, looked, digest)


class ListedImages(NamedTuple):
    """The N images of a json."""

    file: Path
    """The json."""
    folder: Path
    ids: NDArray[np.int64]
    names: Sequence[str]
    sizes: NDArray[np.int64]
    """(N, 2) height and width as they are decoded, pixels."""
    usable: NDArray[np.bool_]
    """(N,) those that can be read."""


def arranged(
    images: ListedImages,
    classes: dict[int, str],
    notes: Annotations,
    count: int,
    report: FaultReport,
    *,
    masks: bool,
    truth: bool = True,
) -> CocoData | None:
    """Images with their usable annotations; None where a fault stops a run.

    Args:
        images: all of the json.
        classes: category id -> name, in the order of the labels.
        notes: the annotations of known images and categories.
        count: annotations of the json.
        report: takes the faults.
        masks: read the objects' masks too.
        truth: report images without objects, and a json without boxes.
    """
    sizes, names = images.sizes, images.names
    kept = find_usable_boxes(notes, sizes, names, report)
    order = np.argsort(notes.image if kept.all() else notes.image[kept], kind="stable")
    order = order if kept.all() else np.flatnonzero(kept)[order]
    boxes, areas = clip_annotations(notes, order, sizes)
    counts = np.bincount(notes.image[order], minlength=len(names))
    data = CocoData(
        file=images.file,
        folder=images.folder,
        names=PackedNames.pack(names),
        ids=images.ids,
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes,
        areas=areas,
        labels=notes.label[order].astype(np.int64, copy=False),
        crowd=notes.crowd[order],
        rows=None if notes.row is None else notes.row[order],
        classes=tuple(classes.values()),
        category_ids=tuple(classes),
        masks=read_masks(notes, order, sizes, images.usable, names, report) if masks else None,
        annotated=np.bincount(notes.image, minlength=len(names)) > 0,
        left_out=frozenset(images.ids[~images.usable].tolist()),
    )
    data = data if images.usable.all() else data.subset(np.flatnonzero(images.usable))
    for index in np.flatnonzero(np.diff(data.offsets) == 0).tolist() if truth else ():
        report.add("image without objects", data.names[index], f"image {data.ids[index]}")
    if truth and not len(data.boxes) and not report.stops:
        reasons = ", ".join(counted(kind, count) for kind, count in report.counts.items())
        text = f"{count} annotations, none usable ({reasons})"
        report.add("no boxes", str(images.file), text=text)
    return None if report.stops else data


def kept_content(content: dict[str, Any], data: CocoData) -> dict[str, Any]:
    """The content that `data` was read from, without the images and annotations that were left out."""
    sizes = dict(zip(data.ids.tolist(), data.sizes.tolist(), strict=True))
    images = [
        {**item, "height": sizes[item["id"]][0], "width": sizes[item["id"]][1]}
        for item in content["images"]
        if item["id"] in sizes
    ]
    notes = [content["annotations"][row] for row in np.sort([] if data.rows is None else data.rows)]
    return content | {"images": images, "annotations": notes}


def _load(file: Path, report: FaultReport, *, truth: bool) -> tuple[dict[str, Any] | None, str]:
    """COCO's object and the digest of its file; None after a fault."""
    try:
        text = read_bytes(file, MAX_JSON)
        content = parse_json(text)
    except OSError as error:
        report.add("missing json", str(file), text=error.strerror or "cannot be read")
        return None, ""
    except ValueError as error:
        report.add("not JSON", str(file), text=str(error))
        return None, ""
    if not isinstance(content, dict):
        report.add("not JSON", str(file), text="is not a COCO object")
        return None, ""
    content = content if truth else content | {"annotations": []}
    for key in ("images", "annotations", "categories"):
        if key not in content:
            report.add("missing key", str(file), text=f"has no '{key}'")
        elif not isinstance(content[key], list):
            report.add("wrong value", str(file), text=f"'{key}' is not a list")
    return None if report.stops else content, hashlib.sha256(text).hexdigest()


def truth_of(data: CocoData) -> dict[str, Any]:
    """The annotations as read and fixed, in COCO's format; the areas are the file's."""
    owner = np.repeat(data.ids, np.diff(data.offsets))
    boxes = np.concatenate([data.boxes[:, :2], data.boxes[:, 2:] - data.boxes[:, :2]], 1).astype(np.float64)
    annotations = [
        {
            "id": row + 1,
            "image_id": int(owner[row]),
            "category_id": data.category_ids[data.labels[row]],
            "bbox": boxes[row].tolist(),
            "area": float(data.areas[row]),
            "iscrowd": int(data.crowd[row]),
        }
        for row in range(len(boxes))
    ]
    if data.masks is not None:
        sizes = np.repeat(data.sizes, np.diff(data.offsets), axis=0)
        for item, counts, size in zip(annotations, data.masks.counts(range(len(boxes))), sizes, strict=True):
            item["segmentation"] = run_lengths(counts, size)
    categories = zip(data.category_ids, data.classes, strict=True)
    return {
        "images": [
            {"id": int(id), "file_name": name, "height": int(size[0]), "width": int(size[1])}
            for id, name, size in zip(data.ids, data.names, data.sizes, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in categories],
    }


def category_ids_for(classes: Sequence[str], data: CocoData, owner: str) -> list[int]:
    """The data's category id for each of a detector's classes. Raises UserError where they differ.

    Args:
        classes: names, in the order of the detector's labels.
        data: has the same names, in any order.
        owner: whose classes these are, for the message.
    """
    ids = dict(zip(data.classes, data.category_ids, strict=True))
    missing, other = sorted(set(classes) - ids.keys()), sorted(ids.keys() - set(classes))
    if missing or other:
        differences = [f"{_some(missing)} only in {owner}"] * bool(missing)
        differences += [f"{_some(other)} only in {data.file}"] * bool(other)
        raise UserError(f"classes differ: {'; '.join(differences)}: use data with the classes of {owner}")
    return [ids[name] for name in classes]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

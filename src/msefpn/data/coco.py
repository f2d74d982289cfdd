"""COCO json into compact arrays, with every fault found, named and, where possible, fixed."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.boxes import Annotations, Regions, clip_annotations, find_usable_boxes
from msefpn.data.faults import FaultReport, counted
from msefpn.data.looking import look_at_images
from msefpn.data.masks import Masks, decode_masks, encode_segmentation
from msefpn.data.repair import PictureNames, fit_annotations, sound_images, sound_notes
from msefpn.data.values import is_number
from msefpn.reading import MAX_JSON, parse_json, read_bytes, shown

_QUICK = 1 << 24
"""Bytes of annotations that are read in about a second."""


@dataclass(frozen=True)
class CocoData:
    """The images and boxes of one split. N: images, M: boxes, K: classes."""

    file: Path
    """The json."""
    folder: Path
    """The folder of the images."""
    names: list[str]
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
    """(M,) place of each box's annotation in the json's list, as it was made plain; None: not from a json."""

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

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "CocoData":
        """Return the images at `indices`, in that order, with their boxes."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], counts)
        return replace(
            self,
            names=[self.names[index] for index in chosen],
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


def reads_quickly(*files: Path) -> bool:
    """Whether annotation files are so small that reading them takes about a second at most."""
    return sum(file.stat().st_size for file in files if file.is_file()) <= _QUICK


def read_coco(
    file: Path, folder: Path, *, decode: bool = False, masks: bool = False
) -> tuple[CocoData, FaultReport]:
    """Read an annotation file and check its images; fix and count what can be fixed.

    Args:
        file: the COCO json.
        folder: the folder of the images.
        decode: decode every image, to find damage inside a file. Otherwise its header and its end are read:
            enough to find a missing or truncated file, at some seconds per 100,000 images.
        masks: read the objects' masks too; one without a mask is a fault then.

    Raises:
        UserError: for the first fault that only the user can fix (`faults.STOPS`).
    """
    data, report, _ = scan_coco(file, folder, decode=decode, masks=masks)
    report.raise_if_stopped()
    assert data is not None
    return data, report


def scan_coco(
    file: Path,
    folder: Path,
    *,
    decode: bool = False,
    masks: bool = False,
    content: dict[str, Any] | None = None,
    fix_names: bool = False,
    skip_missing: bool = False,
) -> tuple[CocoData | None, FaultReport, dict[str, Any] | None]:
    """Like `read_coco`, but also report the faults that only the user can fix; the data is None then.

    Args:
        file: see `read_coco`.
        folder: likewise.
        decode: likewise.
        masks: likewise.
        content: what the json would hold, where `file` is of another format.
        fix_names: take the picture of a similar name where one is missing.
        skip_missing: an image that is missing is one that cannot be read, and stops nothing.

    Returns:
        The data; the faults; and the content as it was made plain, to which `CocoData.rows` refers.
    """
    report = FaultReport(file)
    content = _load(file, report) if content is None else content
    if content is None:
        return None, report, None
    classes = _read_categories(content["categories"], report)
    if not folder.is_dir():
        report.add("missing folder", str(folder), text="does not exist")
        return None, report, None
    finder = PictureNames(file, folder, fix=fix_names)
    entries, merged = sound_images(content["images"], finder, report)
    for text in finder.fixed:
        report.add("corrected name", text)
    ids, names, stated = _read_images(entries, report)
    raw = sound_notes(content["annotations"], merged, report)
    sizes, usable = look_at_images(finder, ids, names, stated, report, decode=decode, skip=skip_missing)
    raw = fit_annotations(raw, ids, names, stated, sizes, usable, report)
    content = content | {"images": entries, "annotations": raw}
    notes = _read_annotations(raw, ids, classes, names, report)
    kept = find_usable_boxes(notes, sizes, ids, names, report)
    order = np.flatnonzero(kept)[np.argsort(notes.image[kept], kind="stable")]
    boxes, areas = clip_annotations(notes, order, sizes)
    counts = np.bincount(notes.image[order], minlength=len(names))
    data = CocoData(
        file=file,
        folder=folder,
        names=names,
        ids=np.array(ids, dtype=np.int64),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes.astype(np.float32),
        areas=areas,
        labels=notes.label[order],
        crowd=notes.crowd[order],
        rows=notes.row[order],
        classes=tuple(classes.values()),
        category_ids=tuple(classes),
        masks=_read_masks(notes, order, sizes, usable, names, report) if masks else None,
        annotated=np.bincount(notes.image, minlength=len(names)) > 0,
        left_out=frozenset(id for id, kept in zip(ids, usable, strict=True) if not kept),
    ).subset(np.flatnonzero(usable))
    for index in np.flatnonzero(np.diff(data.offsets) == 0):
        report.add("image without objects", data.names[index], f"image {data.ids[index]}")
    if not len(data.boxes) and not report.stops:
        reasons = ", ".join(counted(kind, count) for kind, count in report.counts.items())
        report.add(
            "no boxes", str(file), text=f"{len(content['annotations'])} annotations, none usable ({reasons})"
        )
    return (None if report.stops else data), report, content


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


def _load(file: Path, report: FaultReport) -> dict[str, Any] | None:
    try:
        content = parse_json(read_bytes(file, MAX_JSON))
    except OSError as error:
        report.add("missing json", str(file), text=error.strerror or "cannot be read")
        return None
    except ValueError as error:
        report.add("not JSON", str(file), text=str(error))
        return None
    if not isinstance(content, dict):
        report.add("not JSON", str(file), text="is not a COCO object")
        return None
    for key in ("images", "annotations", "categories"):
        if key not in content:
            report.add("missing key", str(file), text=f"has no '{key}'")
        elif not isinstance(content[key], list):
            report.add("wrong value", str(file), text=f"'{key}' is not a list")
    return None if report.stops else content


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
        elif kind is int and type(item[key]) is int and not _is_id(item[key]):
            text = f"'{key}' is {shown(item[key])}, which is too large: 64 bits hold it"
            report.add("wrong value", str(report.file), where, text)
        elif not isinstance(item[key], kind) or (kind is int and not _is_id(item[key])):
            text = f"'{key}' is {shown(item[key])}, not {_KINDS[kind]}"
            report.add("wrong value", str(report.file), where, text)
    return len(report.faults) == found


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _where(kind: str, index: int, item: Any, plural: str) -> str:
    id = item.get("id") if isinstance(item, dict) else None
    return f"{plural}[{index}]" if id is None else f"{kind} {id[:80] if isinstance(id, str) else shown(id)}"


def _read_categories(raw: list[Any], report: FaultReport) -> dict[int, str]:
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


def _read_images(
    raw: list[Any], report: FaultReport
) -> tuple[list[int], list[str], list[tuple[int, int] | None]]:
    """Ids, file names and stated (height, width) of the images."""
    ids: list[int] = []
    names: list[str] = []
    stated: list[tuple[int, int] | None] = []
    seen: dict[int, str] = {}
    for index, item in enumerate(raw):
        where = _where("image", index, item, "images")
        if not _has_keys(item, {"id": int, "file_name": str}, where, report):
            continue
        name = item["file_name"]
        if item["id"] in seen:
            report.add("duplicate image id", name, where, f"is also that of {seen[item['id']]}")
        seen[item["id"]] = name
        size = (item.get("height"), item.get("width"))
        known = all(is_number(side) and 1 <= side < 1e6 for side in size)
        ids.append(item["id"])
        names.append(name)
        stated.append((int(size[0]), int(size[1])) if known else None)
    if not raw:
        report.add("no images", str(report.file), text="'images' is empty")
    return ids, names, stated


def _read_annotations(
    raw: list[Any], ids: list[int], classes: dict[int, str], names: list[str], report: FaultReport
) -> Annotations:
    index_of = {id: index for index, id in enumerate(ids)}
    label_of = {id: label for label, id in enumerate(classes)}
    # Typed arrays: a list of numbers would hold millions of Python objects.
    note, image, label, crowd, row = array("q"), array("q"), array("q"), array("b"), array("q")
    boxes, areas = array("d"), array("d")
    segments: list[Any] = []
    for index, item in enumerate(raw):
        where = _where("annotation", index, item, "annotations")
        if not _has_keys(item, {"image_id": int, "category_id": int, "bbox": list}, where, report):
            continue
        position, box = index_of.get(item["image_id"]), item["bbox"]
        if position is None:
            report.add("unknown image", str(report.file), where, f"image_id {item['image_id']}")
        elif item["category_id"] not in label_of:
            report.add("unknown category", names[position], where, f"category_id {item['category_id']}")
        elif len(box) != 4 or not all(isinstance(side, float) or is_number(side) for side in box):
            report.add("bbox without 4 numbers", names[position], where, shown(box))
        else:
            row.append(index)
            note.append(item["id"] if _is_id(item.get("id")) else -1 - index)
            image.append(position)
            label.append(label_of[item["category_id"]])
            boxes.extend(box)
            areas.append(_area(item))
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


def _read_masks(
    notes: Annotations,
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    usable: NDArray[np.bool_],
    names: list[str],
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


def _area(annotation: dict[str, Any]) -> float:
    """The area that an annotation states; NaN where it states none, or an impossible one."""
    area: Any = annotation.get("area")
    return float(area) if is_number(area) and area > 0 else math.nan

"""Data sets as Python objects: anything that gives images and boxes, written once as COCO json and images.

Written, they are like any other data: a run names them, so that it can be resumed, evaluated and reported on
without the object.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.folders import unfinished_folder
from msefpn.data.formats import LoadedDataset, ReadLog, Split
from msefpn.data.images import ImageFault, read_header, to_rgb, write_image
from msefpn.data.split import divide
from msefpn.errors import UserError

_HELD_OUT = 0.2
"""Share of the images that become the validation set where none is given."""


class Dataset(Protocol):
    """Images with boxes. `from_torch` and `from_hugging_face` make one of other data sets.

    An item is a dictionary, or an object with these attributes. G: boxes of the image, 0 or more.

        image: PIL image, array (H, W, 3) uint8, tensor (3, H, W) uint8, or the path of a file
        boxes: (G, 4) xyxy, pixels of the image
        labels: (G,) int, 0..K-1, in the order of `classes`
        crowd: (G,) bool, a region with many objects; optional, default: none is
        id: int, unique; optional, default: the index, from 1
    """

    @property
    def classes(self) -> Sequence[str]:
        """K names."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """The item at an index, 0 to len - 1."""


def materialise(dataset: Dataset | Mapping[str, Dataset], folder: Path) -> tuple[Path, ReadLog]:
    """Write a data set as COCO json and images (PNG or links) into a folder that is named after its content.

    The same content gives the same folder; it is written completely or not at all.

    Args:
        dataset: a data set, of which a fifth of the images becomes the validation set, or "train" and "val".
        folder: where the new folder is made; created if needed.

    Returns:
        The new folder, in the layout that `--data` takes, and what the user has to know.

    Raises:
        UserError: an item is wrong, there is no object, or the folder cannot be written.
    """
    given = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    if "train" not in given or given.keys() - {"train", "val"}:
        raise UserError(f"data sets {sorted(map(str, given))}: give 'train' and 'val', or 'train' alone")
    log, mark = ReadLog(), hashlib.sha256()
    try:
        with unfinished_folder(folder / "dataset") as work:
            splits = {name: _write_images(name, one, work, mark) for name, one in given.items()}
            if "val" not in splits:
                splits = _hold_out(splits["train"], work, log)
            for name, split in splits.items():
                (work / f"{name}.json").write_text(json.dumps(split.content), encoding="utf-8")
            final = folder / f"dataset-{mark.hexdigest()[:8]}"
            if not final.is_dir():
                work.replace(final)
    except OSError as error:
        raise UserError(
            f"the data set cannot be written to '{folder}': {error.strerror or error}: give another --out"
        ) from None
    log.notes.append(f"the data set is written to {final}")
    return final, log


class _Item(NamedTuple):
    """One checked item."""

    image: NDArray[np.uint8] | Path
    """Pixels (H, W, 3), or the file."""
    size: tuple[int, int]
    """Height and width, pixels."""
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    id: int | None


def _write_images(name: str, dataset: Dataset, work: Path, mark: Any) -> Split:
    """Write the images of a data set into `work`/NAME, and return its annotations; `mark` is updated."""
    for needed in ("classes", "__len__", "__getitem__"):
        if not hasattr(dataset, needed):
            raise UserError(
                f"the {name} data set, a {type(dataset).__name__}, has no {needed}: see "
                "msefpn.data.datasets.Dataset, or use msefpn.data.from_torch or from_hugging_face"
            )
    classes = [str(one) for one in dataset.classes]
    if not classes or len(set(classes)) < len(classes):
        raise UserError(f"the {name} data set's classes are {classes}: give each class one name")
    (work / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids: dict[int, int] = {}
    for index in range(len(dataset)):
        where = f"{name}[{index}]"
        item = _read(dataset, index, len(classes), where)
        id = index + 1 if item.id is None else item.id
        if id in ids:
            raise UserError(f"{where}: id {id} is also that of {name}[{ids[id]}]: give each image its own")
        ids[id] = index
        file = _write_image(item.image, work / name, index, mark)
        images.append({"id": id, "file_name": file, "height": item.size[0], "width": item.size[1]})
        annotations += _annotations(item, id, len(annotations) + 1)
    if not annotations:
        raise UserError(f"the {name} data set has no object in its {len(images)} images: give some boxes")
    categories = [{"id": number, "name": one} for number, one in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    mark.update(json.dumps([name, content]).encode())
    return Split(work / f"{name}.json", work / name, content)


def _annotations(item: _Item, image_id: int, first: int) -> list[dict[str, Any]]:
    """COCO's annotations of one item; ids count from `first`."""
    corners = item.boxes.tolist()
    rows = zip(corners, item.labels.tolist(), item.crowd.tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        }
        for number, ((x1, y1, x2, y2), label, crowd) in enumerate(rows, first)
    ]


def _read(dataset: Dataset, index: int, count: int, where: str) -> _Item:
    """One item of a data set with `count` classes. Raises UserError that names it."""
    try:
        item = dataset[index]
    except OSError as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}") from None
    image, size = _image(_value(item, "image", where), where)
    boxes = _numbers(_value(item, "boxes", where), f"{where}: boxes").astype(np.float64)
    boxes = boxes.reshape(0, 4) if not boxes.size else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"{where}: boxes have shape {boxes.shape}, not (G, 4): give x1, y1, x2, y2 for each")
    labels = _numbers(_value(item, "labels", where), f"{where}: labels")
    labels = labels.astype(np.int64) if not labels.size else labels
    if labels.shape != (len(boxes),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels have shape {labels.shape} {labels.dtype}, for {len(boxes)} boxes: give an int "
            "for each"
        )
    crowd = _numbers(_value(item, "crowd", where, np.zeros(len(boxes), np.bool_)), f"{where}: crowd")
    if crowd.shape != labels.shape:
        raise UserError(f"{where}: crowd has shape {crowd.shape}, for {len(boxes)} boxes: give a bool each")
    for row in np.flatnonzero(~np.isin(crowd, [0, 1])):
        raise UserError(f"{where}: crowd of box {row} is {crowd[row]}: it must be 0 or 1")
    for row in np.flatnonzero(~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))):
        raise UserError(f"{where}: box {row} is {boxes[row].tolist()}: x1 < x2 and y1 < y2 must hold (xyxy)")
    for row in np.flatnonzero((labels < 0) | (labels >= count)):
        raise UserError(
            f"{where}: label {labels[row]} of box {row} is not 0..{count - 1}, as there are {count} classes"
        )
    id = _value(item, "id", where, None)
    id = int(id) if isinstance(id, (int, np.integer)) and not isinstance(id, bool) else None
    return _Item(image, size, boxes, labels.astype(np.int64), crowd.astype(np.bool_), id)


_MISSING = object()


def _value(item: Any, key: str, where: str, default: Any = _MISSING) -> Any:
    """An entry of a dictionary, or an attribute of another object."""
    found = item.get(key, default) if isinstance(item, Mapping) else getattr(item, key, default)
    if found is _MISSING:
        raise UserError(f"{where}, a {type(item).__name__}, has no '{key}': see msefpn.data.datasets.Dataset")
    return found


def _numbers(value: Any, what: str) -> NDArray[Any]:
    """An array of numbers of a list, an array or a tensor."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except ValueError:
        raise UserError(f"{what} are not of equal length: give an array") from None
    if array.size and array.dtype.kind not in "iufb":
        raise UserError(f"{what} are not numbers: {str(value)[:60]}")
    return array


def _image(image: Any, where: str) -> tuple[NDArray[np.uint8] | Path, tuple[int, int]]:
    """Pixels (H, W, 3) or the file of an image, and its height and width."""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image).absolute()
        try:
            return path, read_header(path).size
        except FileNotFoundError:
            raise UserError(f"{where}: the image {path} is missing") from None
        except (OSError, ImageFault) as error:
            raise UserError(f"{where}: {path} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(image, Image.Image):
        try:
            pixels = to_rgb(image)
        except (OSError, ImageFault) as error:
            raise UserError(f"{where}: the image cannot be read: {' '.join(str(error).split())}") from None
        return pixels, (pixels.shape[0], pixels.shape[1])
    if hasattr(image, "detach"):
        array = np.asarray(image.detach().cpu())
        array, expected = (array.transpose(1, 2, 0) if array.ndim == 3 else array), "a tensor (3, H, W) uint8"
    elif isinstance(image, np.ndarray):
        array, expected = image, "an array (H, W, 3) uint8"
    else:
        raise UserError(
            f"{where}: the image is a {type(image).__name__}: give a PIL image, an array or a path"
        )
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        shape = tuple(image.shape)
        raise UserError(f"{where}: the image has shape {shape} {array.dtype}: give {expected}")
    return array, (array.shape[0], array.shape[1])


def _write_image(image: NDArray[np.uint8] | Path, folder: Path, index: int, mark: Any) -> str:
    """Write an image, or link to its file, and return the name; `mark` is updated."""
    if isinstance(image, Path):
        stat = image.stat()
        mark.update(repr((str(image), stat.st_size, stat.st_mtime_ns)).encode())
        name = f"{index:06d}-{image.name}"
        (folder / name).symlink_to(image)
    else:
        pixels = np.ascontiguousarray(image)
        mark.update(repr(pixels.shape).encode() + pixels.tobytes())
        name = f"{index:06d}.png"
        write_image(Image.fromarray(pixels), folder / name, compress_level=1)
    return name


def _hold_out(split: Split, work: Path, log: ReadLog) -> dict[str, Split]:
    """Move a fifth of the images to a validation set, every class in proportion."""
    try:
        division = divide(LoadedDataset(work, "Python", {"train": split}, log), _HELD_OUT, 0, None)
    except UserError:
        count = len(split.content["images"])
        raise UserError(
            f"the data set has too few different images to hold out some for validation ({count}): give "
            "{'train': ..., 'val': ...}"
        ) from None
    (work / "val").mkdir()
    for item in division.splits["val"].content["images"]:
        (work / "train" / item["file_name"]).rename(work / "val" / item["file_name"])
    held, total = len(division.splits["val"].content["images"]), len(split.content["images"])
    log.notes.append(f"no validation set is given: {held} of {total} images are held out for it (seed 0)")
    return division.splits

"""Data sets of other libraries as `msefpn.data.datasets.Dataset`; none of the libraries is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msefpn.data.datasets import Dataset
from msefpn.data.formats.base import SPLIT_NAMES
from msefpn.data.values import flag_of
from msefpn.errors import UserError


def from_torch(dataset: Any, classes: Sequence[str] | Mapping[int, str] | None = None) -> Dataset:
    """A torch `Dataset` that gives (image, target), as torchvision's detection data sets do.

    Args:
        dataset: its target is a dictionary with `boxes` (G, 4) xyxy and `labels` (G,), and perhaps `iscrowd`
            and `image_id`; or a list of COCO annotations, as in torchvision's CocoDetection. Its image is
            anything that `Dataset` takes, or a float tensor of 0 to 1.
        classes: names in the order of the labels, from 0; or label -> name, where they are numbered otherwise
            ({1: "cat", 2: "dog"}, as in torchvision, where 0 is the background); None: CocoDetection's own.

    Raises:
        UserError: no classes are given, and the data set does not say them.
    """
    if classes is None:
        annotations = getattr(dataset, "coco", None)
        if annotations is None:
            raise UserError("from_torch needs the names of the classes: add classes=[...]")
        classes = {id: item["name"] for id, item in annotations.cats.items()}
    return _TorchDataset(dataset, _numbered(classes))


def from_hugging_face(
    dataset: Any,
    *,
    image: str = "image",
    objects: str = "objects",
    boxes: str = "bbox",
    labels: str = "category",
    box_format: str = "xywh",
    classes: Sequence[str] | None = None,
) -> Any:
    """A data set of Hugging Face's `datasets`, or of a DatasetDict its "train" and "val".

    Args:
        dataset: has a column of images and one of objects, for each a box and a category.
        image: column of the images.
        objects: column of the objects.
        boxes: their key for boxes, in pixels.
        labels: their key for categories, numbers or names.
        box_format: xywh (x, y of the upper left corner, width, height) or xyxy.
        classes: names in the order of the categories; None: those of the ClassLabel feature.

    Raises:
        UserError: a column is missing, or the classes' names are.
    """
    options = {"image": image, "objects": objects, "boxes": boxes, "labels": labels}
    if box_format not in ("xywh", "xyxy"):
        raise UserError(f"box_format is '{box_format}': it must be xywh or xyxy")
    if isinstance(dataset, Mapping):
        found: dict[str, Any] = {}
        for name, one in dataset.items():
            found.setdefault(SPLIT_NAMES.get(str(name), str(name)), one)
        if "val" not in found and "test" in found:
            found["val"] = found["test"]
        return {
            name: from_hugging_face(found[name], **options, box_format=box_format, classes=classes)
            for name in ("train", "val")
            if name in found
        }
    if not hasattr(dataset, "__len__") or not isinstance(getattr(dataset, "features", None), Mapping):
        raise UserError(f"a {type(dataset).__name__} cannot be used: load the data set without streaming")
    features = dataset.features
    for column in (image, objects):
        if column not in features:
            raise UserError(f"the data set has no column '{column}', only {', '.join(features)}: name it")
    names = _label_names(features[objects], labels) if classes is None else list(classes)
    if names is None:
        raise UserError(
            f"'{labels}' of '{objects}' is not a ClassLabel with names: add classes=[...] or labels=KEY"
        )
    return _HuggingFaceDataset(dataset, options, box_format, names)


def _numbered(classes: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    """Label -> name, in the order of the labels."""
    return dict(sorted(classes.items()) if isinstance(classes, Mapping) else enumerate(classes))


class _TorchDataset:
    """See `from_torch`."""

    def __init__(self, dataset: Any, names: Mapping[int, str]) -> None:
        self.dataset = dataset
        self.classes = list(names.values())
        self.place = {label: place for place, label in enumerate(names)}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.dataset[index]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(
                f"item {index} of the torch data set is a {type(pair).__name__}, not (image, target)"
            )
        image, target = pair
        if isinstance(target, (list, tuple)):
            target = _from_annotations(target)
        elif not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
            raise UserError(f"target {index} of the torch data set has no 'boxes' and 'labels': return both")
        labels = [self._place(int(label), index) for label in target["labels"]]
        item = {"image": _as_uint8(image, index), "boxes": target["boxes"], "labels": labels}
        if "iscrowd" in target:
            item["crowd"] = target["iscrowd"]
        if "image_id" in target:
            item["id"] = int(target["image_id"])
        return item

    def _place(self, label: int, index: int) -> int:
        if label not in self.place:
            raise UserError(
                f"label {label} of item {index} of the torch data set is not among the labels "
                f"{list(self.place)[:20]}: give classes as {{label: name}}"
            )
        return self.place[label]


def _from_annotations(annotations: Sequence[Any]) -> dict[str, Any]:
    """A target of COCO annotations."""
    boxes = np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "labels": [item["category_id"] for item in annotations],
        "iscrowd": [_crowd(item.get("iscrowd")) for item in annotations],
    }


def _crowd(value: Any) -> bool:
    flag = flag_of(value)
    if flag is None:
        raise UserError(f"iscrowd is {value!r} in the torch data set: it must be 0 or 1")
    return flag


def _as_uint8(image: Any, index: int) -> Any:
    """A float tensor of 0 to 1 as uint8; anything else as it is."""
    if not hasattr(image, "detach") or not image.is_floating_point():
        return image
    if not bool(((image >= 0) & (image <= 1)).all()):
        raise UserError(
            f"image {index} of the torch data set is a float tensor that is not within 0..1: leave out its "
            "normalisation"
        )
    return np.asarray((image.detach().cpu() * 255).round()).astype(np.uint8).transpose(1, 2, 0)


class _HuggingFaceDataset:
    """See `from_hugging_face`."""

    def __init__(self, dataset: Any, keys: Mapping[str, str], box_format: str, names: list[str]) -> None:
        self.dataset = dataset
        self.keys = keys
        self.box_format = box_format
        self.classes = names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        objects = row[self.keys["objects"]]
        columns = {
            key: [item[self.keys[key]] for item in objects]
            if isinstance(objects, list)
            else list(objects[self.keys[key]])
            for key in ("boxes", "labels")
        }
        boxes = np.array(columns["boxes"], dtype=np.float64).reshape(-1, 4)
        if self.box_format == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        labels = [self._label(label, index) for label in columns["labels"]]
        return {"image": row[self.keys["image"]], "boxes": boxes, "labels": labels}

    def _label(self, label: Any, index: int) -> int:
        if not isinstance(label, str):
            return int(label)
        if label not in self.classes:
            raise UserError(f"category '{label}' of row {index} is not among the classes: add it to classes=")
        return self.classes.index(label)


def _label_names(feature: Any, key: str) -> list[str] | None:
    """The names of a ClassLabel in a feature of objects: a list of records, or a record of lists."""
    record = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    column = record.get(key) if isinstance(record, Mapping) else None
    column = column[0] if isinstance(column, list) else getattr(column, "feature", column)
    names = getattr(column, "names", None)
    return None if names is None else list(names)

"""Data sets that are Python objects: written once, read back as they are; wrong items are named."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from msefpn.data import from_hugging_face, from_torch
from msefpn.data.datasets import materialise
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from msefpn.errors import UserError

CLASSES = ("cat", "dog")


def pixels(index: int) -> Any:
    """An image of 40 x 30, another for each index."""
    return np.random.default_rng(index).integers(0, 256, (30, 40, 3)).astype(np.uint8)


class Own:
    """Ten images; image i has i % 3 boxes."""

    classes: tuple[str, ...] = CLASSES

    def __init__(self, change: Callable[[dict[str, Any]], Any] | None = None, count: int = 10) -> None:
        self.change = change
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        item = {
            "image": pixels(index),
            "boxes": [[index, 1, index + 9.5, 20], [0, 0, 40, 30]][: index % 3],
            "labels": [index % 2, 1][: index % 3],
        }
        return item if self.change is None or index != 4 else self.change(item)


def read(folder: Path, split: str) -> Any:
    return read_coco(*find_split(folder, split))[0]


def test_own_data_set_with_a_validation_set(tmp_path: Path) -> None:
    folder, log = materialise({"train": Own(), "val": Own(count=3)}, tmp_path)
    data = read(folder, "train")
    assert (len(data), data.classes, len(read(folder, "val"))) == (10, CLASSES, 3)
    for index in range(10):
        boxes, labels, crowd = data.boxes_of(index)
        assert boxes.tolist() == Own()[index]["boxes"]
        assert labels.tolist() == Own()[index]["labels"]
        assert not crowd.any()
        with Image.open(data.path_of(index)) as image:
            assert np.array_equal(np.array(image), pixels(index))
    assert log.notes == [f"the data set is written to {folder}"]
    assert materialise({"train": Own(), "val": Own(count=3)}, tmp_path)[0] == folder
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]


def test_a_fifth_is_held_out(tmp_path: Path) -> None:
    folder, log = materialise(Own(count=20), tmp_path)
    train, val = (read(folder, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.names) & set(val.names)
    assert "no validation set is given: 4 of 20 images are held out for it (seed 0)" in log.notes
    assert materialise(Own(count=20), tmp_path)[0] == folder
    assert materialise(Own(count=21), tmp_path)[0] != folder


def test_every_kind_of_image_and_item(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "a b.png")
    images = [
        pixels(0),
        torch.from_numpy(pixels(0)).permute(2, 0, 1),
        Image.fromarray(pixels(0)),
        tmp_path / "a b.png",
        str(tmp_path / "a b.png"),
    ]
    boxes = torch.tensor([[1.0, 2, 30, 20], [0, 0, 9, 9]])
    items = [
        SimpleNamespace(image=one, boxes=boxes, labels=torch.tensor([1, 0]), crowd=[False, True], id=50 - row)
        for row, one in enumerate(images)
    ]

    class Items(list[Any]):
        classes = CLASSES

    folder, _ = materialise({"train": Items(items), "val": Items(items)}, tmp_path / "new" / "deep")
    data = read(folder, "train")
    assert data.ids.tolist() == [50, 49, 48, 47, 46]
    assert data.path_of(3).resolve() == tmp_path / "a b.png"
    for index in range(len(data)):
        assert data.boxes_of(index)[0].tolist() == boxes.tolist()
        assert data.boxes_of(index)[2].tolist() == [False, True]
        with Image.open(data.path_of(index)) as image:
            assert np.array_equal(np.array(image), pixels(0))


def _with(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda item: {key: value for key, value in {**item, **values}.items() if value is not None}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no image": (_with(image=None), r"train\[4\], a dict, has no 'image'"),
    "no boxes": (_with(boxes=None), "has no 'boxes'"),
    "text": (_with(image=5), "the image is a int: give a PIL image"),
    "missing file": (_with(image="gone.jpg"), "the image .*gone.jpg is missing"),
    "grey": (
        _with(image=pixels(0)[..., 0]),
        r"shape \(30, 40\) uint8: give an array \(H, W, 3\)",
    ),
    "float": (
        _with(image=torch.zeros(3, 30, 40)),
        r"shape \(3, 30, 40\) float32: give a tensor",
    ),
    "five numbers": (_with(boxes=[[1, 1, 2, 2, 3]]), r"boxes have shape \(1, 5\), not \(G, 4\)"),
    "ragged": (_with(boxes=[[1, 1, 2], [1]]), "boxes are not of equal length"),
    "words": (_with(boxes=[["a", "b", "c", "d"]]), "boxes are not numbers"),
    "empty box": (_with(boxes=[[5, 5, 5, 9]]), r"box 0 is \[5.0, 5.0, 5.0, 9.0\]: x1 < x2"),
    "nan": (_with(boxes=[[5, 5, float("nan"), 9]]), "box 0 is"),
    "too few labels": (_with(labels=[]), r"labels have shape \(0,\)"),
    "float label": (_with(labels=[0.0]), "float64, for 1 boxes: give an int for each"),
    "label": (_with(labels=[2]), "label 2 of box 0 is not 0..1, as there are 2 classes"),
    "crowd": (_with(crowd=[True, False]), r"crowd has shape \(2,\)"),
    "id": (_with(id=1), r"id 1 is also that of train\[0\]"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_item_is_named(kind: str, tmp_path: Path) -> None:
    change, says = WRONG[kind]
    with pytest.raises(UserError, match=says) as caught:
        materialise(Own(change), tmp_path / "out")
    assert "train[4]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


class Nameless(Own):
    classes = ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"val": Own()}, r"data sets \['val'\]: give 'train' and 'val'"),
        ({"train": Own(), "test": Own()}, "'test', 'train'"),
        ([1, 2], "a list, has no classes: see msefpn.data.datasets.Dataset, or use msefpn.data.from_torch"),
        (Nameless(), "give each class one name"),
        (Own(count=0), "no object in its 0 images"),
        (Own(count=1), "no object in its 1 images"),
        (Own(count=2), "too few different images to hold out"),
    ],
)
def test_what_is_not_a_data_set(given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        materialise(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device: give another --out"):
        materialise(Own(), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Torch(TorchDataset[Any]):
    """As torchvision's detection data sets are; labels from 1."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        item = Own()[index]
        boxes, labels = torch.tensor(item["boxes"]).reshape(-1, 4), torch.tensor(item["labels"]).long() + 1
        crowd = torch.zeros(len(boxes), dtype=torch.int64)
        target = {"boxes": boxes, "labels": labels, "image_id": torch.tensor([index + 7]), "iscrowd": crowd}
        return torch.from_numpy(item["image"]).permute(2, 0, 1) / 255, target


class Annotated(TorchDataset[Any]):
    """As torchvision's CocoDetection."""

    coco = SimpleNamespace(cats={9: {"id": 9, "name": "dog"}, 4: {"id": 4, "name": "cat"}})

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = Own()[index]
        notes = [
            {
                "image_id": index,
                "bbox": [x, y, right - x, low - y],
                "category_id": [4, 9][label],
                "iscrowd": 0,
            }
            for (x, y, right, low), label in zip(item["boxes"], item["labels"], strict=True)
        ]
        return Image.fromarray(item["image"]), notes


@pytest.mark.parametrize(
    "given",
    [from_torch(Torch(), {2: "dog", 1: "cat"}), from_torch(Annotated())],
    ids=["boxes", "annotations"],
)
def test_torch_data_sets(given: Any, tmp_path: Path) -> None:
    folder, _ = materialise({"train": given, "val": given}, tmp_path)
    _is_as_own(folder)


def _is_as_own(folder: Path) -> None:
    data = read(folder, "train")
    assert data.classes == CLASSES
    for index in range(10):
        assert data.boxes_of(index)[0].tolist() == Own()[index]["boxes"]
        assert data.boxes_of(index)[1].tolist() == Own()[index]["labels"]
        with Image.open(data.path_of(index)) as image:
            assert np.array_equal(np.array(image), pixels(index))


@pytest.mark.parametrize(
    ("dataset", "classes", "says"),
    [
        (Torch(), None, "needs the names of the classes"),
        (Torch(), CLASSES, r"label 2 of item 1 .* give classes as \{label: name\}"),
        ([(torch.full((3, 9, 9), -1.5), {"boxes": [], "labels": []})], CLASSES, "not within 0..1"),
        ([5], CLASSES, r"a int, not \(image, target\)"),
        ([(5, {"boxes": []})], CLASSES, "has no 'boxes' and 'labels'"),
    ],
)
def test_wrong_torch_data_sets(dataset: Any, classes: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        materialise(from_torch(dataset, classes), tmp_path)


class Table:
    """As a data set of Hugging Face; its objects are a record of lists, or a list of records."""

    def __init__(self, *, records: bool, names: Sequence[str] | None = CLASSES, text: bool = False) -> None:
        label = SimpleNamespace(names=list(names)) if names else SimpleNamespace()
        columns = {"bbox": SimpleNamespace(feature=None), "category": SimpleNamespace(feature=label)}
        several = SimpleNamespace(feature={"bbox": None, "category": label})
        self.features = {"image": None, "objects": several if records else columns}
        self.records = records
        self.text = text

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = Own()[index]
        boxes = [[x, y, right - x, low - y] for x, y, right, low in item["boxes"]]
        labels = [CLASSES[label] if self.text else label for label in item["labels"]]
        objects: Any = {"bbox": boxes, "category": labels}
        if self.records:
            objects = [{"bbox": box, "category": label} for box, label in zip(boxes, labels, strict=True)]
        return {"image": Image.fromarray(item["image"]), "objects": objects}


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_hugging_face_like(records: bool, text: bool, tmp_path: Path) -> None:
    classes = CLASSES if text else None
    table = Table(records=records, names=None if text else CLASSES, text=text)
    given = from_hugging_face({"train": table, "validation": table, "other": table}, classes=classes)
    assert list(given) == ["train", "val"]
    _is_as_own(materialise(given, tmp_path)[0])


def test_hugging_face_boxes_may_be_corners(tmp_path: Path) -> None:
    given = from_hugging_face(Table(records=True), box_format="xyxy")
    boxes = given[5]["boxes"].tolist()
    assert boxes == [[5, 1, 9.5, 19], [0, 0, 40, 30]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"box_format": "yolo"}, "box_format is 'yolo'"),
        ({"objects": "faces"}, "has no column 'faces', only image, objects"),
        ({"labels": "kind"}, "'kind' of 'objects' is not a ClassLabel with names"),
    ],
)
def test_wrong_hugging_face_data_sets(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_hugging_face(Table(records=False), **options)
    with pytest.raises(UserError, match="without streaming"):
        from_hugging_face(iter([]))
    with pytest.raises(UserError, match="category 'dog' of row 1 is not among"):
        from_hugging_face(Table(records=False, text=True), classes=["cat"])[1]


@pytest.mark.parametrize("records", [False, True])
def test_hugging_face(records: bool, tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    label = hub.ClassLabel(names=list(CLASSES))
    numbers = hub.Value("float32")
    objects: Any = {"bbox": [[numbers]], "category": [label]}
    if records:
        objects = [{"bbox": [numbers], "category": label}]
    features = hub.Features({"image": hub.Image(), "objects": objects})
    table = Table(records=records)
    made = hub.Dataset.from_generator(
        lambda: (table[index] for index in range(10)), features=features, cache_dir=str(tmp_path / "cache")
    )
    given = from_hugging_face(hub.DatasetDict({"train": made, "test": made}))
    _is_as_own(materialise(given, tmp_path / "out")[0])


def test_the_written_set_is_like_any_other(tmp_path: Path) -> None:
    folder, _ = materialise(Own(count=20), tmp_path)
    content = json.loads((folder / "train.json").read_text())
    assert [item["name"] for item in content["categories"]] == list(CLASSES)
    assert {item["file_name"] for item in content["images"]} == {
        file.name for file in (folder / "train").iterdir()
    }

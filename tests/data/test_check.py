"""The report on a data set."""

import json
from pathlib import Path

import numpy as np
import pytest

from msefpn.data.check import box_sizes, inspect_splits
from msefpn.data.coco import CocoData
from msefpn.data.packed import PackedNames
from msefpn.errors import UserError
from msefpn.training.data import read_data
from msefpn.training.plan import plan_training
from tests import copy_to
from tests.data.sets import BOXES_ALONE


def _data(boxes: list[list[float]]) -> CocoData:
    """Return one image of 1000 x 500 with the boxes."""
    count = len(boxes)
    return CocoData(
        file=Path("x.json"),
        folder=Path("x"),
        names=PackedNames.pack(["a.jpg"]),
        ids=np.array([1]),
        sizes=np.array([[500, 1000]]),
        offsets=np.array([0, count]),
        boxes=np.array(boxes, dtype=np.float32),
        areas=np.ones(count),
        labels=np.zeros(count, dtype=np.int64),
        crowd=np.zeros(count, dtype=np.bool_),
        classes=("thing",),
        category_ids=(1,),
    )


def test_sizes_against_pyramid_and_anchors() -> None:
    sides = [8, 64, 128, 256, 512]
    boxes = [[0.0, 0.0, side, side] for side in sides] + [[0.0, 0.0, 400.0, 40.0]]
    found = box_sizes(_data(boxes), (500, 500))  # halves the image
    assert found.level_share == pytest.approx({4: 2 / 6, 8: 2 / 6, 16: 1 / 6, 32: 1 / 6, 64: 0})
    assert found.tiny_share == pytest.approx(1 / 6)
    assert found.narrow_share == pytest.approx(1 / 6)
    assert found.quantiles[0] == pytest.approx(4)
    assert found.quantiles[100] == pytest.approx(256)


def test_built_in_set_is_ready(tiny_set: Path) -> None:
    found = inspect_splits(tiny_set, size=(160, 160))
    assert found.usable
    assert found.exit_code == 0
    assert [split.name for split in found.splits] == ["train", "val"]
    assert [split.images for split in found.splits] == [12, 5]
    assert sum(found.splits[0].per_class.values()) == found.splits[0].boxes > 20
    assert "ready to train" in str(found)
    assert "closest level (stride/anchor): 4/32" in str(found)


def test_faults_that_stop_are_all_listed(tiny_set: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_set / "train.json").read_text())
    content["annotations"][0]["category_id"] = 99
    content["images"][0]["file_name"] = "gone.jpg"
    (tmp_path / "spoilt.json").write_text(json.dumps(content))
    found = inspect_splits(train_json=tmp_path / "spoilt.json", train_images=tiny_set / "train")
    assert not found.usable
    assert found.exit_code == 2
    assert found.counts["train"]["unknown category"] == found.counts["train"]["missing image"] == 1
    assert "gone.jpg (image 1)" in str(found)
    assert "not ready" in str(found)


def test_other_classes_in_val(tiny_set: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_set / "val.json").read_text())
    content["categories"][0]["name"] = "disc"
    (tmp_path / "val.json").write_text(json.dumps(content))
    found = inspect_splits(tiny_set, val_json=tmp_path / "val.json", val_images=tiny_set / "val")
    assert not found.usable
    assert "train only: circle; val only: disc" in found.differences[0]


def test_other_category_ids_in_val_are_no_difference(tiny_set: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_set / "val.json").read_text())
    for item in content["categories"]:
        item["id"] += 10
    for item in content["annotations"]:
        item["category_id"] += 10
    (tmp_path / "val.json").write_text(json.dumps(content))
    found = inspect_splits(tiny_set, val_json=tmp_path / "val.json", val_images=tiny_set / "val")
    assert found.usable
    assert not found.differences


def test_needs_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no train split"):
        inspect_splits(tmp_path)
    with pytest.raises(UserError, match="no data to check"):
        inspect_splits()
    with pytest.raises(UserError, match="would not be used"):
        inspect_splits(tmp_path, train_json="train.json", val_json="val.json")


@pytest.mark.parametrize(
    ("names", "says"), [(["train"], "no val split in"), (["train", "val"], "val.json has no image folder")]
)
def test_without_val(names: list[str], says: str, tiny_set: Path, tmp_path: Path) -> None:
    for name in (*(f"{name}.json" for name in names), "train"):
        copy_to(tiny_set / name, tmp_path / name)
    found = inspect_splits(tmp_path)
    assert [split.name for split in found.splits] == ["train"]
    assert not found.usable
    assert says in found.missing
    assert "val: stops a run: " in str(found)
    plan = plan_training(tmp_path, {}, recipe=None, out=tmp_path / "o", resume=False, steps=None, options={})
    with pytest.raises(UserError, match=says):
        read_data(plan, BOXES_ALONE)


def test_without_val_beside_a_json(tiny_set: Path) -> None:
    assert not inspect_splits(train_json=tiny_set / "train.json").usable


def test_real_set(shared: Path) -> None:
    text = str(inspect_splits(shared / "data" / "bccd", size=(320, 320)))
    assert "2 zero-area boxes: dropped" in text
    assert "BloodImage_00338.jpg (annotation 3153)" in text

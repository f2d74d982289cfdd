"""Dividing a data set: shares of the classes, groups, the same for a seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msefpn.data.formats import LoadedDataset, ReadLog, Split
from msefpn.data.split import Division, divide
from msefpn.errors import UserError


def source(tmp_path: Path, *labels: str, test: bool = False, **keys: list[Any]) -> LoadedDataset:
    """One image for each text, one object for each letter of it; file names are patient_image."""
    classes = sorted(set("".join(labels)))
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for index, letters in enumerate(labels, 1):
        name = f"p{index % 5}_{index}.jpg"
        (tmp_path / name).write_text(f"{index}")
        images.append(
            {"id": index, "file_name": name} | {key: value[index - 1] for key, value in keys.items()}
        )
        for letter in letters:
            note = {"id": len(notes) + 1, "image_id": index, "category_id": classes.index(letter), "bbox": []}
            notes.append(note)
    categories = [{"id": index, "name": name} for index, name in enumerate(classes)]
    part = Split(tmp_path, tmp_path, {"images": images, "annotations": notes, "categories": categories})
    return LoadedDataset(tmp_path, "coco", {"train": part} | ({"test": part} if test else {}), ReadLog())


def names(division: Division, split: str) -> set[str]:
    return {item["file_name"] for item in division.splits[split].content["images"]}


def test_every_class_has_its_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels = ["".join(rng.choice(list("aaaabbc"), rng.integers(0, 6))) for _ in range(200)]
    labels[:4] = ["ax", "x", "yb", "z"]
    labels[4] = "ay"
    found = divide(source(tmp_path, *labels), 0.25, 0, None)
    images = {split: len(part.content["images"]) for split, part in found.splits.items()}
    assert images["train"] + images["val"] == 200
    assert images["val"] == pytest.approx(50, abs=5)
    for name in "abc":
        counts = found.boxes[name]
        assert counts["val"] / (counts["train"] + counts["val"]) == pytest.approx(0.25, abs=0.03)
    assert found.boxes["x"] == found.boxes["y"] == {"train": 1, "val": 1}
    assert found.boxes["z"] == {"train": 1, "val": 0}
    assert "'z' is not in val" in str(found)
    assert not names(found, "train") & names(found, "val")


def test_same_seed_same_division(tmp_path: Path) -> None:
    data = source(tmp_path, *(["a", "ab", ""] * 10))
    first, again, other = (names(divide(data, 0.3, seed, None), "val") for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("group", [r"^(p\d+)_", "^p[0-9]+", "patient"])
def test_a_group_is_on_one_side(group: str, tmp_path: Path) -> None:
    data = source(tmp_path, *["a", "ab"] * 15, patient=[index % 5 for index in range(1, 31)])
    found = divide(data, 0.2, 0, group)
    sides = [{name.split("_")[0] for name in names(found, split)} for split in ("train", "val")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == found.groups == 5


def test_files_with_the_same_bytes_are_on_one_side(tmp_path: Path) -> None:
    data = source(tmp_path, *["a"] * 40)
    for index in range(1, 41):
        (tmp_path / f"p{index % 5}_{index}.jpg").write_text(f"{index // 2:02d}")
    found = divide(data, 0.5, 0, None)
    bytes_of = [{(tmp_path / name).read_text() for name in names(found, side)} for side in ("train", "val")]
    assert not bytes_of[0] & bytes_of[1]
    assert found.groups == 21


def test_a_test_split_is_kept(tmp_path: Path) -> None:
    data = source(tmp_path, *["a"] * 10, test=True)
    found = divide(data, 0.5, 0, None)
    assert found.splits["test"] is data.splits["test"]
    assert len(names(found, "train")) == len(names(found, "val")) == 5


@pytest.mark.parametrize(
    ("share", "group", "says"),
    [
        (1.0, None, "val is 1.0"),
        (0.2, "(", "nor a regular expression"),
        (0.2, "z+", "matches no file name, such as 'p1_1.jpg'"),
        (0.2, "^p", "1 groups of images cannot be divided"),
    ],
)
def test_what_cannot_be_divided(share: float, group: str | None, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        divide(source(tmp_path, *["a"] * 10), share, 0, group)
    assert says in str(caught.value)

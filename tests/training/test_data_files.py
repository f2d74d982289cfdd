"""Which files a training reads: names that are corrected, classes matched by name, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.training.data import find_files, read_splits
from tests.data.sets import coco, picture


def two_splits(root: Path, name: str) -> Path:
    """Train and val of one picture each, which the jsons call `name`."""
    for part in ("train", "val"):
        picture(root / part / "0.png", seed=len(part))
        coco(root, {1: name}, [{"image_id": 1}], split=part)
    return root


@pytest.mark.parametrize("by_json", [False, True])
def test_names_are_fixed_where_asked_for(by_json: bool, tmp_path: Path) -> None:
    data = two_splits(tmp_path / "data", "images\\0.png")
    given = {
        f"{part}_{what}": data / f"{part}{'.json' if what == 'json' else ''}"
        for part in ("train", "val")
        for what in ("json", "images")
    }
    source: tuple[Any, dict[str, Path]] = (None, given) if by_json else (data, {})
    with pytest.raises(UserError, match=r"a picture of that name is 0\.png; --fix-names takes it"):
        read_splits(find_files(*source, tmp_path / "runs"), masks=False)
    files = find_files(*source, tmp_path / "runs", fix_names=True)
    _, (train, _), (val, _) = read_splits(files, masks=False)
    assert [*train.names, *val.names] == ["0.png", "0.png"]
    assert train.boxes.tolist() == [[10, 10, 30, 30]]
    assert "images" in (data / "train.json").read_text(), "the user's own file stays"


def test_a_training_refuses_names_that_lead_out(tmp_path: Path) -> None:
    picture(tmp_path / "private.png")
    data = two_splits(tmp_path / "data", "../../private.png")
    with pytest.raises(UserError, match="outside image"):
        read_splits(find_files(data, {}, tmp_path / "runs"), masks=False)


def test_classes_of_val_in_another_order(tmp_path: Path) -> None:
    data = two_splits(tmp_path / "data", "0.png")
    for part, names in (("train", ("red", "blue")), ("val", ("blue", "red"))):
        content = json.loads((data / f"{part}.json").read_text())
        content["categories"] = [{"id": 5 * n + 1, "name": name} for n, name in enumerate(names)]
        content["annotations"][0]["category_id"] = 5 * names.index("red") + 1
        (data / f"{part}.json").write_text(json.dumps(content))
    _, (train, _), (val, _) = read_splits(find_files(data, {}, tmp_path / "runs"), masks=False)
    assert [one.classes[one.labels[0]] for one in (train, val)] == ["red", "red"]


def test_one_json_is_not_a_folder_with_splits(tmp_path: Path) -> None:
    data = two_splits(tmp_path / "data", "0.png")
    with pytest.raises(UserError, match="is one file without a train split: 'msefpn split"):
        find_files(data / "train.json", {}, tmp_path / "runs")

"""The cases of the shared folder come out as its expected.json says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msefpn.cli import main
from msefpn.commands.data import check, convert, split
from msefpn.data.formats import open_source
from msefpn.data.reader import read_coco
from msefpn.errors import UserError


@pytest.fixture(scope="module")
def cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cases")
    if not (shared / "cases/make.py").is_file():
        pytest.skip("the shared folder has no cases")
    subprocess.run([sys.executable, str(shared / "cases/make.py"), str(out)], check=True, capture_output=True)
    return out


def expected(cases: Path, name: str) -> Any:
    return json.loads((cases / "expected.json").read_text())[name]


def told(data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main(["check", str(data)])
    return "".join(capsys.readouterr())


def converted(data: Path, out: Path, part: str = "train", **options: Any) -> dict[str, list[list[float]]]:
    """File name -> boxes, as `convert` writes them."""
    convert(data, out=out, **options)
    content = json.loads((out / f"{part}.json").read_text())
    found: dict[int, list[list[float]]] = {item["id"]: [] for item in content["images"]}
    for note in content["annotations"]:
        found[note["image_id"]].append(note["bbox"])
    return {item["file_name"]: found[item["id"]] for item in content["images"]}


@pytest.mark.parametrize(
    ("name", "key"), [("labelme_renamed", "boxes"), ("voc_decimals", "boxes within 0.5 px")]
)
def test_boxes(name: str, key: str, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, wanted = converted(cases / name, tmp_path / "out"), expected(cases, name)[key]
    assert found.keys() == wanted.keys()
    for file, boxes in wanted.items():
        np.testing.assert_allclose(found[file], boxes, atol=0.5)
    says = "names another picture" if name == "labelme_renamed" else "count from 0"
    assert says.replace("names", "name") in told(cases / name, capsys)


def test_pairs(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(converted(cases / "yolo_pairs", tmp_path / "out")) == ["b.jpg"]
    text = told(cases / "yolo_pairs", capsys)
    assert "a.txt: serves 2 pictures" in text
    assert "lost.txt" in text


@pytest.mark.parametrize("kind", ["half", "twice"])
@pytest.mark.parametrize("form", ["voc", "labelme", "coco"])
def test_stale_sizes(
    kind: str, form: str, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = expected(cases, f"stale_sizes/{kind}")["either"][0]["every box"]
    data = cases / "stale_sizes" / kind / form
    for part in ("train", "val"):
        for boxes in converted(data, tmp_path / part, part).values():
            np.testing.assert_allclose(boxes, [box], atol=0.01)
    assert "rescaled" in told(data, capsys)


def test_suffixes_links_and_listed(cases: Path, tmp_path: Path) -> None:
    there = list((cases / "yolo_suffixes/images").iterdir())
    assert len(converted(cases / "yolo_suffixes", tmp_path / "a")) == len(there)
    wanted = expected(cases, "linked_folder")["images"]
    assert len(converted(cases / "linked_folder/yolo", tmp_path / "b", follow_links=True)) == wanted
    thrice = converted(cases / "listed_thrice", tmp_path / "c")
    assert [len(boxes) for boxes in thrice.values()] == [3, 3, 3]
    assert check(cases / "listed_thrice").counts["train"]["image listed again"] == 6


def test_crowd(cases: Path) -> None:
    data, report = read_coco(cases / "crowd_text/train.json", cases / "crowd_text/train")
    wanted = expected(cases, "crowd_text")
    owner = np.repeat(data.ids, np.diff(data.offsets))
    assert owner[data.crowd].tolist() == wanted["crowd"]
    assert owner[~data.crowd].tolist() == wanted["objects"]
    assert [fault.id for fault in report.of("unclear iscrowd")] == [
        f"annotation {number}" for number in wanted["named as a fault"]
    ]


@pytest.mark.parametrize("kind", ["windows", "server", "nested"])
def test_moved_paths(kind: str, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = cases / "moved_paths" / kind
    assert "a picture of that name is 0.jpg" in told(data, capsys)
    with pytest.raises(UserError, match="a picture of that name"):
        convert(data, out=tmp_path / "not")
    found = converted(data, tmp_path / "out", fix_names=True)
    assert found == {f"{n}.jpg": [[10 * n + 10, 20, 40, 30]] for n in range(3)}


def test_absolute_and_outside_names(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(cases / "absolute_names").usable
    assert len(converted(cases / "absolute_names", tmp_path / "a")) == 3
    split(cases / "absolute_names", out=tmp_path / "b", val=0.5)
    name = expected(cases, "outside_names")["refused by every verb"]
    for verb in ("check", "convert", "split"):
        assert main([verb, str(cases / "outside_names/data")]) == 2
        assert name in "".join(capsys.readouterr())
    with pytest.raises(UserError, match="outside image"):
        read_coco(cases / "outside_names/data/val.json", cases / "outside_names/data/val")


def test_class_order(cases: Path, tmp_path: Path) -> None:
    assert check(cases / "class_order").usable
    convert(cases / "class_order", out=tmp_path / "yolo", to="yolo")
    lines = {(tmp_path / f"yolo/labels/{part}/0.txt").read_text() for part in ("train", "val")}
    assert len(lines) == 1
    split(cases / "class_order", out=tmp_path / "divided")
    divided = open_source(tmp_path / "divided").splits
    for part in divided.values():
        names = {item["id"]: item["name"] for item in part.content["categories"]}
        assert {(names[note["category_id"]], note["bbox"][0]) for note in part.content["annotations"]} == {
            ("red", 20),
            ("blue", 100),
        }

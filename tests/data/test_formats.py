"""Other formats than COCO's: what is read, what is named and skipped, and the round trip through YOLO."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msefpn import plugins
from msefpn.data.coco import CocoData
from msefpn.data.formats import ReadLog, detect_format, open_source
from msefpn.data.formats.write import as_coco, write_coco, write_yolo
from msefpn.data.formats.yolo import _object, label_lines
from msefpn.data.packed import PackedNames
from msefpn.errors import UserError
from tests import copy_to

ODD = "a <b>ünï & 1.jpg"


def picture(file: Path, size: tuple[int, int] = (100, 50), turn: int = 1) -> Path:
    """Save an image of width x height; `turn`: its EXIF orientation."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", size, (90, len(file.name), 30)).save(file, exif=exif)
    return file


def text(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def objects(content: dict[str, Any]) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> class and box of its objects."""
    names = {item["id"]: item["name"] for item in content["categories"]}
    found: dict[int, list[tuple[str, list[float]]]] = {item["id"]: [] for item in content["images"]}
    for note in content["annotations"]:
        found[note["image_id"]].append((names[note["category_id"]], note["bbox"]))
    return {item["file_name"]: found[item["id"]] for item in content["images"]}


def xml(name: str, *boxes: tuple[str, Any, Any, Any, Any], size: str = "") -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    items = "".join(
        f"<object><name>{label}</name><difficult>1</difficult><bndbox>"
        + "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for label, *box in boxes
    )
    return f"<annotation><filename>{name}</filename>{size}{items}</annotation>"


def test_voc_with_lists(tmp_path: Path) -> None:
    home = tmp_path / "VOC2007"
    for name in ("1.jpg", "2.jpg", "3 4.jpg", "5.jpg"):
        picture(home / "JPEGImages" / name)
    text(home / "Annotations/1.xml", xml("1.jpg", ("dog", 1, 1, 100, 50), ("&lt;cat&gt;", 11, 11, 20, 15)))
    text(home / "Annotations/2.xml", xml("2.jpg"))
    text(home / "Annotations/3 4.xml", xml("..\\other\\3 4.jpg", ("dog", 2, 3, 4, 5)))
    text(home / "Annotations/5.xml", "<annotation><object>")
    text(home / "ImageSets/Main/train.txt", "1\n2  1\n5\n9\n")
    text(home / "ImageSets/Main/test.txt", "3 4\n")
    source = open_source(tmp_path)
    assert source.format == "voc"
    assert objects(source.splits["train"].content) == {
        "1.jpg": [("dog", [0, 0, 100, 50]), ("<cat>", [10, 10, 10, 5])],
        "2.jpg": [],
    }
    assert objects(source.splits["test"].content) == {"3 4.jpg": [("dog", [1, 2, 3, 3])]}
    assert [Path(line.split(":")[0]).name for line in source.log.skipped] == ["5.xml", "9.xml"]
    assert "is not a complete xml" in source.log.skipped[0]
    assert "3 objects are marked as difficult" in source.log.notes[-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (xml("1.jpg", ("dog", 1, "x", 3, 4)), "object 1: could not convert string to float: 'x'"),
        (xml("1.jpg", ("dog", 1, "nan", 3, 4)), "not a finite number"),
        (xml("1.jpg", ("", 1, 2, 3, 4)), "object 1 has no name"),
        (xml("1.jpg", ("dog", 1, 2, 3, 4)).replace("ymin>", "top>"), "object 1 has no ymin"),
        ("<html></html>", "has no <annotation>"),
        ("", "is not a complete xml"),
    ],
)
def test_a_broken_xml_is_named(content: str, says: str, tmp_path: Path) -> None:
    for name in ("1", "2"):
        picture(tmp_path / f"{name}.jpg")
    text(tmp_path / "1.xml", content)
    text(tmp_path / "2.xml", xml("2.jpg", ("dog", 1, 2, 3, 4)))
    source = open_source(tmp_path)
    assert list(objects(source.splits["train"].content)) == ["2.jpg"]
    assert len(source.log.skipped) == 1
    assert says in source.log.skipped[0]
    assert source.log.skipped[0].startswith(str(tmp_path / "1.xml"))


def test_voc_counted_from_zero_and_turned_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", turn=6)
    picture(tmp_path / "b.jpg", turn=6)
    stored = "<size><width>100</width><height>50</height></size>"
    text(tmp_path / "a.xml", xml("a.jpg", ("x", 0, 3, 10, 13)))
    text(tmp_path / "b.xml", xml("b.jpg", ("x", 5, 3, 10, 13), size=stored))
    source = open_source(tmp_path)
    sizes = [(item["width"], item["height"]) for item in source.splits["train"].content["images"]]
    assert sizes == [(50, 100), (100, 50)]
    assert objects(source.splits["train"].content)["a.jpg"] == [("x", [0, 3, 10, 10])]
    assert "corners count from 0" in source.log.notes[0]


def yolo(root: Path, about: str, **labels: str | None) -> Path:
    """A YOLO folder with train images of 100 x 50."""
    text(root / "data.yaml", about)
    for name, lines in labels.items():
        picture(root / "images" / "train" / f"{name}.jpg")
        if lines is not None:
            text(root / "labels" / "train" / f"{name}.txt", lines)
    return root


NAMES = ("names: [no, '1']", "names:\n  0: no\n  1: 1\nnc: 2")


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(
    "train", ["images/train", "../images/train", "path: /gone\ntrain: images/train", "list.txt"]
)
def test_yolo(names: str, train: str, tmp_path: Path) -> None:
    where = train if "train:" in train else f"train: {train}"
    polygon = "1 0.1 0.2 0.3 0.2 0.2 0.4\n"
    yolo(tmp_path, f"{where}\n{names}\nval: gone\n", a="0 0.5 0.5 0.2 0.4\n\n" + polygon, b="", c=None)
    text(tmp_path / "list.txt", "".join(f"./images/train/{name}.jpg\n" for name in "abc"))
    source = open_source(tmp_path)
    assert source.format == "yolo"
    content = source.splits["train"].content
    assert [item["name"] for item in content["categories"]] == ["no", "1"]
    assert objects(content) == {
        "a.jpg": [("no", [40, 15, 20, 20]), ("1", [10, 10, 20, 10])],
        "b.jpg": [],
        "c.jpg": [],
    }
    assert content["annotations"][1]["segmentation"] == [[10, 10, 30, 10, 20, 20]]
    assert content["annotations"][1]["area"] == 100
    notes = " ".join(source.log.notes)
    assert "1 images have no label file" in notes
    assert "val: 'gone' of data.yaml does not exist" in notes


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("2 .5 .5 .1 .1", "line 1: class 2, but there are 2 classes"),
        ("-1 .5 .5 .1 .1", "class -1"),
        ("0.5 .5 .5 .1 .1", "class 0.5"),
        ("0 .5 .5 .1", "4 numbers"),
        ("0 .5 .5 .1 .1 .9", "6 numbers"),
        ("0 50 20 10 10", "not within 0 to 1"),
        ("0 nan .5 .1 .1", "not within 0 to 1"),
        ("0 .5 .5 .1 wide", "could not convert"),
    ],
)
def test_a_broken_line_is_named(line: str, says: str, tmp_path: Path) -> None:
    yolo(tmp_path, "train: images/train\nnames: [a, b]", good="0 .5 .5 .1 .1", bad=line)
    source = open_source(tmp_path)
    assert list(objects(source.splits["train"].content)) == ["good.jpg"]
    assert says in source.log.skipped[0]
    assert "bad.txt: line 1" in source.log.skipped[0]


def test_broken_files_of_yolo_are_named(tmp_path: Path) -> None:
    line = "0 .5 .5 .1 .1"
    yolo(tmp_path, "train: images/train\nnames: [a]", good=line, zero=line, torn=line, odd=line)
    (tmp_path / "images/train/zero.jpg").write_bytes(b"")
    torn = tmp_path / "images/train/torn.jpg"
    torn.write_bytes(torn.read_bytes()[:-200])
    (tmp_path / "labels/train/odd.txt").write_bytes(b"\xff\xfe0")
    skipped = open_source(tmp_path).log.skipped
    assert [Path(line.split(":")[0]).name for line in skipped] == ["odd.txt", "torn.jpg", "zero.jpg"]


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ("train: images/train\nnames: [a, a]", "class 'a' is named twice"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2, but there are 1 names"),
        ("train: images/train\nnames: {0: a, 2: b}", "without a gap"),
        ("train: images/train\nnames: []", "names must be a list"),
        ("train: /gone/images\nnames: [a]", "train names '/gone/images', which does not exist"),
        ("train: {a: b}\nnames: [a]", "train must be a folder"),
        ("names: [a\n", "is not valid YAML"),
    ],
)
def test_a_wrong_yaml_is_one_line(about: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.yaml") as caught:
        open_source(yolo(tmp_path, about, a="0 .5 .5 .1 .1"))
    assert says in str(caught.value)


def shape(label: str, points: Any, kind: str = "polygon", group: int | None = None) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group}


def labelme(file: Path, *shapes: Any, image: str = "") -> None:
    picture(file.with_suffix(".jpg"))
    size = {"imageHeight": 50, "imageWidth": 100}
    text(file, {"shapes": list(shapes), "imagePath": image or f"{file.stem}.jpg", **size})


def test_labelme(tmp_path: Path) -> None:
    labelme(
        tmp_path / "train" / "a.json",
        shape("<i>", [[30, 20], [10, 10]], "rectangle"),
        shape("dot", [[50, 25], [50, 35]], "circle"),
        shape("two", [[0, 0], [4, 0], [4, 4]], group=1),
        shape("two", [[10, 10], [14, 10], [14, 14]], group=1),
        shape("two", [[1, 1]], "point"),
        image="..\\elsewhere\\a.jpg",
    )
    labelme(tmp_path / "train" / "b.json")
    labelme(tmp_path / "train" / "c.json", shape("dot", [[1, "x"], [2, 3], [4, 5]]))
    labelme(tmp_path / "train" / "d.json", image="gone.jpg")
    text(tmp_path / "train" / "e.json", "{")
    labelme(tmp_path / "valid" / "v.json", shape("dot", [[1, 1], [9, 1], [9, 9]]))
    source = open_source(tmp_path)
    assert source.format == "labelme"
    found = objects(source.splits["train"].content)
    assert found["a.jpg"][0] == ("<i>", [10, 10, 20, 10])
    assert found["a.jpg"][1] == ("dot", [40, 15, 20, 20])
    assert found["a.jpg"][2:] == [("two", [0, 0, 14, 14])]
    assert found["b.jpg"] == []
    assert [Path(line.split(":")[0]).stem for line in source.log.skipped] == ["c", "e"]
    assert "d.json names gone.jpg" in source.log.notes[-1]  # but its own picture is there
    assert any("shapes without an area are skipped (point)" in note for note in source.log.notes)
    assert list(objects(source.splits["val"].content)) == ["v.jpg"]


def test_create_ml(tmp_path: Path) -> None:
    place = {"x": 50, "y": 25, "width": 20, "height": 10}
    note = {"label": "dog", "coordinates": place}
    for name in (ODD, "b.jpg", "c.jpg"):
        picture(tmp_path / "train" / name)
    entries = [
        {"image": ODD, "annotations": [note]},
        {"image": "b.jpg", "annotations": []},
        {"image": "c.jpg", "annotations": [{"label": "dog", "coordinates": place | {"width": None}}]},
        {"image": "gone.jpg", "annotations": [note]},
        7,
    ]
    text(tmp_path / "train" / "_annotations.createml.json", entries)
    source = open_source(tmp_path)
    assert source.format == "createml"
    assert objects(source.splits["train"].content) == {ODD: [("dog", [40, 20, 20, 10])], "b.jpg": []}
    assert ["c.jpg" in source.log.skipped[0], "missing" in source.log.skipped[1]] == [True, True]
    assert "entry 5 does not name an image" in source.log.skipped[2]


def test_a_name_that_leads_out_of_the_folder_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_set / "val.json").read_text())
    content["images"][0]["file_name"] = "../val/" + content["images"][0]["file_name"] + "/../../../x.jpg"
    content["images"][1]["file_name"] = "gone.jpg"
    text(tmp_path / "train.json", content)
    copy_to(tiny_set / "val", tmp_path / "train")
    with pytest.raises(UserError, match=r"outside image: .*x.jpg .image .*. leads out of"):
        open_source(tmp_path)
    content["images"][0]["file_name"] = "gone-too.jpg"
    text(tmp_path / "train.json", content)
    source = open_source(tmp_path)
    assert len(source.splits["train"].content["images"]) == 3
    assert ["gone" in line and "is missing in" in line for line in source.log.skipped] == [True, True]


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("gone", {}, "does not exist"),
        ("", {}, "no annotations found"),
        ("", {"format": "voc"}, "is not in the format voc"),
        ("", {"format": "vox"}, "did you mean 'voc'"),
    ],
)
def test_no_data_set(path: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        open_source(tmp_path / path, **options)


class Nothing:
    """A format that every folder is in, and that gives nothing."""

    def holds(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, images: Path | None, log: ReadLog) -> dict[str, Any]:
        return {}


@pytest.mark.usefixtures("registry")
def test_formats_of_plug_ins_come_last_and_are_checked(tiny_set: Path, tmp_path: Path) -> None:
    plugins.register("format", "nothing")(Nothing)
    assert detect_format(tiny_set) == "coco"
    assert detect_format(tmp_path) == "nothing"
    with pytest.raises(UserError, match="format 'nothing' returned a dict, not a LoadedDataset"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="labelme, nothing, voc, yolo; your own: --plugin"):
        open_source(tmp_path, format="csv")


@pytest.mark.parametrize("write", [write_coco, partial(write_yolo, log=ReadLog())])
def test_round_trip(write: Callable[..., None], tiny_set: Path, tmp_path: Path) -> None:
    before = open_source(tiny_set)
    write(before.splits, tmp_path, link=True)
    after = open_source(tmp_path, follow_links=True)
    assert after.format == detect_format(tmp_path) != "voc"
    assert after.splits.keys() == before.splits.keys()
    assert not after.log.skipped
    for name, part in before.splits.items():
        old, new = part.read(ReadLog()), after.splits[name].read(ReadLog())
        assert (old.names, old.classes) == (new.names, new.classes)
        for have in ("sizes", "labels", "offsets"):
            np.testing.assert_array_equal(getattr(old, have), getattr(new, have))
        np.testing.assert_allclose(old.boxes, new.boxes, atol=1e-3)


def test_files_of_one_name_get_their_own_labels(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"a.{kind}"} for number, kind in enumerate(("jpg", "png"), 1)]
    notes = [{"id": n, "image_id": n, "category_id": 5, "bbox": [n, n, 9, 9]} for n in (1, 2)]
    for item in images:
        picture(tmp_path / "in" / "train" / str(item["file_name"]))
    text(
        tmp_path / "in" / "train.json",
        {"images": images, "annotations": notes, "categories": [{"id": 5, "name": "x"}]},
    )
    (tmp_path / "out").mkdir()
    write_yolo(open_source(tmp_path / "in").splits, tmp_path / "out", ReadLog(), link=False)
    found = objects(open_source(tmp_path / "out").splits["train"].content)
    assert found == {"a-2.png": [("x", [2, 2, 9, 9])], "a.jpg": [("x", [1, 1, 9, 9])]}


sides = st.integers(1, 8000)
shares = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(sides, sides), low=st.tuples(shares, shares), high=st.tuples(shares, shares))
def test_any_box_survives_yolo(
    size: tuple[int, int], low: tuple[float, float], high: tuple[float, float]
) -> None:
    height, width = size
    corners = np.sort(np.array([low, high]), 0) * [width, height]
    data = CocoData(
        file=Path(),
        folder=Path(),
        names=PackedNames.pack(["a.jpg"]),
        ids=np.array([1]),
        sizes=np.array([size]),
        offsets=np.array([0, 1]),
        boxes=corners.reshape(1, 4).astype(np.float32),
        areas=np.ones(1),
        labels=np.zeros(1, dtype=np.int64),
        crowd=np.zeros(1, dtype=np.bool_),
        classes=("x",),
        category_ids=(1,),
    )
    x, y, wide, high_ = _object(label_lines(data, 0, [0]).split(), (width, height), ["x"], False, "").box
    np.testing.assert_allclose([x, y, x + wide, y + high_], data.boxes[0], atol=1e-4)


def test_the_json_of_a_folder_follows_its_labels(tmp_path: Path) -> None:
    data = yolo(tmp_path / "cells", "train: images/train\nnames: [a]", a="0 .5 .5 .1 .1")
    first, _ = as_coco(data, tmp_path / "cache", ["train"])
    again, _ = as_coco(data / "data.yaml", tmp_path / "cache", ["train"])
    assert first.name.startswith("cells-")
    assert {file.name for file in first.iterdir()} == {"train.json", "train"}
    text(data / "labels/train/a.txt", "0 .5 .5 .2 .2")
    changed, _ = as_coco(data, tmp_path / "cache", ["train"])
    assert changed != first
    assert again == first
    assert sorted(data.rglob("*.json")) == []
    with pytest.raises(UserError, match="has no val split, only train: 'msefpn split"):
        as_coco(data, tmp_path / "cache", ["train", "val"])

"""Names that lead elsewhere, layouts of tools, and data that is not divided."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from msefpn.cli import main
from msefpn.commands.data import check, convert, split
from msefpn.data.coco import scan_coco
from msefpn.data.finding import SimilarNames, files_in
from msefpn.data.formats import detect_format, open_source
from msefpn.errors import UserError
from tests.data.sets import boxes, coco, labelme, picture, scan_both, voc, write

# Names.


def test_a_picture_listed_in_two_spellings_is_fixed_and_merged(tmp_path: Path) -> None:
    picture(tmp_path / "train/sub/a.png")
    notes = [{"image_id": n, "bbox": [20 * n, 10, 20, 20]} for n in (1, 2, 3)]
    coco(tmp_path, {1: "sub/a.png", 2: "sub\\a.png", 3: "SUB/A.png"}, notes)
    log: list[str] = []
    assert list(boxes(tmp_path, log)) == ["sub/a.png"]
    assert sum("is missing in" in line and "sub/a.png" in line for line in log) == 2
    assert boxes(tmp_path, fix_names=True) == {"sub/a.png": [[20.0 * n, 10, 20, 20] for n in (1, 2, 3)]}


def test_a_picture_listed_again_is_merged(tmp_path: Path) -> None:
    picture(tmp_path / "train/sub/a.png")
    names = {1: "sub/a.png", 2: "./sub/a.png", 3: "sub//a.png", 4: "sub/../sub/a.png"}
    lefts = (10, 40, 60, 10)
    notes = [{"image_id": n, "bbox": [left, 10, 20, 20]} for n, left in enumerate(lefts, 1)]
    coco(tmp_path, names, notes)
    log: list[str] = []
    found = boxes(tmp_path, log)
    assert found == {"sub/a.png": [[10, 10, 20, 20], [40, 10, 20, 20], [60, 10, 20, 20]]}
    assert any("3 images listed again (merged" in line for line in log)
    assert any("1 repeated annotation (dropped)" in line for line in log)


@pytest.mark.parametrize(
    "name",
    ["images\\0.png", "media/upload/4/0.png", "0.PNG", "%30.png", "../../media/0.png", "C:\\data\\0.png"],
)
def test_a_picture_of_a_similar_name(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "set/images/0.png")
    coco(tmp_path / "set", {1: name}, [{"image_id": 1}])
    (tmp_path / "set/train").rmdir()
    (tmp_path / "set/train.json").rename(tmp_path / "set/result.json")
    found = check(tmp_path / "set")
    assert "a picture of that name is 0.png" in str(found)
    with pytest.raises(UserError, match=r"a picture of that name is 0\.png; --fix-names takes it"):
        convert(tmp_path / "set", out=tmp_path / "not")
    assert not (tmp_path / "not").exists()
    convert(tmp_path / "set", out=tmp_path / "out", fix_names=True)
    assert boxes(tmp_path / "out") == {"0.png": [[10, 10, 20, 20]]}


def test_names_in_another_form_of_unicode(tmp_path: Path) -> None:
    picture(tmp_path / "ü.png")
    assert SimilarNames(tmp_path).find("ü.png") == [tmp_path / "ü.png"]


@pytest.mark.parametrize("form", ["voc", "labelme", "createml"])
def test_similar_names_in_other_formats(form: str, tmp_path: Path) -> None:
    picture(tmp_path / "A.png")
    if form == "voc":
        voc(tmp_path / "x.xml", (11, 11, 30, 30), "a.png")
    elif form == "labelme":
        labelme(tmp_path / "x.json", "a.png")
    else:
        place = {"x": 20, "y": 20, "width": 20, "height": 20}
        write(
            tmp_path / "x.json",
            [{"image": "a.png", "annotations": [{"label": "part", "coordinates": place}]}],
        )
    with pytest.raises(UserError, match="a picture of that name is"):
        open_source(tmp_path)
    assert boxes(tmp_path, fix_names=True) == {"A.png": [[10, 10, 20, 20]]}


@pytest.mark.parametrize("absolute", [False, True])
def test_a_name_that_leads_out_is_refused_by_every_verb(
    absolute: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = picture(tmp_path / "private.png")
    name = str(private) if absolute else "../../private.png"
    for part in ("train", "val"):
        picture(tmp_path / f"data/{part}/0.png")
        coco(tmp_path / "data", {0: "0.png", 1: name}, [{"image_id": 0}, {"image_id": 1}], split=part)
    for verb in ("check", "convert", "split"):
        out = ["--out", str(tmp_path / verb)] if verb != "check" else []
        assert main([verb, str(tmp_path / "data"), *out]) == 2
        assert "leads out of" in "".join(capsys.readouterr())
        assert not (tmp_path / verb).exists()
    data, report = scan_both(tmp_path / "data/train.json", tmp_path / "data/train")
    assert data is None
    assert report.stops[0].kind == "outside image"


@pytest.mark.parametrize("form", ["labelme", "createml", "yolo"])
@pytest.mark.parametrize("absolute", [False, True])
def test_names_that_lead_out_in_other_formats(form: str, absolute: bool, tmp_path: Path) -> None:
    private, data = picture(tmp_path / "private.png"), tmp_path / "data"
    picture(data / "images/a.png")
    name = str(private) if absolute else "../private.png"
    if form == "labelme":
        labelme(data / "x.json", name)
    elif form == "createml":
        place = {"x": 20, "y": 20, "width": 20, "height": 20}
        notes = [{"label": "part", "coordinates": place}]
        write(data / "x.json", [{"image": name, "annotations": notes}])
    else:
        write(data / "data.yaml", "names: [part]\ntrain: list.txt\n")
        write(data / "list.txt", f"images/a.png\n{name}\n")
    with pytest.raises(UserError, match=r"leads out of .*: name the folder"):
        open_source(data)


def test_one_picture_of_two_stated_sizes_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    coco(tmp_path, {1: "a.png", 2: "a.png"}, [{"image_id": 1}, {"image_id": 2}])
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"][1]["width"] = 200
    write(tmp_path / "train.json", content)
    with pytest.raises(UserError, match=r"image of two sizes: a\.png .image 2. is .200, 80. here"):
        open_source(tmp_path)


def test_absolute_names_inside_the_folder_work(tmp_path: Path) -> None:
    for part in ("train", "val"):
        file = picture(tmp_path / f"data/{part}/{part}.png")
        coco(tmp_path / "data", {1: str(file)}, [{"image_id": 1}], split=part)
    assert check(tmp_path / "data").usable
    convert(tmp_path / "data", out=tmp_path / "out")
    assert boxes(tmp_path / "out") == {"train.png": [[10, 10, 20, 20]]}
    split(tmp_path / "data", out=tmp_path / "divided", val=0.5)
    assert len(list((tmp_path / "divided").rglob("*.png"))) == 2


# Classes, outlines, equal boxes, pictures on both sides.


def test_classes_in_another_order_go_by_their_names(tmp_path: Path) -> None:
    for part, names in (("train", ("red", "blue")), ("val", ("blue", "red"))):
        picture(tmp_path / f"in/{part}/{part}.png")
        coco(tmp_path / "in", {1: f"{part}.png"}, [{"image_id": 1}], split=part)
        content = json.loads((tmp_path / f"in/{part}.json").read_text())
        content["categories"] = [{"id": 3 * n + 1, "name": name} for n, name in enumerate(names)]
        content["annotations"][0]["category_id"] = 3 * names.index("red") + 1
        write(tmp_path / f"in/{part}.json", content)
    assert check(tmp_path / "in").usable
    convert(tmp_path / "in", out=tmp_path / "yolo", to="yolo")
    for part in ("train", "val"):
        assert (tmp_path / f"yolo/labels/{part}/{part}.txt").read_text().startswith("0 ")


def test_boxes_made_from_outlines_and_degenerate_polygons(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    good, flat = [10, 10, 30, 10, 30, 40], [5, 5, 6, 6, 7, 7]
    notes: list[dict[str, Any]] = [
        {"image_id": 1, "bbox": None, "segmentation": [good]},
        {"image_id": 1, "bbox": [50, 10, 20, 30], "segmentation": [[50, 10, 70, 10, 70, 40], flat, [1, 2]]},
    ]
    coco(tmp_path, {1: "a.png"}, notes)
    data, report, *_ = scan_coco(tmp_path / "train.json", tmp_path / "train", masks=True)
    assert data is not None, report
    assert data.boxes.tolist() == [[10, 10, 30, 40], [50, 10, 70, 40]]
    assert report.counts == {"degenerate polygon": 1, "object without a box": 1}


def test_equal_boxes_and_shared_pictures_are_reported(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / f"{part}/{part}.png", seed=3)
        coco(tmp_path, {1: f"{part}.png"}, [{"image_id": 1}, {"image_id": 1}], split=part)
    found = check(tmp_path)
    assert found.counts["train"] == {"equal box": 1}
    assert "1 pictures of val are in train too (val.png is train.png of train)" in found.differences[0]
    assert found.usable


# Layouts, and data that is not divided.


def layout(root: Path, name: str) -> None:
    """A layout that a tool writes, with one object."""
    line = "0 0.2 0.25 0.2 0.25\n"
    if name == "cvat yolo 1.1":
        picture(root / "obj_train_data/a.png")
        write(root / "obj_train_data/a.txt", line)
        write(
            root / "obj.data",
            "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        )
        write(root / "obj.names", "part\n")
        write(root / "train.txt", "data/obj_train_data/a.png\n")
    elif name == "kangaroo":
        picture(root / "images/a.png")
        voc(root / "annots/a.xml", (11, 11, 30, 30))
    elif name == "label studio yolo":
        picture(root / "images/a.png")
        write(root / "labels/a.txt", line)
        write(root / "classes.txt", "part\n")
        write(root / "notes.json", {"categories": [{"id": 0, "name": "part"}], "info": {}})
    elif name == "roboflow yolo":
        picture(root / "train/images/a.png")
        write(root / "train/labels/a.txt", line)
        write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['part']\n")
    else:
        pictures, file = {
            "cvat coco": ("images", "annotations/instances_default.json"),
            "datumaro": ("images/default", "annotations/instances_default.json"),
            "label studio coco": ("images", "result.json"),
            "roboflow coco": ("train", "train/_annotations.coco.json"),
        }[name]
        picture(root / pictures / "a.png")
        coco(root, {1: "a.png"}, [{"image_id": 1}])
        (root / file).parent.mkdir(exist_ok=True)
        (root / "train.json").rename(root / file)
        if pictures != "train":
            (root / "train").rmdir()


LAYOUTS = {
    **dict.fromkeys(("cvat yolo 1.1", "label studio yolo", "roboflow yolo"), "yolo"),
    **dict.fromkeys(("cvat coco", "datumaro", "label studio coco", "roboflow coco"), "coco"),
    "kangaroo": "voc",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_tools(name: str, tmp_path: Path) -> None:
    layout(tmp_path, name)
    assert detect_format(tmp_path) == LAYOUTS[name]
    assert boxes(tmp_path) == {"a.png": [[10, 10, 20, 20]]}
    assert check(tmp_path).splits[0].boxes == 1


def test_one_json_a_folder_and_a_zip_file(tmp_path: Path) -> None:
    layout(tmp_path / "birds", "label studio coco")
    with zipfile.ZipFile(tmp_path / "fish.zip", "w") as archive:
        for file in files_in(tmp_path / "birds", deep=True):
            archive.write(file, Path("fish") / file.relative_to(tmp_path / "birds"))
    for data, name in (("birds/result.json", "result"), ("birds", "birds"), ("fish.zip", "fish")):
        found = check(tmp_path / data, out=tmp_path / f"page-{name}")
        assert (found.splits[0].boxes, found.name) == (1, name)
        assert "no val split" in found.missing
        assert f"Data set {name}" in (tmp_path / f"page-{name}/check.html").read_text()
    convert(tmp_path / "fish.zip", out=tmp_path / "out")
    assert boxes(tmp_path / "out") == {"a.png": [[10, 10, 20, 20]]}
    with pytest.raises(UserError, match="leave it out, or unpack"):
        convert(tmp_path / "fish.zip", out=tmp_path / "linked", link=True)
    write(tmp_path / "broken.zip", "no zip")
    with pytest.raises(UserError, match="cannot be unpacked"):
        check(tmp_path / "broken.zip")


def test_nothing_that_is_dropped_is_written(tmp_path: Path) -> None:
    picture(tmp_path / "in/train/a.png")
    notes: list[dict[str, Any]] = [{"image_id": 1}, {"image_id": 1, "bbox": [5, 5, 0, 9]}]
    coco(tmp_path / "in", {1: "a.png"}, notes)
    convert(tmp_path / "in", out=tmp_path / "out")
    assert len(json.loads((tmp_path / "out/train.json").read_text())["annotations"]) == 1


def test_all_images_gone_is_not_an_empty_list(tmp_path: Path) -> None:
    coco(tmp_path, {1: "a.png", 2: "b.png"}, [{"image_id": 1}])
    with pytest.raises(
        UserError, match=r"none of the 2 images of .* can be used, such as .*a.png: is missing"
    ):
        open_source(tmp_path)


def test_links_into_one_folder(tmp_path: Path) -> None:
    """Pictures and labels behind links pair as they would without."""
    for site in ("a", "b"):
        picture(tmp_path / f"store/{site}/images/{site}.png")
        write(tmp_path / f"store/{site}/labels/{site}.txt", "0 0.2 0.25 0.2 0.25\n")
        for part in ("images", "labels"):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            os.symlink(tmp_path / f"store/{site}/{part}", tmp_path / f"set/{part}/{site}")
    write(tmp_path / "set/data.yaml", "names: [part]\ntrain: images\n")
    log: list[str] = []
    assert len(boxes(tmp_path / "set", log, follow_links=True)) == 2
    assert not log

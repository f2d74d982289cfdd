"""Pictures and labels in folders below are paired by their paths, in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msefpn.data.formats import detect_format
from tests.data.sets import boxes, labelme, picture, voc, write

Written = Callable[[Path, str, int], None]
"""Write a picture and its labels into a folder; the box begins at this x and at y 10, with sides of 20."""


def _voc_beside(root: Path, folder: str, left: int) -> None:
    picture(root / folder / "1.png")
    voc(root / folder / "1.xml", (left + 1, 11, left + 20, 30), "1.png")


def _voc(root: Path, folder: str, left: int) -> None:
    picture(root / "JPEGImages" / folder / "1.png")
    voc(root / "Annotations" / folder / "1.xml", (left + 1, 11, left + 20, 30), "1.png")


def _voc_listed(root: Path, folder: str, left: int) -> None:
    _voc(root, folder, left)
    file = root / "ImageSets/Main/train.txt"
    write(file, (file.read_text() if file.is_file() else "") + f"{folder}/1\n")


def _labelme(root: Path, folder: str, left: int) -> None:
    picture(root / folder / "1.png")
    labelme(root / folder / "1.json", "1.png", box=(left, 10, left + 20, 30))


def _createml(root: Path, folder: str, left: int) -> None:
    picture(root / folder / "1.png")
    place = {"x": left + 10, "y": 20, "width": 20, "height": 20}
    entry = {"image": "1.png", "annotations": [{"label": "part", "coordinates": place}]}
    write(root / folder / "labels.json", [entry])


def _yolo(root: Path, folder: str, left: int) -> None:
    picture(root / "images" / folder / "1.png")
    write(root / "labels" / folder / "1.txt", f"0 {(left + 10) / 100} 0.25 0.2 0.25\n")
    write(root / "data.yaml", "names: [part]\ntrain: images\n")


FORMS: dict[str, tuple[str, Written]] = {
    "voc beside": ("voc", _voc_beside),
    "voc": ("voc", _voc),
    "voc listed": ("voc", _voc_listed),
    "labelme": ("labelme", _labelme),
    "createml": ("createml", _createml),
    "yolo": ("yolo", _yolo),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("places", [("a", "b"), ("a", "a/c/d"), (".", "b")], ids=str)
def test_the_same_name_in_two_folders(form: str, places: tuple[str, str], tmp_path: Path) -> None:
    format, written = FORMS[form]
    for place, left in zip(places, (10, 40), strict=True):
        written(tmp_path, place, left)
    assert detect_format(tmp_path) == format
    log: list[str] = []
    found = boxes(tmp_path, log)
    ordered = [found[name] for name in sorted(found)]
    assert ordered == [[pytest.approx([left, 10, 20, 20])] for left in (10, 40)]
    assert not any("skipped" in line for line in log)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_without_labels_in_a_folder_is_counted(form: str, tmp_path: Path) -> None:
    _, written = FORMS[form]
    written(tmp_path, "a", 10)
    home = {"voc": "JPEGImages", "voc listed": "JPEGImages", "yolo": "images"}.get(form, ".")
    picture(tmp_path / home / "c" / "left.png")
    if form == "createml":
        write(tmp_path / "c/labels.json", [{"image": "gone.png", "annotations": []}])
    log: list[str] = []
    found = boxes(tmp_path, log)
    assert [name for name, own in found.items() if own] == [
        next(name for name in found if name.endswith("1.png"))
    ]
    if form != "voc listed":  # whose lists say what is wanted
        assert any(line.startswith("1 images") and "left.png" in line for line in log), log


def test_labels_in_folders_of_pictures_that_lie_together(tmp_path: Path) -> None:
    for name, left in (("1", 10), ("2", 40)):
        picture(tmp_path / f"images/{name}.png")
        voc(tmp_path / f"Annotations/{name}/{name}.xml", (left + 1, 11, left + 20, 30), f"{name}.png")
    assert boxes(tmp_path) == {"1.png": [[10, 10, 20, 20]], "2.png": [[40, 10, 20, 20]]}


def test_two_label_files_of_one_picture_are_refused(tmp_path: Path) -> None:
    for name in ("1", "2"):
        picture(tmp_path / f"images/{name}.png")
    for folder in ("x", "y"):
        voc(tmp_path / f"Annotations/{folder}/1.xml", (11, 11, 30, 30), "1.png")
    voc(tmp_path / "Annotations/x/2.xml", (11, 11, 30, 30), "2.png")
    log: list[Any] = []
    assert list(boxes(tmp_path, log)) == ["2.png"]
    assert any("has labels in 2 places" in line for line in log)


def test_other_xml_files_do_not_make_a_set(tmp_path: Path) -> None:
    write(tmp_path / "exported/model.xml", "<net/>")
    picture(tmp_path / "a.png")
    assert detect_format(tmp_path) is None

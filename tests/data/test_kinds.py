"""Kinds of trouble in data sets: each comes out right, or is named and counted; nothing is silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msefpn.data.coco import scan_coco
from msefpn.data.finding import files_in
from msefpn.data.formats import open_source
from msefpn.data.images import read_header, read_image
from msefpn.data.values import common_factor, flag_of
from tests.data.sets import SIZE, boxes, coco, labelme, picture, scan_both, voc, write

# Labels and pictures pair one to one.


@pytest.mark.parametrize("form", ["voc", "labelme"])
def test_a_pair_goes_by_its_name_not_by_the_text_inside(form: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    for name, other, left in (("a", "b.png", 11), ("b", "a.png", 41)):
        if form == "voc":
            voc(tmp_path / f"{name}.xml", (left, 11, left + 19, 30), other)
        else:
            labelme(tmp_path / f"{name}.json", other, box=(left - 1, 10, left + 19, 30))
    log: list[str] = []
    assert boxes(tmp_path, log) == {"a.png": [[10, 10, 20, 20]], "b.png": [[40, 10, 20, 20]]}
    assert any(line.startswith("2 label files name another picture") for line in log)


@pytest.mark.parametrize("form", ["voc", "labelme", "yolo"])
def test_two_pictures_of_one_label_file(form: str, tmp_path: Path) -> None:
    home = tmp_path / "images" if form == "yolo" else tmp_path
    for name in ("a.png", "a.bmp", "b.png"):
        picture(home / name)
    for name in ("a", "b"):
        if form == "voc":
            voc(tmp_path / f"{name}.xml", (11, 11, 30, 30), name)
        elif form == "labelme":
            labelme(tmp_path / f"{name}.json", "")
        else:
            write(tmp_path / f"labels/{name}.txt", "0 0.2 0.25 0.2 0.25\n")
    write(tmp_path / "data.yaml", "names: [part]\ntrain: images\n") if form == "yolo" else None
    log: list[str] = []
    assert boxes(tmp_path, log) == {"b.png": [[10, 10, 20, 20]]}
    told = next(line for line in log if "serves 2 pictures" in line)
    assert "a.bmp" in told
    assert "a.png" in told


def test_the_named_one_of_two_pictures_is_taken(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        picture(tmp_path / name)
    voc(tmp_path / "a.xml", (11, 11, 30, 30), "a.bmp")
    log: list[str] = []
    assert list(boxes(tmp_path, log)) == ["a.bmp"]
    assert any("1 images have no xml file and are skipped, a.png" in line for line in log)


def test_label_files_whose_suffix_is_in_capitals_are_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"voc/{name}.png")
        picture(tmp_path / f"yolo/{name}.png")
    voc(tmp_path / "voc/a.xml", (11, 11, 30, 30), "a.png")
    voc(tmp_path / "voc/b.XML", (11, 11, 30, 30), "b.png")
    for file in ("a.txt", "b.TXT", "a.TXT", "b.Txt"):
        write(tmp_path / "yolo" / file, "0 0.2 0.25 0.2 0.25\n")
    write(tmp_path / "yolo/DATA.YAML", "names: [part]\ntrain: .\n")
    for form in ("voc", "yolo"):
        log: list[str] = []
        expected = {"a.png": [[10, 10, 20, 20]], "b.png": [[10, 10, 20, 20]]}
        assert boxes(tmp_path / form, log) == expected
    (told,) = (line for line in log if "end otherwise" in line)
    assert told.startswith("2 label files")
    assert "a.TXT" in told
    assert "b.Txt" in told


@pytest.mark.filterwarnings("error")
def test_a_corner_beyond_all_numbers_drops_its_box_and_says_so(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    ends = ([[37, 37], [1e308, 45]], [[10, 10], [30, 30]])
    shapes = [{"label": "part", "points": two, "shape_type": "rectangle"} for two in ends]
    about = {"imagePath": "a.png", "imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    write(tmp_path / "a.json", {"shapes": shapes, **about})
    content = open_source(tmp_path).splits["train"].content
    data, report, *_ = scan_coco(tmp_path / "a.json", tmp_path, content=content)
    assert data is not None
    assert data.boxes_of(0)[0].tolist() == [[10, 10, 30, 30]]
    assert report.counts == {"outside box": 1}


def test_labels_without_a_picture_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "images/b.png")
    for name in ("b", "lost", "gone"):
        write(tmp_path / f"labels/{name}.txt", "0 0.2 0.25 0.2 0.25\n")
    write(tmp_path / "classes.txt", "part\n")
    log: list[str] = []
    assert list(boxes(tmp_path, log)) == ["b.png"]
    assert any(line.startswith("2 label files have no picture") and "lost.txt" in line for line in log)


def test_a_label_file_does_not_take_the_picture_of_another(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    labelme(tmp_path / "a.json", "a.png")
    labelme(tmp_path / "z.json", "a.png")
    log: list[str] = []
    assert list(boxes(tmp_path, log)) == ["a.png"]
    assert any("z.json" in line and "has labels of its own" in line for line in log)


# Stated size and real size.


@pytest.mark.parametrize("form", ["voc", "labelme", "coco"])
@pytest.mark.parametrize("real", [(50, 40), (200, 160), (151, 121)])
def test_boxes_follow_a_resized_picture(form: str, real: tuple[int, int], tmp_path: Path) -> None:
    picture(tmp_path / ("train/a.png" if form == "coco" else "a.png"), real)
    if form == "voc":
        voc(tmp_path / "a.xml", (11, 11, 30, 30))
    elif form == "labelme":
        labelme(tmp_path / "a.json", "a.png")
    else:
        line = [10, 10, 30, 10, 30, 30, 10, 30]
        coco(tmp_path, {1: "a.png"}, [{"image_id": 1, "segmentation": [line], "area": 400}])
    log: list[str] = []
    x, y = real[0] / SIZE[0], real[1] / SIZE[1]
    np.testing.assert_allclose(boxes(tmp_path, log)["a.png"], [[10 * x, 10 * y, 20 * x, 20 * y]], atol=0.01)
    assert any("rescaled" in line for line in log)
    if form == "coco":
        note = open_source(tmp_path).splits["train"].content["annotations"][0]
        assert note["segmentation"][0][:2] == pytest.approx([10 * x, 10 * y])
        assert note["area"] == pytest.approx(400 * x * y)


@pytest.mark.parametrize("form", ["voc", "labelme", "coco"])
def test_a_size_of_another_shape_is_named(form: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / ("train" if form == "coco" else ".") / f"{name}.png")
    for name, size in (("a", SIZE), ("b", (80, 100))):
        if form == "voc":
            voc(tmp_path / f"{name}.xml", (11, 11, 30, 30), size=size)
        elif form == "labelme":
            labelme(tmp_path / f"{name}.json", f"{name}.png", size)
    if form == "coco":
        coco(tmp_path, {1: "a.png", 2: "b.png"}, [{"image_id": 1}, {"image_id": 2}])
        content = json.loads((tmp_path / "train.json").read_text())
        content["images"][1] |= {"width": 80, "height": 100}
        write(tmp_path / "train.json", content)
    log: list[str] = []
    assert list(boxes(tmp_path, log)) == ["a.png"]
    assert any(line.startswith("skipped: ") and "80 x 100" in line for line in log)


def test_boxes_that_fit_the_real_size_alone_are_kept(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png", (200, 160))
    coco(tmp_path, {1: "a.png"}, [{"image_id": 1, "bbox": [120, 100, 40, 40]}])
    assert boxes(tmp_path) == {"a.png": [[120, 100, 40, 40]]}
    data, report = scan_both(tmp_path / "train.json", tmp_path / "train")
    assert data is not None
    assert report.counts == {"size differs from the json": 1}


def test_run_lengths_follow_a_resized_picture(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png", (50, 40))
    counts = [800, 1600, 5600]  # columns 10 to 30 of 80 rows
    shape = {"size": [80, 100], "counts": counts}
    coco(tmp_path, {1: "a.png"}, [{"image_id": 1, "bbox": [10, 0, 20, 80], "segmentation": shape}])
    data, report, *_ = scan_coco(tmp_path / "train.json", tmp_path / "train", masks=True)
    assert data is not None, report
    mask = data.masks_of(0)[0]
    assert mask[:, 5:15].all()
    assert mask.sum() == 400


def test_factors() -> None:
    assert common_factor((300, 400), (150, 200))
    assert common_factor((333, 500), (213, 320))
    assert not common_factor((300, 400), (400, 300))
    assert not common_factor((300, 400), (150, 220))


# VOC's counting.


def test_a_file_does_not_move_the_boxes_of_another(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
        voc(tmp_path / f"{number}.xml", (11, 11, 30, 30))
    log: list[str] = []
    before = boxes(tmp_path, log)
    assert before["0.png"] == [[10, 10, 20, 20]]
    assert any("count from 1" in line for line in log)
    picture(tmp_path / "more.png")
    voc(tmp_path / "more.xml", (0, 5, 30, 30))
    after = boxes(tmp_path, log)
    assert after.pop("more.png") == [[0, 5, 30, 25]]
    assert after == before
    assert any("from 0 here in 1 files" in line and "in 3" in line for line in log)


def test_corners_with_decimals_are_not_shifted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    voc(tmp_path / "a.xml", (10.25, 20.5, 40.75, 60.0))
    assert boxes(tmp_path) == {"a.png": [[10.25, 20.5, 30.5, 39.5]]}
    voc(tmp_path / "a.xml", ("11.0", "11.0", "30.0", "30.0"))
    assert boxes(tmp_path) == {"a.png": [[10, 10, 20, 20]]}


# Filters.


def test_all_endings_are_read_or_named(tmp_path: Path) -> None:
    read = ["jpg", "JPEG", "jfif", "png", "bmp", "webp", "tif", "TIFF", "gif", "ppm", "tga", "jp2", "avif"]
    for number, ending in enumerate([*read, "heic", "dng"]):
        name = tmp_path / f"images/p{number}.{ending}"
        if ending in ("heic", "dng"):
            write(name, "x")
        else:
            picture(name)
        write(tmp_path / f"labels/p{number}.txt", "0 0.2 0.25 0.2 0.25\n")
    write(tmp_path / "classes.txt", "part\n")
    log: list[str] = []
    assert len(boxes(tmp_path, log)) == len(read)
    assert any(line.startswith("2 pictures are not read (1 .dng, 1 .heic") for line in log)


def test_linked_folders_are_followed_once_around(tmp_path: Path) -> None:
    picture(tmp_path / "store/deep/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to("../store")
    (tmp_path / "store/back").symlink_to("../set")
    found = [file.relative_to(tmp_path).as_posix() for file in files_in(tmp_path / "set", deep=True)]
    assert found == ["set/link/deep/a.png"]


@pytest.mark.parametrize("ending", ["gif", "tiff", "webp", "png"])
def test_frames_after_the_first_are_named(ending: str, tmp_path: Path) -> None:
    pages = [Image.new("RGB", SIZE, (60 * n, 10, 10)) for n in range(4)]
    file = tmp_path / f"train/a.{ending}"
    file.parent.mkdir()
    pages[0].save(file, save_all=True, append_images=pages[1:])
    coco(tmp_path, {1: file.name}, [{"image_id": 1}])
    _, report = scan_both(tmp_path / "train.json", tmp_path / "train")
    assert "4 frames, the first is taken" in str(report)
    log: list[str] = []
    boxes(tmp_path, log)
    assert any("several frames" in line for line in log)
    assert read_image(file)[0, 0, 0] < 20


# Values.


FLAGS: dict[bool | None, list[Any]] = {
    True: [1, True, 1.0, "1", "true", " True "],
    False: [0, False, 0.0, "0", "false", None],
    None: [2, "maybe", "", [], 0.5, float("nan")],
}


PAIRS = [(flag, value) for flag, values in FLAGS.items() for value in values]


@pytest.mark.parametrize(("flag", "value"), PAIRS)
def test_flags_go_by_value(value: Any, flag: bool | None) -> None:
    assert flag_of(value) is flag


def test_iscrowd_as_text(tmp_path: Path) -> None:
    values = ["0", "false", "1", "true", "maybe"]
    for number in range(5):
        picture(tmp_path / f"train/{number}.png")
    notes = [{"image_id": number, "iscrowd": value} for number, value in enumerate(values)]
    coco(tmp_path, {number: f"{number}.png" for number in range(5)}, notes)
    data, report = scan_both(tmp_path / "train.json", tmp_path / "train")
    assert data is not None
    assert data.crowd.tolist() == [False, False, True, True]
    assert "iscrowd is 'maybe'" in str(report.of("unclear iscrowd")[0])


def test_an_id_beyond_64_bits_is_said_to_be_too_large(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    coco(tmp_path, {2**64: "a.png"}, [])
    _, report = scan_both(tmp_path / "train.json", tmp_path / "train")
    assert "too large" in str(report.stops[0])


@pytest.mark.parametrize(("top", "bits"), [(1000, 10), (4095, 12), (16383, 14), (65535, 16)])
def test_values_of_cameras_keep_their_brightness(top: int, bits: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, top // 2, top]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").bits == bits
    share = top / ((1 << bits) - 1)
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, :, 0], [0, 127 * share, 255 * share], atol=1)


def test_a_tiff_may_state_its_largest_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 500]], dtype=np.uint16)).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    assert read_header(tmp_path / "a.tif").bits == 12
    assert read_image(tmp_path / "a.tif")[0, 1, 0] == 31


@pytest.mark.parametrize("form", ["coco", "voc", "labelme"])
def test_pictures_that_no_label_names_are_counted(form: str, tmp_path: Path) -> None:
    home = tmp_path / "train" if form == "coco" else tmp_path
    for name in ("a", "extra", "below/b"):
        picture(home / f"{name}.png")
    (home / "raw.heic").touch()
    if form == "coco":
        coco(tmp_path, {1: "a.png"}, [{"image_id": 1}])
    elif form == "voc":
        voc(tmp_path / "a.xml", (11, 11, 30, 30))
    else:
        labelme(tmp_path / "a.json", "a.png")
    log: list[str] = []
    assert list(boxes(tmp_path, log)) == ["a.png"]
    told = "\n".join(log)
    assert ("1 images" if form == "coco" else "2 images") in told
    assert "extra.png" in told
    assert "1 picture is not read (1 .heic; raw.heic)" in told
    assert form == "coco" or "below/b.png" in told


def test_a_size_under_a_pixel_is_not_taken(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    labelme(tmp_path / "a.json", "a.png", size=(0.3, 0.3))  # type: ignore[arg-type]  # as a file may say
    assert boxes(tmp_path) == {"a.png": [[10, 10, 20, 20]]}

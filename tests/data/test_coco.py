"""Every fault that a data set can have is found, named by file and id, and fixed or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msefpn.data.faults import HANDLING, STOPS
from msefpn.data.locate import find_split
from msefpn.data.looking import Looking
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from tests.data.sets import scan_both


def _content() -> dict[str, Any]:
    """Return three images of 60 x 40, 40 x 60 and 50 x 50 with two, one and no boxes; ids have gaps."""
    return {
        "images": [
            {"id": 3, "file_name": "a.jpg", "width": 60, "height": 40},
            {"id": 5, "file_name": "b.png", "width": 40, "height": 60},
            {"id": 9, "file_name": "c.png", "width": 50, "height": 50},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 3, "category_id": 2, "bbox": [5, 5, 20, 10], "iscrowd": 1},
            {"id": 4, "image_id": 3, "category_id": 7, "bbox": [0.5, 1.5, 9, 8], "iscrowd": 0},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


class DataSet:
    """A data set in a folder, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.file, self.images = folder / "train.json", folder / "train"
        self.images.mkdir()
        self.content = _content()
        for item in self.content["images"]:
            noise = np.random.default_rng(item["id"]).integers(0, 256, (item["height"], item["width"], 3))
            Image.fromarray(noise.astype(np.uint8)).save(self.images / item["file_name"])

    def scan(self, *, decode: bool = False) -> tuple[Any, Any]:
        """Write the json and scan it."""
        self.file.write_text(json.dumps(self.content))
        return scan_both(self.file, self.images, Looking(decode))

    def add_box(self, box: list[Any]) -> None:
        """Add annotation 77 to image 3, which is 60 x 40."""
        self.content["annotations"].append({"id": 77, "image_id": 3, "category_id": 7, "bbox": box})


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path)


def test_sound_set(data_set: DataSet) -> None:
    data, report = data_set.scan()
    assert report.counts == {"image without objects": 1}
    assert (len(data), data.ids.tolist(), data.names) == (3, [3, 5, 9], ["a.jpg", "b.png", "c.png"])
    assert data.sizes.tolist() == [[40, 60], [60, 40], [50, 50]]
    assert (data.classes, data.category_ids) == (("dog", "cat"), (2, 7))
    assert data.offsets.tolist() == [0, 2, 3, 3]
    boxes, labels, crowd = data.boxes_of(0)
    assert boxes.tolist() == [[5, 5, 25, 15], [0.5, 1.5, 9.5, 9.5]]
    assert (labels.tolist(), crowd.tolist()) == ([0, 1], [True, False])
    assert (data.boxes.dtype, data.labels.dtype) == (np.float32, np.int64)


def test_subset_keeps_boxes_with_their_images(data_set: DataSet) -> None:
    data, _ = data_set.scan()
    part = data.subset([2, 1, 0])
    assert (part.ids.tolist(), part.offsets.tolist()) == ([9, 5, 3], [0, 0, 1, 3])
    for new, old in enumerate([2, 1, 0]):
        assert part.boxes_of(new)[0].tolist() == data.boxes_of(old)[0].tolist()


@pytest.mark.parametrize("stated", [None, 0, -3, "big", float("nan"), float("inf"), [5]], ids=str)
def test_area_that_is_none_is_that_of_the_box(data_set: DataSet, stated: Any) -> None:
    data_set.add_box([0.1, 0.3, 32, 32])
    data_set.add_box([50, 30, 20, 20])  # sticks out of the image by half
    data_set.content["annotations"][-1]["id"] = 78
    for item in data_set.content["annotations"][-2:]:
        item["area"] = stated
    data, _ = data_set.scan()
    assert data.areas.tolist() == [200, 72, 1024, 100, 200]


def test_stated_area_stays(data_set: DataSet) -> None:
    data_set.content["annotations"][0]["area"] = 55.5
    data_set.add_box([50, 30, 20, 20])
    data_set.content["annotations"][-1]["area"] = 333
    data, _ = data_set.scan()
    assert data.areas.tolist() == [200, 72, 333, 55.5]
    assert data.boxes_of(0)[0].tolist()[-1] == [50, 30, 60, 40]
    assert data.subset([1, 0]).areas.tolist() == [55.5, 200, 72, 333]


BOXES: dict[str, tuple[list[Any], list[float] | None]] = {
    "NaN box": ([1, float("nan"), 5, 5], None),
    "inverted box": ([30, 30, -5, 5], None),
    "zero-area box": ([30, 30, 0, 5], None),
    "outside box": ([60, 5, 10, 10], None),
    "box under 1 px": ([30, 30, 0.5, 5], None),
    "box under 1 px inside the image": ([60 - 1e-6, 5, 10, 10], None),
    "bbox without 4 numbers": ([1, 2, 3], None),
    "box partly outside": ([50, 30, 20, 20], [50, 30, 60, 40]),
    "box larger than the image": ([-10, -10, 100, 100], [0, 0, 60, 40]),
}


@pytest.mark.parametrize("kind", BOXES)
def test_faulty_box(data_set: DataSet, kind: str) -> None:
    box, fixed = BOXES[kind]
    kind = kind.removesuffix(" inside the image")
    data_set.add_box(box)
    data, report = data_set.scan()
    assert report.counts == {kind: 1, "image without objects": 1}
    (fault,) = report.of(kind)
    assert (fault.file, fault.id) == ("a.jpg", "annotation 77")
    assert data.boxes_of(0)[0].tolist()[2:] == ([] if fixed is None else [fixed])


def test_infinite_and_null_boxes(data_set: DataSet) -> None:
    data_set.add_box([1, 1, float("inf"), 5])
    data_set.add_box([1, None, 5, 5])
    data_set.add_box([1, 10**400, 5, 5])
    data_set.content["annotations"][0]["area"] = 10**400
    data, report = data_set.scan()
    assert len(report.of("NaN box")) == 1
    assert len(report.of("bbox without 4 numbers")) == 2
    assert data.areas[-1] == 200


def test_rounding_at_the_border_is_no_fault(data_set: DataSet) -> None:
    data_set.add_box([50, 30, 10.4, 10.4])
    data, report = data_set.scan()
    assert "box partly outside" not in report.counts
    assert data.boxes_of(0)[0].tolist()[-1] == [50, 30, 60, 40]


def test_repeated_annotations(data_set: DataSet) -> None:
    first = data_set.content["annotations"][0]
    data_set.content["annotations"] += [dict(first), first | {"bbox": [3, 3, 9, 9]}]
    data, report = data_set.scan()
    assert report.counts == {
        "repeated annotation": 1,
        "duplicate annotation id": 1,
        "image without objects": 1,
    }
    assert report.of("duplicate annotation id")[0].id == "annotation 1"
    assert len(data.boxes_of(1)[0]) == 2


def test_annotation_of_an_unlisted_image_is_dropped(data_set: DataSet) -> None:
    data_set.content["annotations"][0]["image_id"] = 1234
    data, report = data_set.scan()
    (fault,) = report.of("unknown image")
    assert (fault.id, "1234" in fault.text, len(data.boxes)) == ("annotation 1", True, 2)


def _drop(*path: Any) -> Callable[[DataSet], None]:
    def spoil(data_set: DataSet) -> None:
        place = data_set.content
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return spoil


def _put(value: Any, *path: Any) -> Callable[[DataSet], None]:
    def spoil(data_set: DataSet) -> None:
        place = data_set.content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return spoil


SPOILT: dict[str, tuple[Callable[[DataSet], Any], str, str]] = {
    "no images key": (_drop("images"), "missing key", "'images'"),
    "no file_name": (_drop("images", 1, "file_name"), "missing key", "image 5"),
    "no image id": (_drop("images", 1, "id"), "missing key", "images[1]"),
    "no bbox": (_drop("annotations", 1, "bbox"), "missing key", "annotation 2"),
    "no category name": (_drop("categories", 0, "name"), "missing key", "category 7"),
    "text as id": (_put("5", "images", 1, "id"), "wrong value", "image 5"),
    "huge id": (_put(1 << 70, "images", 1, "id"), "wrong value", str(1 << 70)),
    "annotation is no object": (_put(8, "annotations", 1), "wrong value", "annotations[1]"),
    "images is no list": (_put({}, "images"), "wrong value", "'images'"),
    "empty images": (_put([], "images"), "no images", "train.json"),
    "empty categories": (_put([], "categories"), "no categories", "train.json"),
    "empty annotations": (_put([], "annotations"), "no boxes", "train.json"),
    "image id twice": (_put(3, "images", 1, "id"), "duplicate image id", "b.png (image 3)"),
    "category id twice": (_put(2, "categories", 0, "id"), "duplicate category", "category 2"),
    "name twice": (_put("dog", "categories", 0, "name"), "duplicate category", "'dog'"),
    "unknown category": (
        _put(99, "annotations", 1, "category_id"),
        "unknown category",
        "a.jpg (annotation 2) category_id 99",
    ),
    "missing image": (lambda data: (data.images / "b.png").unlink(), "missing image", "b.png (image 5)"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_fault_that_stops(data_set: DataSet, name: str) -> None:
    spoil, kind, where = SPOILT[name]
    spoil(data_set)
    data, report = data_set.scan()
    assert data is None
    assert kind in report.counts
    with pytest.raises(UserError) as error:
        read_coco(data_set.file, data_set.images)
    message = str(error.value)
    assert kind in message
    assert where in message
    assert STOPS[kind].action in message
    assert str(data_set.file) in message
    assert "\n" not in message


def test_missing_folder(data_set: DataSet) -> None:
    data_set.scan()
    with pytest.raises(UserError, match=r"missing folder: .*nowhere does not exist"):
        read_coco(data_set.file, data_set.images.parent / "nowhere")


@pytest.mark.parametrize(("text", "kind"), [(None, "missing json"), ("{", "not JSON"), ("[]", "not JSON")])
def test_broken_json(tmp_path: Path, text: str | None, kind: str) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=f"{kind}: .*x.json"):
        read_coco(tmp_path / "x.json", tmp_path)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_truncated_image_is_dropped_with_its_boxes(data_set: DataSet, name: str, decode: bool) -> None:
    path = data_set.images / name
    path.write_bytes(path.read_bytes()[:-300])
    data, report = data_set.scan(decode=decode)
    (fault,) = report.of("unreadable image")
    assert fault.file == name
    assert name not in data.names
    assert len(data.boxes) == {"a.jpg": 1, "b.png": 2}[name]


def test_file_that_is_no_image(data_set: DataSet) -> None:
    (data_set.images / "c.png").write_bytes(b"not an image")
    data, report = data_set.scan()
    assert report.of("unreadable image")[0].id == "image 9"
    assert data.ids.tolist() == [3, 5]


def test_damage_inside_a_file_needs_decoding(data_set: DataSet) -> None:
    path = data_set.images / "b.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "unreadable image" not in data_set.scan(decode=False)[1].counts
    assert data_set.scan(decode=True)[1].of("unreadable image")[0].file == "b.png"


def test_size_in_the_json(data_set: DataSet) -> None:
    data_set.content["images"][0]["width"] += 1
    del data_set.content["images"][1]["height"]
    data, report = data_set.scan()
    assert report.of("size differs from the json")[0].file == "a.jpg"
    assert report.of("size not in the json")[0].file == "b.png"
    assert data.sizes.tolist() == [[40, 60], [60, 40], [50, 50]]


@pytest.mark.parametrize("side", [0, 0.5, 1e-320, -3, True, 1e6, "60", None])
def test_a_size_that_no_picture_has_is_not_taken(data_set: DataSet, side: Any) -> None:
    data_set.content["images"][0]["width"] = side
    data, report = data_set.scan()
    assert report.of("size not in the json")[0].file == "a.jpg"
    assert data.sizes.tolist() == [[40, 60], [60, 40], [50, 50]]


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("L", set()),
        ("LA", {"alpha channel"}),
        ("RGBA", {"alpha channel"}),
        ("CMYK", {"CMYK image"}),
        ("I;16", {"16-bit image"}),
    ],
)
def test_pixel_formats_are_reported(data_set: DataSet, mode: str, kinds: set[str]) -> None:
    name = "c.tif" if mode == "CMYK" else "c.png"
    data_set.content["images"][2]["file_name"] = name
    Image.new(mode, (50, 50)).save(data_set.images / name)
    data, report = data_set.scan()
    found = {fault.kind for fault in report.faults if fault.file == name}
    assert found == kinds | {"image without objects"}
    assert len(data) == 3


@pytest.mark.parametrize(("stated", "turned"), [((60, 40), False), ((40, 60), True)])
def test_exif_rotation_follows_the_json(data_set: DataSet, stated: tuple[int, int], turned: bool) -> None:
    image = Image.open(data_set.images / "a.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(data_set.images / "a.jpg", exif=exif)
    data_set.content["images"][0] |= {"width": stated[0], "height": stated[1]}
    data, report = data_set.scan()
    (fault,) = report.of("EXIF rotation")
    assert fault.file == "a.jpg"
    assert fault.text == ("turned upright" if turned else "left as stored")
    assert data.sizes[0].tolist() == [stated[1], stated[0]]


def test_report_shows_five_of_a_kind(data_set: DataSet) -> None:
    for number in range(8):
        data_set.content["annotations"].append(
            {"id": 100 + number, "image_id": 9, "category_id": 2, "bbox": [1, 1, 0, 0]}
        )
    text = str(data_set.scan()[1])
    assert "8 zero-area boxes: dropped" in text
    assert "annotation 104" in text
    assert "annotation 105" not in text
    assert "and 3 more" in text


def test_every_kind_is_in_one_table() -> None:
    assert not STOPS.keys() & HANDLING.keys()


@pytest.mark.parametrize(
    ("split", "file", "images"),
    [
        ("train", "train.json", "train"),
        ("train", "annotations/instances_train2017.json", "train2017"),
        ("train", "annotations/instances_train.json", "images/train"),
        ("train", "train/_annotations.coco.json", "train"),
        ("val", "dev.json", "dev"),
        ("val", "test.json", "test"),
        ("val", "annotations/instances_val2017.json", "images/val2017"),
    ],
)
def test_find_split(tmp_path: Path, split: str, file: str, images: str) -> None:
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    assert find_split(tmp_path, split) == (tmp_path / file, tmp_path / images)


def test_find_split_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train split in .*train\.json.*instances_train2017\.json"):
        find_split(tmp_path, "train")
    with pytest.raises(UserError, match="does not exist"):
        find_split(tmp_path / "nowhere", "train")
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(UserError, match="has no image folder"):
        find_split(tmp_path, "train")


def test_real_sets(shared: Path) -> None:
    data, report = read_coco(*find_split(shared / "data" / "bccd", "train"))
    assert (len(data), len(data.boxes), data.classes) == (292, 3941, ("RBC", "WBC", "Platelets"))
    assert report.counts == {"zero-area box": 2}
    assert [fault.id for fault in report.of("zero-area box")] == ["annotation 3153", "annotation 3197"]
    data, report = read_coco(*find_split(shared / "data" / "coco-mini", "val"))
    assert (len(data), len(data.classes), data.category_ids[-1]) == (474, 80, 90)
    assert len(data.boxes) + report.counts["box under 1 px"] == 4289
    assert data.labels.max() == 79
    assert data.crowd.sum() == 34

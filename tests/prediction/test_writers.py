"""Results in files: each kind read back, with names that are hard to write."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from msefpn.data.images import read_image
from msefpn.inference.detect import Predictions
from msefpn.inference.frames import Frame, InputSource
from msefpn.prediction.request import RESULT_KINDS
from msefpn.prediction.writers import RESULT_WRITERS, Output, class_folders, entries_of, unique_stems

CLASSES = ['<b>"cat", or</b>\n', "猫 Katze", "../../x", "b" * 300, "A", "a", ""]


def found_of(*labels: int) -> Predictions:
    """Boxes of 20 x 10 px, one under the other, half of the first outside of the image."""
    boxes = np.array([[-10 + 30 * row, 12 * row, 10 + 30 * row, 12 * row + 10] for row in range(len(labels))])
    scores = np.linspace(0.9, 0.5, len(labels)).astype(np.float32)
    places = np.zeros(len(labels), np.int64)
    return Predictions(places, boxes.reshape(-1, 4).astype(np.float32), scores, np.array(labels, np.int64))


@pytest.fixture
def output(tmp_path: Path) -> Output:
    (tmp_path / "out").mkdir()
    given = [
        InputSource("image", "x/a.png"),
        InputSource("image", "y/a.png"),
        InputSource("video", "clip.mov"),
    ]
    return Output(tmp_path / "out", given, CLASSES, [5, 6, 7, 8, 9, 10, 11])


def test_every_kind_that_can_be_named_is_written() -> None:
    assert RESULT_WRITERS.keys() == set(RESULT_KINDS)


def write(output: Output, kind: str) -> None:
    """Two images, and six frames of which each second was looked at."""
    writer = RESULT_WRITERS[kind](output)
    pixels = np.full((101, 201, 3), 128, np.uint8)
    frames = [Frame(0, pixels), Frame(1, pixels), *(Frame(2, pixels, k, 4.0) for k in (0, 2, 4))]
    for number, frame in enumerate(frames):
        found = found_of(*range(7)) if number != 1 else found_of()
        writer.add(frame, found, entries_of(found, frame, number, output))
    writer.close()


def test_stems_are_unique_and_safe() -> None:
    sources = [
        *(
            InputSource("image", name)
            for name in ("a.jpg", "b.PNG", "x/a.tif", "a-2.jpg", f"{'y' * 240}.jpg")
        ),
        InputSource("url", "https://host/deep/%2e%2e%2Fcat%20photo.jpg?a=b"),
        InputSource("url", "https://host/"),
        InputSource("camera", "camera:0"),
    ]
    names = ["a", "b", "a-2", "a-2-2", "y" * 100, "cat_photo", "download", "camera-0"]
    assert unique_stems(sources) == names


def test_pictures_and_videos(output: Output) -> None:
    write(output, "pictures")
    assert {path.name for path in output.folder.iterdir()} == {"a.jpg", "a-2.jpg", "clip.mp4"}
    picture = read_image(output.folder / "a.jpg")
    assert picture.shape == (101, 201, 3)
    assert picture.std() > 10
    assert read_image(output.folder / "a-2.jpg").std() < 1, "nothing was found there"
    with av.open(str(output.folder / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 4
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in frames] == [(102, 202, 3)] * 3
    assert all(frame.std() > 10 for frame in frames)


def test_json_and_csv_say_the_same(output: Output) -> None:
    write(output, "json")
    write(output, "csv")
    entries = json.loads((output.folder / "predictions.json").read_text())
    with (output.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries) == 28
    assert [entry["image_id"] for entry in entries[::7]] == [0, 2, 3, 4]
    assert "frame" not in entries[0]
    assert [entry["frame"] for entry in entries[7::7]] == [0, 2, 4]
    for row, entry in zip(rows, entries, strict=True):
        assert (row["category"], row["file_name"]) == (entry["category"], entry["file_name"])
        assert row["frame"] == str(entry.get("frame", ""))
        assert [float(row[name]) for name in ("x", "y", "width", "height")] == entry["bbox"]
        assert (int(row["category_id"]), float(row["score"])) == (entry["category_id"], entry["score"])
    assert [entry["category"] for entry in entries[:7]] == CLASSES


def test_yolo_texts(output: Output) -> None:
    write(output, "yolo")
    names = {str(path.relative_to(output.folder)) for path in output.folder.rglob("*.txt")}
    frames = {f"labels/clip/{k:06}.txt" for k in (0, 2, 4)}
    assert names == {"classes.txt", "labels/a.txt", "labels/a-2.txt"} | frames
    assert (output.folder / "labels/a-2.txt").read_text() == ""
    assert len((output.folder / "classes.txt").read_text().splitlines()) == len(CLASSES)
    lines = [
        list(map(float, line.split())) for line in (output.folder / "labels/a.txt").read_text().splitlines()
    ]
    assert [int(line[0]) for line in lines] == list(range(7))
    # x from 20 to 40, y from 12 to 22 of 201 x 101 px
    np.testing.assert_allclose(lines[1][1:5], [30 / 201, 17 / 101, 20 / 201, 10 / 101], atol=1e-6)


def test_crops_stay_inside(output: Output, tmp_path: Path) -> None:
    (tmp_path / "beside.txt").touch()
    write(output, "crops")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "beside.txt"}
    crops = sorted((output.folder / "crops").glob("*/*.jpg"))
    assert len(crops) == 28
    assert {path.parent.name for path in crops} == set(class_folders(CLASSES))
    assert {path.name for path in crops if path.parent.name == "猫_Katze"} == {
        *("a-2.jpg", "clip-000000-2.jpg", "clip-000002-2.jpg", "clip-000004-2.jpg")
    }
    with Image.open(output.folder / "crops" / "猫_Katze" / "a-2.jpg") as image:
        assert image.size == (20, 10)
    (first,) = output.folder.glob("crops/b_cat*/a-1.jpg")
    with Image.open(first) as image:
        assert image.size == (10, 10), "what is outside of the image is left out"


def test_folders_of_classes() -> None:
    folders = class_folders(CLASSES)
    assert folders == ["b_cat_or_b", "猫_Katze", "x", "b" * 100, "A", "a-6", "class"]

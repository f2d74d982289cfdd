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
from msefpn.prediction.request import SAVES, Source
from msefpn.prediction.sources import Picture
from msefpn.prediction.writers import WRITERS, About, Looked, class_folders, entries_of

CLASSES = ['<b>"cat", or</b>\n', "猫 Katze", "../../x", "b" * 300, "A", "a", ""]


def found_of(*labels: int) -> Predictions:
    """Boxes of 20 x 10 px, one under the other, half of the first outside of the image."""
    boxes = np.array([[-10 + 30 * row, 12 * row, 10 + 30 * row, 12 * row + 10] for row in range(len(labels))])
    scores = np.linspace(0.9, 0.5, len(labels)).astype(np.float32)
    places = np.zeros(len(labels), np.int64)
    return Predictions(places, boxes.reshape(-1, 4).astype(np.float32), scores, np.array(labels, np.int64))


@pytest.fixture
def about(tmp_path: Path) -> About:
    (tmp_path / "out").mkdir()
    given = [Source("image", "x/a.png"), Source("image", "y/a.png"), Source("video", "clip.mov")]
    return About(tmp_path / "out", given, CLASSES, [5, 6, 7, 8, 9, 10, 11])


def write(about: About, kind: str) -> None:
    """Two images, and six frames of which each second was looked at."""
    writer = WRITERS[kind](about)
    pixels = np.full((101, 201, 3), 128, np.uint8)
    pictures = [Picture(0, pixels), Picture(1, pixels), *(Picture(2, pixels, k, 4.0) for k in (0, 2, 4))]
    for number, picture in enumerate(pictures):
        found = found_of(*range(7)) if number != 1 else found_of()
        writer.add(Looked(picture, found, entries_of(found, picture, number, about)))
    writer.close()


def test_there_is_a_writer_of_each_kind() -> None:
    assert WRITERS.keys() == SAVES.keys()


def test_pictures_and_videos(about: About) -> None:
    write(about, "pictures")
    assert {path.name for path in about.out.iterdir()} == {"a.jpg", "a-2.jpg", "clip.mp4"}
    picture = read_image(about.out / "a.jpg")
    assert picture.shape == (101, 201, 3)
    assert picture.std() > 10
    assert read_image(about.out / "a-2.jpg").std() < 1, "nothing was found there"
    with av.open(str(about.out / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 4
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in frames] == [(102, 202, 3)] * 3
    assert all(frame.std() > 10 for frame in frames)


def test_json_and_csv_say_the_same(about: About) -> None:
    write(about, "json")
    write(about, "csv")
    entries = json.loads((about.out / "predictions.json").read_text())
    with (about.out / "predictions.csv").open(newline="", encoding="utf-8") as file:
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


def test_yolo_texts(about: About) -> None:
    write(about, "yolo")
    names = {str(path.relative_to(about.out)) for path in about.out.rglob("*.txt")}
    frames = {f"labels/clip/{k:06}.txt" for k in (0, 2, 4)}
    assert names == {"classes.txt", "labels/a.txt", "labels/a-2.txt"} | frames
    assert (about.out / "labels/a-2.txt").read_text() == ""
    assert len((about.out / "classes.txt").read_text().splitlines()) == len(CLASSES)
    lines = [list(map(float, line.split())) for line in (about.out / "labels/a.txt").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == list(range(7))
    # x from 20 to 40, y from 12 to 22 of 201 x 101 px
    np.testing.assert_allclose(lines[1][1:5], [30 / 201, 17 / 101, 20 / 201, 10 / 101], atol=1e-6)


def test_crops_stay_inside(about: About, tmp_path: Path) -> None:
    (tmp_path / "beside.txt").touch()
    write(about, "crops")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "beside.txt"}
    crops = sorted((about.out / "crops").glob("*/*.jpg"))
    assert len(crops) == 28
    assert {path.parent.name for path in crops} == set(class_folders(CLASSES))
    assert {path.name for path in crops if path.parent.name == "猫_Katze"} == {
        *("a-2.jpg", "clip-000000-2.jpg", "clip-000002-2.jpg", "clip-000004-2.jpg")
    }
    with Image.open(about.out / "crops" / "猫_Katze" / "a-2.jpg") as image:
        assert image.size == (20, 10)
    (first,) = about.out.glob("crops/b_cat*/a-1.jpg")
    with Image.open(first) as image:
        assert image.size == (10, 10), "what is outside of the image is left out"


def test_folders_of_classes() -> None:
    folders = class_folders(CLASSES)
    assert folders == ["b_cat_or_b", "猫_Katze", "x", "b" * 100, "A", "a-6", "class"]

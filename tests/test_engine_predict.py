"""Predict and evaluate with a run: pictures, one json, and nothing overwritten."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import msefpn
from msefpn.data.images import read_image
from msefpn.engine.detect import Found
from msefpn.engine.inputs import find_images, picture_names
from msefpn.engine.predict import draw
from msefpn.errors import UserError
from msefpn.metrics.coco import NUMBERS
from msefpn.models import TwoStage
from msefpn.structures import Detections

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    return msefpn.train(tiny_set, recipe=TINY, workers=0, steps=1, out=out)


def test_pictures_and_json(
    run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    grey = tmp_path / "000001.png"
    Image.new("L", (50, 70)).save(grey)
    given: list[str | Path] = [
        tiny_set / "val",
        tmp_path / "torn.jpg",
        grey,
        str(tiny_set / "train" / "00000[12].jpg"),
    ]
    results = msefpn.predict(run, given, out=tmp_path / "out", score=0.1, batch=3, device="cpu")

    out = tmp_path / "out"
    assert json.loads((out / "predictions.json").read_text()) == results
    files = sorted((tiny_set / "val").iterdir())
    assert {path.name for path in out.glob("*.jpg")} == {
        *(file.name for file in files),
        *("000001-2.jpg", "000001-3.jpg", "000002-2.jpg"),
    }
    assert "1 skipped" in capsys.readouterr().out
    assert results
    names = msefpn.load(run).classes
    for item in results:
        assert item["score"] >= 0.1
        assert names[item["category_id"] - 1] == item["category"]
        height, width = read_image(Path(item["file_name"])).shape[:2]
        x, y, w, h = item["bbox"]
        assert min(x, y, w, h) >= 0
        assert x + w <= width + 0.01
        assert y + h <= height + 0.01
    picture, original = read_image(out / files[0].name), read_image(files[0])
    assert picture.shape == original.shape


def test_one_path_alone(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    for images in (tiny_set / "val" / "000001.jpg", str(tiny_set / "val" / "000001.jpg")):
        out = tmp_path / type(images).__name__
        msefpn.predict(run, images, out=out, device="cpu")
        assert (out / "000001.jpg").is_file()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_device_memory_and_cut(
    command: str,
    run: Path,
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start(name: str, device: str = "cpu") -> None:
        options: dict[str, Any] = {"out": tmp_path / name, "batch": 3, "size": "96x64", "device": device}
        msefpn.evaluate(run, **options, workers=0) if command == "evaluate" else msefpn.predict(
            run, tiny_set / "val", **options
        )

    def detected(self: TwoStage[Any], *given: Any) -> Detections:
        found = forward(self, *given)
        return found._replace(cut=torch.ones_like(found.cut))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"unknown device 'tpu': .*known: auto, cpu, gpu"):
        start("none", "tpu")
    forward = TwoStage.forward
    monkeypatch.setattr(TwoStage, "forward", detected)
    start("cut")
    assert "5 candidates over the score threshold did not fit" in capsys.readouterr().out
    monkeypatch.setattr(TwoStage, "forward", full)
    with pytest.raises(UserError, match="memory for batch 3 at size 96x64: lower --batch or --size"):
        start("full")
    assert not (tmp_path / "full").exists()


def test_one_image_at_a_time_gives_the_same_as_the_evaluation(
    run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    numbers = msefpn.evaluate(run, batch=1, out=tmp_path / "numbers", device="cpu", workers=0)
    results = msefpn.predict(run, [tiny_set / "val"], score=0, out=tmp_path / "pictures", device="cpu")
    evaluated = json.loads((tmp_path / "numbers" / "predictions.json").read_text())
    kept = [{key: item[key] for key in ("category_id", "bbox", "score")} for item in results]
    assert kept == [{key: item[key] for key in ("category_id", "bbox", "score")} for item in evaluated]
    assert numbers["detections"] == len(results)
    saved = json.loads((tmp_path / "numbers" / "metrics.json").read_text())
    assert saved == numbers
    assert all(name in saved for name in NUMBERS)


def test_evaluations_of_a_run_are_numbered(run: Path, tiny_set: Path) -> None:
    for number in (1, 2):
        msefpn.evaluate(run, tiny_set, split="train", size=64, device="cpu", workers=0)
        assert (run / f"evaluate-{number}" / "metrics.json").is_file()
    with pytest.raises(UserError, match="not empty"):
        msefpn.evaluate(run, out=run / "evaluate-1")


def test_find_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.PNG", "deep/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b = tmp_path / "a.jpg", tmp_path / "deep" / "b.PNG"
    assert find_images([tmp_path]) == [a, b]
    assert find_images([a, str(tmp_path / "*.jpg"), str(tmp_path / "**" / "*.PNG")]) == [a, b]
    with pytest.raises(UserError, match=r"no image found at .*\.gif"):
        find_images([tmp_path / "*.gif"])
    assert picture_names([a, b, Path("x/a.tif"), Path("a-2.jpg")]) == [
        "a.jpg",
        "b.jpg",
        "a-2.jpg",
        "a-2-2.jpg",
    ]


def test_drawing_changes_the_boxes_alone() -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    box = np.array([[100, 80, 180, 150]], np.float32)
    found = Found(np.array([0]), box, np.array([0.9], np.float32), np.array([1]))
    drawn = draw(pixels, found, ["cat", "dog"])
    assert (pixels == 128).all(), "the input is left as it was"
    changed = (drawn != pixels).any(-1)
    assert changed[80, 100:180].all()
    assert changed[80:150, 100].all()
    assert not changed[90:140, 110:170].any()
    assert not changed[160:].any()
    nothing = Found(found.image_ids[:0], box[:0], found.scores[:0], found.labels[:0])
    assert (draw(pixels, nothing, ["cat", "dog"]) == pixels).all()


def test_a_label_stays_inside_the_picture() -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    at_the_top = Found(
        np.array([0]), np.array([[50, 0, 250, 190]], np.float32), np.array([0.9], np.float32), np.array([0])
    )
    changed = (draw(pixels, at_the_top, ["cat"]) != pixels).any(-1)
    assert changed[3:12, 55:75].mean() > 0.5

"""Predict and evaluate with a run: pictures, one json, and nothing overwritten."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import msefpn
from msefpn.cli import main
from msefpn.data.images import read_image
from msefpn.data.masks import encode_mask, run_lengths
from msefpn.errors import UserError
from msefpn.inference.detect import Predictions
from msefpn.inference.predictor import Predictor
from msefpn.metrics.coco import NUMBERS
from msefpn.models import TwoStage
from msefpn.prediction.results import ImageResult
from msefpn.structures import Detections
from tests import TINY


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


def test_bad_files_are_named_and_the_rest_is_kept(
    run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_set / "val", folder)
    (folder / "zero.png").touch()
    (folder / "torn.jpg").write_bytes((folder / "000002.jpg").read_bytes()[:500])
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert sum("skipped: " in line and str(folder) in line for line in told) == 2
    assert "in 5 images, 2 skipped, " in told[-1]
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 5
    for name in ("zero.png", "torn.jpg"):
        shutil.move(folder / name, tmp_path / name)
    bad = [str(tmp_path / name) for name in ("zero.png", "torn.jpg")]
    assert main(["predict", str(run), *bad, "--out", str(tmp_path / "none")]) == 2
    assert "none of the 2 images can be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_classes_that_are_asked_for(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    names = msefpn.load(run).classes
    options: dict[str, Any] = {"score": 0.0, "device": "cpu"}
    every = msefpn.predict(run, tiny_set / "val", out=tmp_path / "every", **options)
    some = msefpn.predict(run, tiny_set / "val", out=tmp_path / "some", classes=[names[1]], **options)
    assert some == [item for item in every if item["category"] == names[1]]
    assert 0 < len(some) < len(every)
    with pytest.raises(UserError, match=f"unknown class 'ball': .*known: .*{names[1]}"):
        msefpn.predict(run, tiny_set / "val", classes="ball")


def test_limits_of_the_command(
    run: Path,
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", str(run), str(tiny_set / "val"), "--score", "0", "--device", "cpu", "--save", "json"]
    counts = {}
    for name, limits in (("own", []), ("few", ["--max-per-image", "2"]), ("apart", ["--iou", "0.1"])):
        assert main([*words, *limits, "--out", str(tmp_path / name)]) == 0
        counts[name] = len(json.loads((tmp_path / name / "predictions.json").read_text()))
    assert counts["few"] == 2 * 5 < counts["apart"] < counts["own"]
    monkeypatch.setattr(Predictor, "limits", None)
    assert main([*words, "--iou", "0.1", "--out", str(tmp_path / "none")]) == 2
    assert "iou cannot be changed in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_stream_gives_what_predict_writes(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").touch()
    files = sorted((tiny_set / "val").iterdir())
    given: list[str | Path] = [*files[:2], tmp_path / "torn.jpg", files[2]]
    found = msefpn.predict(run, given, out=tmp_path / "out", score=0.1, device="cpu")
    with pytest.warns(UserWarning, match=r"skipped: .*torn\.jpg"):
        results = list(msefpn.stream(run, given, score=0.1, device="cpu"))
    assert [result.source for result in results] == [str(path) for path in files[:3]]
    assert {result.frame for result in results} == {None}
    for result in results:
        np.testing.assert_array_equal(result.image, read_image(Path(result.source)))
        mine = [item for item in found if item["file_name"] == result.source]
        predictions = result.predictions
        assert [result.classes[label] for label in predictions.labels] == [item["category"] for item in mine]
        np.testing.assert_allclose(predictions.scores, [item["score"] for item in mine], atol=1e-5)
        corners = np.array([item["bbox"] for item in mine])
        np.testing.assert_allclose(predictions.boxes[:, :2], corners[:, :2], atol=0.01)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(UserError, match=r"torn\.jpg"):
        list(msefpn.stream(run, tmp_path / "torn.jpg", device="cpu"))


def test_a_result_as_detections_of_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision")
    mask = np.zeros((20, 30), bool)
    mask[5:10, 8:20] = True
    masks = np.empty(1, dtype=object)
    masks[0] = run_lengths(encode_mask(mask), (20, 30))
    box = np.array([[8, 5, 20, 10]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([1]), masks)
    result = ImageResult("a.jpg", None, np.zeros((20, 30, 3), np.uint8), found, ("cat", "dog"), (1, 2))
    detections = result.detections
    assert list(detections.data["class_name"]) == ["dog"]
    assert detections.class_id is not None
    assert detections.class_id.tolist() == [1]
    assert detections.confidence is not None
    assert detections.confidence.tolist() == pytest.approx([0.9])
    assert detections.xyxy.tolist() == box.tolist()
    assert detections.mask is not None
    assert (detections.mask[0] == mask).all()
    assert len(replace(result, predictions=found.where(np.array([False]))).detections) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r'pip install "msefpn\[supervision\]"'):
        _ = result.detections


def test_an_interruption_keeps_what_was_found(
    run: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Predictor, images: Any, **options: Any) -> list[Predictions]:
        if len(list((tmp_path / "out").glob("*.jpg"))) == 2:
            raise KeyboardInterrupt
        return real(self, images, **options)

    real = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", stop)
    with pytest.raises(KeyboardInterrupt, match="what was found until then"):
        msefpn.predict(run, tiny_set / "val", out=tmp_path / "out", score=0.0, device="cpu")
    kept = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {item["image_id"] for item in kept} == {0, 1}


def test_tiles_find_more_of_a_large_image(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    small = read_image(tiny_set / "val" / "000001.jpg")
    Image.fromarray(np.tile(small, (3, 3, 1))).save(tmp_path / "large.png")
    options: dict[str, Any] = {"score": 0.0, "device": "cpu", "save": ["json"]}
    plain = msefpn.predict(run, tmp_path / "large.png", out=tmp_path / "plain", **options)
    tiled = msefpn.predict(
        run, tmp_path / "large.png", out=tmp_path / "tiled", tile=True, tile_size=160, batch=4, **options
    )
    assert [path.name for path in (tmp_path / "tiled").iterdir()] == ["predictions.json"]
    assert len(tiled) > 2 * len(plain)
    height, width = 3 * small.shape[0], 3 * small.shape[1]
    assert all(x + w <= width + 0.02 and y + h <= height + 0.02 for x, y, w, h in (t["bbox"] for t in tiled))


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

    def detected(self: TwoStage, *given: Any) -> Detections:
        found = forward(self, *given)
        return found._replace(num_dropped=torch.ones_like(found.num_dropped))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"unknown device 'tpu': .*known: auto, cpu, gpu"):
        start("none", "tpu")
    forward = TwoStage.forward
    monkeypatch.setattr(TwoStage, "forward", detected)
    start("cut")
    assert "5 candidates over the score threshold were dropped before NMS" in capsys.readouterr().out
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


def test_soft_nms_and_views_of_a_run(
    run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", str(run), "--data", str(tiny_set), "--workers", "0", "--device", "cpu"]
    more = ["--batch", "1", "--soft-nms", "gaussian", "--sigma", "0.3", "--flip", "--scales", "96", "128x64"]
    assert main([*given, *more, "--out", str(tmp_path / "more")]) == 0
    numbers = json.loads((tmp_path / "more" / "metrics.json").read_text())
    assert numbers["detection"] == {
        "soft_nms": "gaussian",
        "sigma": 0.3,
        "flip": True,
        "scales": ["96", "128x64"],
    }
    assert 0 <= numbers["AP"] <= 1
    found = json.loads((tmp_path / "more" / "predictions.json").read_text())
    assert {item["image_id"] for item in found} == {
        item["id"] for item in json.loads((tiny_set / "val.json").read_text())["images"]
    }
    assert "AP" in capsys.readouterr().out
    # predict finds the same
    files = sorted((tiny_set / "val").iterdir())[:1]
    options: dict[str, Any] = {"soft_nms": "gaussian", "sigma": 0.3, "flip": True, "scales": ["96", "128x64"]}
    (result,) = msefpn.stream(run, files, score=0.0, device="cpu", **options)
    scores = sorted((item["score"] for item in found if item["image_id"] == 1), reverse=True)
    np.testing.assert_allclose(result.predictions.scores, scores, atol=1e-4)

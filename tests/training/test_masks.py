"""Masks and given proposals through the commands: train, evaluate, predict, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from msefpn import evaluate, predict, train
from msefpn.cli import main
from msefpn.data.masks import decode_masks
from msefpn.inference.detect import Predictions, detect, merge_predictions
from msefpn.models import load
from tests import TINY, copy_to

Capsys = pytest.CaptureFixture[str]
VALUES = yaml.safe_load(TINY.read_text())


def fast_recipe(folder: Path) -> Path:
    """The tiny recipe with Fast R-CNN."""
    roi = {"roi": VALUES["detector_options"]["roi"]}
    changed = {"detector": "fast_rcnn", "detector_options": roi, "neck": "fpn", "epochs": 1, "workers": 0}
    (folder / "fast.yaml").write_text(yaml.safe_dump(VALUES | changed))
    return folder / "fast.yaml"


@pytest.fixture(scope="module")
def masked(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Mask R-CNN that has hardly learned anything."""
    out = tmp_path_factory.mktemp("masked") / "run"
    options: dict[str, Any] = {"size": 96, "epochs": 1, "warmup": 50, "workers": 0, "device": "cpu"}
    few = "detector_options.roi.max_per_image=20"
    return train(tiny_set, recipe="quickstart_masks", out=out, set=[few], **options)


def test_training_tells_the_masks_numbers(masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (masked / "metrics.csv").read_text().splitlines()
    assert {"mask", "mask_AP", "mask_AP50"} <= set(log[0].split(","))
    best = json.loads((masked / "metrics.json").read_text())["best"]
    assert set(best["mask"]["per_class"]) == set(best["per_class"])
    numbers = evaluate(masked, workers=0)
    assert numbers["mask"]["AP"] == pytest.approx(best["mask"]["AP"], abs=1e-6)
    shown = capsys.readouterr().out
    assert "box" in shown
    assert "mask AP" in shown


def test_predictions_hold_masks_in_their_boxes(masked: Path, tiny_set: Path, tmp_path: Path) -> None:
    found = predict(masked, tiny_set / "val", score=0.0, out=tmp_path / "p")
    assert len(found) > 20
    some = False
    for item in found[:50]:
        height, width = item["segmentation"]["size"]
        with Image.open(item["file_name"]) as image:
            assert image.size == (width, height)
        x, y, w, h = item["bbox"]
        mask = decode_masks([item["segmentation"]["counts"].encode()], (height, width))[0]
        rows, columns = mask.nonzero()
        if len(rows):
            assert (columns.min(), rows.min()) >= (np.floor(x) - 1, np.floor(y) - 1)
            assert (columns.max(), rows.max()) <= (np.ceil(x + w) + 1, np.ceil(y + h) + 1)
        some |= bool(len(rows))
    assert some
    assert json.loads((tmp_path / "p" / "predictions.json").read_text()) == found


def fails(capsys: Capsys, *words: str | Path) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_masks_asked_for_and_no_polygons(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val"):
        content = json.loads((tiny_set / f"{name}.json").read_text())
        for item in content["annotations"]:
            del item["segmentation"]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        copy_to(tiny_set / name, tmp_path / name)
    line = fails(capsys, "train", "--data", tmp_path, "--detector", "mask_rcnn", "--out", tmp_path / "run")
    assert "no mask: 000001.jpg (annotation 1) has no segmentation: draw it as polygons" in line
    assert "'msefpn check --masks' lists them" in line
    assert not (tmp_path / "run").exists()
    assert main(["check", str(tmp_path), "--masks"]) == 2
    assert " objects without a mask: stops a run" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 0


def test_detections_of_a_process_without_images(masked: Path) -> None:
    """They are none, and those of the others keep their masks."""
    nothing = detect(load(masked), [], torch.device("cpu"))
    box, one, label = np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
    some = Predictions(label, box, one, label, np.array([{"size": [1, 1], "counts": "01"}], dtype=object))
    for parts in ([some, nothing], [nothing, some]):
        assert merge_predictions(parts).masks is not None
        assert len(merge_predictions(parts).boxes) == 1
    assert merge_predictions([nothing, nothing]).masks is None


@pytest.fixture(scope="module")
def proposals(masked: Path) -> tuple[Path, Path]:
    """What the mask detector finds on both splits."""
    for split in ("train", "val"):
        evaluate(masked, split=split, workers=0, out=masked / split)
    return masked / "train" / "predictions.json", masked / "val" / "predictions.json"


@pytest.fixture(scope="module")
def given(tiny_set: Path, proposals: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Fast R-CNN."""
    folder = tmp_path_factory.mktemp("given")
    made = fast_recipe(folder)
    first, second = proposals
    return train(tiny_set, recipe=made, out=folder / "run", train_proposals=first, val_proposals=second)


def test_fast_rcnn_on_given_proposals(given: Path, tiny_set: Path, proposals: tuple[Path, Path]) -> None:
    best = json.loads((given / "metrics.json").read_text())["best"]
    own, named = evaluate(given, workers=0), evaluate(given, tiny_set, proposals=proposals[1], workers=0)
    assert own["AP"] == named["AP"] == pytest.approx(best["AP"], abs=1e-6)
    first, second = proposals
    resumed = train(tiny_set, resume=True, out=given, epochs=2, train_proposals=first, val_proposals=second)
    assert resumed == given
    assert len((given / "metrics.csv").read_text().splitlines()) == 3


def test_fast_rcnn_predicts_where_another_has_found(
    given: Path, masked: Path, tiny_set: Path, tmp_path: Path
) -> None:
    images = sorted((tiny_set / "val").glob("*.jpg"))[:2]
    predict(masked, images, score=0.0, out=tmp_path / "first")
    regions = tmp_path / "first" / "predictions.json"
    found = predict(given, images, proposals=regions, score=0.0, out=tmp_path / "second")
    assert {item["file_name"] for item in found} == {str(image) for image in images}


def test_proposals_that_do_not_fit(
    given: Path,
    masked: Path,
    tiny_set: Path,
    proposals: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, out = fast_recipe(tmp_path), tmp_path / "run"
    start = ("train", "--data", tiny_set, "--recipe", made, "--out", out)
    swapped = ("--train-proposals", proposals[1], "--val-proposals", proposals[0])
    assert "which" in (line := fails(capsys, *start, *swapped))
    assert "of these images" in line or "of other images?" in line
    assert "fast_rcnn needs proposals: add --train-proposals and --val-proposals" in fails(capsys, *start)
    both = ("--train-proposals", proposals[0], "--val-proposals", proposals[1])
    other = ("train", "--data", tiny_set, "--detector", "retinanet", "--out", out)
    assert "retinanet finds its own proposals: leave them out" in fails(capsys, *other, *both)
    assert "name the regions to look at with --proposals" in fails(capsys, "predict", given, tiny_set / "val")
    image = tiny_set / "val" / "000001.jpg"
    assert "leave out --proposals" in fails(capsys, "predict", masked, image, "--proposals", proposals[1])
    assert "has no 'file_name'" in fails(capsys, "predict", given, image, "--proposals", proposals[1])
    resume = ("train", "--resume", "--out", given, "--epochs", "9", "--train-proposals", proposals[1])
    assert "not that of the run" in fails(capsys, *resume)
    grid = ("ablate", TINY, "--data", tiny_set, "--out", out, "--train-proposals", proposals[0])
    assert "no row takes proposals" in fails(capsys, *grid, "--val-proposals", proposals[1])
    assert not out.exists()


def test_proposals_that_have_changed(given: Path, proposals: tuple[Path, Path], capsys: Capsys) -> None:
    content = proposals[0].read_text()
    try:
        proposals[0].write_text(json.dumps(json.loads(content)[:3]))
        line = fails(capsys, "train", "--resume", "--out", given, "--epochs", "9")
        assert "has changed since the run" in line
    finally:
        proposals[0].write_text(content)

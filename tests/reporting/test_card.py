"""The model card of a run."""

from pathlib import Path

import pytest
from PIL import Image

import msefpn
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import Detector, build, save
from msefpn.reporting.card import describe_run
from tests.reporting.test_report import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """A run folder with its files, without weights."""
    folder = tmp_path_factory.mktemp("runs") / "cells"
    make_run(folder, tiny_set)
    return folder


def test_text_and_picture(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    text = describe_run(run, tmp_path)
    assert "| train | train.json | 12 |" in text
    assert "| val | val.json | 5 |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| AP |")]
    assert line.startswith("| AP | IoU 0.50 to 0.95 | ")
    assert "msefpn train --recipe config.yaml --train-json train.json --train-images train" in text
    assert "![Detections on a validation image](detections.webp)" in text
    assert str(tiny_set.parent) not in text
    with Image.open(tmp_path / "detections.webp") as picture:
        assert 400 < max(picture.size) <= 560


def test_missing_parts_are_left_out(run: Path, tmp_path: Path) -> None:
    for file in ("metrics.json", "predictions.json"):
        (run / file).rename(tmp_path / file)
    try:
        text = describe_run(run, tmp_path)
    finally:
        for file in ("metrics.json", "predictions.json"):
            (tmp_path / file).rename(run / file)
    assert "## Numbers" not in text
    assert "![" not in text
    assert "## Data" in text


def test_a_loaded_run_is_saved_with_its_card(run: Path, tmp_path: Path) -> None:
    save(build(Config(backbone="test_resnet", neck="fpn"), ["a"]), run / "best.safetensors")
    try:
        detector = msefpn.load(run).detector
        assert isinstance(detector, Detector)
        detector.save_pretrained(tmp_path / "out")
        again = msefpn.load(tmp_path / "out").detector
    finally:
        (run / "best.safetensors").unlink()
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["README.md", "config.json", "detections.webp", "model.safetensors"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.index("Detects 1 class: a.") < card.index("## Data") < card.index("## Configuration")
    assert isinstance(again, Detector)
    assert again.describe is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        describe_run(tmp_path, tmp_path)

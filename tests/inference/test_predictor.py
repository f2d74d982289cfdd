"""The predictor: the same detections as the evaluation's, in pixels of the images given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from msefpn.config import load_recipe
from msefpn.data.images import read_image
from msefpn.errors import UserError
from msefpn.inference import predictor
from msefpn.inference.detect import Predictions
from msefpn.inference.device import telling_compiler
from msefpn.inference.predictor import Predictor
from msefpn.models import build, save
from tests import TINY


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    detector = build(load_recipe(str(TINY)), ["circle", "square"], category_ids=[3, 7])
    file = tmp_path_factory.mktemp("predictor") / "best.safetensors"
    save(detector, file)
    return file


def test_one_found_per_image_in_its_own_pixels(weights: Path, tiny_set: Path) -> None:
    predictor = Predictor.open(weights, size="64", device="cpu")
    assert predictor.classes == ("circle", "square")
    assert predictor.category_ids == (3, 7)
    assert predictor.size == (64, 64)
    first = read_image(tiny_set / "val" / "000001.jpg")
    small = np.ascontiguousarray(first[:40, :, ::-1])
    together = predictor([first, small[..., ::-1]])
    assert [set(found.image_ids.tolist()) for found in together] == [{0}, {1}]
    for image, found in zip((first, small), together, strict=True):
        height, width = image.shape[:2]
        assert len(found.boxes) > 5
        assert (np.diff(found.scores) <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= np.array([width, height, width, height]) + 1e-3).all()
        assert (found.boxes[:, 2:] > 0.8 * np.array([width, height])).any(), "boxes are in the image's pixels"
    # the same weights alone, later, and over a threshold
    alone = predictor([first])[0]
    np.testing.assert_allclose(alone.boxes, together[0].boxes, atol=1e-2)
    middle = float(np.median(alone.scores))
    few: Predictions = predictor([first], score=middle)[0]
    np.testing.assert_array_equal(few.boxes, alone.boxes[alone.scores >= middle])
    assert predictor([]) == []


def test_what_cannot_be_opened(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights at"):
        Predictor.open(tmp_path / "nothing")
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        Predictor.open(weights, device="tpu")
    with pytest.raises(UserError, match="big"):
        Predictor.open(weights, size="big")


def test_a_detector_is_compiled_before_the_first_image(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    assert [Predictor.open(weights, device="cpu", compile=True).detector] == compiled


def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "load_exported", lambda path, trust: object())
    with pytest.raises(UserError, match="is an exported file, which runs as it is: leave out --compile"):
        Predictor.open(tmp_path / "a.onnx", compile=True)
    with pytest.raises(UserError, match=r"No working C\+\+ compiler .*: install a C\+\+"), telling_compiler():
        raise InvalidCxxCompiler
    with pytest.raises(RuntimeError, match="other"), telling_compiler():
        raise RuntimeError("other")

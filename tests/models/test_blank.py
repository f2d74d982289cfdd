"""Detectors without values: looked at, then filled from a file, as if they had been built with values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msefpn.config import Config
from msefpn.models import build, load, save
from msefpn.models.blank import blank
from msefpn.models.weights import _fill

OPTIONS: dict[str, Any] = {"neck": "fpn", "backbone": "test_resnet", "neck_options": {"out_channels": 16}}


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "ssd", "yolov3"])
def test_a_filled_detector_is_a_built_one(name: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"detector_options": {"roi": {"hidden": 16}}} if name == "faster_rcnn" else {}
    built = build(Config(detector=name, **OPTIONS, **small), ["a", "b"]).eval()
    save(built, tmp_path / "w.safetensors")
    state = torch.get_rng_state()
    filled = load(tmp_path / "w.safetensors")
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn"
    built.drop_training_parts()
    for kind in ("named_parameters", "named_buffers"):
        own, expected = dict(getattr(filled, kind)()), dict(getattr(built, kind)())
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(own[key], value), key
            assert own[key].stride() == value.stride(), key
            assert own[key].requires_grad == value.requires_grad, key


def test_what_the_file_does_not_hold_is_built() -> None:
    built = build(Config(detector="retinanet", **OPTIONS), ["a"])
    with blank():
        empty = build(Config(detector="retinanet", **OPTIONS), ["a"])
    empty.register_buffer("table", torch.empty(2, device="meta"), persistent=False)
    assert not _fill(empty, built.state_dict())
    del empty.table
    assert _fill(empty, {name: value.half() for name, value in built.state_dict().items()})
    assert {value.dtype for value in empty.parameters()} == {torch.float32}


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with blank("cpu"):
        layer = nn.Linear(3, 4)
        nn.init.kaiming_normal_(layer.weight)
        nn.init.trunc_normal_(tensor=layer.weight)
        layer.weight.data.normal_()
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.weight.device.type == "cpu"

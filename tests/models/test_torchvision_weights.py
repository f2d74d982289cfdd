"""Names of torchvision's weights, and of those that are not torchvision's."""

from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import OneStage, build, from_torchvision
from msefpn.models.torchvision_weights import convert_torchvision
from tests.models.test_torchvision import CLASSES, LABELS, SMALL, make_two_stage


def test_old_names_of_the_mask_head() -> None:
    ours = build(Config(detector="mask_rcnn", backbone="test_resnet", neck="fpn"), ["a"], [1])
    names = {
        f"roi_heads.mask_head.mask_fcn{i}.{part}": torch.zeros(i) for i in (1, 4) for part in ("weight",)
    }
    converted, left_out = convert_torchvision(names, ours)
    assert not left_out
    assert {name: len(tensor) for name, tensor in converted.items()} == {
        "mask.convs.0.weight": 1,
        "mask.convs.3.weight": 4,
    }


def test_towers_with_norms_find_their_layers() -> None:
    head = {"norm": True}
    config = Config(detector="retinanet", backbone="test_resnet", neck="fpn", detector_options={"head": head})
    ours: Any = build(config, ["a"], [1])
    assert isinstance(ours, OneStage)
    state = {
        f"head.classification_head.conv.{i}.{part}": torch.full(shape, i)
        for i in range(4)
        for part, shape in {"0.weight": (256, 256, 3, 3), "1.weight": (256,), "1.bias": (256,)}.items()
    }
    converted, left_out = convert_torchvision(state, ours)
    assert not left_out
    ours.load_state_dict(converted, strict=False)
    layers: list[Any] = [
        layer
        for layer in ours.get_submodule("head.class_tower").children()
        if not isinstance(layer, torch.nn.ReLU)
    ]
    found = [(type(layer).__name__, layer.weight.unique().tolist()) for layer in layers]
    assert found == [(name, [i]) for i in range(4) for name in ("Conv2d", "GroupNorm")]


def test_weights_of_another_model_are_refused() -> None:
    state = make_two_stage(FasterRCNN).state_dict()
    state["roi_heads.keypoint_head.0.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match="no place for roi_heads"):
        from_torchvision(state, CLASSES, LABELS, backbone=SMALL)

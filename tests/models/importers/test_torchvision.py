"""Names of torchvision's weights, and of those that are not torchvision's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import OneStage, build, from_torchvision
from msefpn.models.importers import _convert
from msefpn.models.importers.base import Names
from msefpn.models.importers.files import Checkpoint
from msefpn.models.importers.torchvision import convert_torchvision
from tests.models.test_torchvision import CLASSES, LABELS, SMALL, make_two_stage


def test_old_names_of_the_mask_head() -> None:
    names = {
        f"roi_heads.mask_head.mask_fcn{i}.{part}": torch.zeros(i) for i in (1, 4) for part in ("weight",)
    }
    taken = Names(names)
    convert_torchvision(taken, [1])
    assert not taken.left
    assert {name: len(tensor) for name, tensor in taken.own.items()} == {
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
    taken = Names(state)
    convert_torchvision(taken, [1])
    assert not taken.left
    ours.load_state_dict(taken.own, strict=False)
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


@pytest.mark.parametrize(
    ("name", "kind", "changed"),
    [
        ("fasterrcnn_resnet50_fpn", "faster_rcnn", 4),
        ("maskrcnn_resnet50_fpn", "mask_rcnn", 6),
        ("retinanet_resnet50_fpn", "retinanet", 2),
        ("retinanet_resnet50_fpn_v2", "retinanet", 2),
        ("fcos_resnet50_fpn", "fcos", 2),
    ],
)
def test_models_with_cocos_labels_have_no_remainder(name: str, kind: str, changed: int) -> None:
    with torch.device("meta"):
        state = getattr(detection, name)(weights=None, weights_backbone=None).state_dict()
        foreign = _convert(Checkpoint(Path("x.pth"), state, {}, ()), None)
        detector = foreign.detector()
    assert {item.theirs for item in foreign.carried} == set(state)
    assert [item.kind for item in foreign.carried].count("changed") == changed  # layers of classes
    assert (detector.config.detector, detector.config.backbone) == (kind, "resnet50")
    assert (detector.classes[:2], detector.category_ids[-1]) == (("person", "bicycle"), 90)


def test_layers_that_ours_lack_are_an_error() -> None:
    with torch.device("meta"):
        state = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    foreign = _convert(Checkpoint(Path("x.pth"), state, {}, ()), None)
    with pytest.raises(UserError, match="no place in faster_rcnn"):
        foreign.detector()
    refused = _convert(Checkpoint(Path("x.pth"), state, {}, ()), "caffe")
    with pytest.raises(UserError, match="of pytorch style: leave the style out"):
        refused.detector()

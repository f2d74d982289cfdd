"""detectron2's checkpoints: our weights in its layout and back, its settings, and other anchors than ours."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.errors import UserError
from msefpn.models import Foreign, importers, load
from msefpn.models.cascade import CascadeHead
from msefpn.models.importers.detectron2 import style_of
from msefpn.models.importers.files import Checkpoint
from msefpn.structures import Proposals
from tests.models.importers.layouts import CLASSES, HIDDEN, as_detectron2, detections, make

CLASS_NAMES = list(CLASSES)
NECKS: dict[str, dict[str, Any]] = {"retinanet": {"neck_options": {"extra_levels": "conv_c5_relu"}}}
STYLE = {"std": [1.0, 1.0, 1.0]}


def foreign_of(state: dict[str, Any], style: str | None = None) -> Foreign:
    """What a state dict without a file is taken for."""
    return importers._convert(Checkpoint(Path("model.pkl"), state, {}, ()), style)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet"])
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    ours = make(kind, backbone_options=STYLE, **NECKS.get(kind, {}))
    state = as_detectron2(ours)
    if kind == "mask_rcnn":
        torch.save({"model": state, "iteration": 7}, tmp_path / "model.pth")
        foreign = importers.read_foreign(tmp_path / "model.pth")
    else:
        content = {
            "model": {name: x.numpy() for name, x in state.items()},
            "__author__": "Detectron2 Model Zoo",
        }
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
        foreign = importers.read_foreign(tmp_path / "model.pkl")
    assert foreign.left == ()
    assert {item.theirs for item in foreign.carried} == set(state)
    theirs = foreign.detector(CLASS_NAMES)
    expected = {k: x for k, x in ours.state_dict().items() if not k.endswith("num_batches_tracked")}
    for key, tensor in expected.items():
        assert torch.equal(theirs.state_dict()[key], tensor), key
    with pytest.raises(UserError, match="does not name its 3 classes"):
        foreign.detector()
    options = theirs.config.detector_options  # ours with its settings detects the same
    again = make(
        kind, backbone_options=STYLE, detector_options=options, neck_options=theirs.config.neck_options
    )
    again.load_state_dict(ours.state_dict())
    found = detections(theirs)
    for key, value in detections(again).items():
        assert torch.equal(found[key], value), key


def test_settings_are_detectron2s() -> None:
    with torch.device("meta"):
        faster = foreign_of(without_anchors(make("faster_rcnn"))).config
        retina = foreign_of(without_anchors(make("retinanet", **NECKS["retinanet"]))).config
        cascade = foreign_of(without_anchors(make("cascade_rcnn"))).config
    assert faster is not None
    assert retina is not None
    assert cascade is not None
    rpn, roi = faster.detector_options["rpn"], faster.detector_options["roi"]
    assert (rpn["proposals"][1], rpn["pre_nms_top_k"][1], rpn["clamp_both"]) == (1000, 1000, False)
    assert (roi["score"], roi["nms_iou"], roi["max_per_image"], roi["hidden"]) == (0.05, 0.5, 100, HIDDEN)
    assert retina.neck_options["extra_levels"] == "conv_c5_relu"
    assert cascade.detector_options["roi"]["average_scores"]
    assert cascade.detector_options["roi"]["stds"][2] == pytest.approx([1 / 30, 1 / 30, 1 / 15, 1 / 15])
    assert faster.backbone_options == STYLE  # a basic block has no 1x1 convolution


def without_anchors(detector: Any) -> dict[str, Tensor]:
    return {name: x for name, x in as_detectron2(detector).items() if "cell_anchors" not in name}


def test_styles() -> None:
    with torch.device("meta"):
        state = without_anchors(make("faster_rcnn", backbone="resnet50"))
        grouped = without_anchors(make("faster_rcnn", backbone="resnext101_32x8d"))
    zoo, _ = style_of(state, None)
    assert zoo.options == {"stride_in_1x1": True, "std": [1.0, 1.0, 1.0]}
    assert zoo.bgr
    assert style_of(state, "pytorch")[0].options == {}
    wide, _ = style_of(grouped, None)
    assert (wide.options, wide.bgr) == ({}, True)
    rgb = {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)}
    rgb["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    style, source = style_of(state | rgb, None)
    assert (style.options, style.bgr, source) == (
        {"stride_in_1x1": True},
        False,
        "its pixel_mean and pixel_std",
    )
    foreign = foreign_of(state | rgb)
    assert foreign.left == ()
    assert foreign.config is not None
    assert foreign.config.backbone == "resnet50"


def test_other_anchors_are_refused() -> None:
    with torch.device("meta"):
        state = without_anchors(make("faster_rcnn"))
    cells = torch.tensor([[-30.0, -15, 30, 15], [-20, -20, 20, 20], [-15, -30, 15, 30]])
    foreign = foreign_of(state | {"proposal_generator.anchor_generator.cell_anchors.0": cells})
    with pytest.raises(UserError, match="its anchors are others than those of detectron2's zoo"):
        foreign.detector(CLASS_NAMES)


def test_another_head_is_named(tmp_path: Path) -> None:
    state = {"backbone.fpn_lateral2.weight": torch.zeros(8, 8, 1, 1), "sem_seg_head.x": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"a\.pth: from detectron2, but its head is none of ours: it has sem_seg_head"
    ):
        load(tmp_path / "a.pth")


def test_average_of_scores() -> None:
    torch.manual_seed(0)
    head = CascadeHead(8, [4, 8, 16, 32], 3, hidden=16, average_scores=True, score=0.0, nms_iou=1.0).eval()
    for parameter in head.parameters():
        parameter.data.mul_(20)
    pyramid = [torch.randn(1, 8, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    rois = torch.tensor([[[4.0, 4, 40, 50]]])
    sizes = torch.tensor([[64, 64]])
    with torch.no_grad():
        found = head(pyramid, Proposals(rois, torch.ones(1, 1, dtype=torch.bool)), sizes)
        scores = []
        for stage in head.stages:
            made: Any = stage
            logits, boxes = made.refined(pyramid, rois, sizes)
            scores.append(logits.softmax(dim=-1)[0, 0, :3])
            rois = boxes.squeeze(2)
    expected = torch.stack(scores).mean(dim=0)
    assert found.valid.sum() == 3
    torch.testing.assert_close(found.scores[0][found.valid[0]], expected.sort(descending=True).values)

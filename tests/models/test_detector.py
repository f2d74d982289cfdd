"""Whole detectors: mmdetection's defaults, freezing, hard batches, weights in and out."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import Detector, OneStage, build, load, save
from msefpn.models.backbone import make_backbone
from msefpn.models.cascade import CascadeHead
from msefpn.models.fcos import FCOSHead
from msefpn.models.matching import BalancedSampler
from msefpn.models.retina import RetinaHead
from msefpn.models.roi import RoIHead
from msefpn.models.rpn import RPN
from msefpn.plugins import known
from msefpn.structures import Proposals, Targets


def make(detector: str = "faster_rcnn", **options: Any) -> Detector:
    torch.manual_seed(0)
    values: dict[str, Any] = {"backbone": "test_resnet", "neck_options": {"out_channels": 32}}
    return build(Config(detector=detector, **values | options), ["cat", "dog", "eel"], [2, 5, 9])


def targets_of(boxes: Tensor) -> Targets:
    """Targets of the same boxes (G, 4) in each of two images."""
    batch = boxes.expand(2, -1, -1)
    rows, columns = torch.arange(96)[:, None], torch.arange(128)
    left, top, right, bottom = batch[..., None, None].unbind(2)
    masks = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
    labels = torch.zeros(batch.shape[:2], dtype=torch.long)
    return Targets(batch, labels, batch[..., 2] > 0, masks.to(torch.uint8))


IMAGES = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[96, 120], [80, 128]])
CROWD = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 90
REGIONS = Proposals(torch.cat([CROWD, CROWD + 25], dim=1).expand(2, -1, -1), torch.ones(2, 500).bool())
HARD: dict[str, Tensor] = {
    "no object": torch.zeros(1, 4),
    "one object": torch.tensor([[10.0, 10, 50, 60]]),
    "500 objects": torch.cat([CROWD, CROWD + 6], dim=1),
    "at the border": torch.tensor([[0.0, 0, 128, 96], [120, 90, 128, 96]]),
    "one pixel": torch.tensor([[5.0, 5, 6, 6]]),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("detector", known("detector"))
def test_hard_batches_train_every_parameter(detector: str, case: str) -> None:
    options = {"roi": {"hidden": 32}} if detector.endswith("rcnn") else {}
    options |= {"mask": {"hidden": 16}} if detector == "mask_rcnn" else {}
    model = make(detector, detector_options=options).train()
    losses = model.losses(IMAGES, SIZES, targets_of(HARD[case]), REGIONS)
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_to_the_bit_with_padding_zero(layout: torch.memory_format, dtype: torch.dtype) -> None:
    model = make().eval()
    images = IMAGES.to(dtype).contiguous(memory_format=layout)
    given = images.clone()
    found = model.normalise(images, SIZES)
    expected = (IMAGES.float() - model.mean) * model.scale
    for row, (height, width) in enumerate(SIZES.tolist()):
        expected[row, :, height:], expected[row, :, :, width:] = 0, 0
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, given)


SHARED = {"beta": 0.0, "clamp_both": True, "min_size": 0.0}
ANCHORS = {"ratios": (0.5, 1.0, 2.0), "reassign": True, "ignore_padding": True, "integer_anchors": False}
SELECTION = {"score": 0.05, "nms_iou": 0.5, "max_per_image": 100}
MMDETECTION: dict[type, dict[str, Any]] = {
    RPN: SHARED
    | ANCHORS
    | {"anchor_scale": 8.0, "positive_iou": 0.7, "negative_iou": 0.3, "low_quality_iou": 0.3}
    | {
        "proposals": (1000, 1000),
        "pre_nms_top_k": (2000, 1000),
        "nms_iou": 0.7,
        "samples": 256,
        "negative_ratio": None,
        "sampler": None,
        "border": None,
        "at_least_one": True,
        "box_loss": "smooth_l1",
        "class_loss": "binary_cross_entropy",
    },
    RoIHead: SHARED
    | SELECTION
    | {
        "hidden": 1024,
        "stds": (0.1, 0.1, 0.2, 0.2),
        "samples": 512,
        "positive_iou": 0.5,
        "low_quality_iou": None,
        "own_truth": True,
        "pre_nms_top_k": 2000,
    }
    | {"sampling_ratio": 0, "aligned": True, "sampler": None, "pooling": "level", "consistent": 0.0}
    | {"balanced_samples": False, "class_agnostic": False}
    | {"box_loss": "smooth_l1", "class_loss": "cross_entropy"},
    CascadeHead: SELECTION
    | {
        "hidden": 1024,
        "samples": 512,
        "pre_nms_top_k": 2000,
        "min_size": 0.0,
        "sampling_ratio": 0,
        "beta": 1.0,
        "box_loss": "smooth_l1",
        "class_loss": "cross_entropy",
    }
    | {"ious": (0.5, 0.6, 0.7), "weights": (1.0, 0.5, 0.25), "clamp_both": True, "average_scores": False}
    | {"stds": ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))},
    RetinaHead: SHARED
    | ANCHORS
    | SELECTION
    | {"depth": 4, "norm": False, "anchor_scale": 4.0, "positive_iou": 0.5, "negative_iou": 0.4}
    | {"per_image": False, "prior": 0.01, "pre_nms_top_k": 1000}
    | {"box_loss": "smooth_l1", "class_loss": "focal"},
    FCOSHead: {"score": 0.05, "nms_iou": 0.6, "max_per_image": 100, "pre_nms_top_k": 1000, "min_size": 0.0}
    | {"depth": 4, "radius": 1.5, "inclusive": True, "scales": True, "relative": True, "prior": 0.01}
    | {"centreness_branch": "box", "iou_loss": "giou", "weighted": True, "class_loss": "focal"}
    | {"preselect": "class", "root": False, "offset": 0.5, "integer_anchors": False},
}
"""Arguments of the heads as mmdetection 2.28.2 has them; `pre_nms_top_k` of RoIHead is ours.

FCOS's are those of `fcos_center-normbbox-centeronreg-giou`.
"""


@pytest.mark.parametrize("head", MMDETECTION)
def test_defaults_of_mmdetection(head: type) -> None:
    arguments = inspect.signature(head).parameters.values()
    assert {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY} == MMDETECTION[head]


def test_initial_weights_of_mmdetection() -> None:
    two: Any = make(neck_options={})
    one: Any = make("retinanet", neck_options={})
    towers: list[Any] = [one.head.class_tower[0], one.head.box_tower[0], one.head.classes, one.head.deltas]
    for layer in (two.rpn.conv, two.rpn.objectness, two.rpn.deltas, two.roi.box.classes, *towers):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert two.roi.box.deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)
    bound = math.sqrt(6 / (two.roi.box.fc1.in_features + two.roi.box.fc1.out_features))
    assert two.roi.box.fc1.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert one.head.classes.bias is not None
    assert torch.sigmoid(one.head.classes.bias[0]).item() == pytest.approx(0.01, rel=1e-4)


def test_levels_of_mmdetection() -> None:
    two: Any = make()
    one: Any = make("retinanet")
    assert two.rpn.anchors.strides == [4, 8, 16, 32, 64]
    assert (two.roi.pool.strides, two.roi.pool.size) == ([4, 8, 16, 32], 7)
    assert (two.rpn.sampler.positive_fraction, two.roi.sampler.positive_fraction) == (0.5, 0.25)
    assert one.head.anchors.strides == [8, 16, 32, 64, 128]
    assert one.head.matcher.low_quality_iou == 0


def test_proposals_of_a_cascade() -> None:
    cascade: Any = make("cascade_rcnn")
    plain: Any = make()
    rpn = cascade.rpn
    assert (rpn.proposals, rpn.border, rpn.box_loss.keywords) == ((2000, 1000), 0.0, {"beta": 1 / 9})
    assert (rpn.pre_nms_top_k, plain.rpn.border) == ((2000, 1000), None)


def test_schedule_of_mmdetection() -> None:
    config = Config()
    assert (config.lr, config.weight_decay, config.warmup, config.batch) == (0.02, 1e-4, 500, 16)
    assert (config.epochs, config.milestones, config.size, config.grad_clip) == (12, (8, 11), "1333x800", 0)


def test_freezing_of_mmdetection() -> None:
    with torch.device("meta"):
        backbone = make_backbone("resnet50").train()
    frozen = {name for name, p in backbone.body.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in backbone.body.named_parameters() if n.startswith(("conv1", "bn1", "layer1"))
    }
    assert not any(norm.training for norm in backbone.norms())
    assert backbone.body.layer2[0].bn1.weight.requires_grad


def test_training_the_norms() -> None:
    with torch.device("meta"):
        backbone = make_backbone("resnet50", frozen_stages=1, train_norm=True).train()
    assert not backbone.body.layer1[0].bn1.training
    assert backbone.body.layer2[0].bn1.training
    assert not backbone.eval().body.layer2[0].bn1.training


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", [256, 512, 1024, 2048]),
        ("tf_efficientnet_lite0", [24, 40, 112, 320]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),
    ],
)
def test_backbones(name: str, channels: list[int]) -> None:
    with torch.no_grad(), torch.device("meta"):
        backbone = make_backbone(name).eval()
        maps = backbone(torch.rand(1, 3, 96, 160))
    assert backbone.channels == channels
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 96 // s, 160 // s) for c, s in zip(channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet5", "did you mean"),
        ("vit_tiny_patch16_224", r"strides \[16\]"),
        ("maxvit_tiny_tf_224", "images of any size"),
    ],
)
def test_backbones_that_do_not_fit(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_backbone(name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"neck_options": {"widht": 3}}, "unknown key in neck_options of mse_fpn 'widht'"),
        ({"neck_options": {"preset": "none"}}, "neck_options of mse_fpn: preset 'none' is unknown"),
        (
            {"neck": "afpn", "neck_options": {"upsample": "carafe"}},
            "unknown key in neck_options of afpn 'upsample': known: "
            "extra_levels, out_channels, reduction, start_level",
        ),
        ({"detector_options": {"rpn": {"anchors": 1}}}, "unknown key in rpn 'anchors'"),
        ({"detector_options": {"preset": "detectron"}}, "unknown preset 'detectron'"),
        ({"backbone_options": {"frozen_stages": 9}}, "frozen_stages is 9"),
        ({"neck": "fpm"}, "unknown neck 'fpm': did you mean 'fpn'"),
        ({"neck": "fpn+bfpp"}, "unknown neck 'bfpp': did you mean 'bfp'"),
        ({"neck": "bfp"}, r"bfp reads another neck's pyramid: write fpn\+bfp"),
        ({"neck": "bfp+fpn"}, r"bfp reads another neck's pyramid: write fpn\+bfp"),
        ({"neck": "fpn+pafpn"}, "pafpn reads a backbone's maps: it can only come first"),
        ({"detector_options": {"roi": {"pooling": "hard"}}}, "roi: pooling 'hard' is unknown"),
        ({"detector_options": {"roi": {"consistent": 0.25}}}, "laterals, such as aug_fpn"),
        ({"detector_options": {"roi": {"box_loss": "balanced_l1"}}}, "roi: balanced_l1 divides by beta"),
        ({"detector_options": {"rpn": {"box_loss": "smooth_l2"}}}, "unknown loss 'smooth_l2': did you mean"),
        (
            {"detector": "retinanet", "detector_options": {"head": {"box_loss": "balanced_l1"}}},
            "head: balanced_l1 divides by beta",
        ),
        (
            {"detector": "retinanet", "detector_options": {"head": {"class_loss": "l1"}}},
            r"head: class_loss 'l1' fails on logits",
        ),
        (
            {"detector": "retinanet", "detector_options": {"roi": {"pooling": "soft"}}},
            "unknown key in detector_options 'roi'",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make(**options)


@pytest.mark.parametrize("detector", known("detector"))
def test_options_reach_the_selection(detector: str) -> None:
    options = {"score": 0.1, "nms_iou": 0.3, "max_per_image": 50, "pre_nms_top_k": 70, "min_size": 2.0}
    part = "roi" if detector.endswith("rcnn") else "head"
    with torch.device("meta"):
        model: Any = make(detector, detector_options={part: options})
    head = getattr(model, part)
    assert dataclasses.asdict(getattr(head, "stages", [head])[-1].selection) == options | {
        "suppression": "hard",
        "sigma": 0.5,
    }
    with pytest.raises(UserError, match=r"unknown key in \w+ 'skore': did you mean 'score'"):
        make(detector, detector_options={part: {"skore": 0.1}})


@pytest.mark.parametrize(
    ("extra", "strides"), [("none", [4, 8, 16, 32]), ("conv_c5", [4, 8, 16, 32, 64, 128])]
)
def test_regions_are_pooled_from_the_backbones_levels(extra: str, strides: list[int]) -> None:
    model: Any = make(neck_options={"extra_levels": extra})
    assert (model.roi.pool.strides, model.rpn.anchors.strides) == ([4, 8, 16, 32], strides)


AUG_FPN: dict[str, Any] = {
    "neck": "aug_fpn",
    "detector_options": {"roi": {"pooling": "soft", "consistent": 0.25, "hidden": 32}},
}


def test_consistent_supervision_and_soft_selection() -> None:
    model: Any = make(**AUG_FPN)
    losses = model.losses(IMAGES, SIZES, targets_of(HARD["one object"]))
    assert {"aux_class", "aux_box"} < set(losses)
    torch.stack(list(losses.values())).sum().backward()
    for part in (model.roi.auxiliary, model.roi.select, model.neck.laterals, model.neck.augment):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_training_only_parts_are_not_saved(tmp_path: Path) -> None:
    model = make(**AUG_FPN).eval()
    save(model, tmp_path / "best.safetensors")
    assert not any("auxiliary" in name for name in load_file(tmp_path / "best.safetensors"))
    again: Any = load(tmp_path)
    assert again.roi.auxiliary is None
    assert again.config == model.config
    with torch.no_grad():
        for a, b in zip(model(IMAGES, SIZES)[:5], again(IMAGES, SIZES)[:5], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("neck", ["mse_fpn", "pafpn", "bifpn", "fpn+bfp"])
def test_seeds_are_paired_over_necks(neck: str) -> None:
    fpn, other = make(neck="fpn").state_dict(), make(neck=neck).state_dict()
    heads = [name for name in fpn if not name.startswith("neck.")]
    assert all(torch.equal(fpn[name], other[name]) for name in heads)
    prefix = "neck.members.0." if "+" in neck else "neck."
    shared = [name for name in fpn if name.startswith("neck.outputs.")] if neck != "bifpn" else []
    assert all(torch.equal(fpn[name], other[name.replace("neck.", prefix)]) for name in shared)
    assert not torch.equal(fpn["neck.outputs.0.weight"], fpn["neck.outputs.1.weight"])


def test_libra_rcnn() -> None:
    roi = {"balanced_samples": True, "box_loss": "balanced_l1", "beta": 1.0}
    options = {"rpn": {"negative_ratio": 5}, "roi": roi}
    model: Any = make(neck="fpn+bfp", detector_options=options)
    losses = model.losses(IMAGES, SIZES, targets_of(HARD["one object"]))
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert [type(member).__name__ for member in model.neck.members] == ["FPN", "BFP"]
    assert isinstance(model.roi.sampler, BalancedSampler)
    assert model.rpn.sampler.negative_ratio == 5


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_any_score_threshold(score: float) -> None:
    model = make("retinanet", detector_options={"head": {"score": score}}).eval()
    with torch.no_grad():
        assert model(IMAGES, SIZES).valid.any().item() == (score == 0)


def test_detections_have_an_area() -> None:
    model = make("retinanet", detector_options={"head": {"score": 0.0}}).eval()
    assert isinstance(model, OneStage)
    head: Any = model.head
    torch.nn.init.normal_(head.deltas.weight, std=0.5)
    with torch.no_grad():
        found = model(torch.zeros(1, 3, 128, 320, dtype=torch.uint8), torch.tensor([[128, 60]]))
    sides = (found.boxes[..., 2:] - found.boxes[..., :2])[found.valid]
    assert len(sides) > 50
    assert (sides > 0).all()


@pytest.mark.parametrize("channels", [64, 40])
def test_norms_of_the_retina_head(channels: int) -> None:
    x = torch.rand(2, channels, 9, 7)
    plain, norm = (RetinaHead(channels, [8], 3, depth=2, norm=norm).class_tower for norm in (False, True))
    assert torch.allclose(norm(100 * x), norm(x), atol=0.01)
    assert not torch.allclose(plain(100 * x), plain(x), atol=0.01)

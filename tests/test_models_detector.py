"""Whole detectors: mmdetection's defaults, freezing, hard batches, weights in and out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import DETECTORS, Detector, OneStage, TwoStage, build, init_weights, load, save
from msefpn.models.backbone import Backbone
from msefpn.models.retina import RetinaHead
from msefpn.structures import Targets


def make(detector: str = "faster_rcnn", **options: Any) -> Detector:
    torch.manual_seed(0)
    values: dict[str, Any] = {"backbone": "mobilenetv2_100", "neck_options": {"out_channels": 32}}
    return build(Config(detector=detector, **values | options), ["cat", "dog", "eel"], [2, 5, 9])


def targets_of(boxes: Tensor) -> Targets:
    """Targets of the same boxes (G, 4) in each of two images."""
    batch = boxes.expand(2, -1, -1)
    return Targets(batch, torch.zeros(batch.shape[:2], dtype=torch.long), batch[..., 2] > 0)


IMAGES = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[96, 120], [80, 128]])
CROWD = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 90
HARD: dict[str, Tensor] = {
    "no object": torch.zeros(1, 4),
    "one object": torch.tensor([[10.0, 10, 50, 60]]),
    "500 objects": torch.cat([CROWD, CROWD + 6], dim=1),
    "at the border": torch.tensor([[0.0, 0, 128, 96], [120, 90, 128, 96]]),
    "one pixel": torch.tensor([[5.0, 5, 6, 6]]),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("detector", DETECTORS)
def test_hard_batches_train_every_parameter(detector: str, case: str) -> None:
    model = make(detector).train()
    losses = model.losses(IMAGES, SIZES, targets_of(HARD[case]))
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("detector", DETECTORS)
def test_padding_of_the_batch_changes_nothing(detector: str) -> None:
    model = make(detector).eval()
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    padded = torch.full((1, 3, 96, 128), 255, dtype=torch.uint8)
    padded[..., :90, :100] = images[..., :90, :100]
    images[..., 90:, :], images[..., 100:] = 0, 0
    sizes = torch.tensor([[90, 100]])
    assert torch.equal(model.normalise(images, sizes), model.normalise(padded, sizes))


def test_defaults_of_mmdetection() -> None:
    two, one = make(), make("retinanet")
    assert isinstance(two, TwoStage)
    assert isinstance(one, OneStage)
    assert two.rpn.proposals == (1000, 1000)
    assert two.rpn.candidates == (2000, 1000)
    assert (two.rpn.nms_iou, two.rpn.beta, two.rpn.sampler.count) == (0.7, 0.0, 256)
    assert two.rpn.anchors.strides == [4, 8, 16, 32, 64]
    roi = two.roi
    assert (roi.score, roi.nms_iou, roi.detections, roi.beta) == (0.05, 0.5, 100, 0.0)
    assert (roi.sampler.count, roi.sampler.positive_fraction, roi.stds) == (512, 0.25, [0.1, 0.1, 0.2, 0.2])
    assert (roi.pool.size, roi.pool.aligned, roi.pool.sampling_ratio) == (7, True, 0)
    assert roi.fc1.out_features == 1024
    head = one.head
    assert head.anchors.strides == [8, 16, 32, 64, 128]
    assert (head.score, head.nms_iou, head.detections, head.candidates) == (0.05, 0.5, 100, 1000)
    assert (head.matcher.positive_iou, head.matcher.negative_iou) == (0.5, 0.4)
    assert head.matcher.low_quality_iou == 0
    assert head.classes.bias is not None
    assert torch.sigmoid(head.classes.bias[0]).item() == pytest.approx(0.01, rel=1e-4)
    config = Config()
    assert (config.lr, config.weight_decay, config.warmup, config.batch) == (0.02, 1e-4, 500, 16)
    assert (config.epochs, config.drops, config.size, config.clip) == (12, (8, 11), "1333x800", 0)


def test_freezing_of_mmdetection() -> None:
    backbone = Backbone("resnet50").train()
    frozen = {name for name, p in backbone.body.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in backbone.body.named_parameters() if n.startswith(("conv1", "bn1", "layer1"))
    }
    assert not any(norm.training for norm in backbone.norms())
    assert backbone.body.layer2[0].bn1.weight.requires_grad


def test_training_the_norms() -> None:
    backbone = Backbone("resnet50", frozen_stages=1, train_norm=True).train()
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
    backbone = Backbone(name).eval()
    with torch.no_grad():
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
        Backbone(name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"neck_options": {"widht": 3}}, "unknown key in neck_options 'widht'"),
        ({"neck_options": {"preset": "none"}}, "neck_options: preset 'none' is unknown"),
        ({"detector_options": {"rpn": {"anchors": 1}}}, "unknown key in rpn 'anchors'"),
        ({"detector_options": {"preset": "detectron"}}, "unknown preset 'detectron'"),
        ({"backbone_options": {"frozen_stages": 9}}, "frozen_stages is 9"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make(**options)


@pytest.mark.parametrize("channels", [64, 40])
def test_norms_of_the_retina_head(channels: int) -> None:
    x = torch.rand(2, channels, 9, 7)
    plain, norm = (RetinaHead(channels, [8], 3, depth=2, norm=norm).class_tower for norm in (False, True))
    assert torch.allclose(norm(100 * x), norm(x), atol=0.01)
    assert not torch.allclose(plain(100 * x), plain(x), atol=0.01)


@pytest.mark.parametrize("detector", DETECTORS)
def test_save_and_load(detector: str, tmp_path: Path) -> None:
    model = make(detector).eval()
    save(model, tmp_path / "best.safetensors")
    again = load(tmp_path)
    assert (again.classes, again.category_ids) == (("cat", "dog", "eel"), (2, 5, 9))
    assert again.config == model.config
    with torch.no_grad():
        for a, b in zip(model(IMAGES, SIZES), again(IMAGES, SIZES), strict=True):
            assert torch.equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    save(make(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="half-written"):
        load(file)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="not written by msefpn"):
        load(file)
    with pytest.raises(UserError, match="no weights"):
        load(tmp_path / "nothing")


def test_init_from_a_backbone(shared: Path) -> None:
    model = make()
    file = shared / "weights" / "mobilenetv2_100.safetensors"
    report = init_weights(model, str(file))
    state = load_file(file)
    assert torch.equal(model.backbone.body.conv_stem.weight, state["conv_stem.weight"])
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert any(name.startswith("classifier") for name in report.left_out)


def test_init_from_a_detector_of_other_classes(tmp_path: Path) -> None:
    other = build(Config(backbone="mobilenetv2_100", neck_options={"out_channels": 32}), ["a", "b"])
    save(other, tmp_path / "other.safetensors")
    report = init_weights(make(), str(tmp_path / "other.safetensors"))
    assert "neck.outputs.0.weight" in report.loaded
    assert [text.split()[0] for text in report.left_out] == [
        "roi.classes.bias",
        "roi.classes.weight",
        "roi.deltas.bias",
        "roi.deltas.weight",
    ]
    assert "roi.classes.weight" in str(report)


def test_init_that_fits_nothing(tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="nothing in"):
        init_weights(make(), str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match="do not exist"):
        init_weights(make(), str(tmp_path / "y.pth"))

"""The core against torchvision's detectors: same weights and padded tensor, same detections and gradients."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.v2.functional import resize

from msefpn.models import Detector, TwoStage, from_torchvision
from msefpn.models.importers.base import Names
from msefpn.models.importers.torchvision import convert_torchvision
from msefpn.models.matching import RandomSampler
from msefpn.structures import Targets

LABELS = (1, 2, 4, 7, 8, 11)
"""torchvision's labels of our classes: gapped, as COCO's."""
ROWS = 12
CLASSES = tuple("abcdef")
SHAPES = ((128, 224), (224, 128), (160, 160), (96, 224), (224, 192))
"""Five aspect ratios, two images of each; a plain run compares the first two."""


BACKBONES = {"faster_rcnn": "resnet50"}
"""Of each kind; the others have a small one: their heads are compared."""
SMALL = "resnet18"


def frozen_resnet(name: str) -> nn.Module:
    """A ResNet with fixed normalisation of eps 0 whose random statistics keep activations in range."""
    make = getattr(torchvision.models, name)
    body: nn.Module = make(norm_layer=lambda width: FrozenBatchNorm2d(width, eps=0.0))
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.6, 0.8)
            module.bias.uniform_(-0.1, 0.1)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.9, 1.1)
    return body


KEPT = {FasterRCNN: 1000, MaskRCNN: 50}
"""Detections of an image: all of them where they are cheap."""
SAMPLES = 24
"""Regions of an image that losses are compared on; masks are drawn for a quarter of them."""
PROPOSALS = 100


def make_two_stage(kind: type[FasterRCNN], backbone_name: str = SMALL) -> FasterRCNN:
    torch.manual_seed(1)
    backbone = _resnet_fpn_extractor(frozen_resnet(backbone_name), trainable_layers=3)
    model = kind(
        backbone,
        num_classes=ROWS,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=KEPT[kind],
    )
    with torch.no_grad():
        nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.05)
        nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.02)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.25)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
        if isinstance(model, MaskRCNN):
            nn.init.normal_(model.roi_heads.mask_predictor.mask_fcn_logits.bias)
            centre_classes(model)
        unused = [row for row in range(1, ROWS) if row not in LABELS]
        model.roi_heads.box_predictor.cls_score.weight[unused] = 0
        model.roi_heads.box_predictor.cls_score.bias[unused] = -1e4  # a class that COCO does not have
    return model.eval()


def centre_classes(model: MaskRCNN) -> None:
    """Let no class score highest everywhere: few detections are kept."""
    x = torch.randn(1, 3, 128, 128)
    boxes = torch.tensor([[8.0 * i, 4.0 * i, 8.0 * i + 40, 4.0 * i + 60] for i in range(10)])
    heads = model.eval().roi_heads
    pooled = heads.box_roi_pool(model.backbone(x), [boxes], [(128, 128)])
    layer = heads.box_predictor.cls_score
    layer.bias.copy_(-layer(heads.box_head(pooled)).mean(dim=0))


def five_levels() -> nn.Module:
    """The backbone and pyramid of the one-stage detectors."""
    extra = LastLevelP6P7(256, 256)
    body = frozen_resnet(SMALL)
    made: nn.Module = _resnet_fpn_extractor(
        body, trainable_layers=3, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    return made


def make_retinanet() -> RetinaNet:
    torch.manual_seed(1)
    backbone = _resnet_fpn_extractor(
        frozen_resnet(SMALL),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = RetinaNet(
        backbone, num_classes=ROWS, anchor_generator=_default_anchorgen(), topk_candidates=10**6
    )
    head = model.head.classification_head
    with torch.no_grad():
        for tower in (head.conv, model.head.regression_head.conv):
            for layer in tower:
                nn.init.kaiming_normal_(layer[0].weight)
        nn.init.normal_(head.cls_logits.weight, std=0.1)
        nn.init.constant_(head.cls_logits.bias, -3.0)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.01)
        unused = [a * ROWS + row for a in range(9) for row in range(ROWS) if row not in LABELS]
        head.cls_logits.weight[unused] = 0
        head.cls_logits.bias[unused] = -1e4
    return model.eval()


def make_fcos() -> FCOS:
    torch.manual_seed(1)
    backbone = _resnet_fpn_extractor(
        frozen_resnet(SMALL),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = FCOS(backbone, num_classes=ROWS, topk_candidates=10**6, detections_per_img=1000)
    head = model.head.classification_head
    with torch.no_grad():
        for tower in (head.conv, model.head.regression_head.conv):
            for layer in tower[::3]:
                nn.init.kaiming_normal_(layer.weight)
        nn.init.normal_(head.cls_logits.weight, std=0.1)
        nn.init.constant_(head.cls_logits.bias, -5.0)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.05)
        nn.init.constant_(model.head.regression_head.bbox_reg.bias, 2.0)
        nn.init.normal_(model.head.regression_head.bbox_ctrness.weight, std=0.02)
        unused = [row for row in range(ROWS) if row not in LABELS]
        head.cls_logits.weight[unused] = 0
        head.cls_logits.bias[unused] = -1e4
    return model.eval()


MAKERS: dict[str, Callable[[], Any]] = {
    "faster_rcnn": lambda: make_two_stage(FasterRCNN, BACKBONES["faster_rcnn"]),
    "mask_rcnn": lambda: make_two_stage(MaskRCNN),
    "retinanet": make_retinanet,
    "fcos": make_fcos,
}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Detector]:
    """torchvision's model and ours with its weights, nothing of the candidates cut."""
    theirs = MAKERS[request.param]().double()  # in float32 rounding turns a suppression now and then
    name = BACKBONES.get(request.param, SMALL)
    ours: Any = from_torchvision(theirs.state_dict(), CLASSES, LABELS, backbone=name).double()
    if isinstance(ours, TwoStage):
        kept = KEPT[type(theirs)]
        roi: Any = ours.roi
        roi.selection = replace(roi.selection, pre_nms_top_k=10**5, max_per_image=kept)
        rpn: Any = ours.rpn
        assert rpn.proposals == (2000, 1000)
        rpn.proposals = (2000, PROPOSALS)
    else:
        count = 1000 if isinstance(theirs, FCOS) else ours.head.selection.max_per_image
        ours.head.selection = replace(ours.head.selection, pre_nms_top_k=10**5, max_per_image=count)
    return theirs, ours


@pytest.fixture(scope="module")
def batches(shared: Path) -> list[tuple[Tensor, Tensor]]:
    """Ten real images in five padded batches of one shape each."""
    files = sorted((shared / "data" / "coco-mini" / "dev").glob("*.jpg"))
    images = [torchvision.io.read_image(str(f), torchvision.io.ImageReadMode.RGB) for f in files[:10]]
    result = []
    for number, (height, width) in enumerate(SHAPES):
        batch = torch.zeros(2, 3, height, width, dtype=torch.uint8)
        sizes = torch.tensor([[height, width], [height - 5, width - 11]])
        for place, image in enumerate(images[2 * number : 2 * number + 2]):
            resized = resize(image, sizes[place].tolist())
            batch[place, :, : sizes[place, 0], : sizes[place, 1]] = resized
        result.append((batch, sizes))
    return result


def anchors_per_level(model: Any, maps: list[Tensor]) -> list[int]:
    """How many anchors RetinaNet or FCOS has on each level."""
    return [x.shape[2] * x.shape[3] * (1 if isinstance(model, FCOS) else 9) for x in maps]


def their_detections(model: Any, x: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """torchvision's parts on our padded tensor, without its resizing transform."""
    features = model.backbone(x)
    images = ImageList(x, [tuple(size) for size in sizes.tolist()])
    if isinstance(model, FasterRCNN):
        proposals, _ = model.rpn(images, features)
        found: list[dict[str, Tensor]] = model.roi_heads(features, proposals, images.image_sizes)[0]
        return found
    maps = list(features.values())
    head = model.head(maps)
    anchors = model.anchor_generator(images, maps)
    per_level = anchors_per_level(model, maps)
    split = {name: list(value.split(per_level, dim=1)) for name, value in head.items()}
    levels = [list(a.split(per_level)) for a in anchors]
    kept: list[dict[str, Tensor]] = model.postprocess_detections(split, levels, images.image_sizes)
    return kept


@torch.no_grad()
def test_detections_equal(
    pair: tuple[Any, Detector], batches: list[tuple[Tensor, Tensor]], pytestconfig: pytest.Config
) -> None:
    theirs, ours = pair
    if not pytestconfig.getoption("--whole-grid"):
        batches = batches[: 1 if ours.learns_masks else 2]  # boxes are Faster R-CNN's, compared there
    names = {label: index for index, label in enumerate(LABELS)}
    seen: set[int] = set()
    for images, sizes in batches:
        x = ours.normalise(images, sizes)
        expected = their_detections(theirs, x, sizes)
        found = ours(images, sizes)
        assert found.num_dropped.sum() == 0
        for i, truth in enumerate(expected):
            valid = found.valid[i]
            assert len(truth["boxes"]) == valid.sum()
            assert valid.sum() >= 50
            seen |= set(truth["labels"].tolist())
            scores, boxes, labels = found.scores[i][valid], found.boxes[i][valid], found.labels[i][valid]
            torch.testing.assert_close(scores, truth["scores"], atol=1e-9, rtol=0)
            order = align(truth, boxes, labels, names)
            expected_labels = torch.tensor([names[int(label)] for label in truth["labels"]])
            assert torch.equal(labels[order], expected_labels)
            torch.testing.assert_close(boxes[order], truth["boxes"], atol=1e-6, rtol=0)
            torch.testing.assert_close(scores[order], truth["scores"], atol=1e-9, rtol=0)
            if "masks" in truth:
                assert found.masks is not None
                masks = found.masks[i][valid][order]
                assert masks.std() > 0.05
                torch.testing.assert_close(masks, truth["masks"].squeeze(1), atol=1e-8, rtol=0)
    assert len(seen) >= 3


def align(truth: dict[str, Tensor], boxes: Tensor, labels: Tensor, names: dict[int, int]) -> Tensor:
    """Our row for each of theirs: the same rank, but for scores so close that chance orders them."""
    order = torch.arange(len(boxes))
    for i, label in enumerate(truth["labels"].tolist()):
        near = (truth["scores"] - truth["scores"][i]).abs() <= 2e-5
        candidates = near & (labels == names[label])
        distance = (boxes - truth["boxes"][i]).abs().amax(dim=1)
        order[i] = torch.where(candidates, distance, torch.inf).argmin()
    assert len(order.unique()) == len(order)
    return order


class FirstK(RandomSampler):
    """Draws the first boxes by index."""

    def keys(self, like: Tensor) -> Tensor:
        """Falling with the index."""
        return torch.linspace(1, 0, like.shape[1], dtype=torch.float64, device=like.device).expand_as(like)


class TheirFirstK:
    """torchvision's sampler, drawing the first boxes by index."""

    def __init__(self, count: int, positive_fraction: float) -> None:
        self.count, self.positives = count, int(count * positive_fraction)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = [], []
        for label in labels:
            chosen = (label >= 1) & ((label >= 1).cumsum(0) <= self.positives)
            room = self.count - int(chosen.sum())
            positive.append(chosen.to(torch.uint8))
            negative.append(((label == 0) & ((label == 0).cumsum(0) <= room)).to(torch.uint8))
        return positive, negative


def test_losses_and_gradients_equal(pair: tuple[Any, Detector], batches: list[tuple[Tensor, Tensor]]) -> None:
    # in float32 rounding changes which anchors the samplers draw at the margin, in float64 it does not
    theirs, ours = copy.deepcopy(pair[0]).double(), copy.deepcopy(pair[1]).double()
    images, sizes = batches[0]
    boxes = [
        torch.tensor([[10.0, 15, 60, 100], [75, 30, 105, 50], [150, 50, 165, 120]]),
        torch.tensor([[5.0, 5, 190, 115]]),
    ]
    labels = [torch.tensor([0, 3, 5]), torch.tensor([2])]
    targets = Targets(
        nn.utils.rnn.pad_sequence(boxes, batch_first=True).double(),
        nn.utils.rnn.pad_sequence(labels, batch_first=True),
        torch.tensor([[True] * 3, [True, False, False]]),
        (torch.rand(2, 3, *images.shape[2:]) > 0.4).to(torch.uint8),
    )
    assert targets.masks is not None
    their_targets = [
        {"boxes": box.double(), "labels": torch.tensor([LABELS[i] for i in label]), "masks": mask[: len(box)]}
        for box, label, mask in zip(boxes, labels, targets.masks, strict=True)
    ]
    x = ours.normalise(images, sizes)
    if isinstance(ours, TwoStage):
        parts: Any = ours
        theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler = (
            TheirFirstK(256, 0.5),
            TheirFirstK(SAMPLES, 0.25),
        )
        parts.rpn.sampler, parts.roi.sampler = FirstK(256, 0.5), FirstK(SAMPLES, 0.25)
    expected = their_losses(theirs, x, sizes, their_targets)
    found = ours.losses(images, sizes, targets)
    for (name, loss), their_loss in zip(found.items(), expected, strict=True):
        assert loss.item() > 0, name
        message = f"{name} is {loss}, not {their_loss}"
        torch.testing.assert_close(loss, their_loss, atol=0, rtol=1e-4, check_dtype=False, msg=message)
    torch.stack(expected).sum().backward()
    torch.stack(list(found.values())).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    compared = 0
    for own, gradient in their_gradients(theirs).items():
        difference = (gradients[own] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert difference < 1e-4, f"{own}: {difference:.2e}"
        compared += 1
    trained = [n for n in gradients if n not in dict(norm_parameters(ours))]
    assert compared == len(trained)


def norm_parameters(model: Detector) -> list[tuple[str, nn.Parameter]]:
    """Scale and shift of the backbone's norms: torchvision freezes them, mmdetection trains them."""
    norms = {id(p) for norm in model.backbone.norms() for p in norm.parameters()}
    return [(name, p) for name, p in model.named_parameters() if id(p) in norms]


def their_losses(model: Any, x: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]]) -> list[Tensor]:
    """torchvision's losses in the order of ours."""
    model.train()
    features = model.backbone(x)
    images = ImageList(x, [tuple(size) for size in sizes.tolist()])
    if isinstance(model, FasterRCNN):
        proposals, rpn = model.rpn(images, features, targets)
        _, roi = model.roi_heads(features, proposals, images.image_sizes, targets)
        losses = [
            rpn["loss_objectness"],
            rpn["loss_rpn_box_reg"],
            roi["loss_classifier"],
            roi["loss_box_reg"],
            *([roi["loss_mask"]] if isinstance(model, MaskRCNN) else []),
        ]
    else:
        maps = list(features.values())
        levels = [anchors_per_level(model, maps)] if isinstance(model, FCOS) else []
        anchors = model.anchor_generator(images, maps)
        losses = [*model.compute_loss(targets, model.head(maps), anchors, *levels).values()]
    model.eval()
    return losses


def their_gradients(theirs: Any) -> dict[str, Tensor]:
    """torchvision's gradients under our names, its unused classes' rows left out."""
    named = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    names = Names(named)
    convert_torchvision(names, LABELS)
    assert not names.left
    return names.own

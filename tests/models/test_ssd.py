"""SSD's parts against torchvision's, on the same maps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from msefpn.cli import main
from msefpn.models.ssd import DefaultBoxes, SSDHead
from msefpn.structures import Targets

STRIDES = [8, 16, 32, 64, 128]
IMAGE = (192, 256)
SIZES = torch.tensor([[192, 256], [180, 250]])
BOXES = [
    torch.tensor([[10.0, 12, 90, 100], [101, 33, 180, 175], [5, 60, 44, 91]]),
    torch.tensor([[60.0, 20, 251, 170]]),
]
LABELS = [torch.tensor([0, 2, 1]), torch.tensor([3])]


def their_ssd() -> Any:
    """torchvision's losses and selection, without backbone and head."""
    model = SSD.__new__(SSD)
    torch.nn.Module.__init__(model)
    model.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    model.proposal_matcher = SSDMatcher(0.5)
    model.neg_to_pos_ratio = 3.0
    model.score_thresh, model.nms_thresh, model.detections_per_img = 0.01, 0.45, 200
    model.topk_candidates = 10**6
    return model


def their_boxes(maps: list[Tensor]) -> list[Tensor]:
    generator = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2], [2]], steps=STRIDES)
    found: list[Tensor] = generator(ImageList(torch.zeros(2, 3, *IMAGE), [IMAGE] * 2), maps)
    return found


@pytest.fixture
def maps() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 16, -(-IMAGE[0] // s), -(-IMAGE[1] // s)) for s in STRIDES]


@pytest.fixture
def head() -> SSDHead:
    torch.manual_seed(0)
    return SSDHead(16, STRIDES, 4, pre_nms_top_k=10**6)


def test_default_boxes(maps: list[Tensor], head: SSDHead) -> None:
    ours = torch.cat(head.boxes(maps, IMAGE))
    torch.testing.assert_close(ours, their_boxes(maps)[0], atol=1e-3, rtol=0)


def targets() -> Targets:
    return Targets(
        torch.nn.utils.rnn.pad_sequence(BOXES, batch_first=True),
        torch.nn.utils.rnn.pad_sequence(LABELS, batch_first=True),
        torch.tensor([[True] * 3, [True, False, False]]),
    )


def test_matching(maps: list[Tensor], head: SSDHead) -> None:
    boxes = torch.cat(head.boxes(maps, IMAGE))
    match = head.matcher(boxes, torch.ones(2, len(boxes), dtype=torch.bool), targets())
    for i, truth in enumerate(BOXES):
        theirs = SSDMatcher(0.5)(box_iou(truth, boxes))
        assert torch.equal(match.positive[i], theirs >= 0)
        assert torch.equal(match.ground_truth[i][match.positive[i]], theirs[theirs >= 0])
        assert match.positive[i].sum() >= len(truth)


def their_head(maps: list[Tensor], head: SSDHead) -> dict[str, Tensor]:
    """Our predictions, background moved to the front."""
    logits, deltas = head._heads(maps)
    return {"cls_logits": logits.roll(1, dims=2), "bbox_regression": deltas}


def test_losses_with_hard_negatives(maps: list[Tensor], head: SSDHead) -> None:
    anchors = their_boxes(maps)
    matched = [SSDMatcher(0.5)(box_iou(truth, anchors[0])) for truth in BOXES]
    given = [{"boxes": b, "labels": label + 1} for b, label in zip(BOXES, LABELS, strict=True)]
    theirs = their_ssd().compute_loss(given, their_head(maps, head), anchors, matched)
    ours = head.losses(maps, SIZES, IMAGE, targets())
    torch.testing.assert_close(ours["ssd_class"], theirs["classification"], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours["ssd_box"], theirs["bbox_regression"], rtol=1e-4, atol=0)


@torch.no_grad()
def test_detections(maps: list[Tensor], head: SSDHead) -> None:
    for layer in head.classes:
        layer.weight.mul_(2)  # type: ignore[operator]  # a convolution
    shapes = [(192, 256), (180, 250)]
    theirs = their_ssd().postprocess_detections(their_head(maps, head), their_boxes(maps), shapes)
    found = head(maps, SIZES, IMAGE)
    assert found.num_dropped.sum() == 0
    for i, truth in enumerate(theirs):
        count = len(truth["scores"])
        assert 50 < count == found.valid[i].sum()
        torch.testing.assert_close(found.scores[i, :count], truth["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.boxes[i, :count], truth["boxes"], atol=1e-2, rtol=0)
        assert torch.equal(found.labels[i, :count], truth["labels"] - 1)


def test_no_positives_no_negatives(maps: list[Tensor], head: SSDHead) -> None:
    empty = targets()._replace(valid=torch.zeros(2, 3, dtype=torch.bool))
    losses = head.losses(maps, SIZES, IMAGE, empty)
    assert {loss.item() for loss in losses.values()} == {0.0}
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_sizes_of_one_level() -> None:
    (boxes,) = DefaultBoxes([16])([torch.zeros(1, 1, 1, 1)], (100, 200))
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides[0].tolist() == pytest.approx([30, 15])
    assert sides[1].tolist() == pytest.approx([200 * 0.15**0.5, 100 * 0.15**0.5])
    torch.testing.assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, torch.full((len(boxes), 2), 8.0))


def test_a_backbone_with_too_few_levels(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(tiny_set), "--detector", "ssd", "--backbone", "vit_tiny_patch16_224"]
    assert main([*words, "--init", "none", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "backbone 'vit_tiny_patch16_224' does not fit: its levels have strides [16]" in line
    assert not (tmp_path / "run").exists()

"""What mmdetection 2.x does in training where torchvision does otherwise, against values worked by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.models import TwoStage, build
from msefpn.models.matching import MaxIoUMatcher, with_own_truth
from msefpn.models.roi import RoIHead
from msefpn.models.rpn import RPN
from msefpn.structures import Proposals, Targets


def truth(*boxes: list[float]) -> Targets:
    """One image's ground truth, its classes counted from 0."""
    count = len(boxes)
    return Targets(torch.tensor([boxes]), torch.arange(count)[None], torch.ones(1, count, dtype=torch.bool))


@pytest.mark.parametrize(("at_least_one", "divisor"), [(True, (1 + 4) + (4 + 1)), (False, 4 + 4)])
def test_divisor_of_the_rpn(at_least_one: bool, divisor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of four anchors: one without an object, one whose objects are all four.

    The logits are 0, so each sample loses ln 2; the deltas are 1, 0, 0, 0, so each positive loses 1.
    """
    rpn = RPN(
        4, [16], anchor_scale=1.0, ratios=(1.0,), positive_iou=0.7, samples=8, at_least_one=at_least_one
    )
    rpn.sampler.positive_fraction = 1.0
    pyramid, sizes = [torch.zeros(2, 4, 2, 2)], torch.tensor([[32, 32], [32, 32]])
    (anchors,) = rpn.anchors(pyramid, (32, 32))
    boxes = torch.stack([torch.zeros_like(anchors), anchors])
    valid = torch.tensor([[False] * 4, [True] * 4])

    def predicted(_: Any, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(chosen.shape), torch.tensor([1.0, 0, 0, 0]).expand(*chosen.shape, 4)

    monkeypatch.setattr(rpn, "_heads_at", predicted)
    _, losses = rpn.losses(pyramid, sizes, (32, 32), Targets(boxes, torch.zeros(2, 4).long(), valid))
    assert losses["rpn_object"].item() == pytest.approx(8 * math.log(2) / divisor)
    assert losses["rpn_box"].item() == pytest.approx(4 * 1.0 / divisor)


def test_own_truth_where_boxes_coincide() -> None:
    """Two objects in one box: by IoU both rows are the first's, by themselves each is its own."""
    targets = truth([0.0, 0, 10, 10], [0.0, 0, 10, 10])
    proposals = torch.tensor([[[0.0, 0, 10, 8], [50, 50, 60, 60]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    matcher = MaxIoUMatcher(0.5, 0.5)
    found = with_own_truth(matcher(proposals, valid, targets), targets)
    assert found.ground_truth[0, 2:].tolist() == [0, 1]
    assert found.positive.tolist() == [[True, False, True, True]]
    assert found.negative.tolist() == [[False, True, False, False]]
    torch.testing.assert_close(found.iou, torch.tensor([[0.8, 0.0, 1.0, 1.0]]))
    by_iou = matcher(torch.cat([proposals, targets.boxes], 1), torch.ones(1, 4, dtype=torch.bool), targets)
    assert by_iou.ground_truth[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("own_truth", [True, False])
def test_classes_of_boxes_that_coincide(own_truth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head says class 1 everywhere: it is right for one of the two objects, if each is its own."""
    head = RoIHead(4, [4], 2, hidden=4, own_truth=own_truth)

    def predicted(_: Any, rois: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([0.0, 50.0, 0.0]).expand(*rois.shape[:2], 3)
        return logits, torch.zeros(*rois.shape[:2], 2, 4)

    monkeypatch.setattr(head, "_heads", predicted)
    none = Proposals(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))
    targets = truth([0.0, 0, 10, 10], [0.0, 0, 10, 10])
    losses, _ = head.losses([], none, torch.tensor([[32, 32]]), targets)
    assert losses["roi_class"].item() == pytest.approx((50 + (0 if own_truth else 50)) / 2)


def test_low_quality_reassigns_a_proposal() -> None:
    """An object that no box overlaps more than another object's does takes its best box from that one.

    The only proposal overlaps the first object by 9 / 10 and the second by 6 / 9 = 0.67 >= 0.5: both win it,
    and the later has it.
    """
    proposals = torch.tensor([[[0.0, 0, 10, 9]]])
    targets, usable = truth([0.0, 0, 10, 10], [0.0, 0, 10, 6]), torch.ones(1, 1, dtype=torch.bool)
    plain, low = (MaxIoUMatcher(0.5, 0.5, floor)(proposals, usable, targets) for floor in (None, 0.5))
    assert (plain.ground_truth.item(), low.ground_truth.item()) == (0, 1)
    far = truth([0.0, 0, 10, 10], [0.0, 0, 10, 4])  # 4 / 9 = 0.44 < 0.5: not won
    assert MaxIoUMatcher(0.5, 0.5, 0.5)(proposals, usable, far).ground_truth.item() == 0


def test_low_quality_is_mask_r_cnns_alone() -> None:
    found = {}
    for name in ("faster_rcnn", "mask_rcnn", "fast_rcnn"):
        for preset in ("mmdetection", "torchvision"):
            with torch.device("meta"):
                made = build(Config(name, backbone="test_resnet", detector_options={"preset": preset}), "ab")
            assert isinstance(made, TwoStage)
            assert isinstance(made.roi, RoIHead)
            found[name, preset] = made.roi.matcher.low_quality_iou, made.roi.own_truth
    for (name, preset), values in found.items():
        ours = preset == "mmdetection"
        assert values == (0.5 if ours and name == "mask_rcnn" else None, ours)

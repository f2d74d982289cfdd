"""FCOS's head against values worked by hand: losses, scores, settings."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import build
from msefpn.models.fcos import FCOSHead
from msefpn.models.matching import PointMatcher
from msefpn.structures import Targets

SIZES, IMAGE = torch.tensor([[32, 32]]), (32, 32)
PYRAMID = [torch.zeros(1, 8, 4, 4)]
"""One level of stride 8: points at 4, 12, 20 and 28 pixels."""


def make(**options: Any) -> FCOSHead:
    torch.manual_seed(0)
    return FCOSHead(8, [8], 2, depth=0, **options)


def targets_of(*boxes: list[float]) -> Targets:
    count = len(boxes)
    return Targets(torch.tensor([boxes]), torch.ones(1, count).long(), torch.ones(1, count).bool())


def say(head: FCOSHead, classes: Tensor, distances: Tensor, centreness: Tensor) -> FCOSHead:
    """Let a head predict the same in all cells: logits, distances before the scale, centre-ness."""
    with torch.no_grad():
        for layer, bias in (
            (head.classes, classes),
            (head.distances, distances),
            (head.centreness, centreness),
        ):
            layer.weight.zero_()
            layer.bias.copy_(bias)  # type: ignore[union-attr]  # it has one
    return head


@pytest.mark.parametrize(("weighted", "iou_loss"), [(True, "giou"), (False, "giou"), (True, "iou")])
def test_losses_by_hand(weighted: bool, iou_loss: str) -> None:
    """Of a box 4..24 x 0..8 the points at x 12 and 20, y 4, are inside, and central: |x - 14| < 12.

    That at x 4 lies on its side. Distances are one stride, 8 px, scaled by 0.5: 4 px.
    """
    head = say(make(weighted=weighted, iou_loss=iou_loss), torch.zeros(2), torch.ones(4), torch.tensor([0.0]))
    with torch.no_grad():
        assert head.scales is not None
        head.scales.fill_(0.5)
    found = head.losses(PYRAMID, SIZES, IMAGE, targets_of([4.0, 0, 24, 8]))
    # predicted 8..16 x 0..8 and 16..24 x 0..8, both inside of the truth: IoU = GIoU = 64 / 160
    loss = 1 - 0.4 if iou_loss == "giou" else -math.log(0.4)
    assert found["fcos_box"].item() == pytest.approx(loss, rel=1e-5)
    assert found["fcos_centre"].item() == pytest.approx(math.log(2), rel=1e-5)  # of logit 0, whatever the aim


@pytest.mark.parametrize("weighted", [True, False])
def test_box_loss_is_weighted_by_centreness(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that lose 1 and 3, whose l, r, t, b are 8, 12, 4, 4 and 16, 4, 4, 4 px.

    Their centre-ness is sqrt(8 / 12 x 1) and sqrt(4 / 16 x 1).
    """
    head = make(weighted=weighted)
    monkeypatch.setattr(head, "_box_loss", lambda boxes, truth: torch.tensor([1.0, 3.0]))
    found = head.losses(PYRAMID, SIZES, IMAGE, targets_of([4.0, 0, 24, 8]))
    first = math.sqrt(8 / 12)
    expected = (first * 1 + 0.5 * 3) / (first + 0.5) if weighted else (1 + 3) / 2
    assert found["fcos_box"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("inclusive", [True, False])
def test_limits_of_the_levels(inclusive: bool) -> None:
    """A box whose farthest side is exactly 64 px away: the limit of strides 8 (high 8) and 16 (low 4)."""
    anchors = [torch.tensor([[96.0, 96, 104, 104]]), torch.tensor([[92.0, 92, 108, 108]]), torch.zeros(1, 4)]
    targets = targets_of([36.0, 36, 164, 164])  # around 100, 100
    found = PointMatcher(1.5, inclusive=inclusive)(anchors, targets)
    assert found.positive.tolist() == [[inclusive, inclusive, False]]


def test_without_a_radius_all_of_the_box_is_central() -> None:
    anchors = [torch.tensor([[8.0, 8, 16, 16], [0, 0, 8, 8], [40, 40, 48, 48]])]  # points 12, 4 and 44
    targets = targets_of([2.0, 2, 42, 42])  # around 22, 22
    assert PointMatcher(1.5)(anchors, targets).positive.tolist() == [[True, False, False]]
    assert PointMatcher(None)(anchors, targets).positive.tolist() == [[True, True, False]]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({}, 0.08 * 0.5),  # over 0.05 before centre-ness counts
        ({"root": True}, math.sqrt(0.08 * 0.5)),
        ({"preselect": "product"}, None),  # 0.04 is not
        ({"preselect": "product", "root": True}, math.sqrt(0.08 * 0.5)),  # 0.2 is
    ],
)
def test_scores_by_hand(options: dict[str, Any], score: float | None) -> None:
    head = say(
        make(**options), torch.tensor([logit(0.08), logit(0.004)]), torch.full((4,), 0.25), torch.zeros(1)
    )
    found = head(PYRAMID, SIZES, IMAGE)
    count = int(found.valid.sum())
    assert count == (0 if score is None else 16)  # boxes of 4 px around 16 points, of class 0 alone
    assert (found.labels[found.valid] == 0).all()
    if score is not None:
        torch.testing.assert_close(found.scores[found.valid], torch.full((16,), score))


def test_candidates_are_the_best_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one candidate: class score 0.9 with centre-ness 0.1 comes before 0.8 with 0.9."""
    kept = {}
    for preselect in ("class", "product"):
        head = make(preselect=preselect, pre_nms_top_k=1)
        logits = torch.full((1, 16, 2), -9.0)
        logits[0, 3, 0], logits[0, 12, 0] = logit(0.9), logit(0.8)
        centre = torch.zeros(1, 16)
        centre[0, 3], centre[0, 12] = logit(0.1), logit(0.9)
        heads = [logits], [torch.full((1, 16, 4), 0.25)], [centre]
        monkeypatch.setattr(head, "_heads", lambda pyramid, heads=heads: heads)
        kept[preselect] = head(PYRAMID, SIZES, IMAGE)
    assert kept["class"].scores[0, 0].item() == pytest.approx(0.9 * 0.1)
    assert kept["product"].scores[0, 0].item() == pytest.approx(0.8 * 0.9)
    torch.testing.assert_close(kept["class"].boxes[0, 0], torch.tensor([26.0, 2, 30, 6]))  # cell (0, 3)
    assert kept["class"].num_dropped.tolist() == [1]


def test_distances_by_hand() -> None:
    """Relative: stride x scale x what is predicted, at least 0; else e to the power of it, in pixels."""
    for relative, expected in ((True, [8 * 2 * 0.5, 0.0]), (False, [math.exp(1.0), math.exp(-2.0)])):
        head = say(make(relative=relative), torch.zeros(2), torch.tensor([0.5, -1, 0.5, -1]), torch.zeros(1))
        with torch.no_grad():
            assert head.scales is not None
            head.scales.fill_(2.0)
        distances = head._heads(PYRAMID)[1][0][0, 0] * 8
        torch.testing.assert_close(distances, torch.tensor(expected * 2))


@pytest.mark.parametrize("branch", ["box", "class"])
def test_branch_of_centreness(branch: str) -> None:
    head = FCOSHead(8, [8], 2, depth=1, centreness_branch=branch)
    centre = head._heads([torch.randn(1, 8, 4, 4)])[2][0]
    (slope,) = torch.autograd.grad(centre.sum(), next(head.box_tower.parameters()), allow_unused=True)
    assert (slope is not None) == (branch == "box")


PRESETS: dict[str, dict[str, Any]] = {
    "mmdetection": {"root": False, "preselect": "class", "weighted": True, "relative": True},
    "journal": {"root": True, "preselect": "class", "weighted": True, "relative": True},
    "conference": {"root": False, "preselect": "class", "weighted": True, "relative": False},
    "torchvision": {"root": True, "preselect": "product", "weighted": False, "relative": True},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str) -> None:
    with torch.device("meta"):
        head: Any = build(
            Config("fcos", backbone="test_resnet", detector_options={"preset": preset}), ["a"]
        ).get_submodule("head")
    assert {name: getattr(head, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert (head.scales is None, head.matcher.inclusive) == (preset == "torchvision", preset != "torchvision")
    assert head.matcher.radius == (math.inf if preset == "conference" else 1.5)


@pytest.mark.parametrize("option", ["centreness_branch", "iou_loss", "preselect"])
def test_unknown_choices_are_refused(option: str) -> None:
    config = Config("fcos", backbone="test_resnet", detector_options={"head": {option: "mine"}})
    with torch.device("meta"), pytest.raises(UserError, match=f"head: {option} 'mine' is unknown: known: "):
        build(config, ["a"])

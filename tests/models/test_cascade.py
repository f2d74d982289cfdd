"""Cascade R-CNN's stages against values worked by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.models.anchors import AnchorGenerator
from msefpn.models.boxes import within
from msefpn.models.cascade import CascadeHead
from msefpn.structures import Proposals, Targets

STEPS = (-1.0, 0.0, 2.0)
"""What each stage predicts for the x of every region, before the division is undone."""
LOGIT = 2.0
"""Its logit of class 0; the others are 0."""
GROUND_TRUTH = Targets(
    torch.tensor([[[0.0, 0, 100, 100]]]), torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool)
)
PROPOSALS = Proposals(torch.tensor([[[30.0, 0, 130, 100]]]), torch.ones(1, 1, dtype=torch.bool))
SIZES = torch.tensor([[200, 200]])


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> CascadeHead:
    """A head whose stages predict `STEPS` and `LOGIT`."""
    made = CascadeHead(8, [4], 2, hidden=4)
    for stage, step in zip(made.stages, STEPS, strict=True):

        def predicted(_: Any, rois: Tensor, step: float = step) -> tuple[Tensor, Tensor]:
            logits = torch.tensor([LOGIT, 0, 0]).expand(*rois.shape[:2], 3)
            return logits, torch.tensor([step, 0, 0, 0]).expand(*rois.shape[:2], 1, 4)

        monkeypatch.setattr(stage, "_heads", predicted)
    return made


def test_losses(head: CascadeHead) -> None:
    # The proposal, 30 px right of the truth: IoU 70 / 130 = 0.54, positive at 0.5; moved by -1 x 0.1 x 100 px
    # to 20 px: 80 / 120 = 0.67, positive at 0.6; moved by 0: negative at 0.7. The truth is a region of every
    # stage and its own target.
    found = {name: loss.item() for name, loss in head.losses([], PROPOSALS, SIZES, GROUND_TRUTH)[0].items()}
    hit = math.log(math.exp(LOGIT) + 2) - LOGIT
    miss = math.log(math.exp(LOGIT) + 2)
    smooth = {0: 0.0, 1: 0.5, 2: 1.5, 4: 3.5}  # of a distance, beta 1
    expected = {
        "stage1_class": 1.0 * hit,
        "stage1_box": 1.0 * (smooth[2] + smooth[1]) / 2,  # -30 px are -3, predicted -1; the truth 0
        "stage2_class": 0.5 * hit,
        "stage2_box": 0.5 * (smooth[4] + smooth[0]) / 2,  # -20 px are -4 at 0.05, predicted 0
        "stage3_class": 0.25 * (hit + miss) / 2,
        "stage3_box": 0.25 * smooth[2] / 2,  # only the truth is positive
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_prediction(head: CascadeHead) -> None:
    found = head([], PROPOSALS, SIZES)
    x = 30 - 1 * 0.1 * 100 + 0 + 2 * 0.033 * 100
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([x, 0, x + 100, 100]))
    assert found.scores[0, 0].item() == pytest.approx(math.exp(LOGIT) / (math.exp(LOGIT) + 2))
    assert found.labels[0, 0] == 0


def test_scores_are_of_the_mean_logits() -> None:
    torch.manual_seed(0)
    made = CascadeHead(8, [4], 3, hidden=16, score=0.0).eval()
    maps = [torch.randn(1, 8, 50, 50)]
    for stage in made.stages:
        torch.nn.init.normal_(stage.box.classes.weight)  # type: ignore[union-attr, arg-type]  # a RoIHead
    found = made(maps, PROPOSALS, SIZES)
    rois, logits = PROPOSALS.boxes, []
    for stage in made.stages:
        logit, boxes = stage.refined(maps, rois, SIZES)  # type: ignore[operator]  # a RoIHead
        rois = boxes.squeeze(2)
        logits.append(logit)
    assert not torch.allclose(logits[0], logits[2])
    scores = (sum(logits) / 3).softmax(dim=-1)[0, 0, :3].sort(descending=True).values
    torch.testing.assert_close(found.scores[0, :3], scores)


def test_stages_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 2, 3 and 3"):
        CascadeHead(8, [4], 2, ious=(0.5, 0.6))


def test_anchors_over_the_border_take_no_part() -> None:
    """One that touches the right or the lower border is over it, one at the left or the upper is not."""
    boxes = torch.tensor([[0.0, 0, 9.9, 10], [0, 0, 10, 10], [-1, 0, 9, 10], [0, 0, 11.9, 20], [0, 0, 9, 30]])
    sizes = torch.tensor([[20, 10], [30, 12]])
    assert within(boxes, sizes, 0.0).tolist() == [
        [True, False, False, False, False],
        [True, True, False, True, False],
    ]
    assert within(boxes, sizes, 2.0).tolist() == [[True, True, True, True, False], [True] * 5]


def test_anchors_of_an_image_at_its_border() -> None:
    """Of 242,957 anchors that cross no border of 800 x 1333, 595 touch the right or the lower one."""
    generator = AnchorGenerator([4, 8, 16, 32, 64], [8.0])
    maps = [torch.zeros(1, 1, -(-800 // s), -(-1344 // s), device="meta") for s in (4, 8, 16, 32, 64)]
    anchors = torch.cat(generator(maps, (800, 1344)))
    size = torch.tensor([[800, 1333]])
    crossing_none = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= 1333) & (anchors[:, 3] <= 800)
    assert crossing_none.sum() == 242_957
    assert within(anchors, size, 0.0).sum() == 242_957 - 595

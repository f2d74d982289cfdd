"""Soft-NMS against scores worked by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.models.boxes import PAD_SCORE
from msefpn.models.select import Selection
from msefpn.models.soft_nms import soft_nms

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [50, 50, 60, 60]])
"""The first overlaps the second by 0.8 and the third by 0.4; the second overlaps the third by 0.5."""
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])


def soft(method: str, *, labels: tuple[int, ...] = (0, 0, 0, 0), **options: Any) -> Tensor:
    given: dict[str, Any] = {"iou": 0.5, "sigma": 0.5} | options
    valid = torch.ones(1, 4, dtype=torch.bool)
    return soft_nms(BOXES[None], SCORES[None], torch.tensor([labels]), valid, method=method, **given)[0]


def test_linear_by_hand() -> None:
    # 0.9 is taken: the second keeps 0.8 x 0.2, the third, under 0.5, all; it is next, and of IoU 0.5 with the
    # second, which keeps half of the rest
    torch.testing.assert_close(soft("linear"), torch.tensor([0.9, 0.8 * 0.2 * 0.5, 0.7, 0.6]))


def test_gaussian_by_hand() -> None:
    def factor(iou: float) -> float:
        return math.exp(-(iou**2) / 0.5)

    second, third = 0.8 * factor(0.8), 0.7 * factor(0.4)  # 0.222 and 0.508: the third is next
    torch.testing.assert_close(soft("gaussian"), torch.tensor([0.9, second * factor(0.5), third, 0.6]))


def test_other_classes_and_boxes_without_validity_take_no_part() -> None:
    torch.testing.assert_close(soft("linear", labels=(0, 1, 2, 0)), SCORES)
    valid = torch.tensor([[False, True, True, True]])
    given: dict[str, Any] = {"method": "linear", "iou": 0.5, "sigma": 0.5}
    found = soft_nms(BOXES[None], SCORES[None], torch.zeros(1, 4).long(), valid, **given)[0]
    torch.testing.assert_close(found, torch.tensor([PAD_SCORE, 0.8, 0.7 * 0.5, 0.6]))


def test_what_falls_under_a_thousandth_goes() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9.99]]])  # IoU 0.999: 0.8 x 0.001 is left
    given: dict[str, Any] = {"method": "linear", "iou": 0.5, "sigma": 0.5}
    found = soft_nms(boxes, SCORES[None, :2], torch.zeros(1, 2).long(), torch.ones(1, 2).bool(), **given)
    torch.testing.assert_close(found, torch.tensor([[0.9, PAD_SCORE]]))


@pytest.mark.parametrize(
    ("suppression", "scores"),
    [
        ("hard", [0.9, 0.7, 0.6]),
        ("linear", [0.9, 0.7, 0.6]),
        ("none", [0.9, 0.8, 0.7, 0.6]),  # all that there are, not the best three
    ],
)
def test_selection(suppression: str, scores: list[float]) -> None:
    choose = Selection(0.05, 0.5, 3, 100, 0.0, suppression)
    found = choose(BOXES[None], SCORES[None], torch.zeros(1, 4).long())
    torch.testing.assert_close(found.scores[found.valid], torch.tensor(scores))
    soft_more = Selection(0.05, 0.5, 4, 100, 0.0, "linear")(
        BOXES[None], SCORES[None], torch.zeros(1, 4).long()
    )
    torch.testing.assert_close(soft_more.scores[0], torch.tensor([0.9, 0.7, 0.6, 0.08]))


@pytest.mark.parametrize("suppression", ["linear", "gaussian"])
def test_selection_compiles_whole(suppression: str) -> None:
    choose = Selection(0.05, 0.5, 4, 4, 0.0, suppression)
    given = BOXES[None], SCORES[None], torch.zeros(1, 4).long()
    found = torch.compile(choose, fullgraph=True, backend="eager")(*given)
    torch.testing.assert_close(found.scores, choose(*given).scores)

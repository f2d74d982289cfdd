"""YOLOv3's assignment, decoding and losses against values worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from msefpn.models.yolo import YOLOHead
from msefpn.structures import Targets

GRIDS = [(12, 16), (6, 8), (3, 4)]
COUNTS = [3 * height * width for height, width in GRIDS]


@pytest.fixture
def head() -> YOLOHead:
    torch.manual_seed(0)
    return YOLOHead(8, [8, 16, 32], 2)


@pytest.fixture
def maps() -> list[Tensor]:
    return [torch.zeros(1, 8, height, width) for height, width in GRIDS]


def targets(*boxes: list[float], labels: list[int] | None = None) -> Targets:
    count = len(boxes)
    return Targets(
        torch.tensor([boxes]), torch.tensor([labels or [0] * count]), torch.ones(1, count, dtype=torch.bool)
    )


def index(level: int, row: int, column: int, anchor: int) -> int:
    return sum(COUNTS[:level]) + (row * GRIDS[level][1] + column) * 3 + anchor


def test_each_object_has_the_anchor_of_its_shape_in_its_centres_cell(head: YOLOHead) -> None:
    # 16 x 30 at (20, 41): level 0 (stride 8), anchor 1, cell row 5, column 2; 60 x 120 at (70, 33): level 1
    # (stride 16), anchor 2 (59 x 119), cell row 2, column 4
    given = targets([12, 26, 28, 56], [40, -27, 100, 93])
    found = head.assign(GRIDS, given)
    first, second = index(0, 5, 2, 1), index(1, 2, 4, 2)
    assert found.positive.nonzero()[:, 1].tolist() == [first, second]
    assert found.ground_truth[0, [first, second]].tolist() == [0, 1]
    assert found.target[0, first].tolist() == pytest.approx([20 / 8 - 2, 41 / 8 - 5, 0, 0], abs=1e-6)
    ratio = [math.log(60 / 59), math.log(120 / 119)]
    assert found.target[0, second].tolist() == pytest.approx([70 / 16 - 4, 33 / 16 - 2, *ratio], abs=1e-6)


def test_of_two_objects_with_one_anchor_the_later_has_it(head: YOLOHead) -> None:
    found = head.assign(GRIDS, targets([12, 26, 28, 56], [13, 26, 29, 56]))
    assert found.positive.sum() == 1
    assert found.ground_truth[found.positive].tolist() == [1]


def test_a_centre_on_the_far_border_stays_inside(head: YOLOHead) -> None:
    found = head.assign(GRIDS, targets([118, 86, 138, 106]))  # centre (128, 96): the corner of the image
    assert found.positive.nonzero()[:, 1].tolist() == [index(0, 11, 15, 1)]
    assert found.target[found.positive].tolist()[0][:2] == [1.0, 1.0]


def test_padding_is_no_object(head: YOLOHead) -> None:
    given = targets([12, 26, 28, 56], [0, 0, 0, 0])._replace(valid=torch.tensor([[True, False]]))
    assert head.assign(GRIDS, given).positive.sum() == 1


def test_decoding(head: YOLOHead, maps: list[Tensor]) -> None:
    t = torch.zeros(1, sum(COUNTS), 4)
    at = index(2, 1, 3, 0)
    t[0, at] = torch.tensor([1.0, -1.0, math.log(2), 0.0])
    box = head._boxes(t, head._cells(maps))[0, at]
    x, y = (3 + 1 / (1 + math.exp(-1))) * 32, (1 + 1 / (1 + math.exp(1))) * 32
    assert box.tolist() == pytest.approx([x - 116, y - 45, x + 116, y + 45], rel=1e-5)


def test_losses(head: YOLOHead, maps: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    # all predictions zero: x = y = 0.5, sizes as the anchors', objectness and classes at 0.5
    monkeypatch.setattr(head, "_heads", lambda _: torch.zeros(1, sum(COUNTS), 7))
    # an object 16 x 30 whose centre (20, 44) is a cell's centre; its anchor predicts exactly its box
    losses = head.losses(maps, torch.tensor([[96, 128]]), (96, 128), targets([12, 29, 28, 59], labels=[1]))
    assert losses["yolo_box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["yolo_class"].item() == pytest.approx(2 * math.log(2), rel=1e-5)
    boxes = head._boxes(torch.zeros(1, sum(COUNTS), 4), head._cells(maps))[0]
    truth = torch.tensor([12.0, 29, 28, 59])
    overlap = (boxes[:, 2:].minimum(truth[2:]) - boxes[:, :2].maximum(truth[:2])).clamp(min=0).prod(dim=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + 480 - overlap
    ignored = int((overlap / union > 0.5).sum()) - 1  # but for the object's own
    assert ignored >= 2
    expected = (sum(COUNTS) - ignored) * math.log(2)
    assert losses["yolo_object"].item() == pytest.approx(expected, rel=1e-5)


def test_levels_without_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match="anchors are of 3 levels, but the pyramid has 5"):
        YOLOHead(8, [8, 16, 32, 64, 128], 2)

"""Mask R-CNN's head: targets and loss worked by hand, masks laid over their boxes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msefpn.models.mask import MaskHead, paste
from msefpn.models.matching import SampledRegions
from msefpn.structures import Targets


def trained(rois: Tensor, truth: list[list[int]], positive: list[list[bool]]) -> SampledRegions:
    """Regions (B, S, 4) of which only those marked are positive."""
    count = rois.shape[:2]
    return SampledRegions(
        rois, torch.zeros(*count, 1, 4), torch.ones(count).bool(), torch.tensor(truth), torch.tensor(positive)
    )


def half_covered() -> Targets:
    """Two images of 64 x 64: an object on the left half of box 8..40, another that fills its box."""
    boxes = torch.tensor([[[8.0, 8, 40, 40], [40, 40, 60, 60]], [[0, 0, 32, 32], [0, 0, 0, 0]]])
    masks = torch.zeros(2, 2, 64, 64, dtype=torch.uint8)
    masks[0, 0, 8:40, 8:24] = 1
    masks[0, 1, 40:60, 40:60] = 1
    masks[1, 0, :32, :32] = 1
    return Targets(boxes, torch.tensor([[1, 0], [2, 0]]), torch.tensor([[True, True], [True, False]]), masks)


def head(*, binary: bool = True) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(4, [4, 8], 3, size=4, hidden=6, depth=2, binary=binary).double()


@pytest.mark.parametrize("binary", [True, False])
def test_loss_by_hand(binary: bool) -> None:
    pyramid = [torch.rand(2, 4, 16, 16).double(), torch.rand(2, 4, 8, 8).double()]
    rois = torch.tensor([[[8.0, 8, 40, 40], [38, 41, 62, 60]], [[16, 0, 48, 32], [3, 3, 9, 9]]]).double()
    part, targets = head(binary=binary), half_covered()
    found = part.losses(pyramid, trained(rois, [[0, 1], [0, 0]], [[True, False], [True, False]]), targets)
    pooled = part.pool(pyramid, rois)
    x = pooled[[0, 2]]
    for conv in part.convs:
        x = conv(x).relu()
    logits = part.masks(part.enlarge(x).relu())
    left = torch.zeros(8, 8).double()
    left[:, :4] = 1  # both regions have the object on their left half
    own = torch.stack([logits[0, 1], logits[1, 2]])
    assert found["mask"].item() == pytest.approx(
        F.binary_cross_entropy_with_logits(own, left.expand(2, -1, -1)).item(), rel=1e-9
    )


def test_share_of_a_cell() -> None:
    """A cell that the object covers by a quarter counts as that, or as nothing."""
    targets = half_covered()
    rois = torch.tensor([[[8.0, 8, 72, 40]]]).double()  # cells of 8 x 4 px; the object ends at 24
    rois[0, 0, 2] = 8 + 8 * 8
    rois[0, 0, 0] = 10  # cells begin at 10, 17.75, 25.5: the second is covered from 17.75 to 24
    assert targets.masks is not None
    aims = [head(binary=b)._targets(rois[0], torch.tensor([0]), targets.masks)[0] for b in (True, False)]
    assert aims[0][:, :2].eq(1).all()
    assert aims[0][:, 2:].eq(0).all()
    assert aims[1][:, 0].eq(1).all()
    assert aims[1][0, 1].item() == pytest.approx(6.25 / 7.75, abs=0.05)
    assert aims[1][:, 3:].eq(0).all()


def test_no_positive_region_trains_nothing() -> None:
    part = head()
    pyramid = [torch.rand(2, 4, 16, 16).double(), torch.rand(2, 4, 8, 8).double()]
    regions = trained(torch.rand(2, 3, 4).double(), [[0] * 3] * 2, [[False] * 3] * 2)
    found = part.losses(pyramid, regions, half_covered())
    found["mask"].backward()
    assert found["mask"].item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in part.parameters())


def test_targets_must_have_masks() -> None:
    regions = trained(torch.rand(2, 3, 4).double(), [[0] * 3] * 2, [[True] * 3] * 2)
    with pytest.raises(ValueError, match="learns from masks"):
        head().losses([], regions, half_covered()._replace(masks=None))


def test_forward_gives_the_mask_of_the_label() -> None:
    part = head()
    pyramid = [torch.rand(2, 4, 16, 16).double(), torch.rand(2, 4, 8, 8).double()]
    boxes = torch.tensor([[[8.0, 8, 40, 40]], [[0, 0, 20, 30]]]).double()
    every = torch.stack([part(pyramid, boxes, torch.full((2, 1), k)) for k in range(3)])
    assert every.shape == (3, 2, 1, 8, 8)
    mixed = part(pyramid, boxes, torch.tensor([[2], [0]]))
    assert torch.equal(mixed[0], every[2, 0])
    assert torch.equal(mixed[1], every[0, 1])
    assert 0 < mixed.min() < mixed.max() < 1


def test_a_full_mask_fills_its_box() -> None:
    drawn = paste(torch.ones(28, 28), torch.tensor([3.0, 5, 23, 17]), (40, 30))
    expected = torch.zeros(40, 30, dtype=torch.bool)
    expected[5:17, 3:23] = True
    assert torch.equal(drawn, expected)


def test_a_ramp_is_cut_at_a_half() -> None:
    ramp = ((torch.arange(10) + 0.5) / 10).expand(10, 10)  # 0.5 in the middle
    drawn = paste(ramp, torch.tensor([10.0, 0, 50, 20]), (20, 64))
    assert drawn.any(dim=0).nonzero().flatten().tolist() == list(range(30, 50))
    assert drawn[1:-1, 30:50].all()  # beyond the outermost centres it falls towards zero


@pytest.mark.parametrize(
    "box", [[-10.0, -4, 12, 9], [20, 30, 44, 60], [50, 50, 60, 60], [5, 5, 5, 5], [5, 5, 5.2, 5.3]]
)
def test_boxes_at_and_over_the_border(box: list[float]) -> None:
    drawn = paste(torch.ones(28, 28), torch.tensor(box), (40, 30))
    rows, columns = torch.arange(40)[:, None] + 0.5, torch.arange(30) + 0.5
    inside = (rows > box[1]) & (rows < box[3]) & (columns > box[0]) & (columns < box[2])
    assert torch.equal(drawn, inside)

"""Boxes, anchors, matching, sampling, losses: against values worked by hand or torchvision's operators."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, sigmoid_focal_loss

from msefpn.models.anchors import AnchorGenerator
from msefpn.models.boxes import decode, encode, nms, nms_on_gpu, pairwise_iou
from msefpn.models.losses import balanced_l1, focal, make_box_loss, weighted_sum
from msefpn.models.matching import BalancedSampler, Match, MaxIoUMatcher, RandomSampler
from msefpn.models.select import Selection
from msefpn.structures import Targets


def random_boxes(*shape: int) -> Tensor:
    corner = torch.rand(*shape, 2) * 100
    return torch.cat([corner, corner + 4 + torch.rand(*shape, 2) * 80], dim=-1)


def test_encode_by_hand() -> None:
    deltas = encode(torch.tensor([10.0, 20, 30, 60]), torch.tensor([0.0, 0, 10, 20]), (0.1, 0.1, 0.2, 0.2))
    expected = torch.tensor([15.0, 15.0, 5 * math.log(2), 5 * math.log(2)])
    torch.testing.assert_close(deltas, expected)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_decode_inverts_encode(seed: int) -> None:
    torch.manual_seed(seed)
    boxes, anchors, stds = random_boxes(50), random_boxes(50), (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(
        decode(encode(boxes, anchors, stds), anchors, stds), boxes, atol=1e-2, rtol=1e-4
    )


@pytest.mark.parametrize(("both", "smallest"), [(True, 10 * 16 / 1000), (False, 10 * math.exp(-9))])
def test_decode_clamps(both: bool, smallest: float) -> None:
    anchor, stds = torch.tensor([0.0, 0, 10, 10]), (1.0, 1.0, 1.0, 1.0)
    box = decode(torch.tensor([0.0, 0, 9, -9]), anchor, stds, clamp_both=both)
    assert (box[2] - box[0]).item() == pytest.approx(10 * 1000 / 16, rel=1e-4)
    assert (box[3] - box[1]).item() == pytest.approx(smallest, abs=1e-5)


def test_nms_equals_torchvision_by_image_and_group() -> None:
    torch.manual_seed(0)
    boxes, scores = random_boxes(3, 200), torch.rand(3, 200)
    groups, valid = torch.randint(0, 4, (3, 200)), torch.rand(3, 200) > 0.3
    found = nms(boxes, scores, groups, valid, 0.5)
    for i in range(3):
        rows = valid[i].nonzero().squeeze(1)
        kept = rows[batched_nms(boxes[i][rows], scores[i][rows], groups[i][rows], 0.5)]
        assert set(kept.tolist()) == set(found[i].nonzero().squeeze(1).tolist())


@given(
    seed=st.integers(0, 2**31),
    images=st.sampled_from([1, 3]),
    side=st.sampled_from([20.0, 100.0, 1000.0]),
    pairs=st.sampled_from([1, 300, 2**22]),
    longest=st.sampled_from([49, 50]),
    steps=st.integers(0, 7),
)
@settings(max_examples=30, deadline=None)
def test_nms_on_a_gpu_is_greedy(
    seed: int, images: int, side: float, pairs: int, longest: int, steps: int
) -> None:
    """In rounds and image by image; scores that are the same, dense boxes, pairs worked through in pieces."""
    torch.manual_seed(seed)
    boxes = random_boxes(images, 80) * side / 100
    scores = torch.rand(images, 80)
    if steps:
        scores = (scores * steps).round() / steps
    groups = torch.cat([torch.randint(0, 2, (images, 50)), torch.randint(2, 5, (images, 30))], dim=1)
    given = boxes, scores, groups, torch.rand(images, 80) > 0.2, 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msefpn.models.boxes._PAIRS", pairs)
        patch.setattr("msefpn.models.boxes._LONGEST", longest)
        assert torch.equal(nms_on_gpu(*given, [50, 30]), nms(*given))


def test_nms_on_a_gpu_of_a_chain_and_of_nothing() -> None:
    """Each box overlaps the next: every other one stays, the last of them settled in the last round."""
    left = torch.arange(60.0) * 5
    box = torch.stack([left, torch.zeros(60), left + 9, torch.full((60,), 10.0)], dim=1)
    boxes, scores = box.expand(2, -1, -1), -left.expand(2, -1)
    groups, valid = torch.zeros(2, 60, dtype=torch.long), torch.ones(2, 60, dtype=torch.bool)
    assert nms_on_gpu(boxes, scores, groups, valid, 0.2, [60]).tolist() == [[True, False] * 30] * 2
    nothing = nms_on_gpu(boxes[:, :0], scores[:, :0], groups[:, :0], valid[:, :0], 0.2, [0])
    assert nothing.shape == (2, 0)


def test_nms_in_onnx_keeps_the_same_of_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    boxes = random_boxes(8, 300) * 13  # as on images of 1,300 pixels
    scores, groups = torch.rand(8, 300), torch.randint(0, 80, (8, 300))
    given = boxes, scores, groups, torch.ones(8, 300, dtype=torch.bool), 0.5
    expected = nms(*given)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(nms(*given), expected)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert torch.equal(nms(*given), expected)


def test_anchors_of_mmdetection() -> None:
    generator = AnchorGenerator([4, 8], [8.0])
    fine, coarse = generator([torch.zeros(1, 1, 3, 5), torch.zeros(1, 1, 2, 3)], (12, 20))
    assert fine.shape == (45, 4)
    root = math.sqrt(0.5)
    torch.testing.assert_close(fine[0], torch.tensor([-16 / root, -16 * root, 16 / root, 16 * root]))
    torch.testing.assert_close(fine[4], torch.tensor([4.0 - 16, -16, 4 + 16, 16]))  # cell (0, 1), square
    torch.testing.assert_close(coarse[-2], torch.tensor([16.0 - 32, 8 - 32, 16 + 32, 8 + 32]))


def test_anchors_on_the_batch_padding_are_outside() -> None:
    generator = AnchorGenerator([32], [1.0], [1.0])
    inside = generator.inside([torch.zeros(2, 1, 3, 4)], torch.tensor([[70, 128], [33, 40]]))
    assert inside.view(2, 3, 4).tolist() == [
        [[True] * 4] * 3,
        [[True, True, False, False], [True, True, False, False], [False] * 4],
    ]


def targets_of(boxes: list[list[float]]) -> Targets:
    count = len(boxes)
    return Targets(
        torch.tensor([[*boxes, [0.0] * 4]]),
        torch.arange(count + 1)[None],
        torch.tensor([[True] * count + [False]]),
    )


ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [20, 20, 30, 30], [50, 50, 60, 60]])


def match(matcher: MaxIoUMatcher, truth: list[list[float]], usable: Tensor | None = None) -> Match:
    usable = torch.ones(1, len(ANCHORS), dtype=torch.bool) if usable is None else usable
    return matcher(ANCHORS, usable, targets_of(truth))


def test_thresholds_of_the_matcher() -> None:
    found = match(MaxIoUMatcher(0.6, 0.5), [[0.0, 0, 10, 10]])  # IoU 1, .6, .4, 0, 0
    assert found.positive.tolist() == [[True, True, False, False, False]]
    assert found.negative.tolist() == [[False, False, True, True, True]]


def test_between_the_thresholds_is_ignored() -> None:
    found = match(MaxIoUMatcher(0.7, 0.5), [[0.0, 0, 10, 10]])
    assert found.positive.tolist() == [[True, False, False, False, False]]
    assert found.negative.tolist() == [[False, False, True, True, True]]


@pytest.mark.parametrize(("floor", "won"), [(0.3, True), (0.5, False)])
def test_low_quality_needs_its_floor(floor: float, won: bool) -> None:
    truth = [[20.0, 20, 30, 24]]  # IoU .4 with the fourth
    found = match(MaxIoUMatcher(0.7, 0.3, floor), truth)
    assert found.positive[0, 3].item() == won


@pytest.mark.parametrize(("reassign", "owner"), [(True, 1), (False, 0)])
def test_reassigning(reassign: bool, owner: int) -> None:
    truth = [[0.0, 0, 10, 6.5], [0.0, 0, 10, 7.5]]  # both like the second anchor, the last one most
    anchors = torch.tensor([[0.0, 0, 10, 6]])
    matcher = MaxIoUMatcher(0.7, 0.3, 0.3, reassign=reassign)
    found = matcher(anchors, torch.ones(1, 1, dtype=torch.bool), targets_of(truth))
    assert found.positive.item()
    assert found.ground_truth.item() == owner


def test_unusable_boxes_are_neither() -> None:
    usable = torch.tensor([[False, True, True, True, False]])
    found = match(MaxIoUMatcher(0.7, 0.3, 0.3), [[0.0, 0, 10, 10]], usable)
    assert found.positive.tolist() == [[False, True, False, False, False]]
    assert found.negative.tolist() == [[False, False, False, True, False]]


def test_no_ground_truth_is_all_negative() -> None:
    found = match(MaxIoUMatcher(0.7, 0.3, 0.0), [])
    assert not found.positive.any()
    assert found.negative.all()


def test_chunks_change_nothing() -> None:
    torch.manual_seed(0)
    boxes = random_boxes(500)
    targets = Targets(random_boxes(3, 7), torch.zeros(3, 7, dtype=torch.long), torch.rand(3, 7) > 0.2)
    usable = torch.rand(3, 500) > 0.1
    whole = MaxIoUMatcher(0.5, 0.3, 0.1)(boxes, usable, targets)
    pieces = MaxIoUMatcher(0.5, 0.3, 0.1, chunk=50)(boxes, usable, targets)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_sampler_counts() -> None:
    torch.manual_seed(0)
    positive = torch.zeros(3, 1000, dtype=torch.bool)
    positive[0, :400] = True
    positive[1, :10] = True
    negative = ~positive
    negative[2, 100:] = False
    drawn = RandomSampler(256, 0.25)(
        Match(torch.zeros(3, 1000, dtype=torch.long), positive, negative, torch.zeros(3, 1000))
    )
    assert drawn.positive.sum(1).tolist() == [64, 10, 0]
    assert drawn.valid.sum(1).tolist() == [256, 256, 100]
    for i in range(3):
        chosen = drawn.chosen[i][drawn.valid[i]]
        assert len(chosen.unique()) == len(chosen)
        assert torch.equal(positive[i][drawn.chosen[i]] & drawn.valid[i], drawn.positive[i])


def test_focal_loss_equals_torchvision() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 4, dtype=torch.float64, requires_grad=True)
    positive, labels = torch.rand(2, 50) > 0.7, torch.randint(0, 4, (2, 50))
    weight = torch.rand(2, 50, dtype=torch.float64)
    target = F.one_hot(labels, 4) * positive[..., None]
    expected = (sigmoid_focal_loss(logits, target.double(), 0.25, 2) * weight[..., None]).sum()
    found = weighted_sum(focal(logits, torch.where(positive, labels, 4)), weight)
    torch.testing.assert_close(found, expected)
    (ours,) = torch.autograd.grad(found, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0.5 + 2.0), (1.0, 0.125 + 1.5)])
def test_box_loss_by_hand(beta: float, expected: float) -> None:
    prediction = torch.tensor([[0.5, 0, 0, 0], [0, 0, 0, -2.0], [9.0, 9, 9, 9]])
    losses = make_box_loss("smooth_l1", beta)(prediction, torch.zeros(3, 4))
    found = weighted_sum(losses, torch.tensor([True, True, False]))
    assert found.item() == pytest.approx(expected)


def test_candidates_beyond_the_limit_are_counted() -> None:
    boxes = torch.arange(30.0)[None, :, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    scores = torch.linspace(1, 0.02, 30)[None]
    selection = Selection(score=0.05, nms_iou=0.5, max_per_image=4, pre_nms_top_k=10, min_size=0.0)
    found = selection(boxes, scores, torch.zeros(1, 30, dtype=torch.long))
    assert found.num_dropped.tolist() == [int((scores > 0.05).sum()) - 10]
    torch.testing.assert_close(found.scores[0], scores[0, :4])


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    b = torch.tensor([[5.0, 0, 15, 10], [5, 5, 5, 5]])
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[1 / 3, 0.0], [0.0, 0.0]]))


def test_balanced_l1_bounds_the_gradient() -> None:
    for beta in (1.0, 0.11):
        x = torch.tensor([0.0, beta / 10, beta / 2, beta - 1e-6, beta + 1e-6, 3.0], requires_grad=True)
        y = balanced_l1(x, torch.zeros_like(x), beta=beta)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        b = math.exp(3) - 1
        expected = torch.where(x < beta, 0.5 * (b * x / beta + 1).log(), 1.5)
        assert y[0] == 0
        if beta == 1:  # the pieces meet, and their slopes do
            assert torch.allclose(gradient, expected, atol=1e-4)
            assert y[3].item() == pytest.approx(y[4].item(), abs=1e-4)
        assert gradient[-1].item() == pytest.approx(1.5)


def test_balanced_negatives_by_hand() -> None:
    """The range is 0 to 1, the IoU of the added truth: a part of 10 from 0 to 1/3, one from there to 2/3."""
    iou = torch.tensor([0.0] * 500 + [0.1] * 200 + [0.3] * 2 + [0.4] * 3 + [0.45] * 40 + [1.0])
    positive = iou == 1
    drawn = BalancedSampler(31, 0.1)(Match(iou.long(), positive[None], ~positive[None], iou[None]))
    chosen = drawn.chosen[0]
    assert drawn.valid.all()
    assert iou[chosen[0]] == 1
    found = iou[chosen[1:]]  # 30 negatives: 10 of each part but the third, and 10 more at random
    assert len(set(chosen.tolist())) == 31
    assert (found == 0).sum() == 0, "the others are enough"
    assert (found < 1 / 3).sum() >= 10
    assert (found > 1 / 3).sum() >= 10


def test_balanced_negatives_without_overlap_fill_up() -> None:
    iou = torch.tensor([0.0] * 500 + [0.2, 0.4, 0.45, 1.0])
    positive = iou == 1
    drawn = BalancedSampler(31, 0.1)(Match(iou.long(), positive[None], ~positive[None], iou[None]))
    found = iou[drawn.chosen[0, 1:]].sort().values
    torch.testing.assert_close(found, torch.tensor([0.0] * 27 + [0.2, 0.4, 0.45]))


@pytest.mark.parametrize(("fraction", "below"), [(0.0, 0), (0.5, 15)])
def test_share_below_the_floor(fraction: float, below: int) -> None:
    iou = torch.tensor([0.05] * 100 + [0.2] * 100 + [0.4] * 100 + [1.0])
    positive = iou == 1
    sampler = BalancedSampler(31, 0.1, floor_iou=0.1, floor_fraction=fraction)
    drawn = sampler(Match(iou.long(), positive[None], ~positive[None], iou[None]))
    found = iou[drawn.chosen[0, 1:]]
    assert (found < 0.1).sum() == below
    part = (30 - below) // 3  # of 0.1 to 0.4, and 0.4 to 0.7
    assert (found == 0.2).sum() >= part
    assert (found == 0.4).sum() >= part


def test_balanced_positives_by_hand() -> None:
    """60 boxes on one object, 3 and 30 on others; of 32 that are drawn, each gives round(32 / 3) + 1 = 12."""
    truth = torch.tensor([0] * 60 + [1] * 3 + [2] * 30 + [0] * 40)
    positive = torch.arange(133) < 93
    iou = torch.where(positive, 1.0, 0.1)
    drawn = BalancedSampler(128, 0.25)(Match(truth[None], positive[None], ~positive[None], iou[None]))
    counts = truth[drawn.chosen[0, :32]].bincount().tolist()
    assert drawn.positive.sum() == 32
    assert counts[1] == 3
    assert min(counts[0], counts[2]) >= 12


def test_negative_ratio_bounds_the_negatives() -> None:
    positive = torch.zeros(2, 500, dtype=torch.bool)
    positive[0, :3] = True
    iou = torch.zeros(2, 500)
    drawn = RandomSampler(256, 0.5, negative_ratio=5)(Match(iou.long(), positive, ~positive, iou))
    assert drawn.valid.sum(dim=1).tolist() == [18, 5]
    assert drawn.positive.sum(dim=1).tolist() == [3, 0]

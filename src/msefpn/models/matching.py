"""Assigning ground truth to anchors or proposals, and sampling from the assignment. Batched throughout."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from msefpn.models.boxes import pairwise_iou
from msefpn.structures import Targets


class Match(NamedTuple):
    """Assignment of N boxes of each image."""

    ground_truth: Tensor
    """(B, N) int64, row of the assigned ground truth; meaningful where positive."""
    positive: Tensor
    """(B, N) bool."""
    negative: Tensor
    """(B, N) bool; a box that is neither is ignored."""
    iou: Tensor
    """(B, N) the largest IoU with a ground truth; -1 where there is none."""


class MaxIoUMatcher:
    """Assign by the largest IoU, as mmdetection's MaxIoUAssigner.

    Args:
        positive_iou: a box is positive from this IoU on.
        negative_iou: a box is negative below this IoU.
        low_quality_iou: each ground truth also gets its best boxes if their IoU is at least this;
            None: it does not.
        reassign: a box won so is assigned to the ground truth that it is best for (mmdetection); else it
            keeps its own best one (torchvision).
        chunk: pairs whose IoU is held at a time: the matrix of all (B, N, G) pairs never is.
    """

    def __init__(
        self,
        positive_iou: float,
        negative_iou: float,
        low_quality_iou: float | None = None,
        *,
        reassign: bool = True,
        chunk: int = 2**22,
    ) -> None:
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality_iou = low_quality_iou
        self.reassign = reassign
        self.chunk = chunk

    @torch.no_grad()
    def __call__(self, boxes: Tensor, usable: Tensor, targets: Targets) -> Match:
        """Match boxes (N, 4) shared by the batch or (B, N, 4), of which `usable` (B, N) take part."""
        rows = max(1, self.chunk // targets.valid.numel())
        starts = range(0, usable.shape[1], rows)
        parts = [slice(start, start + rows) for start in starts]
        best = [self._iou(boxes[..., part, :], usable[:, part], targets).max(dim=2) for part in parts]
        iou = torch.cat([part.values for part in best], dim=1)
        index = torch.cat([part.indices for part in best], dim=1)
        positive = usable & (iou >= self.positive_iou)
        negative = usable & (iou < self.negative_iou)
        if self.low_quality_iou is not None:
            won = self._low_quality(boxes, usable, targets, parts)
            index = torch.where(won >= 0, won, index) if self.reassign else index
            positive = positive | (won >= 0)
            negative = negative & (won < 0)
        return Match(index, positive, negative, iou)

    def _low_quality(self, boxes: Tensor, usable: Tensor, targets: Targets, parts: list[slice]) -> Tensor:
        """(B, N): the last ground truth for which a box is the best one (several, if they tie), or -1."""
        ious = [self._iou(boxes[..., part, :], usable[:, part], targets).amax(dim=1) for part in parts]
        top = torch.stack(ious).amax(dim=0)[:, None]  # (B, 1, G)
        wins = (top >= (self.low_quality_iou or 0.0)) & (top > 0)
        row = torch.arange(targets.valid.shape[1], device=usable.device)
        won = []
        for part in parts:
            tie = (self._iou(boxes[..., part, :], usable[:, part], targets) == top) & wins  # (B, n, G)
            won.append(torch.where(tie, row, -1).amax(dim=2))
        return torch.cat(won, dim=1)

    def _iou(self, boxes: Tensor, usable: Tensor, targets: Targets) -> Tensor:
        """(B, n, G), -1 where either side is not real."""
        iou = pairwise_iou(boxes, targets.boxes)
        return iou.masked_fill(~(usable[:, :, None] & targets.valid[:, None]), -1)


def with_own_truth(match: Match, targets: Targets) -> Match:
    """The assignment of boxes (B, N) with that of the ground truth (B, G), which is itself, at the end."""
    own = torch.arange(targets.valid.shape[1], device=targets.valid.device).expand_as(targets.valid)
    none = torch.zeros_like(targets.valid)
    added = Match(own, targets.valid, none, targets.valid.to(match.iou.dtype) * 2 - 1)
    return Match(*(torch.cat(pair, dim=1) for pair in zip(match, added, strict=True)))


class PointMatcher:
    """Assign to an anchor's centre the smallest ground truth, of its level's size, that it is central in.

    FCOS, arXiv 2006.09214, section 3.

    A centre c of an anchor of side s is positive for a box if it lies in the box, is not farther from the
    box's centre than `radius` s along either axis, and its largest distance to the box's sides is within
    `low` s to `high` s (from 0 on the finest level, without end on the coarsest).

    Args:
        radius: of the central region, in sides of the anchor; None: the region is the whole box.
        low: least largest distance.
        high: largest one.
        inclusive: both limits are within (mmdetection), else neither is (torchvision).
        chunk: pairs that are held at a time.
    """

    def __init__(
        self,
        radius: float | None,
        *,
        low: float = 4.0,
        high: float = 8.0,
        inclusive: bool = True,
        chunk: int = 2**22,
    ) -> None:
        self.radius = math.inf if radius is None else radius
        self.low, self.high, self.inclusive, self.chunk = low, high, inclusive, chunk

    @torch.no_grad()
    def __call__(self, anchors: list[Tensor], targets: Targets) -> Match:
        """Match square anchors (N_i, 4) of each level, finest first; `Match.iou` is zero."""
        parts = []
        rows = max(1, self.chunk // targets.valid.numel())
        for level, boxes in enumerate(anchors):
            low = self.low if level else 0.0
            high = self.high if level < len(anchors) - 1 else float("inf")
            parts += [self._smallest(part, low, high, targets) for part in boxes.split(rows)]
        row, positive = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        return Match(row, positive, ~positive, torch.zeros_like(row, dtype=targets.boxes.dtype))

    def _smallest(self, boxes: Tensor, low: float, high: float, targets: Targets) -> tuple[Tensor, Tensor]:
        """Row of the smallest fitting ground truth, and whether there is one: both (B, n)."""
        side = (boxes[:, 2] - boxes[:, 0])[:, None]  # (n, 1)
        point = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]  # (n, 1, 2)
        near, far = targets.boxes[:, None, :, :2], targets.boxes[:, None, :, 2:]  # (B, 1, G, 2)
        distances = torch.cat([point - near, far - point], dim=-1)  # (B, n, G, 4)
        off_centre = (point - (near + far) / 2).abs().amax(dim=-1)
        reach = distances.amax(dim=-1)
        fits = (distances.amin(dim=-1) > 0) & (off_centre < self.radius * side)
        if self.inclusive:
            in_range = (reach >= low * side) & (reach <= high * side)
        else:
            in_range = (reach > low * side) & (reach < high * side)
        fits &= in_range & targets.valid[:, None]
        area = (far - near).prod(dim=-1)  # (B, 1, G)
        smallest = torch.where(fits, area, float("inf")).min(dim=2)
        return smallest.indices, smallest.values.isfinite()


class SampledBoxes(NamedTuple):
    """A fixed count S of boxes drawn from an assignment, positives first."""

    chosen: Tensor
    """(B, S) int64, which box."""
    positive: Tensor
    """(B, S) bool."""
    valid: Tensor
    """(B, S) bool: drawn; False where an image has too few boxes."""


class SampledRegions(NamedTuple):
    """The regions that a region head was trained on. S: regions an image."""

    rois: Tensor
    """(B, S, 4), pixels of the padded image."""
    deltas: Tensor
    """(B, S, K or 1, 4) that were predicted."""
    proposed: Tensor
    """(B, S) bool: drawn from the proposals, and not ground truth or padding."""
    ground_truth: Tensor
    """(B, S) int64, row of the assigned ground truth; meaningful where positive."""
    positive: Tensor
    """(B, S) bool, the positive ones first."""


class RandomSampler:
    """Draw `count` boxes an image: at most `positive_fraction` of them positive, the rest negative.

    Args:
        count: boxes an image.
        positive_fraction: bound of the positive ones' share.
        negative_ratio: at most so many negatives for each positive drawn (at least one is counted); None:
            as many as there is room for.
    """

    def __init__(self, count: int, positive_fraction: float, *, negative_ratio: float | None = None) -> None:
        self.count = count
        self.positive_fraction = positive_fraction
        self.negative_ratio = negative_ratio

    def keys(self, like: Tensor) -> Tensor:
        """Priorities in [0, 1), shape of `like` (B, N): the largest are drawn first."""
        return torch.rand(like.shape, device=like.device)

    def positive_keys(self, match: Match, keys: Tensor) -> Tensor:
        """Priorities of the positive boxes, none below 0, from those of all boxes (B, N)."""
        return keys

    def negative_keys(self, match: Match, keys: Tensor, room: Tensor) -> Tensor:
        """Priorities of the negative boxes, likewise; `room` (B, 1) of them are drawn."""
        return keys

    @torch.no_grad()
    def __call__(self, match: Match) -> SampledBoxes:
        """Draw from a match of at least one box."""
        keys = self.keys(match.positive)
        total = keys.shape[1]
        most = min(int(self.count * self.positive_fraction), total)
        key, positive = self.positive_keys(match, keys).masked_fill(~match.positive, -1).topk(most)
        drawn = key >= 0  # (B, P)
        count = drawn.sum(dim=1, keepdim=True)
        room = self.count - count
        if self.negative_ratio is not None:
            room = room.minimum((self.negative_ratio * count.clamp(min=1)).long())
        keys = self.negative_keys(match, keys, room)
        key, negative = keys.masked_fill(~match.negative, -1).topk(min(self.count, total))
        filled = (key >= 0) & (torch.arange(key.shape[1], device=keys.device) < room)  # (B, Q)
        valid = torch.cat([drawn, filled], dim=1)
        index = torch.cat([positive, negative], dim=1)
        order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : self.count]
        valid = valid.gather(1, order)
        return SampledBoxes(
            chosen=index.gather(1, order),
            positive=valid & (torch.arange(order.shape[1], device=keys.device) < drawn.sum(1, keepdim=True)),
            valid=valid,
        )


class BalancedSampler(RandomSampler):
    """Libra R-CNN's sampling (arXiv 1904.02701, section 3.1): hard negatives and all objects get their share.

    As mmdetection 2.x does it. Negatives that overlap no object are drawn only if the others are too few:
    Libra's `floor_thr` of -1 becomes 0 there after the first image of a training, and here it is 0 from the
    start. The others' share is cut into `bins` equal parts of the range from `floor_iou` to the largest IoU
    of all boxes, 1 where ground truth is among them; each gives the same number, and what a part lacks is
    filled at random. Of the positives each object gives P / objects, rounded, plus one, if P are drawn.

    Args:
        count: boxes an image.
        positive_fraction: bound of the positive ones' share.
        bins: parts of the range of IoU.
        floor_iou: negatives below this IoU are not in the parts; 0: those of IoU 0.
        floor_fraction: share of the negatives that is drawn from those below the floor.
    """

    def __init__(
        self,
        count: int,
        positive_fraction: float,
        *,
        bins: int = 3,
        floor_iou: float = 0.0,
        floor_fraction: float = 0.0,
    ) -> None:
        super().__init__(count, positive_fraction)
        self.bins, self.floor_iou, self.floor_fraction = bins, floor_iou, floor_fraction

    def positive_keys(self, match: Match, keys: Tensor) -> Tensor:
        """Each object's share comes first, then the others."""
        most = min(int(self.count * self.positive_fraction), keys.shape[1])
        object_ = torch.where(match.positive, match.ground_truth, -1)
        in_order = object_.sort(dim=1).values
        new = torch.ones_like(match.positive)
        new[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
        objects = (new & (in_order >= 0)).sum(dim=1, keepdim=True).clamp(min=1)
        return keys + (_rank_within(object_, keys) < (most / objects).round() + 1)

    def negative_keys(self, match: Match, keys: Tensor, room: Tensor) -> Tensor:
        """Those chosen by part come first, then those below the floor, then the others."""
        iou = match.iou
        above = match.negative & (iou >= self.floor_iou if self.floor_iou > 0 else iou > 0)
        expected = (room * (1 - self.floor_fraction)).long()
        width = (iou.amax(dim=1, keepdim=True) - self.floor_iou) / self.bins
        part = ((iou - self.floor_iou) / width.clamp(min=1e-9)).long().clamp(max=self.bins - 1)
        share = _rank_within(torch.where(above, part, self.bins), keys) < expected // self.bins
        chosen = _rank_within(above.long(), keys + share) < expected
        return keys + 2 * (above & chosen) + (match.negative & ~above)


def _rank_within(group: Tensor, keys: Tensor) -> Tensor:
    """(B, N): how many of a box's group, (B, N) int64, have larger keys (B, N)."""
    by_key = keys.argsort(dim=1, descending=True)
    groups, by_group = group.gather(1, by_key).sort(dim=1, stable=True)
    place = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    starts = torch.ones_like(groups, dtype=torch.bool)
    starts[:, 1:] = groups[:, 1:] != groups[:, :-1]
    rank = place - torch.where(starts, place, 0).cummax(dim=1).values
    return torch.empty_like(rank).scatter(1, by_key.gather(1, by_group), rank)


def matched_boxes(row: Tensor, positive: Tensor, targets: Targets, fallback: Tensor) -> Tensor:
    """Ground truth (B, S, 4) of positive boxes by `row` (B, S); `fallback` (B, S, 4), the boxes, elsewhere.

    With the fallback the deltas of boxes that take no part in the loss are zero and not infinite.
    """
    boxes = targets.boxes.gather(1, row[..., None].expand(-1, -1, 4))
    return torch.where(positive[..., None], boxes, fallback)

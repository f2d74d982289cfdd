"""Region proposal network: Ren et al., "Faster R-CNN", arXiv 1506.01497; defaults of mmdetection 2.x."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models.anchors import AnchorGenerator
from msefpn.models.boxes import (
    PAD_SCORE,
    clip_to_images,
    decode,
    encode,
    full_precision,
    larger_than,
    nms,
    top_candidates,
    within,
)
from msefpn.models.dense import by_cell
from msefpn.models.losses import make_box_loss, make_class_loss, weighted_sum
from msefpn.models.matching import MaxIoUMatcher, RandomSampler, matched_boxes
from msefpn.structures import Proposals, Targets

_STDS = (1.0, 1.0, 1.0, 1.0)


class RPN(nn.Module):
    """Objectness and box deltas for the anchors of every level, then the best regions of an image.

    Args:
        channels: channels of the pyramid.
        strides: strides of the pyramid's levels.
        anchor_scale: anchor size as a multiple of the stride.
        ratios: anchor height / width.
        proposals: regions kept an image; (training, prediction).
        pre_nms_top_k: best anchors of a level that go into suppression; (training, prediction).
        nms_iou: suppression threshold within a level.
        min_size: regions with a side not above this, pixels, are dropped.
        samples: anchors an image that train the heads, half of them positive at the most.
        negative_ratio: see `RandomSampler` (Libra R-CNN: 5).
        positive_iou: IoU from which an anchor is positive.
        negative_iou: IoU below which an anchor is negative.
        low_quality_iou: least IoU of a ground truth's best anchor, which is positive too.
        reassign: see `MaxIoUMatcher`.
        ignore_padding: anchors on the batch's padding take no part in training.
        border: nor do those that stand out of their image by more than this, pixels, see `boxes.within`;
            None: they do.
        at_least_one: the losses are divided by the samples of the batch, where an image without a positive
            or without a negative one counts as having one (mmdetection), else as having none (torchvision).
        box_loss: name of the loss of the deltas, see `losses.BoxLoss`.
        class_loss: name of the loss of the objectness, see `losses.ClassLoss`.
        beta: where smooth L1 turns quadratic; 0: L1.
        clamp_both: see `boxes.decode`.
        integer_anchors: see `AnchorGenerator`.
        sampler: chooses the training anchors; None: at random.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        *,
        anchor_scale: float = 8.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        proposals: tuple[int, int] = (1000, 1000),
        pre_nms_top_k: tuple[int, int] = (2000, 1000),
        nms_iou: float = 0.7,
        min_size: float = 0.0,
        samples: int = 256,
        negative_ratio: float | None = None,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        low_quality_iou: float = 0.3,
        reassign: bool = True,
        ignore_padding: bool = True,
        border: float | None = None,
        at_least_one: bool = True,
        box_loss: str = "smooth_l1",
        class_loss: str = "binary_cross_entropy",
        beta: float = 0.0,
        clamp_both: bool = True,
        integer_anchors: bool = False,
        sampler: RandomSampler | None = None,
    ) -> None:
        super().__init__()
        self.anchors = AnchorGenerator(strides, [anchor_scale], ratios, integer=integer_anchors)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, self.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(channels, self.anchors.per_cell * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # these convolutions have one
        self.proposals, self.pre_nms_top_k = proposals, pre_nms_top_k
        self.nms_iou, self.min_size = nms_iou, min_size
        self.matcher = MaxIoUMatcher(positive_iou, negative_iou, low_quality_iou, reassign=reassign)
        self.sampler = sampler or RandomSampler(samples, 0.5, negative_ratio=negative_ratio)
        self.ignore_padding, self.border = ignore_padding, border
        self.least = int(at_least_one)
        self.box_loss, self.class_loss = make_box_loss(box_loss, beta), make_class_loss(class_loss)
        self.clamp_both = clamp_both

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Proposals:
        """Propose regions.

        Args:
            pyramid: maps (B, C, H_i, W_i), finest first.
            sizes: (B, 2), height and width of each image, pixels.
            image: height and width of the padded image, pixels.
        """
        logits, deltas = self._heads(pyramid)
        return self._select(logits, deltas, self.anchors(pyramid, image), sizes, phase=1)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Propose regions for training, and the losses `rpn_object` and `rpn_box`.

        Only the sampled anchors have a gradient: it is computed at their cells alone, not on whole maps.
        """
        anchors = self.anchors(pyramid, image)
        with torch.no_grad():
            proposals = self._select(*self._heads(pyramid), anchors, sizes, phase=0)
        return proposals, self._losses(pyramid, sizes, torch.cat(anchors), targets)

    def _heads(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level logits (B, N_i) and deltas (B, N_i, 4)."""
        weight, bias = self._output_layer()
        logits, deltas = [], []
        for x in pyramid:
            hidden = F.relu(self.conv(x), inplace=True)
            found = F.conv2d(hidden, weight, bias)
            logits.append(by_cell(found[:, : self.anchors.per_cell], 1).squeeze(2))
            deltas.append(by_cell(found[:, self.anchors.per_cell :], 4))
        return logits, deltas

    def _output_layer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of objectness and deltas as one convolution, which reads the hidden map once."""
        both = self.objectness, self.deltas
        weight, bias = (torch.cat([getattr(layer, name) for layer in both]) for name in ("weight", "bias"))
        return weight, bias

    def _heads_at(self, pyramid: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S) and deltas (B, S, 4) of the anchors `chosen` (B, S) of all levels."""
        count = self.anchors.per_cell
        cell, anchor = chosen // count, chosen % count
        patches = _patches(pyramid, cell).to(self.conv.weight.dtype)
        hidden = F.relu(F.linear(patches, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias))
        weight, bias = self._output_layer()
        found = F.linear(hidden, weight.flatten(1), bias)  # (B, S, 5 * count)
        logits = found[..., :count].gather(2, anchor[..., None]).squeeze(2)
        deltas = found[..., count:].unflatten(2, (count, 4))
        return logits, deltas.gather(2, anchor[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)

    def _select(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: Tensor, phase: int
    ) -> Proposals:
        boxes, scores, levels = [], [], []
        for level, (score, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            best, index = top_candidates(full_precision(score), self.pre_nms_top_k[phase])
            chosen = full_precision(delta).gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode(chosen, anchor[index], _STDS, clamp_both=self.clamp_both))
            scores.append(best)
            levels.append(torch.full_like(index, level))
        box, score = clip_to_images(torch.cat(boxes, 1), sizes), torch.cat(scores, 1)
        valid = larger_than(box, self.min_size) & (score > PAD_SCORE)
        parts = [x.shape[1] for x in scores]
        keep = nms(box, score, torch.cat(levels, 1), valid, self.nms_iou, parts)
        best, index = top_candidates(score.masked_fill(~keep, PAD_SCORE), self.proposals[phase])
        if best.is_cpu and not torch.compiler.is_compiling():  # padding costs the head as much as regions do
            most = max(1, int((best > PAD_SCORE).sum(dim=1).max()))
            best, index = best[:, :most], index[:, :most]
        return Proposals(box.gather(1, index[..., None].expand(-1, -1, 4)), best > PAD_SCORE)

    def _losses(
        self,
        pyramid: list[Tensor],
        sizes: Tensor,
        anchors: Tensor,
        targets: Targets,
    ) -> dict[str, Tensor]:
        usable = self.anchors.inside(pyramid, sizes)
        if not self.ignore_padding:
            usable = torch.ones_like(usable)
        if self.border is not None:
            usable = usable & within(anchors, sizes, self.border)
        match = self.matcher(anchors, usable, targets)
        sample = self.sampler(match)
        anchor = anchors[sample.chosen]  # (B, S, 4)
        row = match.ground_truth.gather(1, sample.chosen)
        ground_truth = matched_boxes(row, sample.positive, targets, anchor)
        logits, deltas = (full_precision(x) for x in self._heads_at(pyramid, sample.chosen))
        counts = torch.stack([sample.positive.sum(dim=1), (sample.valid & ~sample.positive).sum(dim=1)])
        count = counts.clamp(min=self.least).sum().clamp(min=1)
        of_boxes = self.box_loss(deltas, encode(ground_truth, anchor, _STDS))
        of_classes = self.class_loss(logits[..., None], (~sample.positive).long())
        return {
            "rpn_object": weighted_sum(of_classes, sample.valid) / count,
            "rpn_box": weighted_sum(of_boxes, sample.positive) / count,
        }


def _patches(pyramid: list[Tensor], cell: Tensor) -> Tensor:
    """The 3x3 neighbourhoods (B, S, 9 C) of cells (B, S) of all levels, row by row; zero outside of a map."""
    table = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in pyramid], dim=1)  # (B, cells, C)
    images, cells, channels = table.shape
    sizes = torch.tensor([(x.shape[2], x.shape[3]) for x in pyramid], device=cell.device)
    ends = sizes.prod(dim=1).cumsum(0)
    cell = cell[..., None, None]  # (B, S, 1, 1)
    level = torch.bucketize(cell, ends, right=True)
    height, width = sizes[level].unbind(-1)
    start = ends[level] - height * width
    step = torch.arange(-1, 2, device=cell.device)
    row, column = (cell - start) // width + step[:, None], (cell - start) % width + step
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)  # (B, S, 3, 3)
    image = torch.arange(images, device=cell.device)[:, None, None, None]
    index = torch.where(inside, start + row * width + column, 0) + cells * image
    patches = table.flatten(0, 1).index_select(0, index.flatten()).view(*inside.shape, channels)
    return (patches * inside[..., None]).flatten(2)

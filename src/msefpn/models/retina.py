"""RetinaNet's head: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002.

The defaults are mmdetection 2.x's.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msefpn.models.anchors import AnchorGenerator
from msefpn.models.boxes import decode, encode, full_precision
from msefpn.models.dense import by_cell, select_detections, strides_of, tower
from msefpn.models.losses import make_box_loss, make_class_loss, weighted_sum
from msefpn.models.matching import MaxIoUMatcher, matched_boxes
from msefpn.models.select import Selection
from msefpn.structures import Detections, Targets

_STDS = (1.0, 1.0, 1.0, 1.0)


class RetinaHead(nn.Module):
    """Class scores and boxes for nine anchors in every cell of every level.

    Args:
        channels: channels of the pyramid.
        strides: strides of the pyramid's levels.
        num_classes: K; there is no background class.
        depth: 3x3 convolutions of each branch before its prediction.
        norm: group normalisation after each of them (torchvision's RetinaNet v2); mmdetection has none.
        anchor_scale: size of the smallest anchor as a multiple of the stride; two more follow in an octave.
        ratios: anchor height / width.
        positive_iou: IoU from which an anchor is positive.
        negative_iou: IoU below which an anchor is negative.
        reassign: see `MaxIoUMatcher`.
        ignore_padding: anchors on the batch's padding take no part in training.
        per_image: divide the losses by each image's positives, then average (torchvision), else by all of
            the batch's positives (mmdetection). An image without any counts as one either way.
        box_loss: name of the loss of the deltas, see `losses.BoxLoss`; `balanced_l1` is Libra R-CNN's, whose
            RetinaNet has a `beta` of 0.11.
        class_loss: name of the loss of the classes, see `losses.ClassLoss`.
        beta: where smooth L1 turns quadratic; 0: L1.
        prior: initial score of every class.
        score, nms_iou, max_per_image, min_size: see `Selection`.
        pre_nms_top_k: best (anchor, class) pairs of a level that go into suppression.
        clamp_both: see `boxes.decode`.
        integer_anchors: see `AnchorGenerator`.

    Raises:
        ValueError: a `beta` that the box loss refuses.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        depth: int = 4,
        norm: bool = False,
        anchor_scale: float = 4.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        reassign: bool = True,
        ignore_padding: bool = True,
        per_image: bool = False,
        box_loss: str = "smooth_l1",
        class_loss: str = "focal",
        beta: float = 0.0,
        prior: float = 0.01,
        score: float = 0.05,
        nms_iou: float = 0.5,
        max_per_image: int = 100,
        pre_nms_top_k: int = 1000,
        min_size: float = 0.0,
        clamp_both: bool = True,
        integer_anchors: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.norm = num_classes, norm
        octave = [anchor_scale * 2 ** (i / 3) for i in range(3)]
        self.anchors = AnchorGenerator(strides, octave, ratios, integer=integer_anchors)
        self.class_tower = tower(channels, depth, norm=norm, bias=not norm)
        self.box_tower = tower(channels, depth, norm=norm, bias=not norm)
        self.classes = nn.Conv2d(channels, self.anchors.per_cell * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, self.anchors.per_cell * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.classes.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]  # it has one
        self.matcher = MaxIoUMatcher(positive_iou, negative_iou, 0.0, reassign=reassign)
        self.ignore_padding, self.per_image = ignore_padding, per_image
        self.box_loss, self.class_loss = make_box_loss(box_loss, beta), make_class_loss(class_loss)
        self.clamp_both = clamp_both
        self.threshold = torch.tensor(score, dtype=torch.float64, device="cpu").logit().item()
        self.selection = Selection(score, nms_iou, max_per_image, pre_nms_top_k, min_size)

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers, see `msefpn.models.class_rows.HasClassRows`."""
        return {"classes": [*range(num_classes)] * self.anchors.per_cell}

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Detections:
        """Detect.

        Args:
            pyramid: maps (B, C, H_i, W_i), finest first.
            sizes: (B, 2), height and width of each image, pixels.
            image: height and width of the padded image, pixels.
        """
        anchors = self.anchors(pyramid, image)
        strides = strides_of(anchors, self.anchors.strides)
        levels = zip(*self._heads(pyramid), anchors, strides, strict=True)
        boxes_of = functools.partial(decode, stds=_STDS, clamp_both=self.clamp_both)
        return select_detections(levels, boxes_of, sizes, self.selection, threshold=self.threshold)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses `retina_class` and `retina_box`."""
        levels = self._heads(pyramid)
        logits, deltas = full_precision(torch.cat(levels[0], 1)), full_precision(torch.cat(levels[1], 1))
        anchors = torch.cat(self.anchors(pyramid, image))
        usable = self.anchors.inside(pyramid, sizes)
        match = self.matcher(anchors, usable if self.ignore_padding else torch.ones_like(usable), targets)
        labels = targets.labels.gather(1, match.ground_truth)
        weight = self._weight(match.positive)
        chosen = match.positive.nonzero(as_tuple=True)
        row = match.ground_truth
        ground_truth = matched_boxes(row, match.positive, targets, anchors.expand_as(deltas))
        of_boxes = self.box_loss(deltas[chosen], encode(ground_truth[chosen], anchors[chosen[1]], _STDS))
        of_classes = self.class_loss(logits, torch.where(match.positive, labels, self.num_classes))
        return {
            "retina_class": weighted_sum(of_classes, (match.positive | match.negative) * weight),
            "retina_box": weighted_sum(of_boxes, weight.expand_as(labels)[chosen]),
        }

    def _weight(self, positive: Tensor) -> Tensor:
        """(B, 1): what each image's loss is multiplied by."""
        count = positive.sum(dim=1, keepdim=True)
        if self.per_image:
            return 1 / count.clamp(min=1) / len(count)
        return (1 / count.clamp(min=1).sum()).expand(len(count), 1)

    def _heads(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level logits (B, N_i, K) and deltas (B, N_i, 4)."""
        logits, deltas = [], []
        for x in pyramid:
            logits.append(by_cell(self.classes(self.class_tower(x)), self.num_classes))
            deltas.append(by_cell(self.deltas(self.box_tower(x)), 4))
        return logits, deltas

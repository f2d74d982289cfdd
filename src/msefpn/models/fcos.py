"""FCOS: Tian et al., "FCOS: A Simple and Strong Anchor-free Object Detector", TPAMI, arXiv 2006.09214."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from msefpn.models.anchors import AnchorGenerator
from msefpn.models.boxes import full_precision
from msefpn.models.dense import by_cell, select_detections, strides_of, tower
from msefpn.models.losses import make_class_loss
from msefpn.models.matching import PointMatcher
from msefpn.models.select import Selection
from msefpn.structures import Detections, Targets


class FCOSHead(nn.Module):
    """Class scores, centre-ness and the distances to a box's four sides, in every cell of every level.

    A cell's side is its level's stride; distances are predicted as multiples of it. The version of the
    journal paper: central sampling, centre-ness on the box branch, GIoU; a detection's score is the root of
    class score times centre-ness.

    Args:
        channels: channels of the pyramid.
        strides: strides of the pyramid's levels.
        num_classes: K; there is no background class.
        depth: 3x3 convolutions of each branch before its prediction, each with group normalisation.
        radius: half the side of a box's central region, in strides.
        class_loss: name of the loss of the classes, see `losses.ClassLoss`.
        prior: initial score of every class.
        score, nms_iou, max_per_image, min_size: see `Selection`.
        pre_nms_top_k: best (cell, class) pairs of a level that go into suppression.
        offset: where in a cell its point lies, in strides; see `AnchorGenerator`.
        integer_anchors: see `AnchorGenerator`.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        depth: int = 4,
        radius: float = 1.5,
        class_loss: str = "focal",
        prior: float = 0.01,
        score: float = 0.05,
        nms_iou: float = 0.6,
        max_per_image: int = 100,
        pre_nms_top_k: int = 1000,
        min_size: float = 0.0,
        offset: float = 0.5,
        integer_anchors: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.anchors = AnchorGenerator(strides, [1.0], [1.0], offset=offset, integer=integer_anchors)
        self.class_tower = tower(channels, depth, norm=True, bias=True)
        self.box_tower = tower(channels, depth, norm=True, bias=True)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centreness = nn.Conv2d(channels, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.classes.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]  # it has one
        self.matcher = PointMatcher(radius)
        self.class_loss = make_class_loss(class_loss)
        self.selection = Selection(score, nms_iou, max_per_image, pre_nms_top_k, min_size)

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers, see `msefpn.models.class_rows.HasClassRows`."""
        return {"classes": list(range(num_classes))}

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Detections:
        """Detect.

        Args:
            pyramid: maps (B, C, H_i, W_i), finest first.
            sizes: (B, 2), height and width of each image, pixels.
            image: height and width of the padded image, pixels.
        """
        logits, distances, centreness = self._heads(pyramid)
        scores = [
            (classes.sigmoid() * centre.sigmoid()[..., None]).sqrt()
            for classes, centre in zip(logits, centreness, strict=True)
        ]
        anchors = self.anchors(pyramid, image)
        levels = zip(scores, distances, anchors, strides_of(anchors, self.anchors.strides), strict=True)
        return select_detections(levels, _boxes, sizes, self.selection)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses `fcos_class`, `fcos_box` (GIoU), `fcos_centre`, each by the positive cells."""
        logits, distances, centreness = (torch.cat(parts, 1) for parts in self._heads(pyramid))
        levels = self.anchors(pyramid, image)
        match = self.matcher(levels, targets)
        labels = targets.labels.gather(1, match.ground_truth)
        labels = torch.where(match.positive, labels, self.num_classes)
        count = match.positive.sum().clamp(min=1)
        image_row, cell = match.positive.nonzero(as_tuple=True)
        anchors = torch.cat(levels)[cell]  # (P, 4)
        ground_truth = targets.boxes[image_row, match.ground_truth[match.positive]]
        boxes = _boxes(distances[match.positive], anchors)
        target = _centreness(anchors, ground_truth)
        centre = F.binary_cross_entropy_with_logits(centreness[match.positive], target, reduction="sum")
        return {
            "fcos_class": self.class_loss(logits, labels).sum() / count,
            "fcos_box": generalized_box_iou_loss(boxes, ground_truth, reduction="sum") / count,
            "fcos_centre": centre / count,
        }

    def _heads(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level logits (B, N_i, K), distances (B, N_i, 4: left, top, right, bottom) and centre-ness
        logits (B, N_i), float32.
        """
        logits, distances, centreness = [], [], []
        for x in pyramid:
            logits.append(full_precision(by_cell(self.classes(self.class_tower(x)), self.num_classes)))
            hidden = self.box_tower(x)
            distances.append(full_precision(by_cell(self.distances(hidden), 4)).relu())
            centreness.append(full_precision(by_cell(self.centreness(hidden), 1)).squeeze(2))
        return logits, distances, centreness


def _boxes(distances: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) at the distances (..., 4), in anchors' sides, from the centres of anchors (..., 4)."""
    centre, side = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    return torch.cat([centre - distances[..., :2] * side, centre + distances[..., 2:] * side], dim=-1)


def _centreness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)) (P,) of anchors' centres in boxes, both (P, 4)."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    near, far = centre - boxes[:, :2], boxes[:, 2:] - centre  # (P, 2)
    return (near.minimum(far) / near.maximum(far)).prod(dim=1).sqrt()

"""A head and its detector: class scores and the distances to a box's sides, in objects' central cells."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from msefpn.models import OneStage
from msefpn.models.anchors import AnchorGenerator
from msefpn.models.backbone import Backbone
from msefpn.models.boxes import full_precision
from msefpn.models.dense import by_cell, select_detections, strides_of
from msefpn.models.detectors.base import MakeNeck, start_at
from msefpn.models.losses import make_class_loss
from msefpn.models.matching import PointMatcher
from msefpn.models.select import Selection
from msefpn.plugins import register
from msefpn.structures import Detections, Targets


class PointHead(nn.Module):
    """FCOS (arXiv 2006.09214) reduced to one convolution, without centre-ness.

    Args:
        channels: channels of the pyramid.
        strides: strides of its levels.
        num_classes: K; there is no background class.
        radius: half the side of an object's central region, in strides.
        score: lowest score of a detection, 0..1.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        radius: float = 1.5,
        score: float = 0.05,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cells = AnchorGenerator(strides, [1.0], [1.0], offset=0.5)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        for layer, bias in ((self.classes, -math.log(99)), (self.distances, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]  # it has one
        self.matcher = PointMatcher(radius)
        self.class_loss = make_class_loss("focal")
        self.selection = Selection(score, nms_iou=0.6, max_per_image=100, pre_nms_top_k=1000, min_size=0.0)

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Detections:
        """Detect, see `msefpn.models.detectors.DenseHead`."""
        logits, distances = self._predict(pyramid)
        cells = self.cells(pyramid, image)
        scores = [x.sigmoid() for x in logits]
        levels = zip(scores, distances, cells, strides_of(cells, self.cells.strides), strict=True)
        return select_detections(levels, _boxes, sizes, self.selection)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """`point_class` (focal) and `point_box` (GIoU), divided by the batch's positive cells."""
        logits, distances = (torch.cat(parts, dim=1) for parts in self._predict(pyramid))
        levels = self.cells(pyramid, image)
        match = self.matcher(levels, targets)
        labels = targets.labels.gather(1, match.ground_truth)
        labels = torch.where(match.positive, labels, self.num_classes)
        count = match.positive.sum().clamp(min=1)
        row, cell = match.positive.nonzero(as_tuple=True)
        boxes = _boxes(distances[row, cell], torch.cat(levels)[cell])
        ground_truth = targets.boxes[row, match.ground_truth[row, cell]]
        return {
            "point_class": self.class_loss(logits, labels).sum() / count,
            "point_box": generalized_box_iou_loss(boxes, ground_truth, reduction="sum") / count,
        }

    def _predict(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level logits (B, N_i, K) and distances (B, N_i, 4) to the four sides, in strides."""
        logits = [full_precision(by_cell(self.classes(x), self.num_classes)) for x in pyramid]
        distances = [F.softplus(full_precision(by_cell(self.distances(x), 4))) for x in pyramid]
        return logits, distances


def _boxes(distances: Tensor, cells: Tensor) -> Tensor:
    """Boxes (..., 4) at distances (..., 4), in sides of the cells (..., 4), from their centres."""
    centre, side = (cells[..., :2] + cells[..., 2:]) / 2, cells[..., 2:] - cells[..., :2]
    return torch.cat([centre - distances[..., :2] * side, centre + distances[..., 2:] * side], dim=-1)


@register("detector", "points")
def points(
    backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, radius: float = 1.5, score: float = 0.05
) -> OneStage:
    """Build the detector; `radius` and `score` are what a recipe sets under `detector_options`."""
    neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="conv_p5_relu")
    head = PointHead(neck.out_channels, neck.out_strides, num_classes, radius=radius, score=score)
    return OneStage(backbone, neck, head)

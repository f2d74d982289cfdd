"""FCOS: Tian et al., "FCOS: A Simple and Strong Anchor-free Object Detector", TPAMI, arXiv 2006.09214.

The journal version of arXiv 1904.01355, the conference paper.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from msefpn.models.anchors import AnchorGenerator
from msefpn.models.boxes import full_precision, pairwise_iou
from msefpn.models.dense import by_cell, select_detections, strides_of, tower
from msefpn.models.losses import make_class_loss
from msefpn.models.matching import PointMatcher
from msefpn.models.select import Selection
from msefpn.necks.layers import check_choice
from msefpn.structures import Detections, Targets


class FCOSHead(nn.Module):
    """Class scores, centre-ness and the distances to a box's four sides, in every cell of every level.

    A cell's side is its level's stride; distances are predicted as multiples of it. The defaults are those of
    mmdetection 2.x's `center-normbbox-centeronreg-giou` setting: the journal paper's central sampling,
    centre-ness on the box branch, relative distances and GIoU, with a score that is the product of class
    score and centre-ness. The journal paper's score is the product's root: `root`. The conference paper's
    settings, mmdetection's plain one, are `radius=None`, `centreness_branch="class"`, `relative=False`,
    `iou_loss="iou"` and `nms_iou=0.5`.

    Args:
        channels: channels of the pyramid.
        strides: strides of the pyramid's levels.
        num_classes: K; there is no background class.
        depth: 3x3 convolutions of each branch before its prediction, each with group normalisation.
        radius: half the side of a box's central region, in strides; None: all of the box is central.
        inclusive: see `PointMatcher`.
        scales: each level learns a factor of its distances; torchvision has none.
        relative: distances are multiples of the stride, cut off at 0, else e to the power of what is
            predicted, pixels.
        centreness_branch: the branch that predicts centre-ness: `box` or `class`.
        iou_loss: loss of the boxes: `giou`, 1 - GIoU (arXiv 1902.09630), or `iou`, -ln IoU (arXiv
            1608.01471).
        weighted: a cell's box loss is weighted by its centre-ness (mmdetection), else all weigh the same
            (torchvision).
        class_loss: name of the loss of the classes, see `losses.ClassLoss`.
        prior: initial score of every class.
        preselect: what chooses the candidates, by `score` and `pre_nms_top_k`: `class`, the class score
            (mmdetection), or `product`, the detection's score (torchvision).
        root: a detection's score is the root of class score times centre-ness.
        score, nms_iou, max_per_image, min_size: see `Selection`.
        pre_nms_top_k: best (cell, class) pairs of a level that go into suppression.
        offset: where in a cell its point lies, in strides; see `AnchorGenerator`.
        integer_anchors: see `AnchorGenerator`.

    Raises:
        ValueError: a `centreness_branch`, `iou_loss` or `preselect` that is not one of those.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        depth: int = 4,
        radius: float | None = 1.5,
        inclusive: bool = True,
        scales: bool = True,
        relative: bool = True,
        centreness_branch: str = "box",
        iou_loss: str = "giou",
        weighted: bool = True,
        class_loss: str = "focal",
        prior: float = 0.01,
        preselect: str = "class",
        root: bool = False,
        score: float = 0.05,
        nms_iou: float = 0.6,
        max_per_image: int = 100,
        pre_nms_top_k: int = 1000,
        min_size: float = 0.0,
        offset: float = 0.5,
        integer_anchors: bool = False,
    ) -> None:
        super().__init__()
        check_choice("centreness_branch", centreness_branch, ("box", "class"))
        check_choice("iou_loss", iou_loss, ("giou", "iou"))
        check_choice("preselect", preselect, ("class", "product"))
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
        self.scales = nn.Parameter(torch.ones(len(strides))) if scales else None
        self.relative, self.centreness_branch = relative, centreness_branch
        self.iou_loss, self.weighted = iou_loss, weighted
        self.preselect, self.root = preselect, root
        self.matcher = PointMatcher(radius, inclusive=inclusive)
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
        scores, factors = [x.sigmoid() for x in logits], [x.sigmoid() for x in centreness]
        given: list[Tensor] | None = factors
        if self.preselect == "product":
            scores = [x * factor[..., None] for x, factor in zip(scores, factors, strict=True)]
            scores, given = [x.sqrt() for x in scores] if self.root else scores, None
        anchors = self.anchors(pyramid, image)
        levels = zip(scores, distances, anchors, strides_of(anchors, self.anchors.strides), strict=True)
        return select_detections(levels, _boxes, sizes, self.selection, factors=given, root=self.root)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses `fcos_class` and `fcos_centre`, by the positive cells, and `fcos_box`.

        The last is divided by the weights' sum.
        """
        logits, distances, centreness = (torch.cat(parts, 1) for parts in self._heads(pyramid))
        levels = self.anchors(pyramid, image)
        match = self.matcher(levels, targets)
        labels = targets.labels.gather(1, match.ground_truth)
        labels = torch.where(match.positive, labels, self.num_classes)
        count = match.positive.sum().clamp(min=1)
        image_row, cell = match.positive.nonzero(as_tuple=True)
        anchors = torch.cat(levels)[cell]  # (P, 4)
        ground_truth = targets.boxes[image_row, match.ground_truth[match.positive]]
        of_boxes = self._box_loss(_boxes(distances[match.positive], anchors), ground_truth)
        target = _centreness(anchors, ground_truth)
        weight = target if self.weighted else torch.ones_like(target)
        centre = F.binary_cross_entropy_with_logits(centreness[match.positive], target, reduction="sum")
        return {
            "fcos_class": self.class_loss(logits, labels).sum() / count,
            "fcos_box": (of_boxes * weight).sum() / weight.sum().clamp(min=1e-6),
            "fcos_centre": centre / count,
        }

    def _box_loss(self, boxes: Tensor, ground_truth: Tensor) -> Tensor:
        """(P,) of boxes and ground truth (P, 4)."""
        if self.iou_loss == "giou":
            loss: Tensor = generalized_box_iou_loss(boxes, ground_truth)
            return loss
        iou = pairwise_iou(boxes[:, None], ground_truth[:, None])[:, 0, 0]
        return -iou.clamp(min=1e-6).log()

    def _heads(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level logits (B, N_i, K), distances (B, N_i, 4: left, top, right, bottom) in strides and
        centre-ness logits (B, N_i), float32.
        """
        logits, distances, centreness = [], [], []
        for level, (x, stride) in enumerate(zip(pyramid, self.anchors.strides, strict=True)):
            of_class, of_box = self.class_tower(x), self.box_tower(x)
            logits.append(full_precision(by_cell(self.classes(of_class), self.num_classes)))
            distance = full_precision(by_cell(self.distances(of_box), 4))
            if self.scales is not None:
                distance = distance * self.scales[level]
            distances.append(distance.relu() if self.relative else distance.exp() / stride)
            hidden = of_box if self.centreness_branch == "box" else of_class
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

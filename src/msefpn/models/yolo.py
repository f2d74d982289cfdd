"""YOLOv3's head: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv 1804.02767."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models.blank import real_values
from msefpn.models.boxes import MAX_LOG_RATIO, full_precision, pairwise_iou
from msefpn.models.class_rows import SHARED
from msefpn.models.dense import by_cell, select_detections
from msefpn.models.select import Selection
from msefpn.necks.layers import group_norm
from msefpn.structures import Detections, Targets

DEFAULT_SHAPES = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Width and height of the anchors of each level, pixels (section 2.3, for images of 416 pixels)."""


class Assigned(NamedTuple):
    """What the anchors of a batch are to predict. N: anchors of an image, all levels."""

    positive: Tensor
    """(B, N) bool: has an object."""
    ground_truth: Tensor
    """(B, N) int64, row of its ground truth; meaningful where positive."""
    target: Tensor
    """(B, N, 4): x and y in the cell, 0..1, and the logarithms of width and height to the anchor's."""


class YOLOHead(nn.Module):
    """Objectness, classes and a box for three anchors in every cell of three levels.

    A box is ((sigmoid(t_x) + c_x) stride, (sigmoid(t_y) + c_y) stride, p_w exp(t_w), p_h exp(t_h)) in cell
    (c_x, c_y) with an anchor (p_w, p_h). Each object has one anchor: of all levels the one whose shape
    overlaps it most, in the cell of its centre; of two objects with the same one, the later. Other anchors
    learn that they have no object, unless their predicted box overlaps one by more than `ignore_iou`. Losses:
    squared error of x, y (after the sigmoid), w and h, binary cross-entropy of objectness and classes. The
    paper's convolutions have batch normalisation; here it is group normalisation, whatever the batch. A
    detection's score is objectness times class score.

    Args:
        channels: channels of the pyramid.
        strides: strides of the pyramid's levels.
        num_classes: K; there is no background class.
        anchors: (width, height) of the anchors of each level, pixels.
        ignore_iou: see above.
        score, nms_iou, max_per_image, min_size: see `Selection`.
        pre_nms_top_k: best (anchor, class) pairs of an image that go into suppression.

    Raises:
        ValueError: there are not as many levels of anchors as strides.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        anchors: Sequence[Sequence[Sequence[float]]] = DEFAULT_SHAPES,
        ignore_iou: float = 0.5,
        score: float = 0.05,
        nms_iou: float = 0.45,
        max_per_image: int = 100,
        pre_nms_top_k: int = 1000,
        min_size: float = 0.0,
    ) -> None:
        super().__init__()
        if len(anchors) != len(strides):
            raise ValueError(f"anchors are of {len(anchors)} levels, but the pyramid has {len(strides)}")
        self.num_classes, self.strides = num_classes, list(strides)
        self.counts = [len(level) for level in anchors]
        with real_values():
            shapes = torch.tensor([shape for level in anchors for shape in level], dtype=torch.float32)
        self.register_buffer("shapes", shapes, persistent=False)  # (A, 2), all levels
        self.shapes: Tensor
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
                group_norm(2 * channels),
                nn.LeakyReLU(0.1, inplace=True),
                nn.Conv2d(2 * channels, count * (5 + num_classes), 1),
            )
            for count in self.counts
        )
        self.ignore_iou = ignore_iou
        self.selection = Selection(score, nms_iou, max_per_image, pre_nms_top_k, min_size)

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers, see `msefpn.models.class_rows.HasClassRows`."""
        anchor = [*[SHARED] * 5, *range(num_classes)]
        return {f"convs.{i}.3": anchor * count for i, count in enumerate(self.counts)}

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Detections:
        """Detect.

        Args:
            pyramid: maps (B, C, H_i, W_i), finest first.
            sizes: (B, 2), height and width of each image, pixels.
            image: height and width of the padded image, pixels.
        """
        found = self._heads(pyramid)  # (B, N, 5 + K)
        t, objects, classes = found.split([4, 1, self.num_classes], dim=-1)  # OpenVINO mistakes slices
        scores = objects.sigmoid() * classes.sigmoid()  # (B, N, K)
        cells = self._cells(pyramid)
        levels = [(scores, t, cells, cells[:, 2].long())]
        return select_detections(levels, self._boxes, sizes, self.selection)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses `yolo_box`, `yolo_object` and `yolo_class`, divided by the batch's objects."""
        found = self._heads(pyramid)
        assigned = self.assign([(x.shape[2], x.shape[3]) for x in pyramid], targets)
        positive, count = assigned.positive, assigned.positive.sum().clamp(min=1)
        with torch.no_grad():
            free = self._far_from_all(self._boxes(found[..., :4], self._cells(pyramid)), targets)
        boxes = torch.cat([found[..., :2].sigmoid(), found[..., 2:4]], dim=-1)[positive]
        labels = targets.labels.gather(1, assigned.ground_truth)[positive]
        classes = F.one_hot(labels, self.num_classes).to(found.dtype)
        objects = F.binary_cross_entropy_with_logits(
            found[..., 4], positive.to(found.dtype), reduction="none"
        )
        class_loss = F.binary_cross_entropy_with_logits(found[..., 5:][positive], classes, reduction="sum")
        return {
            "yolo_box": F.mse_loss(boxes, assigned.target[positive], reduction="sum") / count,
            "yolo_object": (objects * (positive | free)).sum() / count,
            "yolo_class": class_loss / count,
        }

    @torch.no_grad()
    def assign(self, grids: Sequence[tuple[int, int]], targets: Targets) -> Assigned:
        """Give each object its anchor; `grids`: height and width of each level, cells."""
        size = targets.boxes[..., 2:] - targets.boxes[..., :2]  # (B, G, 2)
        centre = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
        shared = size[:, :, None].minimum(self.shapes).prod(dim=-1)  # (B, G, A)
        union = size.prod(dim=-1)[..., None] + self.shapes.prod(dim=-1) - shared
        best = (shared / union.clamp(min=1e-6)).argmax(dim=2)  # (B, G)
        total = sum(height * width * count for (height, width), count in zip(grids, self.counts, strict=True))
        shape = targets.valid.shape[0], total + 1
        owner = torch.full(shape, -1, device=best.device)  # the last place is for padding
        row = torch.arange(best.shape[1], device=best.device).expand_as(best)
        start, first = 0, 0
        place = torch.full_like(best, total)
        offset = torch.zeros_like(centre)
        for (height, width), count, stride in zip(grids, self.counts, self.strides, strict=True):
            here = targets.valid & (best >= first) & (best < first + count)
            cell = (centre / stride).long()
            column, line = cell[..., 0].clamp(0, width - 1), cell[..., 1].clamp(0, height - 1)
            index = start + (line * width + column) * count + best - first
            place = torch.where(here, index, place)
            inside = centre / stride - torch.stack([column, line], dim=-1)
            offset = torch.where(here[..., None], inside, offset)
            start, first = start + height * width * count, first + count
        ratio = (size / self.shapes[best]).clamp(min=1e-6).log()
        owner = owner.scatter_reduce(1, place, torch.where(targets.valid, row, -1), "amax")
        values = torch.cat([offset, ratio], dim=-1)  # (B, G, 4)
        chosen = owner.clamp(min=0)
        target = values.gather(1, chosen[..., None].expand(-1, -1, 4))
        return Assigned(owner[:, :-1] >= 0, chosen[:, :-1], target[:, :-1])

    def _far_from_all(self, boxes: Tensor, targets: Targets) -> Tensor:
        """Which boxes (B, N, 4) overlap no ground truth by more than `ignore_iou`: (B, N) bool."""
        rows = max(1, 2**22 // targets.valid.numel())
        parts = [pairwise_iou(part, targets.boxes) for part in boxes.split(rows, dim=1)]
        return torch.cat([(iou * targets.valid[:, None]).amax(dim=2) <= self.ignore_iou for iou in parts], 1)

    def _heads(self, pyramid: list[Tensor]) -> Tensor:
        """(B, N, 5 + K): t_x, t_y, t_w, t_h, objectness and classes of every anchor, float32."""
        found = [by_cell(conv(x), 5 + self.num_classes) for x, conv in zip(pyramid, self.convs, strict=True)]
        return full_precision(torch.cat(found, dim=1))

    def _cells(self, pyramid: list[Tensor]) -> Tensor:
        """Column, line and stride of its cell and its own width and height, of every anchor: (N, 5)."""
        levels = []
        for x, stride, shape in zip(pyramid, self.strides, self.shapes.split(self.counts), strict=True):
            y, x_ = torch.meshgrid(
                torch.arange(x.shape[2], device=x.device),
                torch.arange(x.shape[3], device=x.device),
                indexing="ij",
            )
            cell = torch.stack([x_, y], dim=-1)[:, :, None].expand(-1, -1, len(shape), -1)  # (H, W, A, 2)
            cell = cell.to(shape.dtype)
            parts = [cell, torch.full_like(cell[..., :1], stride), shape.expand_as(cell)]
            levels.append(torch.cat(parts, dim=-1).flatten(0, 2))
        return torch.cat(levels)

    def _boxes(self, t: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (B, N, 4), pixels, of t (B, N, 4) and anchors (..., N, 5) as `_cells` gives them."""
        cell, stride, shape = anchors.split([2, 1, 2], dim=-1)
        centre = (t[..., :2].sigmoid() + cell) * stride
        half = 0.5 * t[..., 2:].clamp(max=MAX_LOG_RATIO).exp() * shape
        return torch.cat([centre - half, centre + half], dim=-1)

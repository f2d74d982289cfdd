"""SSD's head: Liu et al., "SSD: Single Shot MultiBox Detector", arXiv 1512.02325; as in torchvision."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msefpn.models.blank import real_values
from msefpn.models.boxes import decode, encode, full_precision
from msefpn.models.dense import by_cell, select_detections, strides_of
from msefpn.models.losses import make_box_loss, make_class_loss, weighted_sum
from msefpn.models.matching import MaxIoUMatcher, matched_boxes
from msefpn.models.select import Selection
from msefpn.structures import Detections, Targets

_STDS = (0.1, 0.1, 0.2, 0.2)
_INNER_RATIOS, _OUTER_RATIOS = (2.0, 3.0), (2.0,)
"""Width / height, and its inverse, beside 1: the finest and the two coarsest levels have the fewer."""


class DefaultBoxes(nn.Module):
    """Default boxes, centred in the cells, of sizes relative to the image (section 2.2).

    Level k of n has the scale s_k, evenly spaced from `smallest` to `largest`; its boxes are s_k and
    sqrt(s_k s_{k+1}) wide and high, and s_k sqrt(r) wide and s_k / sqrt(r) high, and the reverse, for each
    ratio r; the next scale of the last level is 1. Sides are relative to those of the padded image.

    Args:
        strides: stride of each level, pixels.
        smallest: scale of the finest level.
        largest: scale of the coarsest level.
    """

    def __init__(self, strides: Sequence[int], *, smallest: float = 0.15, largest: float = 0.9) -> None:
        super().__init__()
        self.strides = list(strides)
        last = len(strides) - 1
        scales = [smallest + (largest - smallest) * k / max(last, 1) for k in range(last + 1)] + [1.0]
        self.per_cell = []
        for k, scale in enumerate(scales[:-1]):
            sides = [(scale, scale), (math.sqrt(scale * scales[k + 1]),) * 2]
            for ratio in _OUTER_RATIOS if k in (0, last - 1, last) else _INNER_RATIOS:
                wide = (scale * math.sqrt(ratio), scale / math.sqrt(ratio))
                sides += [wide, wide[::-1]]
            with real_values():
                self.register_buffer(f"sides_{k}", torch.tensor(sides).clamp(max=1), persistent=False)
            self.per_cell.append(len(sides))

    def forward(self, maps: Sequence[Tensor], image: tuple[int, int]) -> list[Tensor]:
        """For each level (H_i * W_i * A_i, 4), pixels.

        Args:
            maps: the levels' maps, (B, C, H_i, W_i).
            image: height and width of the padded image, pixels.
        """
        levels = []
        for k, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            sides = full_precision(getattr(self, f"sides_{k}"))
            half = torch.stack([sides[:, 0] * image[1], sides[:, 1] * image[0]], dim=1) / 2  # (A, 2)
            ys = (torch.arange(x.shape[2], device=half.device) + 0.5) * stride
            xs = (torch.arange(x.shape[3], device=half.device) + 0.5) * stride
            y, x_ = torch.meshgrid(ys, xs, indexing="ij")
            centre = torch.stack([x_, y], dim=-1)[:, :, None].to(half.dtype)  # (H, W, 1, 2)
            levels.append(torch.cat([centre - half, centre + half], dim=-1).flatten(0, 2))
        return levels


class SSDHead(nn.Module):
    """Class scores and boxes for the default boxes of every cell; each level has its own convolutions.

    Args:
        channels: channels of the pyramid.
        strides: strides of the pyramid's levels.
        num_classes: K, without background, which is the last score.
        smallest: see `DefaultBoxes`.
        largest: see `DefaultBoxes`.
        positive_iou: IoU from which a default box is positive; so is each object's best one.
        negatives: hardest negatives of an image that are learned from, for each of its positives.
        box_loss: name of the loss of the deltas, see `losses.BoxLoss`.
        class_loss: name of the loss of the classes, see `losses.ClassLoss`.
        beta: where smooth L1 turns quadratic; 0: L1.
        score, nms_iou, max_per_image, min_size: see `Selection`.
        pre_nms_top_k: best (box, class) pairs of an image that go into suppression.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        smallest: float = 0.15,
        largest: float = 0.9,
        positive_iou: float = 0.5,
        negatives: float = 3.0,
        box_loss: str = "smooth_l1",
        class_loss: str = "cross_entropy",
        beta: float = 1.0,
        score: float = 0.01,
        nms_iou: float = 0.45,
        max_per_image: int = 200,
        pre_nms_top_k: int = 2000,
        min_size: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.boxes = DefaultBoxes(strides, smallest=smallest, largest=largest)
        counts = self.boxes.per_cell
        self.classes = nn.ModuleList(
            nn.Conv2d(channels, count * (num_classes + 1), 3, padding=1) for count in counts
        )
        self.deltas = nn.ModuleList(nn.Conv2d(channels, count * 4, 3, padding=1) for count in counts)
        for layer in (*self.classes, *self.deltas):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.matcher = MaxIoUMatcher(positive_iou, positive_iou, 0.0)
        self.negatives = negatives
        self.box_loss, self.class_loss = make_box_loss(box_loss, beta), make_class_loss(class_loss)
        self.selection = Selection(score, nms_iou, max_per_image, pre_nms_top_k, min_size)

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers, see `msefpn.models.class_rows.HasClassRows`."""
        counts = enumerate(self.boxes.per_cell)
        return {f"classes.{i}": [*range(num_classes + 1)] * count for i, count in counts}

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Detections:
        """Detect.

        Args:
            pyramid: maps (B, C, H_i, W_i), finest first.
            sizes: (B, 2), height and width of each image, pixels.
            image: height and width of the padded image, pixels.
        """
        logits, deltas = self._heads(pyramid)
        boxes = self.boxes(pyramid, image)
        strides = torch.cat(strides_of(boxes, self.boxes.strides))
        # by split: OpenVINO mistakes a slice that is gathered from
        scores = logits.softmax(dim=-1).split([self.num_classes, 1], dim=-1)[0]
        levels = [(scores, deltas, torch.cat(boxes), strides)]
        return select_detections(levels, functools.partial(decode, stds=_STDS), sizes, self.selection)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses `ssd_class` and `ssd_box`, divided by the batch's positives (equation 1)."""
        logits, deltas = self._heads(pyramid)
        boxes = torch.cat(self.boxes(pyramid, image))
        match = self.matcher(boxes, torch.ones_like(logits[..., 0], dtype=torch.bool), targets)
        labels = targets.labels.gather(1, match.ground_truth)
        labels = torch.where(match.positive, labels, self.num_classes)
        of_classes = self.class_loss(logits, labels)
        chosen = match.positive | self._hardest(of_classes.detach(), match.positive)
        row = match.ground_truth
        ground_truth = matched_boxes(row, match.positive, targets, boxes.expand_as(deltas))
        of_boxes = self.box_loss(deltas, encode(ground_truth, boxes, _STDS))
        count = match.positive.sum().clamp(min=1)
        return {
            "ssd_class": weighted_sum(of_classes, chosen) / count,
            "ssd_box": weighted_sum(of_boxes, match.positive) / count,
        }

    def _hardest(self, loss: Tensor, positive: Tensor) -> Tensor:
        """The negatives with the largest loss, so many for each positive of their image: (B, N) bool."""
        order = loss.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True)
        rank = torch.empty_like(order).scatter(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return ~positive & (rank < self.negatives * positive.sum(dim=1, keepdim=True))

    def _heads(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, N, K + 1) and deltas (B, N, 4), float32, all levels concatenated."""
        layers = list(zip(pyramid, self.classes, self.deltas, strict=True))
        logits = torch.cat([by_cell(classes(x), self.num_classes + 1) for x, classes, _ in layers], 1)
        deltas = torch.cat([by_cell(layer(x), 4) for x, _, layer in layers], 1)
        return full_precision(logits), full_precision(deltas)

"""RoI head: pooling of regions, classification and box refinement; defaults of mmdetection 2.x."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models.boxes import clip_to_images, decode, encode, full_precision, larger_than
from msefpn.models.losses import make_box_loss, make_class_loss, weighted_sum
from msefpn.models.matching import (
    BalancedSampler,
    MaxIoUMatcher,
    RandomSampler,
    SampledBoxes,
    SampledRegions,
    matched_boxes,
    with_own_truth,
)
from msefpn.models.roi_align import RoIAlign
from msefpn.models.select import Selection
from msefpn.necks.aug_fpn import AdaptiveSpatialFusion
from msefpn.structures import Detections, Proposals, Targets


class BoxLayers(nn.Module):
    """Two fully connected layers on pooled regions, then class scores and boxes.

    Args:
        channels: channels of the pooled regions.
        size: side of the pooled regions, cells.
        num_classes: K, without background, which is the last score.
        hidden: width of the two layers.
        boxes: boxes of a region: K, one for each class, or 1 for all.
    """

    def __init__(self, channels: int, size: int, num_classes: int, hidden: int, boxes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels * size**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, boxes * 4)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.xavier_uniform_(self.fc2.weight)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.classes, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1) and deltas (B, R, boxes, 4), float32, of pooled (B * R, C, size, size).

        `shape` is (B, R).
        """
        hidden = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        logits = full_precision(self.classes(hidden)).view(*shape, -1)
        deltas = full_precision(self.deltas(hidden)).view(*shape, -1, 4)
        return logits, deltas


class RoIHead(nn.Module):
    """Pools regions, classifies and refines them.

    Args:
        channels: channels of the pyramid.
        strides: strides of the levels that are pooled.
        num_classes: K, without background, which is the last score.
        hidden: width of the two layers.
        stds: what the four deltas are divided by.
        samples: regions an image that train the head, a quarter of them positive at the most.
        positive_iou: IoU from which a region is positive; below it is negative.
        low_quality_iou: see `MaxIoUMatcher`; mmdetection has it in Mask R-CNN alone.
        own_truth: ground truth that is added to the regions is assigned to itself (mmdetection), else by IoU
            as the others are (torchvision): they differ where two boxes coincide.
        class_agnostic: one box a region for all classes, not one for each.
        score, nms_iou, max_per_image, min_size: see `Selection`.
        pre_nms_top_k: best (region, class) pairs of an image that go into suppression.
        sampling_ratio: see `RoIAlign`.
        aligned: see `RoIAlign`.
        pooling: `level`, from the level of the region's size; or `soft`, from all levels, weighed cell by
            cell (soft RoI selection, AugFPN, arXiv 1912.05384, section 3.3).
        consistent: weight of AugFPN's consistent supervision (section 3.1; its authors: 0.25): in training,
            a second set of layers detects on the regions pooled from each of the neck's laterals. 0: none.
        box_loss: name of the loss of the deltas, see `losses.BoxLoss`; `balanced_l1` with a `beta` of 1 is
            Libra R-CNN's.
        class_loss: name of the loss of the classes, see `losses.ClassLoss`.
        beta: where smooth L1 turns quadratic; 0: L1.
        balanced_samples: Libra R-CNN's sampling, see `BalancedSampler`.
        clamp_both: see `boxes.decode`.
        sampler: chooses the training regions; None: at random, or as `balanced_samples` says.

    Raises:
        ValueError: an unknown pooling, or a `beta` that the box loss refuses.
    """

    training_only = ("auxiliary",)

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        hidden: int = 1024,
        stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        samples: int = 512,
        positive_iou: float = 0.5,
        low_quality_iou: float | None = None,
        own_truth: bool = True,
        class_agnostic: bool = False,
        score: float = 0.05,
        nms_iou: float = 0.5,
        max_per_image: int = 100,
        pre_nms_top_k: int = 2000,
        min_size: float = 0.0,
        sampling_ratio: int = 0,
        aligned: bool = True,
        pooling: str = "level",
        consistent: float = 0.0,
        box_loss: str = "smooth_l1",
        class_loss: str = "cross_entropy",
        beta: float = 0.0,
        balanced_samples: bool = False,
        clamp_both: bool = True,
        sampler: RandomSampler | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("level", "soft"):
            raise ValueError(f"pooling '{pooling}' is unknown: known: level, soft")
        self.num_classes, self.stds = num_classes, list(stds)
        self.pool = RoIAlign(strides, sampling_ratio=sampling_ratio, aligned=aligned)
        self.select: AdaptiveSpatialFusion | None = None
        if pooling == "soft":
            self.select = AdaptiveSpatialFusion(channels, len(strides))
        self.levels, self.class_agnostic = len(strides), class_agnostic
        layers = (channels, self.pool.size, num_classes, hidden, 1 if class_agnostic else num_classes)
        self.box = BoxLayers(*layers)
        self.consistent = consistent
        self.auxiliary = BoxLayers(*layers) if consistent else None
        self.matcher = MaxIoUMatcher(positive_iou, positive_iou, low_quality_iou)
        self.own_truth = own_truth
        make = BalancedSampler if balanced_samples else RandomSampler
        self.sampler = sampler or make(samples, 0.25)
        self.selection = Selection(score, nms_iou, max_per_image, pre_nms_top_k, min_size)
        self.box_loss, self.class_loss = make_box_loss(box_loss, beta), make_class_loss(class_loss)
        self.clamp_both = clamp_both

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers, see `msefpn.models.class_rows.HasClassRows`."""
        parts = ["box"] if self.auxiliary is None else ["box", "auxiliary"]
        rows = {"classes": [*range(num_classes), num_classes]}
        if not self.class_agnostic:
            rows["deltas"] = [label for label in range(num_classes) for _ in range(4)]
        return {f"{part}.{layer}": labels for part in parts for layer, labels in rows.items()}

    def forward(self, pyramid: list[Tensor], proposals: Proposals, sizes: Tensor) -> Detections:
        """Detect.

        Args:
            pyramid: maps (B, C, H_i, W_i), one for each of the pooled strides.
            proposals: R regions an image.
            sizes: (B, 2), height and width of each image, pixels.
        """
        logits, boxes = self.refined(pyramid, proposals.boxes, sizes)
        return self.selected(logits, boxes, proposals)

    def refined(self, pyramid: list[Tensor], rois: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1) and boxes (B, R, K or 1, 4), clipped to the images, of rois (B, R, 4)."""
        logits, deltas = self._heads(pyramid, rois)
        return logits, self.decoded(deltas, rois, sizes)

    def selected(self, logits: Tensor, boxes: Tensor, pooled: Proposals) -> Detections:
        """The detections among regions: logits (B, R, K + 1), boxes (B, R, K or 1, 4) and `pooled`, R."""
        scores = logits.softmax(dim=-1)[..., :-1] * pooled.valid[..., None]
        boxes = boxes.expand(-1, -1, self.num_classes, -1).flatten(1, 2)  # (B, R * K, 4)
        labels = torch.arange(self.num_classes, device=scores.device).expand_as(scores)
        strides = None
        if self.select is None:  # soft selection pools from all levels
            strides = self.pool.strides_of(pooled.boxes)[..., None].expand_as(scores).flatten(1)
        return self.selection(boxes, scores.flatten(1), labels.flatten(1), strides)

    def losses(
        self,
        pyramid: list[Tensor],
        proposals: Proposals,
        sizes: Tensor,
        targets: Targets,
        aux: Mapping[str, list[Tensor]] = MappingProxyType({}),
    ) -> tuple[dict[str, Tensor], SampledRegions]:
        """The losses `roi_class` and `roi_box`, and the regions that they are of.

        The regions are sampled from proposals and ground truth. With consistent supervision also `aux_class`
        and `aux_box`, on the same regions pooled from the neck's `laterals`, which `aux` holds: maps
        (B, C, H_i, W_i), one for each of the pooled strides.
        """
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
        if self.own_truth:
            match = with_own_truth(self.matcher(proposals.boxes, proposals.valid, targets), targets)
        else:
            match = self.matcher(boxes, torch.cat([proposals.valid, targets.valid], dim=1), targets)
        sample = self.sampler(match)
        rois = boxes.gather(1, sample.chosen[..., None].expand(-1, -1, 4))  # (B, S, 4)
        row = match.ground_truth.gather(1, sample.chosen)
        labels = targets.labels.gather(1, row)  # (B, S)
        boxes = matched_boxes(row, sample.positive, targets, rois)
        target = encode(*_nonempty(boxes, rois), self.stds)
        logits, deltas = self._heads(pyramid, rois)
        losses = {
            "roi_class": self._class_loss(logits, labels, sample),
            "roi_box": self._box_loss(deltas, labels, target, sample),
        }
        if self.auxiliary is not None and "laterals" in aux:
            levels = self.pool.every_level(aux["laterals"], rois)
            found = [self.auxiliary(pooled, rois.shape[:2]) for pooled in levels]
            by_class = [self._class_loss(logits, labels, sample) for logits, _ in found]
            by_box = [self._box_loss(deltas, labels, target, sample) for _, deltas in found]
            losses["aux_class"] = self.consistent * torch.stack(by_class).sum()
            losses["aux_box"] = self.consistent * torch.stack(by_box).sum()
        proposed = sample.valid & (sample.chosen < proposals.boxes.shape[1])
        return losses, SampledRegions(rois, deltas, proposed, row, sample.positive)

    def decoded(self, deltas: Tensor, rois: Tensor, sizes: Tensor) -> Tensor:
        """Boxes (B, R, n, 4) of deltas (B, R, n, 4) and rois (B, R, 4), clipped to the images."""
        boxes = decode(deltas, rois[:, :, None].expand_as(deltas), self.stds, clamp_both=self.clamp_both)
        return clip_to_images(boxes.flatten(1, 2), sizes).view_as(boxes)

    def _class_loss(self, logits: Tensor, labels: Tensor, sample: SampledBoxes) -> Tensor:
        labels = torch.where(sample.positive, labels, self.num_classes)
        return weighted_sum(self.class_loss(logits, labels), sample.valid) / sample.valid.sum().clamp(min=1)

    def _box_loss(self, deltas: Tensor, labels: Tensor, target: Tensor, sample: SampledBoxes) -> Tensor:
        row = torch.zeros_like(labels) if self.class_agnostic else labels
        own = deltas.gather(2, row[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)  # (B, S, 4)
        loss = weighted_sum(self.box_loss(own, target), sample.positive)
        return loss / sample.valid.sum().clamp(min=1)

    def _heads(self, pyramid: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1) and deltas (B, R, K or 1, 4) of rois (B, R, 4), float32."""
        if self.select is None:
            pooled = self.pool(pyramid, rois)
        else:
            pooled = self.select(self.pool.every_level(pyramid, rois))
        found: tuple[Tensor, Tensor] = self.box(pooled, rois.shape[:2])
        return found


def _nonempty(boxes: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """Replace regions without area, which only padding has, by a unit box: their deltas stay finite."""
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], device=rois.device, dtype=rois.dtype)
    empty = ~larger_than(rois, 0)[..., None]
    return torch.where(empty, unit, boxes), torch.where(empty, unit, rois)

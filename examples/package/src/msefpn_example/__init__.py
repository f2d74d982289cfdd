"""Plug-ins for msefpn in a package of their own: a neck, a detector with its head, an augmentation, a logger.

Once the package is installed, `msefpn` knows all of them without `--plugin`: its entry point in the group
`msefpn`, see pyproject.toml, names this module, and importing it registers them.
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models import OneStage
from msefpn.models.anchors import AnchorGenerator
from msefpn.models.backbone import Backbone
from msefpn.models.boxes import decode, encode, full_precision
from msefpn.models.dense import by_cell, select_detections, strides_of
from msefpn.models.detectors.base import MakeNeck, start_at
from msefpn.models.losses import make_class_loss
from msefpn.models.matching import MaxIoUMatcher
from msefpn.models.select import Selection
from msefpn.necks import Neck, init_xavier
from msefpn.plugins import register
from msefpn.structures import Detections, Targets
from msefpn.training.callbacks import Callback, Run

_STDS = (0.1, 0.1, 0.2, 0.2)
"""What box deltas are divided by."""


@register("neck", "mean_map")
class MeanMap(Neck):
    """Adds the mean of all levels, at the size of each, to a 1x1 convolution of it.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output.
        extra_levels: coarser levels on top, as in `msefpn.necks.FPN`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        levels = self.in_channels[start_level:]
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in levels)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        inputs = features[self.start_level :]
        maps = [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        size = maps[-1].shape[-2:]
        mean = torch.stack([F.interpolate(x, size=size, mode="nearest") for x in maps]).mean(dim=0)
        fused = [x + F.interpolate(mean, size=x.shape[-2:], mode="nearest") for x in maps]
        return self.with_extra(features, fused)


class SquareAnchorHead(nn.Module):
    """RetinaNet (arXiv 1708.02002) reduced to one square anchor in each cell and one convolution.

    Args:
        channels: channels of the pyramid.
        strides: strides of its levels.
        num_classes: K; there is no background class.
        anchor_scale: side of the anchors, in strides.
        score: lowest score of a detection, 0..1.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        anchor_scale: float = 4.0,
        score: float = 0.05,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.anchors = AnchorGenerator(strides, [anchor_scale], [1.0])
        self.predict = nn.Conv2d(channels, num_classes + 4, 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)
        bias = torch.tensor([-math.log(99)] * num_classes + [0.0] * 4)  # scores of 0.01, boxes at the anchors
        self.predict.bias = nn.Parameter(bias)
        self.matcher = MaxIoUMatcher(0.5, 0.4, 0.0)
        self.class_loss = make_class_loss("focal")
        self.selection = Selection(score, nms_iou=0.5, max_per_image=100, pre_nms_top_k=1000, min_size=0.0)

    def forward(self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int]) -> Detections:
        """Detect, see `msefpn.models.detectors.DenseHead`."""
        logits, deltas = self._predict(pyramid)
        anchors = self.anchors(pyramid, image)
        scores = [x.sigmoid() for x in logits]
        levels = zip(scores, deltas, anchors, strides_of(anchors, self.anchors.strides), strict=True)
        return select_detections(levels, functools.partial(decode, stds=_STDS), sizes, self.selection)

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """`square_class` (focal) and `square_box` (L1), divided by the batch's positive anchors."""
        logits, deltas = (torch.cat(parts, dim=1) for parts in self._predict(pyramid))
        anchors = torch.cat(self.anchors(pyramid, image))
        match = self.matcher(anchors, self.anchors.inside(pyramid, sizes), targets)
        labels = targets.labels.gather(1, match.ground_truth)
        labels = torch.where(match.positive, labels, self.num_classes)
        of_classes = self.class_loss(logits, labels) * (match.positive | match.negative)
        row, anchor = match.positive.nonzero(as_tuple=True)
        ground_truth = targets.boxes[row, match.ground_truth[row, anchor]]
        goal = encode(ground_truth, anchors[anchor], _STDS)
        count = match.positive.sum().clamp(min=1)
        return {
            "square_class": of_classes.sum() / count,
            "square_box": F.l1_loss(deltas[row, anchor], goal, reduction="sum") / count,
        }

    def _predict(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level logits (B, N_i, K) and deltas (B, N_i, 4)."""
        parts = self.num_classes, 4
        maps = [full_precision(by_cell(self.predict(x), sum(parts))).split(parts, dim=-1) for x in pyramid]
        return [logits for logits, _ in maps], [deltas for _, deltas in maps]


@register("detector", "squares")
def squares(
    backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, anchor_scale: float = 4.0
) -> OneStage:
    """Build the detector; `anchor_scale` is what a recipe sets under `detector_options`."""
    neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="conv_p5_relu")
    head = SquareAnchorHead(neck.out_channels, neck.out_strides, num_classes, anchor_scale=anchor_scale)
    return OneStage(backbone, neck, head)


@register("augmentation", "darker")
class Darker:
    """Darkens half of the images by up to a half; boxes stay where they are."""

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Change an image (3, H, W) uint8; resizing to the run's size is added after it."""
        if torch.rand(()) < 0.5:
            image = (image * (1 - torch.rand(()) / 2)).to(torch.uint8)
        return image, target


@register("logger", "hours")
class Hours(Callback):
    """Writes the hours since the start and the AP of each epoch into `hours.txt` in the run folder."""

    def start(self, run: Run) -> None:
        """Note the time."""
        super().start(run)
        self.began = time.monotonic()

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        hours = (time.monotonic() - self.began) / 3600
        with (self.run.out / "hours.txt").open("a", encoding="utf-8") as file:
            file.write(f"epoch {epoch}  {hours:.3f} h  AP {100 * values['AP']:.1f}\n")

"""Mask head: He et al., "Mask R-CNN", arXiv 1703.06870; the defaults are mmdetection 2.x's."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from msefpn.models.boxes import full_precision
from msefpn.models.matching import SampledRegions
from msefpn.models.roi_align import RoIAlign
from msefpn.structures import Targets


class MaskHead(nn.Module):
    """Convolutions on pooled regions, twice enlarged, then a mask for each class (figure 4, right).

    Args:
        channels: channels of the pyramid.
        strides: strides of the levels that are pooled.
        num_classes: K; only the mask of a region's own class is learned or used.
        size: side of the pooled regions, cells; a mask has twice that.
        hidden: channels of the convolutions.
        depth: 3x3 convolutions before the enlargement.
        sampling_ratio: see `RoIAlign`.
        aligned: see `RoIAlign`.
        binary: a cell's target is whether the object covers half of it (mmdetection), else how much of it
            the object covers (torchvision).
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        *,
        size: int = 14,
        hidden: int = 256,
        depth: int = 4,
        sampling_ratio: int = 0,
        aligned: bool = True,
        binary: bool = True,
    ) -> None:
        super().__init__()
        self.pool = RoIAlign(strides, size, sampling_ratio=sampling_ratio, aligned=aligned)
        widths = [channels] + [hidden] * depth
        self.convs = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)))
        self.enlarge = nn.ConvTranspose2d(widths[-1], hidden, 2, stride=2)
        self.masks = nn.Conv2d(hidden, num_classes, 1)
        for layer in (*self.convs, self.enlarge, self.masks):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.binary = binary

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers, see `msefpn.models.class_rows.HasClassRows`."""
        return {"masks": list(range(num_classes))}

    def forward(self, pyramid: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of detections.

        Args:
            pyramid: maps (B, C, H_i, W_i), one for each of the pooled strides.
            boxes: (B, D, 4), pixels of the padded image.
            labels: (B, D) int64.

        Returns:
            (B, D, 2 size, 2 size), 0..1, over the box.
        """
        masks = self._own(self._logits(self.pool(pyramid, boxes)), labels.flatten())
        return masks.sigmoid().view(*labels.shape, *masks.shape[1:])

    def losses(self, pyramid: list[Tensor], regions: SampledRegions, targets: Targets) -> dict[str, Tensor]:
        """The loss `mask`: binary cross-entropy, averaged over the cells of all positive regions.

        Raises ValueError for targets without masks.
        """
        if targets.masks is None:
            raise ValueError("a mask head learns from masks: give targets that have them")
        most = max(1, int(regions.positive.sum(dim=1).max()))
        positive = regions.positive[:, :most]  # (B, P), positive ones come first
        rois, row = regions.rois[:, :most], regions.ground_truth[:, :most]
        pooled = self.pool(pyramid, rois).unflatten(0, positive.shape)[positive]
        logits = self._own(self._logits(pooled), targets.labels.gather(1, row)[positive])
        images = torch.arange(len(row), device=row.device)[:, None]
        rows = (images * targets.masks.shape[1] + row)[positive]
        target = self._targets(rois[positive], rows, targets.masks)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return {"mask": loss / max(1, target.numel())}

    def _targets(self, rois: Tensor, rows: Tensor, masks: Tensor) -> Tensor:
        """The masks at `rows` (P,) of all masks (B, G, H, W), cut out by rois (P, 4): (P, M, M)."""
        used, place = rows.unique(return_inverse=True)
        maps = masks.flatten(0, 1)[used][:, None].to(rois.dtype)
        places = torch.cat([place[:, None].to(rois.dtype), rois], dim=1)
        cut: Tensor = roi_align(maps, places, 2 * self.pool.size, aligned=self.pool.aligned).squeeze(1)
        return (cut >= 0.5).to(cut.dtype) if self.binary else cut

    def _logits(self, pooled: Tensor) -> Tensor:
        """(N, K, M, M), float32, of regions (N, C, size, size)."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        return full_precision(self.masks(F.relu(self.enlarge(pooled))))

    def _own(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, M, M): for each region the one of its label, of logits (N, K, M, M)."""
        index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, index).squeeze(1)


def paste(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay a mask (M, M), 0..1, over its box (4,) in an image of `size` (height, width): (H, W) bool.

    Cells have their values at their centres, and pixels too; between the centres the mask is linear, and
    outside its cells it is zero (mmdetection). A pixel is on the object from 0.5.
    """
    canvas = torch.zeros(size, dtype=torch.bool, device=mask.device)
    left, top = box[:2].floor().clamp(min=0).int().tolist()
    right = min(size[1], int(box[2].ceil()))
    bottom = min(size[0], int(box[3].ceil()))
    if left >= right or top >= bottom:
        return canvas
    x = (torch.arange(left, right, device=box.device) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(top, bottom, device=box.device) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].to(mask.dtype)
    values = F.grid_sample(mask[None, None], grid, align_corners=False)
    canvas[top:bottom, left:right] = values[0, 0] >= 0.5
    return canvas

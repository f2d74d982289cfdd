"""RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3) of regions on several levels of a pyramid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from msefpn.models.boxes import full_precision
from msefpn.necks.layers import is_exporting

_POINT = 1e-3
"""Least extent of a region in ONNX, pixels."""


class RoIAlign(nn.Module):
    """RoIAlign of each region on the level of its size (FPN, equation 1).

    level = floor(log2(sqrt(w h) / 56)), clipped to the levels given.

    torchvision's operator does the work on a GPU and in an exported graph. On the CPU its backward runs on
    one core, channel by channel; there every output cell is a weighted sum of cells of the map, all channels
    at once, which is what an embedding bag computes.

    Args:
        strides: strides of the levels.
        size: output side, cells.
        sampling_ratio: samples per cell and axis; 0: as many as a cell has pixels of the level, rounded up.
        aligned: shift by half a pixel, so that cell centres and not corners are sampled.
    """

    def __init__(
        self, strides: Sequence[int], size: int = 7, *, sampling_ratio: int = 0, aligned: bool = True
    ) -> None:
        super().__init__()
        self.strides, self.size = list(strides), size
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, pyramid: list[Tensor], boxes: Tensor) -> Tensor:
        """Pool boxes (B, R, 4), pixels, from maps (B, C, H_i, W_i): (B * R, C, size, size), in float32."""
        if torch.compiler.is_compiling() and not (is_exporting() or torch.is_grad_enabled()):
            pooled: Tensor = _apart(
                pyramid, boxes, self.strides, self.size, self.sampling_ratio, self.aligned
            )
            return pooled
        pyramid = [full_precision(x) for x in pyramid]
        rois = self._rois(boxes)
        level = self.level_of(rois[:, 1:])
        if torch.compiler.is_compiling():
            return self._masked(pyramid, rois, level)
        return self._by_level(pyramid, rois, level)

    def strides_of(self, boxes: Tensor) -> Tensor:
        """Strides (B, R) int64, pixels, of the levels that boxes (B, R, 4) are pooled from."""
        level = self.level_of(self._rois(boxes)[:, 1:])
        return torch.tensor(self.strides, device=boxes.device)[level].view(boxes.shape[:2])

    def level_of(self, boxes: Tensor) -> Tensor:
        """Index (n,) of the level that each of the boxes (n, 4) is pooled from."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
        level = (sides.prod(dim=1).sqrt() / 56 + 1e-6).log2().floor()
        return level.clamp(0, len(self.strides) - 1).long()

    def _by_level(self, pyramid: list[Tensor], rois: Tensor, level: Tensor) -> Tensor:
        """Every level pools its own regions."""
        order = level.argsort()
        counts = torch.bincount(level, minlength=len(self.strides)).tolist()
        pooled, places = [], []
        for x, here, stride in zip(pyramid, order.split(counts), self.strides, strict=True):
            if x.is_cpu and len(here):
                values, here = self._bags(x, rois, here, stride)
            else:
                values = self._align(x, rois[here], stride)
            pooled.append(values)
            places.append(here)
        return torch.cat(pooled).index_select(0, torch.cat(places).argsort())

    def every_level(self, pyramid: list[Tensor], boxes: Tensor) -> list[Tensor]:
        """Pool each box from every level, whatever its size: for each level as in `forward`.

        By torchvision's operator throughout: a large box has too many samples on a fine level for a table.
        """
        rois = self._rois(boxes)
        return [self._align(full_precision(x), rois, s) for x, s in zip(pyramid, self.strides, strict=True)]

    def _rois(self, boxes: Tensor) -> Tensor:
        """(B * R, 5): the index of its image before each of the boxes (B, R, 4)."""
        boxes = boxes.nan_to_num(0, 0, 0)  # of a training that diverges; its losses show it
        images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        images = images[:, None, None].expand(-1, boxes.shape[1], 1)
        return torch.cat([images, boxes], dim=-1).flatten(0, 1)

    def _masked(self, pyramid: list[Tensor], rois: Tensor, level: Tensor) -> Tensor:
        """With fixed shapes: every level pools all regions, those of other levels shrunk to a point."""
        pooled = []
        for i, stride in enumerate(self.strides):
            here = (level == i).to(rois.dtype)
            values = self._align(pyramid[i], torch.cat([rois[:, :1], rois[:, 1:] * here[:, None]], 1), stride)
            pooled.append(values * here[:, None, None, None].to(values.dtype))
        return torch.stack(pooled).sum(dim=0)

    def _align(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        """Pool rois (n, 5) from x.

        In ONNX a region has some extent: of one without any OpenVINO's operator gives no number, which no
        product with zero removes.
        """
        if torch.onnx.is_in_onnx_export():
            start, end = rois[:, 1:3], rois[:, 3:]
            rois = torch.cat([rois[:, :3], end.maximum(start + _POINT)], dim=1)
        pooled: Tensor = roi_align(x, rois, self.size, 1 / stride, self.sampling_ratio, self.aligned)
        return pooled

    def _bags(self, x: Tensor, rois: Tensor, here: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Pool those at the places `here` (n,); give the values (n, C, size, size) and their places.

        Regions with the same numbers of samples share one table of indices and weights.
        """
        height, width = x.shape[2:]
        image, corners = rois[here, :1].int(), rois[here, 1:] / stride - (0.5 if self.aligned else 0)
        sides = (corners[:, 2:] - corners[:, :2]).clamp(min=0 if self.aligned else 1)
        counts = (sides / self.size).ceil().long()  # (R, 2), samples of a cell in x and y
        if self.sampling_ratio:
            counts = torch.full_like(counts, self.sampling_ratio)
        groups, member = counts.unique(dim=0, return_inverse=True)
        indices, weights, order = [], [], []
        for i, (count_x, count_y) in enumerate(groups.tolist()):
            chosen = (member == i).nonzero().squeeze(1)
            column, weight_x = self._taps(corners[chosen, 0], sides[chosen, 0], count_x, width)
            row, weight_y = self._taps(corners[chosen, 1], sides[chosen, 1], count_y, height)
            row = row + image[chosen, :, None] * height  # (n, size, taps)
            index = row[:, :, None, :, None] * width + column[:, None, :, None, :]
            indices.append(index.flatten(0, 2).flatten(1))  # (n * size * size, taps * taps)
            weights.append((weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]).flatten())
            order.append(chosen)
        lengths = torch.cat([index.new_full((len(index),), index.shape[1]) for index in indices])
        pooled = F.embedding_bag(
            torch.cat([index.flatten() for index in indices]),
            x.permute(0, 2, 3, 1).flatten(0, 2),  # (B * H * W, C), for a channels_last map no copy
            (lengths.cumsum(0) - lengths).int(),
            per_sample_weights=torch.cat(weights),
            mode="sum",
        )
        pooled = pooled.view(len(here), self.size, self.size, -1).permute(0, 3, 1, 2)  # (n, C, size, size)
        return pooled, here[torch.cat(order)]

    def _taps(self, start: Tensor, length: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
        """Along one axis: neighbours and weights of the samples of each cell, both (n, size, 2 * count)."""
        step = (length / self.size)[:, None, None]
        cell = torch.arange(self.size)[:, None]
        sample = torch.arange(count) + 0.5
        position = start[:, None, None] + cell * step + sample * step / max(count, 1)  # (n, size, count)
        inside = (position >= -1) & (position <= limit)
        position = position.clamp(min=0, max=limit - 1)
        low = position.floor()
        fraction = position - low
        neighbours = torch.stack([low, (low + 1).clamp(max=limit - 1)], dim=-1).int()
        weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None] / max(count, 1)
        return neighbours.flatten(2), weights.flatten(2)


@torch.library.custom_op("msefpn::roi_align", mutates_args=())
def _apart(
    pyramid: list[Tensor], boxes: Tensor, strides: list[int], size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """As one operator without a gradient, so that a compiled graph need not look into its loops."""
    pooled: Tensor = RoIAlign(strides, size, sampling_ratio=sampling_ratio, aligned=aligned)(pyramid, boxes)
    return pooled


@_apart.register_fake
def _(
    pyramid: list[Tensor], boxes: Tensor, strides: list[int], size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    kind = full_precision(pyramid[0][:0]).dtype
    shape = boxes.shape[0] * boxes.shape[1], pyramid[0].shape[1], size, size
    return pyramid[0].new_empty(shape, dtype=kind)

"""Anchors: boxes of fixed sizes and ratios around every cell of a pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msefpn.models.blank import real_values
from msefpn.models.boxes import full_precision


class AnchorGenerator(nn.Module):
    """Anchors of every level, at the same place in each cell.

    Args:
        strides: stride of each level, pixels.
        scales: anchor sizes as multiples of the stride.
        ratios: height / width; ratio is the outer, scale the inner order within a cell.
        offset: where in a cell the anchors are centred, in strides; 0: its top-left corner (mmdetection).
        integer: torchvision's habit: sizes truncated and corners rounded to whole pixels, and a level's
            stride taken as the padded image's side divided by the grid's, without the remainder.
    """

    def __init__(
        self,
        strides: Sequence[int],
        scales: Sequence[float],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        offset: float = 0.0,
        integer: bool = False,
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.offset, self.integer = offset, integer
        self.per_cell = len(scales) * len(ratios)
        for level, stride in enumerate(strides):
            sizes = [int(stride * scale) if integer else stride * scale for scale in scales]
            with real_values():
                cell = self._cell_anchors(sizes, ratios)
            self.register_buffer(f"cell_{level}", cell, persistent=False)

    def _cell_anchors(self, sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
        size, root = torch.tensor(sizes, dtype=torch.float32), torch.tensor(ratios).sqrt()
        widths = (size / root[:, None]).flatten()
        heights = (size * root[:, None]).flatten()
        anchors = torch.stack([-widths, -heights, widths, heights], dim=1) / 2  # (A, 4)
        return anchors.round() if self.integer else anchors

    def forward(self, maps: Sequence[Tensor], image: tuple[int, int]) -> list[Tensor]:
        """Anchors of each level.

        Args:
            maps: the levels' maps, (B, C, H_i, W_i).
            image: height and width of the padded image, pixels.

        Returns:
            For each level (H_i * W_i * A, 4), in the order of a (H, W, A) array.
        """
        levels = []
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            height, width = x.shape[-2:]
            step_y, step_x = (image[0] // height, image[1] // width) if self.integer else (stride, stride)
            cell = full_precision(getattr(self, f"cell_{level}"))
            ys = (torch.arange(height, device=cell.device) + self.offset) * step_y
            xs = (torch.arange(width, device=cell.device) + self.offset) * step_x
            y, x_ = torch.meshgrid(ys, xs, indexing="ij")
            shifts = torch.stack([x_, y, x_, y], dim=-1).to(cell.dtype)  # (H, W, 4)
            levels.append((shifts[:, :, None] + cell).flatten(0, 2))
        return levels

    def inside(self, maps: Sequence[Tensor], sizes: Tensor) -> Tensor:
        """Which anchors stand on their own image, padded to a multiple of 32, and not on the batch's padding.

        Args:
            maps: the levels' maps, (B, C, H_i, W_i).
            sizes: (B, 2), height and width of each image, pixels.

        Returns:
            (B, N) bool, all levels concatenated.
        """
        padded = (sizes + 31) // 32 * 32
        levels = []
        for x, stride in zip(maps, self.strides, strict=True):
            cells = (padded + stride - 1) // stride  # (B, 2)
            rows = torch.arange(x.shape[-2], device=sizes.device) < cells[:, :1]  # (B, H)
            columns = torch.arange(x.shape[-1], device=sizes.device) < cells[:, 1:]  # (B, W)
            grid = rows[:, :, None] & columns[:, None, :]
            levels.append(grid.flatten(1).repeat_interleave(self.per_cell, dim=1))
        return torch.cat(levels, dim=1)

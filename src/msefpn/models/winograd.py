"""3x3 convolutions with 16 multiplications for four pixels of the output, in place of 36.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308: of each
tile of 4x4 pixels of the input, two apart, 16 sums are made; each is multiplied with the kernels' sum of the
same place, as a matrix product over all tiles; and of the 16 products the tile's 2x2 outputs are summed up.
The result is a convolution's up to rounding: about 2e-6 of the largest value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""Of a row of the kernel to its four sums."""
_TILES = 192
"""Tiles of a piece: with 256 channels all that is made of them stays in the cache."""


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with stride 1 and padding 1, without autograd.

    Args:
        x: maps (B, C, H, W); fast if channels_last.
        weight: (O, C, 3, 3).
        bias: (O,).

    Returns:
        Maps (B, O, H, W), channels_last.
    """
    batch, _, height, width = x.shape
    kernels = _kernel_sums(weight)
    down, across = (height + 1) // 2, (width + 1) // 2  # tiles
    around = (0, 0, 1, 2 * across - width + 1, 1, 2 * down - height + 1)
    padded = F.pad(x.permute(0, 2, 3, 1), around)
    size = batch, len(weight), 2 * down, 2 * across
    y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    out = y.permute(0, 2, 3, 1).view(batch, down, 2, across, 2, len(weight))
    lines = max(1, min(down, _TILES // across))
    images = max(1, _TILES // (down * across))
    for image in range(0, batch, images):
        for line in range(0, down, lines):
            piece = padded[image : image + images, 2 * line : 2 * (line + lines) + 2]
            found = out[image : image + images, line : line + lines]
            _convolve(piece, kernels, found)
            if bias is not None:
                found += bias
    if y.shape[2:] == x.shape[2:]:
        return y
    return y[:, :, :height, :width].clone(memory_format=torch.channels_last)  # autograd forbids a view


def _kernel_sums(weight: Tensor) -> Tensor:
    """The kernels' sums (16, C, O)."""
    row = torch.tensor(_KERNEL, dtype=weight.dtype)
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (torch.kron(row, row) @ taps).view(16, weight.shape[1], weight.shape[0])


def _convolve(piece: Tensor, kernels: Tensor, out: Tensor) -> None:
    """Write the outputs (b, R, 2, T, 2, O) of R lines of T tiles: pixels (b, 2 R + 2, 2 T + 2, C)."""
    images, rows, columns, channels = piece.shape
    lines, tiles = rows // 2 - 1, columns // 2 - 1
    of_rows = piece.new_empty(4, images, lines, columns, channels)
    _sums(*(piece[:, i : i + 2 * lines - 1 : 2] for i in range(4)), out=of_rows)
    both = piece.new_empty(4, 4, images, lines, tiles, channels)
    _sums(*(of_rows[:, :, :, i : i + 2 * tiles - 1 : 2] for i in range(4)), out=both.transpose(0, 1))
    products = torch.bmm(both.view(16, -1, channels), kernels).view(4, 4, images, lines, tiles, -1)
    halves = piece.new_empty(2, 4, *products.shape[2:])
    _outputs(*products, out=halves)
    _outputs(*halves.transpose(0, 1), out=out.permute(4, 2, 0, 1, 3, 5))


def _sums(a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, out: Tensor) -> None:
    """The four sums of four neighbours."""
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])


def _outputs(a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, out: Tensor) -> None:
    """Two neighbouring outputs of four products."""
    torch.add(b, c, out=out[0]).add_(a)
    torch.sub(b, c, out=out[1]).sub_(d)

"""3x3 convolutions with 36 multiplications for 16 pixels of the output, in place of 144.

F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308: of each
tile of 6x6 pixels of the input, four apart, 36 sums are made; each is multiplied with the kernels' sum of the
same place, as a matrix product over all tiles; and of the 36 products the tile's 4x4 outputs are summed up.
The sums are matrix products too. They are those of Toom and Cook for five points and infinity; with these
points, of Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks", arXiv 1803.10986, the result is a convolution's up to 4e-6 of the largest value, in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_OUT, _IN = 4, 6
"""Sides of a tile's output and input."""
_TILES = 128
"""Tiles of a piece, for each thread: with 256 channels what is made of them stays in the caches."""


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
    of_pixels, of_kernel, of_products = _sums(x.dtype)
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    kernels = (of_kernel @ taps).view(_IN**2, -1, len(weight))  # (36, C, O)
    down, across = -(-height // _OUT), -(-width // _OUT)  # tiles
    around = (0, 0, 1, _OUT * across - width + 1, 1, _OUT * down - height + 1)
    padded = F.pad(x.permute(0, 2, 3, 1), around)
    tiles = padded.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT)  # (B, down, across, C, 6, 6)
    size = batch, len(weight), _OUT * down, _OUT * across
    y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    out = y.permute(0, 2, 3, 1).view(batch, down, _OUT, across, _OUT, len(weight))
    out = out.permute(2, 4, 0, 1, 3, 5)  # (4, 4, B, down, across, O)
    most = _TILES * torch.get_num_threads()
    lines = max(1, min(down, most // across))
    images = max(1, most // (down * across))
    for image in range(0, batch, images):
        for line in range(0, down, lines):
            piece = tiles[image : image + images, line : line + lines].permute(4, 5, 0, 1, 2, 3)
            sums = torch.mm(of_pixels, piece.reshape(_IN**2, -1)).view(_IN**2, -1, x.shape[1])
            products = torch.bmm(sums, kernels)
            found = torch.mm(of_products, products.view(_IN**2, -1))
            place = out[:, :, image : image + images, line : line + lines]
            torch.add(found.view(place.shape), 0 if bias is None else bias, out=place)
    if y.shape[2:] == x.shape[2:]:
        return y
    return y[:, :, :height, :width].clone(memory_format=torch.channels_last)  # autograd forbids a view


@functools.cache
def _sums(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of a tile's pixels (36, 36), of a kernel's taps (36, 9) and of the products (16, 36)."""
    pixels, taps = [], []
    for point in _POINTS:
        others = [other for other in _POINTS if other != point]
        pixels.append([*_polynomial(others), 0.0])
        scale = math.prod(point - other for other in others)
        taps.append([point**power / scale for power in range(3)])
    pixels.append(_polynomial(_POINTS))
    taps.append([0.0, 0.0, 1.0])
    outputs = [[point**power for point in _POINTS] + [float(power == 3)] for power in range(_OUT)]
    matrices = (torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in (pixels, taps, outputs))
    of_pixels, of_kernel, of_products = (torch.kron(rows, rows).to(dtype) for rows in matrices)
    return of_pixels, of_kernel, of_products


def _polynomial(roots: Sequence[float]) -> list[float]:
    """The coefficients of a polynomial with these roots, that of the constant first."""
    found = [1.0]
    for root in roots:
        found = [low - root * high for low, high in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found

"""Convolutions on the CPU with less arithmetic than oneDNN's, or with faster arithmetic, where that pays.

oneDNN's weight gradient of a convolution on channels_last maps takes two to five times as long on AVX2 as on
contiguous maps; matrix products are faster than either. On AVX-512 oneDNN is as fast. 3x3 convolutions of
many channels are faster as products of sums, see `winograd`, on both; on AVX-512 that is done where no
gradient is wanted. 1x1 convolutions of large maps are faster by oneDNN than by the matrix product that torch
takes in its place where there is one thread.

The weight gradient at tap (i, j) of a kernel is the product of the output's gradient and the input moved by
(i, j), summed over all pixels. With the rows of both padded to the same length, every such move of the
flattened input is a view of it, and the sum is one matrix product.

Where few pixels have a gradient, as in a branch for boxes, which only positive anchors train, both gradients
are taken of these alone, on any CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from msefpn.models.winograd import conv3x3

_LEAST_CHANNELS = 16
"""Of input and output; with fewer the products are too thin to be fast."""
_MOST_PADDING = 1.25
"""The padded map's pixels over the output's, for a product over all of them."""
_FEW = 0.2
"""Share of the pixels below which they are taken one by one."""
_PROBED = 61
"""One pixel of so many is looked at first."""
_WINOGRAD_CHANNELS = {"AVX2": 128, "AVX512": 256}
"""Least channels of input and output for which `winograd.conv3x3` is faster, by torch's name of the CPU."""
_WINOGRAD_PIXELS = 4
"""Least pixels of a batch for that, for each channel: to sum up the kernels takes as long as so many."""
_ONEDNN_PIXELS = 4000
"""Least pixels of a map for which oneDNN's 1x1 convolution is faster than torch's for one thread."""

Pair = tuple[int, int]


def pick_method(method: str, device: torch.device) -> str:
    """Return `library` or `products` for one of `msefpn.config.CONVOLUTIONS`."""
    if method != "auto":
        return method
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return "products" if slow else "library"


@contextlib.contextmanager
def convolutions(method: str, device: torch.device) -> Iterator[None]:
    """Let the convolutions of the body, in float32 and without autocast, be done so.

    Args:
        method: `library`: by torch; `products`: as matrix products where that is faster on AVX2; `auto`: the
            latter where the processor has AVX2 and no AVX-512, and on AVX-512 where no gradient is wanted.
            With either, on the CPU, gradients are taken of few pixels alone where only few have one.
        device: where the maps are.
    """
    if device.type != "cpu" or method == "library":
        yield
        return
    products = pick_method(method, device) == "products"
    predicting = products or torch.backends.cpu.get_cpu_capability() in _WINOGRAD_CHANNELS
    with _Convolutions(products=products, predicting=predicting):
        yield


@contextlib.contextmanager
def by_library(detector: Any) -> Iterator[None]:
    """Let a detector convolve by the library in the body: the arithmetic of its architecture is counted."""
    before, detector.convolution = detector.convolution, "library"
    try:
        yield
    finally:
        detector.convolution = before


class _Convolutions(TorchFunctionMode):
    """Takes the place of `conv2d`.

    Args:
        products: as matrix products where that is faster.
        predicting: likewise where no gradient is wanted.
    """

    def __init__(self, *, products: bool, predicting: bool) -> None:
        super().__init__()
        self.products, self.predicting = products, predicting

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if (dilation, groups) == ((1, 1), 1) and _is_supported(x, weight, padding):
                if torch.is_grad_enabled() and weight.requires_grad and max(weight.shape[2:]) > 1:
                    return _Convolution.apply(x, weight, bias, tuple(stride), tuple(padding), self.products)
                if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
                    return _convolve(x, weight, bias, tuple(stride), tuple(padding), self.predicting)
        return func(*args, **(kwargs or {}))


def _is_supported(x: Tensor, weight: Tensor, padding: Pair | str) -> bool:
    if isinstance(padding, str) or x.dim() != 4 or x.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return min(weight.shape[:2]) >= _LEAST_CHANNELS


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, products: bool
) -> Tensor:
    if products and (weight.shape[2:], stride, padding) == ((3, 3), (1, 1), (1, 1)):
        channels = sorted(weight.shape[:2])
        least = _WINOGRAD_CHANNELS.get(torch.backends.cpu.get_cpu_capability(), 256)
        if channels[0] >= least and x[:, 0].numel() >= _WINOGRAD_PIXELS * channels[1]:
            return conv3x3(x, weight, bias)
    single = products and (weight.shape[2:], stride, padding) == ((1, 1), (1, 1), (0, 0))
    if single and x.is_contiguous(memory_format=torch.channels_last) and x[0, 0].numel() >= _ONEDNN_PIXELS:
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1), 1)
    return F.conv2d(x, weight, bias, stride, padding)


class _Convolution(torch.autograd.Function):
    """A convolution that is done, and whose gradients are taken, as this module describes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, products: bool
    ) -> Tensor:
        """Convolve maps (B, C, H, W)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.products = stride, padding, products
        return _convolve(x, weight, bias, stride, padding, products)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        grid = Grid.of(x, gradient, (weight.shape[2], weight.shape[3]), ctx.stride, ctx.padding)
        outputs = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (B * H' * W', O)
        few = _few(outputs)
        if few is not None:
            return *_gradients_of_few(grid, x, weight, outputs, few, wanted), None, None, None
        of_x = of_weight = None
        mirrored = (ctx.stride, ctx.padding, grid.size) == ((1, 1), (1, 1), (3, 3))
        if wanted[0] and ctx.products and mirrored:
            kernel = weight.flip(2, 3).transpose(0, 1)
            of_x = _convolve(gradient, kernel, None, ctx.stride, ctx.padding, ctx.products)
        if wanted[1] and ctx.products and grid.padding_factor <= _MOST_PADDING:
            of_weight = weight_gradient(grid, x, gradient)
        needed = [wanted[0] and of_x is None, wanted[1] and of_weight is None, False]
        if any(needed):
            own_x, own_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, needed
            )
            of_x = own_x if needed[0] else of_x
            of_weight = own_weight if needed[1] else of_weight
        # By itself: oneDNN takes the weight gradient, too, where the bias's is wanted.
        of_bias = outputs.sum(dim=0) if wanted[2] else None
        return of_x, of_weight, of_bias, None, None, None


class Grid(NamedTuple):
    """Where a kernel's taps read: the padded input as `stride` x `stride` interleaved maps of one size."""

    size: Pair
    """Of the kernel."""
    stride: Pair
    padding: Pair
    output: Pair
    """Height and width of the output."""
    missing: Pair
    """Rows and columns to add to the input at the bottom and at the right; negative: it has too many."""

    @classmethod
    def of(cls, x: Tensor, gradient: Tensor, size: Pair, stride: Pair, padding: Pair) -> Grid:
        """The grid of a convolution of x (B, C, H, W), by the gradient of its output (B, O, H', W')."""
        sides = zip(gradient.shape[2:], x.shape[2:], size, stride, padding, strict=True)
        rows, columns = ((out + (k - 1) // s) * s - side - p for out, side, k, s, p in sides)
        return cls(size, stride, padding, (gradient.shape[2], gradient.shape[3]), (rows, columns))

    @property
    def map(self) -> Pair:
        """Height and width of each interleaved map."""
        rows, columns = (
            out + (k - 1) // s for out, k, s in zip(self.output, self.size, self.stride, strict=True)
        )
        return rows, columns

    @property
    def padding_factor(self) -> float:
        """Pixels of a map over those of the output."""
        return self.map[0] * self.map[1] / (self.output[0] * self.output[1])

    def padded(self, x: Tensor) -> Tensor:
        """The input as (B, rows, columns, C)."""
        (top, left), (bottom, right) = self.padding, self.missing
        return F.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom))

    def taps(self) -> Iterator[tuple[int, int, Pair, int]]:
        """For each tap i and j, the interleaved map that it reads, and by how many pixels moved."""
        for i in range(self.size[0]):
            for j in range(self.size[1]):
                a, b = i % self.stride[0], j % self.stride[1]
                yield i, j, (a, b), i // self.stride[0] * self.map[1] + j // self.stride[1]


def weight_gradient(grid: Grid, x: Tensor, gradient: Tensor) -> Tensor:
    """The weight gradient (O, C, h, w) of a convolution of one group without dilation.

    Args:
        grid: of the convolution.
        x: its input (B, C, H, W).
        gradient: of its output (B, O, H', W').
    """
    (rows, columns), (height, width) = grid.map, grid.output
    padded = grid.padded(x)
    outputs = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, columns - width, 0, rows - height)).flatten(0, 2)
    found = x.new_empty(*grid.size, outputs.shape[1], x.shape[1])
    maps: dict[Pair, Tensor] = {}
    for i, j, (a, b), move in grid.taps():
        if (a, b) not in maps:
            maps[a, b] = padded[:, a :: grid.stride[0], b :: grid.stride[1]].flatten(0, 2)
        count = len(outputs) - move  # what is moved out belongs to the last rows, whose gradient is zero
        torch.mm(outputs[:count].t(), maps[a, b][move:], out=found[i, j])
    return found.permute(2, 3, 0, 1)


def _few(outputs: Tensor) -> Tensor | None:
    """Which rows of (N, O) are not zero, if they are few."""
    if (outputs[::_PROBED] != 0).any(dim=1).float().mean() > _FEW:
        return None
    rows = (outputs != 0).any(dim=1).nonzero().squeeze(1)
    return rows if len(rows) <= _FEW * len(outputs) else None


def _gradients_of_few(
    grid: Grid, x: Tensor, weight: Tensor, outputs: Tensor, few: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, where only `few` rows of the output's (N, O) are not zero."""
    padded = grid.padded(x)
    lines, pixels = padded.shape[1:3]
    inputs = padded.flatten(0, 2)
    chosen = outputs[few]  # (n, O)
    (height, width), (down, right) = grid.output, grid.stride
    image, row, column = few // (height * width), few // width % height, few % width
    first = (image * lines + row * down) * pixels + column * right
    of_inputs = torch.zeros_like(inputs) if wanted[0] else None
    of_weight = torch.empty_like(weight) if wanted[1] else None
    for i in range(grid.size[0]):
        for j in range(grid.size[1]):
            read = first + i * pixels + j
            if of_weight is not None:
                of_weight[:, :, i, j] = chosen.t() @ inputs[read]
            if of_inputs is not None:
                of_inputs.index_add_(0, read, chosen @ weight[:, :, i, j])
    of_x = None
    if of_inputs is not None:
        (top, left), (bottom, end) = grid.padding, grid.missing
        of_x = F.pad(of_inputs.view_as(padded), (0, 0, -left, -end, -top, -bottom)).permute(0, 3, 1, 2)
    return of_x, of_weight, chosen.sum(dim=0) if wanted[2] else None

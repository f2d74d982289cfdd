"""How the weight gradients of convolutions are taken.

oneDNN's weight gradient of a convolution on channels_last maps takes two to five times as long on AVX2 as that
of contiguous maps, which takes a fifth longer than matrix products. On AVX-512, and on a GPU, it does not.

The weight gradient at tap (i, j) of a kernel is the product of the output's gradient and of the input moved by
(i, j), summed over all pixels. With the rows of both padded to the same length, every such move of the
flattened input is a view of it, and the sum is one matrix product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

METHODS = ("auto", "convolution", "matmul")
_LEAST_CHANNELS = 16
"""Of input and output; with fewer the products are too thin to be fast."""
_MOST_PADDING = 1.25
"""The padded map's pixels over the output's."""

Pair = tuple[int, int]


def pick_method(method: str, device: torch.device) -> str:
    """Return `convolution` (the library's own) or `matmul` for one of `METHODS`."""
    if method != "auto":
        return method
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return "matmul" if slow else "convolution"


@contextlib.contextmanager
def weight_gradients(method: str, device: torch.device) -> Iterator[None]:
    """Let the convolutions of the body take their weight gradients so.

    Args:
        method: one of `METHODS`.
        device: where the maps are.
    """
    if torch.compiler.is_compiling() or pick_method(method, device) == "convolution":
        yield
        return
    with _Matmul():
        yield


class _Matmul(TorchFunctionMode):
    """Takes the place of `conv2d` where that is worth it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if (dilation, groups) == ((1, 1), 1) and _is_worth_it(x, weight, stride, padding):
                return _Convolution.apply(x, weight, bias, tuple(stride), tuple(padding))
        return func(*args, **(kwargs or {}))


def _is_worth_it(x: Tensor, weight: Tensor, stride: Pair, padding: Pair | str) -> bool:
    if isinstance(padding, str) or x.dim() != 4 or not (torch.is_grad_enabled() and weight.requires_grad):
        return False
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    size = weight.shape[2:]
    if max(size) == 1 or min(weight.shape[:2]) < _LEAST_CHANNELS:
        return False
    rows, columns = _grid(x, size, stride, padding)
    reach = [(k - 1) // s for k, s in zip(size, stride, strict=True)]
    return rows * columns <= _MOST_PADDING * (rows - reach[0]) * (columns - reach[1])


def _grid(x: Tensor, size: Any, stride: Pair, padding: Pair) -> Pair:
    """Height and width of the input, padded, of every `stride`th pixel."""
    sides = []
    for side, k, s, p in zip(x.shape[2:], size, stride, padding, strict=True):
        out = (side + 2 * p - k) // s + 1
        sides.append(out + (k - 1) // s)
    return sides[0], sides[1]


class _Convolution(torch.autograd.Function):
    """A convolution whose weight gradient is a matrix product for each tap of the kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        """Convolve (B, C, H, W) maps."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_x = of_weight = of_bias = None
        if wants_x:
            of_x = torch.nn.grad.conv2d_input(x.shape, weight, gradient, stride, padding)
        if wants_weight:
            of_weight = weight_gradient(x, gradient, (weight.shape[2], weight.shape[3]), stride, padding)
        if wants_bias:
            of_bias = gradient.sum(dim=(0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def weight_gradient(x: Tensor, gradient: Tensor, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The weight gradient (O, C, h, w) of a convolution of one group without dilation.

    Args:
        x: the input (B, C, H, W).
        gradient: of the output (B, O, H', W').
        size: h and w of the kernel.
        stride: of the convolution.
        padding: zeros at each side of the input, rows and columns.
    """
    rows, columns = _grid(x, size, stride, padding)
    (height, width), (down, right) = gradient.shape[2:], stride
    missing = rows * down - x.shape[2] - padding[0], columns * right - x.shape[3] - padding[1]
    around = (0, 0, padding[1], missing[1], padding[0], missing[0])
    padded = F.pad(x.permute(0, 2, 3, 1), around)  # (B, rows * down, columns * right, C)
    outputs = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, columns - width, 0, rows - height)).flatten(0, 2)
    found = x.new_empty(*size, outputs.shape[1], x.shape[1])
    for a in range(min(down, size[0])):
        for b in range(min(right, size[1])):
            inputs = padded[:, a::down, b::right].flatten(0, 2)
            for i in range(a, size[0], down):
                for j in range(b, size[1], right):
                    move = i // down * columns + j // right
                    count = len(outputs) - move  # what is moved out belongs to the last rows, which are zero
                    torch.mm(outputs[:count].t(), inputs[move:], out=found[i, j])
    return found.permute(2, 3, 0, 1)

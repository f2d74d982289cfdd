"""Batch normalisation with fixed statistics as a part of the convolution before it.

With fixed statistics, (conv(x, w) - mean) * s + shift, s = scale / sqrt(variance + eps), is one convolution
with weight s * w and bias shift - s * mean: a map less to write, to read and, in training, to keep for the
backward pass. The gradients of weight, scale and shift are the same, up to rounding.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FoldedConv(nn.Conv2d):
    """A convolution that does its norm's work while the norm's statistics are fixed.

    Args:
        conv: the convolution that it stands for, with the same parameters.
        norm: the norm of its output.

    Attributes:
        norm: the norm, in a tuple: else it would be a child here as well, and have two names.
        ready: weight and bias that were folded before, see `folded`.
        folds_again: fold again in the backward pass instead of keeping the folded weight.
    """

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # of two numbers
            conv.stride,  # type: ignore[arg-type]  # likewise
            conv.padding,  # type: ignore[arg-type]  # likewise
            conv.dilation,  # type: ignore[arg-type]  # likewise
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        share_state(conv, self)
        self.norm: tuple[_BatchNorm] = (norm,)
        self.ready: tuple[Tensor, Tensor] | None = None
        self.folds_again = True

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map, or, where the norm is in training mode, one that is to be normalised."""
        if self.norm[0].training:
            return self._conv(x, self.weight, self.bias)
        weight, bias = self.ready or self.fold()
        if torch.compiler.is_compiling() or not weight.requires_grad or not self.folds_again:
            return self._conv(x, weight, bias)
        # The backward pass folds again: all folded weights together would be much of what training holds.
        own = weight.data_ptr()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda kept: None if kept.data_ptr() == own else kept,
            lambda kept: self.fold()[0].detach() if kept is None else kept,
        ):
            return self._conv(x, weight, bias)

    def train(self, mode: bool = True) -> "FoldedConv":
        """Switch the mode; before training, forget what was folded before."""
        super().train(mode)
        self.ready = None if mode else self.ready
        return self

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv_forward(x, weight, bias)
        return y

    def fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of convolution and norm together."""
        state: Any = self.norm[0]
        scale: Tensor = state.weight * (state.running_var + state.eps).rsqrt()
        mean = state.running_mean if self.bias is None else state.running_mean - self.bias
        return self.weight * scale[:, None, None, None], state.bias - mean * scale


class FoldedNorm(nn.BatchNorm2d):
    """A norm whose work its convolution does while the statistics are fixed.

    Args:
        norm: the norm that it stands for, with the same parameters and statistics.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        share_state(norm, self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in training mode only."""
        y: Tensor = super().forward(x) if self.training else x
        return y


class FoldedNormAct(BatchNormAct2d):
    """timm's norm with its activation, likewise."""

    def __init__(self, norm: BatchNormAct2d) -> None:
        super().__init__(norm.num_features, norm.eps, device="meta")
        self.momentum = norm.momentum
        self.drop, self.act = norm.drop, norm.act
        share_state(norm, self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in training mode only; activate."""
        y: Tensor = super().forward(x) if self.training else self.act(self.drop(x))  # type: ignore[no-untyped-call]  # timm's
        return y


def share_state(old: nn.Module, new: nn.Module) -> None:
    """Give a module the parameters, buffers and mode of the one that it replaces."""
    for name, tensor in (*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)):
        setattr(new, name, tensor)
    new.training = old.training


_FOLDED: dict[type[nn.Module], Callable[[Any], FoldedNorm | FoldedNormAct]] = {
    nn.BatchNorm2d: FoldedNorm,
    BatchNormAct2d: FoldedNormAct,
}


def join(body: nn.Module) -> None:
    """Replace each convolution and the norm that alone reads it; the names of parameters and buffers stay.

    What cannot be traced, or is a convolution of another kind (with padding of its own), stays as it is.
    """
    modules = dict(body.named_modules())
    for conv_name, norm_name in _pairs(body):
        norm = _FOLDED[type(modules[norm_name])](modules[norm_name])
        conv: Any = modules[conv_name]
        body.set_submodule(norm_name, norm)
        body.set_submodule(conv_name, FoldedConv(conv, norm))


def _pairs(body: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that alone read them, each called once."""
    try:
        graph = _Tracer().trace(body)
    except Exception:  # each model that branches on a value refuses in its own way
        return []
    modules = dict(body.named_modules())
    calls = {node: str(node.target) for node in graph.nodes if node.op == "call_module"}
    times = Counter(calls.values())
    pairs = []
    for node, norm_name in calls.items():
        source = node.args[0]
        conv_name = calls.get(source) if isinstance(source, fx.Node) else None
        if conv_name is None:
            continue
        conv: Any = modules[conv_name]
        norm: Any = modules[norm_name]
        if type(conv) is not nn.Conv2d or type(norm) not in _FOLDED or _hooked(conv) or _hooked(norm):
            continue
        alone = len(source.users) == times[conv_name] == times[norm_name] == 1
        if alone and norm.affine and norm.track_running_stats:
            pairs.append((conv_name, norm_name))
    return pairs


def _hooked(module: nn.Module) -> bool:
    """Whether something watches the module: it must stay where it is."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


@contextlib.contextmanager
def folded(module: nn.Module) -> Iterator[None]:
    """Fold once for as long as the body runs, in which neither weights nor modes may change."""
    convolutions = fold_for_good(module)
    try:
        yield
    finally:
        for conv in convolutions:
            conv.ready = None


@torch.no_grad()
def fold_for_good(module: nn.Module) -> list[FoldedConv]:
    """Fold once for all, until the module is put into training mode. Return what was folded.

    Until then its weights may not change.
    """
    convolutions = [m for m in module.modules() if isinstance(m, FoldedConv)]
    for conv in convolutions:
        conv.ready = conv.fold()
    return convolutions

"""What a model costs by counting: parameters, multiply-accumulates, bytes moved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the number of all parameters, and of those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


@dataclass
class Work:
    """What a part of a model does."""

    operators: list[tuple[int, int]] = field(default_factory=list)
    """For each, in order: multiply-accumulates of a convolution or matrix product, else 0; and bytes of the
    tensors that it reads and writes."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all."""
        return sum(macs for macs, _ in self.operators)

    @property
    def moved(self) -> int:
        """Bytes moved by all, if none fused with another and nothing stayed in a cache."""
        return sum(moved for _, moved in self.operators)


def count_work(module: nn.Module, call: Callable[[], Any]) -> dict[str, Work]:
    """Count the work of each of a module's children that does any, by name; `call` runs the module once."""
    recorder = _Recorder(module)
    with torch.no_grad(), recorder:
        call()
    for hook in recorder.hooks:
        hook.remove()
    return {name: work for name, work in recorder.work.items() if work.operators}


class _Recorder(TorchDispatchMode):
    """Notes each operator under the child that runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.work = {name: Work() for name, _ in module.named_children()}
        self.current: Work | None = None
        self.hooks = []
        for name, child in module.named_children():
            self.hooks.append(child.register_forward_pre_hook(self._entering(name)))
            self.hooks.append(child.register_forward_hook(self._leaving))

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self.current = self.work[name]

        return enter

    def _leaving(self, *_: Any) -> None:
        self.current = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        views = any(
            out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns
        )
        if self.current is not None and not views:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            counter = flop_registry.get(func._overloadpacket)
            flops = counter(*args, **kwargs, out_val=result) if counter else 0
            self.current.operators.append((flops // 2, sum(x.nbytes for x in tensors)))
        return result

"""Modules without the values that they begin with: to look at, or to be filled from a file."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWING = (Tensor.normal_, Tensor.uniform_)


@contextlib.contextmanager
def blank(device: str = "meta") -> Iterator[None]:
    """Draw no random values for the parameters of modules that are built in the body.

    Args:
        device: `meta`: nor is there memory for them; `cpu`: they hold what the memory held.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device), _Undrawn():
        yield


def real_values() -> contextlib.AbstractContextManager[Any]:
    """Make constants of a module in the body: real ones also where it is built without values."""
    meta = torch.get_default_device().type == "meta"
    return torch.device("cpu") if meta else contextlib.nullcontext()


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where random values would be drawn for them.

    On the device `meta` that takes longer than on the CPU: torch works out in Python what would be done.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWING or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)

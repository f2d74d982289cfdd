"""timm and torchvision, imported without what they name in passing: it takes longer than themselves."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_COMPILER, _UTILS = "torch._dynamo", "torch._dynamo.utils"
_LOGGER = "wandb"
"""What timm imports for its training script, where it is installed."""


def import_models() -> None:
    """Import timm and torchvision without torch's compiler and without a logger; both are there when called.

    torchvision asks the compiler for one function, and with timm marks some as not to be compiled: the first
    is looked up, and the others are marked, when they are called.
    """
    if not {"timm", "torchvision", _COMPILER} & set(sys.modules):
        importlib.import_module("torch")
        with _standing_in():
            importlib.import_module("timm")
            importlib.import_module("torchvision.transforms.v2")


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    compiler: Any = ModuleType(_COMPILER)
    compiler.__path__ = []
    compiler.disable = _disabled
    utils: Any = ModuleType(_UTILS)
    utils.is_compile_supported = _is_compile_supported
    given: dict[str, Any] = {_COMPILER: compiler, _UTILS: utils}
    if _LOGGER not in sys.modules:
        given[_LOGGER] = None  # as if it were not installed
    sys.modules.update(given)
    try:
        yield
    finally:
        for name in given:
            sys.modules.pop(name, None)


def _is_compile_supported(device: str) -> bool:
    supported: bool = importlib.import_module(_UTILS).is_compile_supported(device)
    return supported


def _disabled(function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Any:
    """Mark a function as not to be compiled: once there is a compiler."""
    if function is None:
        return functools.partial(_disabled, recursive=recursive, **options)
    marked: Any = None

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal marked
        if _COMPILER not in sys.modules:
            return function(*args, **kwargs)
        marked = marked or sys.modules[_COMPILER].disable(function, recursive, **options)
        return marked(*args, **kwargs)

    return run

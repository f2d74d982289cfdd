"""Data: annotation files and images into batches.

>>> from msefpn.data import from_torch, from_hugging_face
>>> msefpn.train(from_torch(my_dataset, classes=["cat", "dog"]))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msefpn.data.adapters import from_hugging_face, from_torch

__all__ = ["from_hugging_face", "from_torch"]


def __getattr__(name: str) -> Any:
    """Import the adapters when one is first used: the parts of this package are imported one by one."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from msefpn.data import adapters  # noqa: PLC0415  at first use

    return getattr(adapters, name)

"""The device that a detector runs on, and its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from msefpn.config import CHOICES
from msefpn.errors import UserError, unknown_name


def pick_device(name: str) -> torch.device:
    """Return the device for 'auto', 'cpu' or 'gpu'. Raises UserError for others and where there is no GPU."""
    if name not in CHOICES["device"]:
        raise unknown_name("device", name, CHOICES["device"])
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("device gpu: this machine has no GPU that torch can use: give --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def telling_memory(batch: int, size: tuple[int, int]) -> Iterator[None]:
    """Raise UserError where the body needs more memory than the GPU has.

    Args:
        batch: images at a time, for the message.
        size: longest and shortest side that images are resized to fit into, pixels.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"the GPU does not have the memory for batch {batch} at size {size[0]}x{size[1]}: "
            "lower --batch or --size"
        ) from None

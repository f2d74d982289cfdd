"""The device that a detector runs on, and its memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from msefpn.config import AUTO_BATCH, DEVICES, Config
from msefpn.errors import UserError, unknown_name


def pick_device(name: str) -> torch.device:
    """Return the device for 'auto', 'cpu' or 'gpu'. Raises UserError for others and where there is no GPU."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("device gpu: this machine has no GPU that torch can use: give --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_devices(config: Config) -> torch.device:
    """Return the device to train on.

    Raises:
        UserError: there are not as many as asked for, or it cannot do what is asked for.
    """
    device = pick_device(config.device)
    if device.type == "cuda":
        if config.devices > (count := torch.cuda.device_count()):
            hint = " (under Slurm, leave out --gpus-per-task: each task must see all GPUs)" * (count == 1)
            raise UserError(
                f"devices {config.devices}: this process sees {count} GPU{'s' * (count != 1)}{hint}: give "
                "fewer, or --device cpu"
            )
        return device
    on_gpus = {
        "batch auto is found by the memory of a GPU: give a number": config.batch == AUTO_BATCH,
        "precision fp16 is for GPUs: give fp32 or bf16": config.precision == "fp16",
        "sync_bn is for GPUs: leave it out": config.sync_bn,
    }
    for text, asked in on_gpus.items():
        if asked:
            raise UserError(f"{text}, or train on a GPU")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return 'fp32', 'bf16' or 'fp16'; for 'auto' one of the first two."""
    if name != "auto":
        return name
    # Emulated, bf16 is slower than fp32.
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if capable else "fp32"


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


@contextlib.contextmanager
def telling_compiler() -> Iterator[None]:
    """Raise UserError where the body meets what torch's compiler cannot do on this machine."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"compile: torch cannot compile the detector here ({reason}): "
            "install a C++ compiler such as g++, or leave out --compile"
        ) from None


def machine_load() -> str:
    """How busy the machine is, to stand beside times: `load 1.2 on 8 cores`.

    Of the last minute, this process included; without the load where the system does not tell it.
    """
    cores = f"{os.cpu_count()} cores"
    return f"load {os.getloadavg()[0]:.1f} on {cores}" if hasattr(os, "getloadavg") else cores

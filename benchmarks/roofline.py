"""How far each part of a prediction is from what the machine can do.

The least time of an operator is the longer of its arithmetic at the machine's peak and its traffic at the
machine's bandwidth, both measured here; a part's is the sum over its operators, each reading and writing
its tensors once. Where that is above the measured time, tensors were found in the caches.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sides import Case, inputs, our_model
from msefpn.metrics.cost import Work, count_work
from msefpn.models.convolution import by_library
from msefpn.models.fold import folded
from msefpn.runs.memory import keep_freed_memory


@dataclass(frozen=True)
class Machine:
    """What was measured."""

    flops: float
    """Operations a second of a large matrix product, or of a large convolution where that is faster."""
    bytes: float
    """Bytes a second, read and written, of a large copy."""


@dataclass(frozen=True)
class Part:
    """One part of the detector."""

    seconds: float
    work: Work
    least: float
    """Seconds that the machine needs for it, see the module."""


def machine(device: str, precise: bool, rounds: int, side: int) -> Machine:
    """Measure a product of two matrices of that side, a convolution, and a copy of 64 of them.

    `precise`: float32.
    """
    kind = torch.float32 if precise else torch.bfloat16
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    source = torch.zeros(64 * side * side, device=device)
    target = torch.ones_like(source)
    layer = nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=kind)
    x = torch.randn(1, 256, side // 16, side // 16, device=device, dtype=kind)
    x = x.contiguous(memory_format=torch.channels_last)
    product = 2 * side**3 / _median(lambda: a @ b, device, rounds)
    with torch.no_grad():
        convolution = 2 * 9 * 256 * x.numel() / _median(lambda: layer(x), device, rounds)
    copy = _median(lambda: target.copy_(source), device, rounds)
    return Machine(max(product, convolution), 2 * 4 * source.numel() / copy)


def measure(case: Case, rounds: int, side: int) -> tuple[Machine, dict[str, Part]]:
    """The machine, and each part of our detector in this case; `bf16` in the side's name: autocast."""
    keep_freed_memory()
    found = machine(case.device, "bf16" not in case.changes, rounds, side)
    model = our_model(case)
    images, _ = inputs(case)
    sizes = torch.tensor([[case.height, case.width]] * case.batch, device=case.device)
    autocast = torch.autocast(case.device, torch.bfloat16, enabled="bf16" in case.changes)
    with torch.no_grad(), autocast, folded(model):
        with by_library(model):
            work = count_work(model, lambda: model(images, sizes))
        with _clocks(model, case.device) as spent:
            for _ in range(rounds + 1):
                model(images, sizes)
    parts = {}
    for name, own in work.items():
        least = sum(max(2 * macs / found.flops, moved / found.bytes) for macs, moved in own.operators)
        parts[name] = Part(statistics.median(spent[name][1:]), own, least)
    return found, parts


@contextlib.contextmanager
def _clocks(model: nn.Module, device: str) -> Iterator[dict[str, list[float]]]:
    """The seconds of each call of the model's children."""
    spent: dict[str, list[float]] = {name: [] for name, _ in model.named_children()}
    began = [0.0]

    def before(*_: Any) -> None:
        _wait(device)
        began[0] = time.perf_counter()

    def after(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            _wait(device)
            spent[name].append(time.perf_counter() - began[0])

        return note

    hooks = []
    for name, child in model.named_children():
        hooks += [child.register_forward_pre_hook(before), child.register_forward_hook(after(name))]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _median(call: Callable[[], Tensor], device: str, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

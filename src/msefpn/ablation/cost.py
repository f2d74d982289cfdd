"""What detectors cost: parameters, multiply-accumulates, time and memory of a prediction, side by side."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from msefpn import plugins
from msefpn.config import Config, from_dict, parse_size
from msefpn.errors import UserError
from msefpn.inference.device import machine_load, pick_device, telling_memory
from msefpn.metrics.cost import count_parameters, count_work
from msefpn.models import Detector, build
from msefpn.models.convolution import by_library
from msefpn.models.fold import folded
from msefpn.models.roi import RoIHead
from msefpn.runs.console import Bar, say, show_costs
from msefpn.runs.memory import peak_memory
from msefpn.structures import Proposals
from msefpn.writing import write_text

Inputs = tuple[Detector, torch.Tensor, torch.Tensor, Proposals | None]
"""A detector, images (B, 3, H, W) uint8, their sizes (B, 2), and regions for a detector that has no RPN."""
REGIONS = 1000
"""How many regions of an image such a detector is given: as many as an RPN proposes."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is predicted to measure a detector."""

    classes: int
    batch: int
    size: tuple[int, int]
    """Longest and shortest side, pixels: an image lies on its long side, padded to multiples of 32."""
    device: str
    """cpu or cuda."""

    def prepare(self, config: Config) -> Inputs:
        """Build the detector, with random weights, and draw images and their sizes."""
        torch.manual_seed(0)
        detector = build(config, [f"class {i}" for i in range(self.classes)]).eval().to(self.device)
        width, height = (-(-side // 32) * 32 for side in self.size)
        for head in detector.modules() if detector.learns_masks else ():  # masks are drawn where it detects
            if isinstance(head, RoIHead):
                head.selection = dataclasses.replace(head.selection, score=0.0)
        images = torch.randint(0, 256, (self.batch, 3, height, width), dtype=torch.uint8, device=self.device)
        sizes = torch.tensor([[height, width]] * self.batch, device=self.device)
        regions = self._regions(height, width) if detector.takes_proposals else None
        return detector, images, sizes, regions

    def _regions(self, height: int, width: int) -> Proposals:
        """Boxes at random, of 16 pixels to the whole image."""
        shape = self.batch, REGIONS
        limit = torch.tensor([width, height], device=self.device)
        side = 16 * (limit / 16) ** torch.rand(*shape, 2, device=self.device)
        start = torch.rand(*shape, 2, device=self.device) * (limit - side)
        valid = torch.ones(shape, dtype=torch.bool, device=self.device)
        return Proposals(torch.cat([start, start + side], dim=-1), valid)


def measure_costs(
    rows: dict[str, Config],
    *,
    classes: int,
    batch: int,
    rounds: int,
    device: str,
    out: Path | None,
) -> list[dict[str, Any]]:
    """Measure each row; see `msefpn.commands.compare.cost`."""
    size = next(iter(rows.values())).size
    workload = Workload(classes, batch, parse_size(size), pick_device(device).type)
    made = {name: workload.prepare(config) for name, config in rows.items()}
    with (
        Bar("cost", len(rows) * (rounds + 2), unit="measurements") as bar,
        telling_memory(workload.batch, workload.size),
    ):
        seconds = interleaved_times(made, rounds, bar)
        table = []
        for name, inputs in made.items():
            entry = {"row": name} | counts(inputs) | {"seconds": seconds[name]}
            table.append(entry | {"ratio": seconds[name] / next(iter(seconds.values()))})
            table[-1]["peak_bytes"] = _peak(rows[name], workload)
            bar.seen(1)
    show_costs(table)
    width, height = workload.size
    say(
        f"predict {batch} x {height} x {width} on {workload.device}, {torch.get_num_threads()} threads, "
        f"{machine_load()}, torch {torch.__version__}, random weights, {classes} classes; "
        f"parts and GMAC: 10^9 multiply-accumulates; "
        f"time: ratio to {table[0]['row']}, medians of {rounds}; peak: of a process with the one detector"
    )
    if out is not None:
        write_text(out, json.dumps(table, indent=1))
    return table


def interleaved_times(made: Mapping[str, Inputs], rounds: int, bar: Bar) -> dict[str, float]:
    """Median seconds of `rounds` predictions of each detector, in turns, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for round_ in range(rounds + 1):
        for name, inputs in made.items():
            elapsed = _timed(*inputs)
            if round_:
                seconds[name].append(elapsed)
            bar.seen(1)
    return {name: statistics.median(values) for name, values in seconds.items()}


def counts(inputs: Inputs) -> dict[str, Any]:
    """Parameters and multiply-accumulates of a detector, for its images."""
    detector, *given = inputs
    parameters, trained = count_parameters(detector)
    with by_library(detector):
        macs = {name: work.macs for name, work in count_work(detector, lambda: detector(*given)).items()}
    return {
        "parameters": parameters,
        "trainable": trained,
        "macs": macs | {"all": sum(macs.values())},
    }


def _timed(detector: Detector, *given: Any) -> float:
    with torch.no_grad(), folded(detector):
        start = time.perf_counter()
        detector(*given)
        if given[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def _peak(config: Config, workload: Workload) -> int:
    """Peak memory in bytes of a process of its own that predicts twice; 0 where no system tells.

    Raises:
        UserError: the process failed.
    """
    task = json.dumps(
        {
            "plugins": plugins.loaded(),
            "config": dataclasses.asdict(config),
            "workload": dataclasses.asdict(workload),
        }
    )
    command = [sys.executable, "-m", "msefpn.ablation.cost"]
    done = subprocess.run(command, input=task, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the process that measures peak memory failed: {last}; free some memory and disk")
    return int(done.stdout.split()[-1])


def _predict_and_tell() -> None:
    """Run in the process that `_peak` starts."""
    task = json.load(sys.stdin)
    plugins.load(task["plugins"])
    workload = Workload(**task["workload"])
    inputs = workload.prepare(from_dict(task["config"], source="stdin"))
    for _ in range(2):
        _timed(*inputs)
    print(torch.cuda.max_memory_allocated() if workload.device == "cuda" else peak_memory())


if __name__ == "__main__":
    _predict_and_tell()

"""What the detectors of runs cost on this machine, on their own images."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from msefpn.config import parse_size
from msefpn.data.coco import CocoData
from msefpn.data.loader import eval_loader
from msefpn.data.proposals import with_proposals
from msefpn.errors import UserError
from msefpn.inference.detect import predict_batch
from msefpn.inference.device import machine_load, pick_device
from msefpn.metrics.cost import count_parameters, count_work
from msefpn.models import Detector, load
from msefpn.models.convolution import by_library
from msefpn.models.fold import folded
from msefpn.structures import Batch, Proposals

TIMED_IMAGES = 5
"""Validation images that are predicted one by one, after one prediction that warms up."""


@dataclass(frozen=True)
class DetectorCost:
    """What a prediction costs on this machine."""

    parameters: int
    macs: dict[str, int]
    """Part -> multiply-accumulates for an image of `size`; their sum under `all`."""
    size: tuple[int, int]
    """Height and width of the tensor, pixels."""
    seconds: float
    """Median time of a prediction of one image."""
    setting: str
    """Images, device, threads, versions."""


@torch.no_grad()
def measure_runs(
    runs: Sequence[tuple[Path, CocoData | None, Path | None]],
) -> list[DetectorCost | str]:
    """Count and time predictions of the best weights, from the resized image to boxes, the runs in turn.

    Args:
        runs: folder, validation data and file of given proposals of each run.

    Returns:
        For each run its cost, or why it cannot be measured.
    """
    device = pick_device("auto")
    prepared = [_prepare(*run, device) for run in runs]
    usable = [one for one in prepared if not isinstance(one, str)]
    seconds: list[list[float]] = [[] for _ in usable]
    for turn in range(TIMED_IMAGES + 1):
        for (detector, batches), times in zip(usable, seconds, strict=True):
            with folded(detector):
                start = time.perf_counter()
                predict_batch(detector, batches[turn % len(batches)], device, 0.0)
                times.append(time.perf_counter() - start)
    medians = iter([statistics.median(times[1:]) for times in seconds])
    return [one if isinstance(one, str) else _cost(*one, next(medians), device) for one in prepared]


def _prepare(
    folder: Path, data: CocoData | None, proposals: Path | None, device: torch.device
) -> tuple[Detector, list[Batch]] | str:
    if data is None or not len(data):
        return "the validation images cannot be read"
    try:
        detector = load(folder).eval().to(device)
        if detector.takes_proposals and proposals is not None:
            data = with_proposals(data, proposals)
        chosen = np.linspace(0, len(data) - 1, min(TIMED_IMAGES, len(data))).astype(np.int64)
        size, antialias = parse_size(detector.config.size), detector.config.antialias
        chosen_data = data.subset(chosen)
        return detector, list(eval_loader(chosen_data, size=size, batch=1, workers=0, antialias=antialias))
    except (UserError, OSError) as error:
        return " ".join(str(error).split())


def _cost(detector: Detector, batches: Sequence[Batch], seconds: float, device: torch.device) -> DetectorCost:
    first = batches[0]
    given = first.proposals
    proposals = None if given is None else Proposals(given.boxes.to(device), given.valid.to(device))
    images, sizes = first.images.to(device), first.sizes.to(device)
    with by_library(detector):
        work = count_work(detector, lambda: detector(images, sizes, proposals))
    macs = {name: of.macs for name, of in work.items()}
    processor = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return DetectorCost(
        parameters=count_parameters(detector)[0],
        macs=macs | {"all": sum(macs.values())},
        size=(images.shape[2], images.shape[3]),
        seconds=seconds,
        setting=f"median of {TIMED_IMAGES} predictions of one image each, from the resized image to boxes, "
        f"on {processor}, {torch.get_num_threads()} threads, {machine_load()}, torch {torch.__version__}",
    )

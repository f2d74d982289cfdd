"""What runs' detectors cost on this machine, on their own images."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from msefpn.config import Config, parse_size
from msefpn.data.coco import CocoData
from msefpn.data.loader import eval_loader
from msefpn.errors import UserError
from msefpn.inference.detect import predict_batch
from msefpn.inference.device import pick_device
from msefpn.metrics.cost import count_parameters, count_work
from msefpn.models import Detector, load
from msefpn.models.fold import folded
from msefpn.report.view import Price
from msefpn.structures import Batch, Proposals

IMAGES = 5
"""How many of the validation images are predicted, one by one, after one that warms up."""


@torch.no_grad()
def prices_of(runs: Sequence[tuple[Path, Config, CocoData | None]]) -> list[Price | str]:
    """Count and time predictions of the best weights, from the resized image to boxes, the runs in turn.

    Args:
        runs: folder, configuration and validation data of each.

    Returns:
        For each run what it costs, or why that cannot be told.
    """
    device = pick_device("auto")
    ready = [_prepared(*run, device) for run in runs]
    usable = [one for one in ready if not isinstance(one, str)]
    seconds: list[list[float]] = [[] for _ in usable]
    for turn in range(IMAGES + 1):
        for (detector, batches), times in zip(usable, seconds, strict=True):
            with folded(detector):
                start = time.perf_counter()
                predict_batch(detector, batches[turn % len(batches)], device, 0.0)
                times.append(time.perf_counter() - start)
    medians = iter([statistics.median(times[1:]) for times in seconds])
    return [one if isinstance(one, str) else _price(*one, next(medians), device) for one in ready]


def _prepared(
    run: Path, config: Config, data: CocoData | None, device: torch.device
) -> tuple[Detector, list[Batch]] | str:
    if data is None or not len(data):
        return "the validation images cannot be read"
    try:
        detector = load(run).eval().to(device)
        chosen = np.linspace(0, len(data) - 1, min(IMAGES, len(data))).astype(np.int64)
        loader = eval_loader(data.subset(chosen), size=parse_size(config.size), batch=1, workers=0)
        return detector, list(loader)
    except (UserError, OSError) as error:
        return " ".join(str(error).split())


def _price(detector: Detector, batches: Sequence[Batch], seconds: float, device: torch.device) -> Price:
    first = batches[0]
    given = first.proposals
    regions = None if given is None else Proposals(given.boxes.to(device), given.valid.to(device))
    images, sizes = first.images.to(device), first.sizes.to(device)
    macs = {
        name: work.macs
        for name, work in count_work(detector, lambda: detector(images, sizes, regions)).items()
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return Price(
        parameters=count_parameters(detector)[0],
        macs=macs | {"all": sum(macs.values())},
        size=(images.shape[2], images.shape[3]),
        seconds=seconds,
        setting=f"median of {IMAGES} predictions of one image each, from the resized image to boxes, on "
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    )

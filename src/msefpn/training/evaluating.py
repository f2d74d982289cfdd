"""The evaluation of an epoch by all processes of a training together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from msefpn.config import Config, parse_size
from msefpn.data.coco import CocoData
from msefpn.data.loader import eval_loader
from msefpn.inference.detect import Predictions, detect, merge_predictions
from msefpn.models import Detector


def detect_together(
    detector: Detector,
    data: CocoData,
    config: Config,
    device: torch.device,
    *,
    rank: int,
    world: int,
    began: Callable[[int], None],
    seen: Callable[[int], None],
) -> Predictions:
    """Detections on the validation data, of all processes; called in all of them.

    Args:
        detector: with the weights that are evaluated.
        data: what is detected on.
        config: of the run.
        device: of the detector.
        rank: of this process.
        world: number of processes.
        began: called with the number of this process's batches.
        seen: called after each with the number of its images.
    """
    loader = eval_loader(
        data,
        size=parse_size(config.size),
        batch=config.batch // (config.devices * config.accumulate),
        workers=config.workers,
        rank=rank,
        world=world,
        antialias=config.antialias,
    )
    began(len(loader))
    predictions = detect(detector, loader, device, seen)
    if world == 1:
        return predictions
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, predictions)
    return merge_predictions(parts)

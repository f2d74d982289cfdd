"""The evaluation of an epoch by all processes of a training together."""

from __future__ import annotations

from collections.abc import Callable

import torch

from msefpn.config import Config, parse_size
from msefpn.data.coco import CocoData
from msefpn.data.loader import eval_loader
from msefpn.inference.detect import Predictions, detect
from msefpn.models import Detector
from msefpn.training.group import Group


def detect_together(
    detector: Detector,
    data: CocoData,
    config: Config,
    device: torch.device,
    group: Group,
    *,
    began: Callable[[int], None],
    seen: Callable[[int], None],
) -> Predictions | None:
    """Detections of all processes on the validation data, in the first one; None in the others.

    Args:
        detector: with the weights that are evaluated.
        data: what is detected on.
        config: of the run.
        device: of the detector.
        group: the processes.
        began: called with the number of this process's batches.
        seen: called after each with the number of its images.
    """
    loader = eval_loader(
        data,
        size=parse_size(config.size),
        batch=config.per_pass,
        workers=config.workers,
        rank=group.peers.world.rank,
        world=group.peers.world.size,
        antialias=config.antialias,
    )
    began(len(loader))
    return group.gather(detect(detector, loader, device, seen))

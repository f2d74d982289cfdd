"""The images that int8 is calibrated on, as an exported graph reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from msefpn.config import parse_size
from msefpn.data.coco import CocoData
from msefpn.data.images import ImageFault, read_image
from msefpn.data.loader import eval_loader
from msefpn.errors import UserError
from msefpn.exporting.plan import ExportPlan
from msefpn.inference.predictor import Predictor
from msefpn.models import Detector
from msefpn.runs.console import say
from msefpn.structures import Batch


def calibration_batches(
    plan: ExportPlan, detector: Detector, images: CocoData | list[Path]
) -> Iterator[Batch]:
    """Yield the images that int8 is calibrated on, one at a time. Raises UserError if none can be read."""
    size = parse_size(plan.size)
    if isinstance(images, CocoData):
        antialias = detector.config.antialias
        yield from eval_loader(images, size=size, batch=1, workers=0, antialias=antialias)
        return
    predictor, read = Predictor(detector, size, torch.device("cpu")), 0
    for file in images:
        try:
            pixels = read_image(file)
        except (OSError, ImageFault) as error:
            say(f"skipped: {file}: {' '.join(str(error).split())}")
            continue
        read += 1
        yield predictor.batch([pixels])
    if images and not read:
        raise UserError(f"none of the {len(images)} images to calibrate on can be read: give other images")

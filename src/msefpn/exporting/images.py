"""The images that an export is compared and calibrated on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from msefpn.checkpoint import place_beside
from msefpn.config import parse_size
from msefpn.data.coco import CocoData
from msefpn.data.formats.write import as_coco
from msefpn.data.images import ImageFault, read_image
from msefpn.data.loader import eval_loader
from msefpn.data.locate import locate_split
from msefpn.errors import UserError
from msefpn.exporting.plan import ExportPlan
from msefpn.inference.detect import inputs_read
from msefpn.inference.plan import read_for
from msefpn.inference.predictor import Predictor
from msefpn.inference.sources import find_images
from msefpn.links import check_links
from msefpn.models import Detector
from msefpn.runs.console import say
from msefpn.runs.folder import read_run
from msefpn.structures import Batch


def comparison_data(plan: ExportPlan, detector: Detector) -> CocoData | None:
    """Read the images that run and file are compared on; None: none. Raises UserError."""
    count = plan.options.compare
    return _split(plan, detector, "val", count, "compare with", "--compare 0") if count else None


def calibration_images(plan: ExportPlan, detector: Detector) -> CocoData | list[Path]:
    """Find the images that int8 is calibrated on; other precisions need none. Raises UserError."""
    options = plan.options
    if options.precision != "int8":
        return []
    if options.calibrate is None:
        what, instead = "calibrate int8 on", "--calibrate FOLDER"
        return _split(plan, detector, "train", options.samples, what, instead)
    if detector.takes_proposals:
        raise UserError("fast_rcnn is calibrated on images with proposals: leave out --calibrate")
    files = find_images(options.calibrate)
    return [files[index] for index in _spread(len(files), options.samples)]


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


def _split(plan: ExportPlan, detector: Detector, split: str, count: int, what: str, instead: str) -> CocoData:
    """Some images of a split of the given data, or of the run's own, evenly spread."""
    run, data = place_beside(plan.run), plan.options.data
    if data is not None:
        check_links(data)
        data, log = as_coco(data, run / "converted", [split])
        say(*log.lines())
    place, proposals = locate_split(data, split, None, None), None
    if place is None or detector.takes_proposals:
        try:
            named = read_run(run)[1]
            named.check_links()
            files = named.given()
        except UserError as error:
            raise UserError(f"no images to {what}: give --data, or {instead} ({error})") from None
        place = place or (files[f"{split}_json"], files[f"{split}_images"])
        proposals = files.get(f"{split}_proposals") if detector.takes_proposals else None
    read = read_for(inputs_read(detector), run, place, proposals)
    if not len(read):
        raise UserError(f"{place[0]} has no images to {what}: give other --data, or {instead}")
    return read.subset(_spread(len(read), count))


def _spread(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly spread."""
    indices: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    return indices

"""The images that an export is compared and calibrated on; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msefpn.checkpoint import DetectorInfo, place_beside
from msefpn.data.coco import CocoData
from msefpn.data.formats import needs_no_copy
from msefpn.data.formats.write import as_coco
from msefpn.data.locate import locate_split
from msefpn.data.reader import reads_quickly
from msefpn.errors import UserError
from msefpn.exporting.plan import ExportPlan
from msefpn.inference.plan import read_for
from msefpn.inference.sources import find_images
from msefpn.links import check_links
from msefpn.names import DetectorInputs, known_inputs
from msefpn.runs.console import say
from msefpn.runs.folder import read_run

Place = tuple[tuple[Path, Path], Path | None]
"""A json and the folder of its images, and the proposals."""


@dataclass(frozen=True)
class ExportImages:
    """What an export reads."""

    compared: CocoData | None
    """What run and file are compared on; None: nothing."""
    calibration: CocoData | list[Path]
    """What int8 is calibrated on; empty for the other precisions."""


def read_images(plan: ExportPlan, inputs: DetectorInputs) -> ExportImages:
    """Find the images and read their annotations.

    Args:
        plan: what is asked for.
        inputs: what the detector reads.

    Raises:
        UserError: there are none, or they cannot be used.
    """
    options, compared = plan.options, None
    if options.compare:
        place = _place(plan, inputs, "val", "compare with", "--compare 0")
        compared = _some(plan, inputs, place, options.compare, "compare with", "--compare 0")
    if options.precision != "int8":
        return ExportImages(compared, [])
    if options.calibrate is None:
        what, instead = "calibrate int8 on", "--calibrate FOLDER"
        place = _place(plan, inputs, "train", what, instead)
        return ExportImages(compared, _some(plan, inputs, place, options.samples, what, instead))
    if inputs.proposals:
        raise UserError(f"{inputs.detector} is calibrated on images with proposals: leave out --calibrate")
    files = find_images(options.calibrate)
    return ExportImages(compared, [files[index] for index in _spread(len(files), options.samples)])


def read_images_early(plan: ExportPlan, about: DetectorInfo | None) -> ExportImages | None:
    """The same, where that is quick and writes nothing: what is wrong with them is then told at once.

    Args:
        plan: what is asked for.
        about: what the weights describe; None: not known yet.

    Raises:
        UserError: as `read_images`.
    """
    inputs = None if about is None else known_inputs(about.config.detector)
    data = plan.options.data
    if inputs is None or (data is not None and data.exists() and not needs_no_copy(data)):
        return None
    if plan.options.compare:
        (file, _), _ = _place(plan, inputs, "val", "compare with", "--compare 0")
        if not reads_quickly(file):
            return None
    return read_images(plan, inputs)


def _place(plan: ExportPlan, inputs: DetectorInputs, split: str, what: str, instead: str) -> Place:
    """Where a split of the given data, or of the run's own, lies. Raises UserError."""
    run, data = place_beside(plan.run), plan.options.data
    if data is not None:
        check_links(data)
        data, log = as_coco(data, run / "converted", [split])
        say(*log.lines())
    place = locate_split(data, split, None, None)
    if place is not None and not inputs.proposals:
        return place, None
    try:
        named = read_run(run)[1]
        named.check_links()
        files = named.given()
    except UserError as error:
        raise UserError(f"no images to {what}: give --data, or {instead} ({error})") from None
    proposals = files.get(f"{split}_proposals") if inputs.proposals else None
    return place or (files[f"{split}_json"], files[f"{split}_images"]), proposals


def _some(
    plan: ExportPlan, inputs: DetectorInputs, place: Place, count: int, what: str, instead: str
) -> CocoData:
    """`count` images of a split, evenly spread. Raises UserError."""
    read = read_for(inputs, place_beside(plan.run), *place)
    if not len(read):
        raise UserError(f"{place[0][0]} has no images to {what}: give other --data, or {instead}")
    return read.subset(_spread(len(read), count))


def _spread(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly spread."""
    indices: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    return indices

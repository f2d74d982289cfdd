"""The images that an export is compared and calibrated on; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class _Split(NamedTuple):
    """A split of which some images are wanted."""

    file: Path
    folder: Path
    proposals: Path | None
    wanted: int
    """Images."""
    what: str
    """What for."""
    instead: str
    """The option without which they are not wanted."""


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
    return _read(plan, inputs, _splits(plan, inputs))


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
    splits = _splits(plan, inputs)
    quick = reads_quickly(*(split.file for split in splits.values()))
    return _read(plan, inputs, splits) if quick else None


def _splits(plan: ExportPlan, inputs: DetectorInputs) -> dict[str, _Split]:
    """The splits of which images are wanted. Raises UserError where there are none."""
    options, splits = plan.options, {}
    if options.compare:
        what, instead = "compare with", "--compare 0"
        splits["val"] = _find_split(plan, inputs, "val", options.compare, what, instead)
    if options.precision == "int8" and options.calibrate is None:
        what, instead = "calibrate int8 on", "--calibrate FOLDER"
        splits["train"] = _find_split(plan, inputs, "train", options.samples, what, instead)
    return splits


def _read(plan: ExportPlan, inputs: DetectorInputs, splits: dict[str, _Split]) -> ExportImages:
    """Some images of each split, evenly spread, and those of the folder to calibrate on. Raises UserError."""
    options, images = plan.options, {}
    for name, split in splits.items():
        data = read_for(inputs, place_beside(plan.run), (split.file, split.folder), split.proposals)
        if not len(data):
            raise UserError(
                f"{split.file} has no images to {split.what}: give other --data, or {split.instead}"
            )
        images[name] = data.subset(_spread(len(data), split.wanted))
    if options.calibrate is None:
        return ExportImages(images.get("val"), images.get("train", []))
    if inputs.proposals:
        raise UserError(f"{inputs.detector} is calibrated on images with proposals: leave out --calibrate")
    files = find_images(options.calibrate, follow_links=options.follow_links)
    return ExportImages(images.get("val"), [files[i] for i in _spread(len(files), options.samples)])


def _find_split(
    plan: ExportPlan, inputs: DetectorInputs, split: str, wanted: int, what: str, instead: str
) -> _Split:
    """A split of the given data, or of the run's own. Raises UserError."""
    run, data, follow = place_beside(plan.run), plan.options.data, plan.options.follow_links
    if data is not None:
        check_links(data, follow=follow)
        data, log = as_coco(data, run / "converted", [split], follow_links=follow)
        say(*log.lines())
    place = locate_split(data, split, None, None)
    if place is not None and not inputs.proposals:
        return _Split(*place, None, wanted, what, instead)
    try:
        named = read_run(run)[1]
        named.check_links(follow=follow)
        files = named.given()
    except UserError as error:
        raise UserError(f"no images to {what}: give --data, or {instead} ({error})") from None
    proposals = files.get(f"{split}_proposals") if inputs.proposals else None
    file, folder = place or (files[f"{split}_json"], files[f"{split}_images"])
    return _Split(file, folder, proposals, wanted, what, instead)


def _spread(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly spread."""
    indices: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    return indices

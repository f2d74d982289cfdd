"""From what an export is asked for to what is to be done, checked as far as that goes without torch."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msefpn.checkpoint import FORMATS, find_weights, is_exported, read_about
from msefpn.config import parse_size
from msefpn.data.coco import CocoData, read_coco
from msefpn.data.locate import locate_split
from msefpn.data.proposals import with_proposals
from msefpn.errors import UserError, missing_extra, unknown_name
from msefpn.prediction.request import find_images, in_coco
from msefpn.runs.folder import check_file, read_run

PARITY = ".parity.json"
"""What is added to the name of an exported file to name its report."""
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
_PACKAGES["openvino"] = (*_PACKAGES["onnx"], "openvino")


@dataclass(frozen=True)
class Limits:
    """What an exported detector must reach."""

    iou: float
    """Two detections of a class are the same if their boxes overlap by this or more."""
    matched: float
    """Least share of the detections, of both sides, that the other side has too."""
    drop: float
    """Most that AP may fall, 0..1."""


LIMITS = {
    "fp32": Limits(iou=0.95, matched=0.99, drop=0.002),
    "fp16": Limits(iou=0.9, matched=0.98, drop=0.005),
    "int8": Limits(iou=0.5, matched=0.85, drop=0.02),
}
"""By precision."""


@dataclass(frozen=True)
class Export:
    """An export, as far as it can be prepared without torch."""

    run: Path
    format: str
    precision: str
    out: Path
    size: str
    """What images are to be resized to fit into: 320 or 1333x800."""
    data: CocoData | None
    """What is compared; None: nothing."""
    samples: CocoData | list[Path] | None
    """What int8 is calibrated on, data or image files."""
    limits: Limits

    @property
    def failed(self) -> Path:
        """The file's name if it fails."""
        return self.out.with_name(f"{self.out.stem}.failed{self.out.suffix}")


def plan_export(
    run: Path,
    *,
    format: str,
    precision: str,
    out: Path | None,
    data: Path | None,
    compare: int,
    calibrate: Path | None,
    samples: int,
    size: str | None,
    matched: float | None,
    ap_drop: float | None,
) -> Export:
    """Settle the file, find the images; arguments as of `msefpn.commands.train.export`. Raises UserError."""
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if precision not in LIMITS:
        raise unknown_name("precision", precision, LIMITS)
    if format == "pt2" and precision == "int8":
        raise UserError("pt2 has no int8: take --format onnx or openvino, or --precision fp32 or fp16")
    if compare < 0 or samples < 1:
        raise UserError(f"compare is {compare}, samples {samples}: they must be at least 0 and 1")
    if calibrate is not None and precision != "int8":
        raise UserError(f"precision {precision} is not calibrated: leave out --calibrate")
    if is_exported(run):
        raise UserError(f"{run} is exported already: name the run that it is of")
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES[format]):
        raise missing_extra(f"export to {format}", "export")
    weights = find_weights(run)
    config = read_about(weights).config
    if format == "openvino" and config.neck_options.get("deformable"):
        raise UserError(f"{run} has deformable convolutions, which OpenVINO lacks: take --format onnx or pt2")
    if size is not None:
        parse_size(size)
    suffix = "" if precision == "fp32" else f"-{precision}"
    out = out or weights.parent / f"detector{suffix}{FORMATS[format]}"
    if out.suffix != FORMATS[format]:
        raise UserError(f"out '{out}' must end in {FORMATS[format]}, as files of {format} do")
    limits = LIMITS[precision]
    limits = dataclasses.replace(
        limits,
        matched=limits.matched if matched is None else matched,
        drop=limits.drop if ap_drop is None else ap_drop,
    )
    plan = Export(run, format, precision, out, size or config.size, None, None, limits)
    for path in (
        out,
        plan.failed,
        *(p.with_suffix(".bin") for p in (out, plan.failed) if format == "openvino"),
    ):
        check_file(path, room=3 * weights.stat().st_size)
    shown = _split(run, weights, data, "val", compare, "compare with", "--compare 0") if compare else None
    chosen: CocoData | list[Path] | None = None
    if precision == "int8":
        chosen = _calibration(run, weights, data, calibrate, samples)
    return dataclasses.replace(plan, data=shown, samples=chosen)


def _calibration(
    run: Path, weights: Path, data: Path | None, folder: Path | None, count: int
) -> CocoData | list[Path]:
    if folder is None:
        return _split(run, weights, data, "train", count, "calibrate int8 on", "--calibrate FOLDER")
    if read_about(weights).config.takes_proposals:
        raise UserError("fast_rcnn is calibrated on images with proposals: leave out --calibrate")
    files = find_images([folder])
    return [files[index] for index in _spread(len(files), count)]


def _split(
    run: Path, weights: Path, data: Path | None, split: str, count: int, what: str, instead: str
) -> CocoData:
    """Some images of a split of the given data, or of the run's own, evenly spread."""
    config = read_about(weights).config
    data = None if data is None else in_coco(data, weights.parent, split)
    place, proposals = locate_split(data, split, None, None), None
    if place is None or config.takes_proposals:
        try:
            sources = read_run(weights.parent)[1].given()
        except UserError as error:
            raise UserError(f"no images to {what}: give --data, or {instead} ({error})") from None
        place = place or (sources[f"{split}_json"], sources[f"{split}_images"])
        proposals = sources.get(f"{split}_proposals")
    read, _ = read_coco(*place, masks=config.learns_masks)
    if config.takes_proposals and proposals is not None:
        read = with_proposals(read, proposals)
    if not len(read):
        raise UserError(f"{place[0]} has no images to {what}: give other --data, or {instead}")
    return read.subset(_spread(len(read), count))


def _spread(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly."""
    indices: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    return indices

"""From the options of an export to its file and limits; refuses what can be refused without the detector.

Imports no torch, unless the weights are of another library.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from msefpn.checkpoint import DetectorInfo, find_weights, place_beside
from msefpn.errors import UserError, missing_extra, unknown_name
from msefpn.exporting.options import ExportOptions
from msefpn.inference.formats import EXPORTERS, format_of
from msefpn.inference.formats.base import Exporter
from msefpn.runs.folder import check_file


@dataclass(frozen=True)
class ParityLimits:
    """What an exported detector must reach."""

    iou: float
    """Two detections of a class are the same if their boxes have this IoU or more."""
    matched: float
    """Least share of the detections of both sides that the other side has too."""
    drop: float
    """Largest loss of AP, 0..1."""


DEFAULT_LIMITS = {
    "fp32": ParityLimits(iou=0.95, matched=0.99, drop=0.002),
    "fp16": ParityLimits(iou=0.9, matched=0.98, drop=0.005),
    "int8": ParityLimits(iou=0.5, matched=0.85, drop=0.02),
}
"""By precision."""


@dataclass(frozen=True)
class ExportPlan:
    """An export whose options are checked and complete."""

    run: Path
    """Run folder, file of weights, or a name of such."""
    exporter: Exporter
    options: ExportOptions
    out: Path
    size: str
    """Longest x shortest side, pixels, that images are to be resized to fit into."""
    limits: ParityLimits

    @property
    def failed(self) -> Path:
        """The file's name if it fails the comparison."""
        return self.out.with_name(f"{self.out.stem}.failed{self.out.suffix}")


def plan_export(run: Path, options: ExportOptions, about: DetectorInfo | None = None) -> ExportPlan:
    """Check the options and choose the file and the limits; writes nothing.

    Args:
        run: see `ExportPlan`.
        options: likewise.
        about: what the weights describe; None: not read yet.

    Raises:
        UserError: they cannot be met.
    """
    name, precision = options.format, options.precision
    if name not in EXPORTERS:
        raise unknown_name("format", name, EXPORTERS)
    if precision not in DEFAULT_LIMITS:
        raise unknown_name("precision", precision, DEFAULT_LIMITS)
    exporter = EXPORTERS[name]
    if precision not in exporter.precisions:
        others = " or ".join(exporter.precisions)
        able = " or ".join(key for key, other in EXPORTERS.items() if precision in other.precisions)
        raise UserError(f"{name} has no {precision}: use --format {able}, or --precision {others}")
    if format_of(run):
        raise UserError(f"{run} is an exported file: give the run that it was exported from")
    if any(importlib.util.find_spec(package) is None for package in exporter.packages):
        raise missing_extra(f"export to {name}", "export")
    weights = find_weights(run)
    config = (about or _info_of(run)).config
    if reason := exporter.refuse(config):
        others = " or ".join(key for key, other in EXPORTERS.items() if not other.refuse(config))
        raise UserError(f"{run} {reason}: use --format {others}")
    ending = "" if precision == "fp32" else f"-{precision}"
    out = options.out or place_beside(run) / f"detector{ending}{exporter.suffix}"
    if out.suffix != exporter.suffix:
        raise UserError(f"out '{out}' must end in {exporter.suffix}, the suffix of {name} files")
    limits, drop = DEFAULT_LIMITS[precision], options.ap_drop
    given = {"matched": options.matched, "drop": None if drop is None else drop / 100}
    limits = dataclasses.replace(limits, **{key: x for key, x in given.items() if x is not None})
    plan = ExportPlan(run, exporter, options, out, options.size or config.size, limits)
    for path in (out, plan.failed):
        for suffix in exporter.suffixes:
            check_file(path.with_suffix(suffix), room=3 * weights.stat().st_size)
    return plan


def _info_of(run: Path) -> DetectorInfo:
    from msefpn.models import info_of  # noqa: PLC0415  slow to import

    return info_of(run)

"""Export: a run to one file that describes itself, compared with the run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msefpn.exporting.calibration import calibration_batches
from msefpn.exporting.images import ExportImages, read_images
from msefpn.exporting.parity import Parity, check_parity
from msefpn.exporting.plan import ExportPlan
from msefpn.inference.detect import inputs_read
from msefpn.inference.exported import load_exported
from msefpn.inference.formats.base import describe
from msefpn.models import load
from msefpn.runs.console import say, show_table
from msefpn.writing import new_parents

PARITY_SUFFIX = ".parity.json"
"""Added to the name of an exported file to name its report."""


@dataclass(frozen=True)
class ExportReport:
    """An exported file, and how it compares with its run."""

    file: Path
    """Has `.failed` in its name where the comparison failed."""
    format: str
    precision: str
    size: str
    """Longest x shortest side, pixels, that images are to be resized to fit into."""
    bytes: int
    """Of all files that were written."""
    made_with: dict[str, str]
    """Versions of packages by name."""
    parity: Parity | None
    """The comparison; None: there was none."""

    @property
    def passed(self) -> bool:
        """Whether the comparison passed, if there was one."""
        return self.parity is None or self.parity.passed

    @property
    def exit_code(self) -> int:
        """Of the command: 1 where the comparison failed."""
        return int(not self.passed)

    def to_json(self) -> dict[str, Any]:
        """Return the values as FILE.parity.json holds them."""
        values: dict[str, Any] = {"format": self.format, "precision": self.precision, "size": self.size}
        values |= {"made_with": self.made_with, "passed": self.passed, "file": self.file.name}
        return values | {"bytes": self.bytes} | (self.parity.to_json() if self.parity else {})


def export(plan: ExportPlan, early: ExportImages | None = None) -> ExportReport:
    """Export a run as planned; see `msefpn.commands.models.export`.

    Args:
        plan: what is asked for.
        early: what `read_images_early` gave.
    """
    run, options = plan.run, plan.options
    detector = load(run)
    images = early or read_images(plan, inputs_read(detector))
    data = images.compared
    info = describe(detector, plan.size, options.precision, plan.exporter.packages)
    say(f"tracing the graph of {run}; this takes a minute or two")
    with (
        new_parents(plan.out),
        tempfile.TemporaryDirectory(dir=plan.out.parent, prefix=f".{plan.out.name}.") as folder,
    ):
        made, parity = Path(folder, plan.out.name), None
        samples = calibration_batches(plan, detector, images.calibration)
        plan.exporter.write(detector, info, made, options.precision, samples)
        if data is not None:
            parity = check_parity(detector, load_exported(made, trust=True), data, plan.limits, plan.size)
        place = plan.out if parity is None or parity.passed else plan.failed
        parts = sorted(Path(folder).iterdir())
        size = sum(part.stat().st_size for part in parts)
        versions = json.loads(info)["made_with"]
        report = ExportReport(place, options.format, options.precision, plan.size, size, versions, parity)
        places = {part: place.with_suffix(part.suffix) for part in parts}
        if parity is not None:
            table = Path(folder, "parity")
            table.write_text(json.dumps(report.to_json(), indent=2), encoding="utf-8")
            places[table] = place.with_name(f"{place.name}{PARITY_SUFFIX}")
        _put(places)
    if data is not None and parity is not None:
        _show(parity, data.file)
    state = "" if report.passed else "FAILED the comparison; kept as "
    compared = ", not compared with the run" if parity is None else ""
    say(f"{state}{place}: {size / 1e6:.1f} MB, {options.format}, {options.precision}{compared}")
    say(f"detect: msefpn predict {place} IMAGES")
    return report


def _put(places: Mapping[Path, Path]) -> None:
    """Move files to their places; after an error none of them is there. Raises OSError."""
    placed = []
    try:
        for part, place in places.items():
            part.replace(place)
            placed.append(place)
    except OSError:
        for place in placed:
            place.unlink(missing_ok=True)
        raise


def _show(parity: Parity, file: Path) -> None:
    values, limits = parity.to_json(), parity.limits
    rows = [
        ["detections in both", f"{100 * parity.matched:.2f} %", f"at least {100 * limits.matched:g} %"],
        ["largest difference of scores", f"{values['largest_score_difference']:.2g}", ""],
        ["largest difference of boxes", f"{values['largest_box_difference']:.2g} px", ""],
        ["AP before, percent", f"{100 * parity.ap_before:.2f}", ""],
        ["AP after, percent", f"{100 * parity.ap_after:.2f}", f"a drop of at most {100 * limits.drop:g}"],
    ]
    say(f"run and exported file on {parity.images} images, {values['objects']} detections ({file}):")
    show_table(["what", "measured", "limit"], rows)

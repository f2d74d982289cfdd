"""Export: a run into one file that says what it is, and a report of whether it still detects the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from msefpn.config import parse_size
from msefpn.data.coco import CocoData
from msefpn.data.images import ImageFault, read_image
from msefpn.data.loader import eval_loader
from msefpn.errors import UserError
from msefpn.export.formats import WRITERS, describe
from msefpn.export.parity import check_parity
from msefpn.export.plan import PARITY, Export
from msefpn.inference.exported import load_exported
from msefpn.inference.predictor import Predictor
from msefpn.models import Detector, load
from msefpn.runs.console import say, show_table
from msefpn.runs.folder import write_text
from msefpn.structures import Batch


def export(plan: Export) -> dict[str, Any]:
    """Export as planned; see `msefpn.commands.train.export`."""
    detector = load(plan.run).eval()
    about = describe(detector, plan.size, plan.format, plan.precision)
    report: dict[str, Any] = {"format": plan.format, "precision": plan.precision, "size": plan.size}
    report |= {"made_with": json.loads(about)["made_with"], "passed": True}
    say(f"tracing the graph of {plan.run}; this takes a minute or two")
    try:
        plan.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=plan.out.parent, prefix=f".{plan.out.name}.") as folder:
            made = Path(folder, plan.out.name)
            WRITERS[plan.format](detector, about, made, plan.precision, _samples(plan, detector))
            if plan.data is not None:
                exported = load_exported(made)
                report |= check_parity(detector, exported, plan.data, plan.limits, plan.size)
            place = plan.out if report["passed"] else plan.failed
            report |= {"file": place.name, "bytes": sum(x.stat().st_size for x in Path(folder).iterdir())}
            for part in sorted(Path(folder).iterdir()):
                part.rename(place.with_suffix(part.suffix))
    except OSError as error:
        raise UserError(
            f"'{plan.out}' cannot be written: {error.strerror or error}: make room, or name another file"
        ) from None
    if plan.data is not None:
        write_text(place.with_name(f"{place.name}{PARITY}"), json.dumps(report, indent=2))
    _show(report, place, plan)
    return report


def _samples(plan: Export, detector: Detector) -> Iterator[Batch]:
    """What int8 is calibrated on, one image at a time."""
    size = parse_size(plan.size)
    if isinstance(plan.samples, CocoData):
        yield from eval_loader(plan.samples, size=size, batch=1, workers=0)
        return
    predictor, read = Predictor(detector, size, torch.device("cpu")), 0
    for file in plan.samples or []:
        try:
            pixels = read_image(file)
        except (OSError, ImageFault) as error:
            say(f"skipped: {file}: {' '.join(str(error).split())}")
            continue
        read += 1
        yield predictor.batch([pixels])
    if plan.samples and not read:
        raise UserError(f"none of the {len(plan.samples)} images to calibrate on can be read: give others")


def _show(report: dict[str, Any], place: Path, plan: Export) -> None:
    if plan.data is not None:
        limits, ap = plan.limits, report["AP"]
        rows = [
            [
                "detections that both have",
                f"{100 * report['matched']:.2f} %",
                f"at least {100 * limits.matched:g} %",
            ],
            ["largest difference of scores", f"{report['largest_score_difference']:.2g}", ""],
            ["largest difference of boxes", f"{report['largest_box_difference']:.2g} px", ""],
            ["AP before", f"{ap['before']:.4f}", ""],
            ["AP after", f"{ap['after']:.4f}", f"a drop of at most {limits.drop:g}"],
        ]
        counted = f"{report['images']} images, {report['objects']} detections"
        say(f"as trained and as exported, {counted} ({plan.data.file}):")
        show_table(["what", "measured", "limit"], rows)
    state = "" if report["passed"] else "FAILED, over the limit; kept as "
    compared = "" if plan.data is not None else ", not compared with the run"
    say(f"{state}{place}: {report['bytes'] / 1e6:.1f} MB, {plan.format}, {plan.precision}{compared}")
    say(f"detect: msefpn predict {place} IMAGES")

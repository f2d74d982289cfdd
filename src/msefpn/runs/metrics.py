"""The numbers that a training leaves in its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from msefpn.metrics.coco import NUMBERS
from msefpn.reading import Record, read_json


class Metrics(NamedTuple):
    """What metrics.json holds: COCO's numbers, `per_class`, `mask` and the epoch."""

    best: dict[str, Any]
    last: dict[str, Any]


def read_metrics(path: Path) -> Metrics:
    """Read the metrics.json of a run folder. Raises UserError where a number is missing or is none."""
    fix = "restore it, or evaluate the run again"
    whole = Record(read_json(path, fix), f"'{path}'", fix)
    for entry in (whole.record("best"), whole.record("last")):
        entry.whole("epoch", 1)
        entry.whole("step", 0)
        for scores in (entry, *([entry.record("mask")] if "mask" in entry.values else [])):
            for name in NUMBERS:
                scores.number(name, -1, 1)
            for per_class in [scores.record("per_class")] if "per_class" in scores.values else []:
                for name in per_class.values:
                    per_class.number(name, -1, 1)
    return Metrics(whole.values["best"], whole.values["last"])

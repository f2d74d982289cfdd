"""Evaluation: a run and a split of data to numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msefpn.checkpoint import place_beside
from msefpn.config import parse_size
from msefpn.data.coco import CocoData, read_coco
from msefpn.data.formats.write import as_coco
from msefpn.data.ground_truth import category_ids_for, truth_of
from msefpn.data.loader import eval_loader
from msefpn.data.locate import locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.errors import UserError, unknown_name
from msefpn.inference.detect import Detects, as_results, check_proposals_given, detect
from msefpn.inference.device import telling_memory
from msefpn.inference.predictor import open_detector
from msefpn.metrics.coco import evaluate_coco
from msefpn.pretrained import is_named
from msefpn.runs.console import Bar, say, show_dropped, show_numbers
from msefpn.runs.folder import (
    METRICS,
    PREDICTIONS,
    check_out,
    free_folder,
    new_folder,
    read_run,
    write_text,
)


def evaluate(
    run: Path,
    data: Path | None,
    *,
    split: str,
    file: Path | None,
    images: Path | None,
    proposals: Path | None,
    out: Path | None,
    batch: int | None,
    size: str | None,
    device: str,
    workers: int,
) -> dict[str, Any]:
    """Evaluate a run and write the numbers; arguments as of `msefpn.commands.predict.evaluate`."""
    if batch is not None and batch < 1:
        raise UserError(f"batch is {batch}: it must be at least 1")
    if workers < 0:
        raise UserError(f"workers is {workers}: it must be at least 0")
    if split not in ("train", "val"):
        raise unknown_name("split", split, ("train", "val"))
    sides = None if size is None else parse_size(size)
    refuse_unread(data, file)
    if is_named(run) and data is None and file is None:
        raise UserError(f"{run} has no data of its own to evaluate on: give --data, or --json and --images")
    folder = place_beside(run)
    out = out or free_folder(folder / "evaluate")
    check_out(out)
    detector, where = open_detector(run, device)
    if data is not None:
        data, log = as_coco(data, out.parent / "converted", [split])
        say(*log.lines())
    place = locate_split(data, split, file, images)
    if place is None:
        files = read_run(folder)[1].given()
        place = files[f"{split}_json"], files[f"{split}_images"]
        proposals = proposals or files.get(f"{split}_proposals")
    read = read_for(detector, run, place, proposals)
    config = detector.config
    batch = batch or config.batch // (config.devices * config.accumulate)
    sides = sides or parse_size(config.size)
    category_ids = category_ids_for(detector.classes, read, f"the run {run}")
    loader = eval_loader(read, size=sides, batch=batch, workers=workers)
    with new_folder(out):
        with Bar("evaluate", len(read)) as bar, telling_memory(batch, sides):
            found = detect(detector, loader, where, bar.seen)
        results = as_results(found, category_ids)
        evaluation = evaluate_coco(truth_of(read), results, masks=detector.learns_masks)
        numbers: dict[str, Any] = evaluation.to_json()
        numbers |= {"images": len(read), "detections": len(results), "num_dropped": found.num_dropped}
        write_text(out / PREDICTIONS, json.dumps(results))
        write_text(out / METRICS, json.dumps(numbers, indent=2))
    show_numbers(numbers)
    show_dropped(found.num_dropped)
    say(f"{len(read)} images of {read.file}: {out / METRICS}, {out / PREDICTIONS}")
    return numbers


def read_for(detector: Detects, run: Path, place: tuple[Path, Path], proposals: Path | None) -> CocoData:
    """Read a json and its image folder with the masks and proposals that a detector needs.

    Args:
        detector: says what it needs.
        run: its name in messages.
        place: the json, and the folder of its images.
        proposals: json in COCO's result format; None: there are none.

    Raises:
        UserError: proposals are missing or unused, or the data cannot be used.
    """
    check_proposals_given(detector, proposals is not None, run)
    read, _ = read_coco(*place, masks=detector.learns_masks)
    return read if proposals is None else with_proposals(read, proposals)

"""Evaluation: a run and a split of data to numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from msefpn.checkpoint import place_beside
from msefpn.config import parse_size
from msefpn.data.coco import CocoData, read_coco
from msefpn.data.formats.write import as_coco, with_fixed_names
from msefpn.data.ground_truth import category_ids_for, truth_of
from msefpn.data.loader import eval_loader
from msefpn.data.locate import locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.errors import UserError, unknown_name
from msefpn.inference.detect import (
    Detects,
    Predictions,
    as_results,
    check_proposals_given,
    detect,
    merge_predictions,
    no_predictions,
)
from msefpn.inference.device import telling_memory
from msefpn.inference.options import DetectionOptions
from msefpn.inference.predictor import Predictor, open_detector
from msefpn.inference.views import apply_options
from msefpn.links import check_links, roots_of
from msefpn.metrics.coco import evaluate_coco
from msefpn.pretrained import is_named
from msefpn.runs.console import Bar, say, show_dropped, show_numbers
from msefpn.runs.folder import METRICS, PREDICTIONS, check_out, free_folder, new_folder, read_run
from msefpn.structures import Batch
from msefpn.writing import write_text


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
    options: DetectionOptions,
    fix_names: bool = False,
    follow_links: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and write the numbers; arguments as of `msefpn.commands.predict.evaluate`."""
    if batch is not None and batch < 1:
        raise UserError(f"batch is {batch}: it must be at least 1")
    if workers < 0:
        raise UserError(f"workers is {workers}: it must be at least 0")
    if split not in ("train", "val"):
        raise unknown_name("split", split, ("train", "val"))
    options.check_size(size)
    sides = None if size is None else parse_size(size)
    refuse_unread(data, file)
    if is_named(run) and data is None and file is None:
        raise UserError(f"{run} has no data of its own to evaluate on: give --data, or --json and --images")
    folder = place_beside(run)
    out = out or free_folder(folder / "evaluate")
    check_out(out)
    detector, where = open_detector(run, device, trust=options.trust)
    config = detector.config
    sides = sides or parse_size(config.size)
    merged = apply_options(detector, options, run, sides)
    check_links(data, *(() if file is None else roots_of(file, images)), follow=follow_links)
    if data is not None:
        data, log = as_coco(
            data, out.parent / "converted", [split], fix_names=fix_names, follow_links=follow_links
        )
        say(*log.lines())
    place = locate_split(data, split, file, images)
    if place is None:
        named = read_run(folder)[1]
        replace(named, follow_links=named.follow_links or follow_links).check_links()
        files = named.given()
        place = files[f"{split}_json"], files[f"{split}_images"]
        proposals = proposals or files.get(f"{split}_proposals")
    elif fix_names and data is None:
        place, log = with_fixed_names(*place, out.parent / "converted")
        say(*log.lines())
    read = read_for(detector, run, place, proposals)
    batch = batch or config.batch // (config.devices * config.accumulate)
    category_ids = category_ids_for(detector.classes, read, f"the run {run}")
    loading: dict[str, Any] = {"batch": batch, "workers": workers, "antialias": config.antialias}
    with new_folder(out):
        with Bar("evaluate", len(read)) as bar, telling_memory(batch, sides):
            if merged is None:
                found = detect(detector, eval_loader(read, size=sides, **loading), where, bar.seen)
            else:
                predictor = Predictor(detector, sides, where, merged)
                found = _of_views(predictor, eval_loader(read, size=None, **loading), bar.seen)
        results = as_results(found, category_ids)
        evaluation = evaluate_coco(truth_of(read), results, masks=detector.learns_masks)
        numbers: dict[str, Any] = evaluation.to_json()
        numbers |= {"images": len(read), "detections": len(results), "num_dropped": found.num_dropped}
        if options.flags():
            numbers["detection"] = {key: value for key, value in asdict(options).items() if key != "trust"}
        write_text(out / PREDICTIONS, json.dumps(results))
        write_text(out / METRICS, json.dumps(numbers, indent=2))
    show_numbers(numbers)
    show_dropped(found.num_dropped)
    say(f"{len(read)} images of {read.file}: {out / METRICS}, {out / PREDICTIONS}")
    return numbers


def _of_views(predictor: Predictor, batches: Iterable[Batch], seen: Callable[[int], None]) -> Predictions:
    """Predictions for images as they are in their files; `seen` is called as by `detect`."""
    parts = [no_predictions()]
    for batch in batches:
        sizes = batch.original_sizes.tolist()
        pixels = [
            image[:, :height, :width].permute(1, 2, 0).numpy()
            for image, (height, width) in zip(batch.images, sizes, strict=True)
        ]
        found = zip(predictor(pixels), batch.ids.tolist(), strict=True)
        parts += [replace(one, image_ids=np.full(len(one.scores), id)) for one, id in found]
        seen(len(pixels))
    return merge_predictions(parts)


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
    read, report = read_coco(*place, masks=detector.learns_masks)
    say(*(f"{place[0].name}: {text}" for text in report.summary(changes_only=True)))
    return read if proposals is None else with_proposals(read, proposals)

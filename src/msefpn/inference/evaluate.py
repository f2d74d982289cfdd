"""Evaluation: a run and a split of data to numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from msefpn.config import parse_size
from msefpn.data.coco import category_ids_for, truth_of
from msefpn.data.loader import eval_loader
from msefpn.inference.detect import (
    Predictions,
    as_results,
    detect,
    inputs_read,
    merge_predictions,
    no_predictions,
)
from msefpn.inference.device import telling_memory
from msefpn.inference.plan import EvaluationPlan
from msefpn.inference.predictor import Predictor, open_detector
from msefpn.inference.submission import write_submission
from msefpn.inference.views import apply_options
from msefpn.metrics.coco import evaluate_coco
from msefpn.runs.console import Bar, say, show_dropped, show_numbers
from msefpn.runs.folder import METRICS, PREDICTIONS, new_folder
from msefpn.structures import Batch
from msefpn.writing import write_text


def evaluate(plan: EvaluationPlan) -> dict[str, Any]:
    """Evaluate a run as planned and write the numbers; see `msefpn.commands.predict.evaluate`."""
    run, options, loading = plan.run, plan.options, dict[str, Any](workers=plan.workers)
    detector, where = open_detector(run, plan.device, trust=options.trust)
    config = detector.config
    sides = plan.sides or parse_size(config.size)
    merged = apply_options(detector, options, run, sides)
    read = plan.read_data(inputs_read(detector))
    batch = plan.batch or max(1, config.per_pass)
    category_ids = category_ids_for(detector.classes, read, f"the run {run}")
    loading |= {"batch": batch, "antialias": config.antialias}
    with new_folder(plan.out):
        with Bar("evaluate", len(read)) as bar, telling_memory(batch, sides):
            if merged is None:
                found = detect(detector, eval_loader(read, size=sides, **loading), where, bar.seen)
            else:
                predictor = Predictor(detector, sides, where, merged)
                found = _of_views(predictor, eval_loader(read, size=None, **loading), bar.seen)
        results = as_results(found, category_ids)
        numbers: dict[str, Any] = {}
        if len(read.boxes):
            evaluation = evaluate_coco(truth_of(read), results, masks=detector.learns_masks)
            numbers = evaluation.to_json()
        numbers |= {"images": len(read), "detections": len(results), "num_dropped": found.num_dropped}
        if options.flags():
            numbers["detection"] = {key: value for key, value in asdict(options).items() if key != "trust"}
        submission = None
        if plan.submit is not None:
            submission = write_submission(plan.out, plan.submit, results, read)
        write_text(plan.out / PREDICTIONS, json.dumps(results))
        write_text(plan.out / METRICS, json.dumps(numbers, indent=2))
    if len(read.boxes):
        show_numbers(numbers)
    if submission is not None:
        say(f"for COCO's server: {submission}")
    show_dropped(found.num_dropped)
    say(f"{len(read)} images of {read.file}: {plan.out / METRICS}, {plan.out / PREDICTIONS}")
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

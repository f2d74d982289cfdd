"""Evaluation: a run and a split of data into numbers."""

from __future__ import annotations

import json
from typing import Any

from msefpn.config import parse_size
from msefpn.data.ground_truth import category_ids_for, truth_of
from msefpn.data.loader import eval_loader
from msefpn.inference.detect import as_results, detect, telling_memory
from msefpn.inference.predictor import open_detector
from msefpn.metrics.coco import evaluate_coco
from msefpn.runs.console import Bar, say, show_dropped, show_numbers
from msefpn.runs.folder import METRICS, PREDICTIONS, new_folder, write_text
from msefpn.training.plan import Evaluation


def evaluate(plan: Evaluation, *, device: str) -> dict[str, Any]:
    """Evaluate as planned; see `msefpn.commands.train.evaluate`."""
    detector, where = open_detector(plan.run, device)
    category_ids = category_ids_for(detector.classes, plan.data, f"the run {plan.run}")
    config = detector.config
    batch = plan.batch or config.batch // (config.devices * config.accumulate)
    size = plan.size or parse_size(config.size)
    loader = eval_loader(plan.data, size=size, batch=batch, workers=plan.workers)
    with new_folder(plan.out):
        with Bar("evaluate", len(plan.data)) as bar, telling_memory(batch, size):
            found = detect(detector, loader, where, bar.seen)
        results = as_results(found, category_ids)
        evaluation = evaluate_coco(truth_of(plan.data), results, masks=config.learns_masks)
        numbers: dict[str, Any] = evaluation.to_json()
        numbers |= {"images": len(plan.data), "detections": len(results), "num_dropped": found.num_dropped}
        write_text(plan.out / PREDICTIONS, json.dumps(results))
        write_text(plan.out / METRICS, json.dumps(numbers, indent=2))
    show_numbers(numbers)
    show_dropped(found.num_dropped)
    say(f"{len(plan.data)} images of {plan.data.file}: {plan.out / METRICS}, {plan.out / PREDICTIONS}")
    return numbers

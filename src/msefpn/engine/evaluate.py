"""Evaluation: a run and a split of data into numbers."""

from __future__ import annotations

import json
from typing import Any

from msefpn.config import parse_size
from msefpn.data.loader import eval_loader
from msefpn.engine.detect import as_results, detect, telling_memory
from msefpn.engine.plan import Evaluation
from msefpn.engine.predictor import open_detector
from msefpn.engine.run import METRICS, PREDICTIONS, new_folder, write_text
from msefpn.engine.screen import Bar, say, show_cut, show_numbers
from msefpn.engine.truth import category_ids_for, truth_of
from msefpn.metrics.coco import evaluate_coco


def evaluate(plan: Evaluation, *, device: str) -> dict[str, Any]:
    """Evaluate as planned; see `msefpn.api.evaluate`."""
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
        numbers = evaluate_coco(truth_of(plan.data), results, masks=config.learns_masks)
        numbers |= {"images": len(plan.data), "detections": len(results), "cut": found.cut}
        write_text(plan.out / PREDICTIONS, json.dumps(results))
        write_text(plan.out / METRICS, json.dumps(numbers, indent=2))
    show_numbers(numbers)
    show_cut(found.cut)
    say(f"{len(plan.data)} images of {plan.data.file}: {plan.out / METRICS}, {plan.out / PREDICTIONS}")
    return numbers

"""What a run's neck does to an image, beside another run's: a page and its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msefpn.errors import UserError
from msefpn.explaining.hooks import watching
from msefpn.explaining.levels import LevelPair, level_moments, level_similarity
from msefpn.explaining.page import explanation_page, summary
from msefpn.explaining.panels import Observation, level_name, map_sections
from msefpn.explaining.plan import ExplanationPlan, pixels_or_reason
from msefpn.inference.detect import predict_batch
from msefpn.inference.device import telling_memory
from msefpn.inference.formats import format_of
from msefpn.inference.predictor import Predictor
from msefpn.metrics.similarity import Moments
from msefpn.models import Detector
from msefpn.runs.console import Bar, say
from msefpn.writing import replacing


@dataclass(frozen=True)
class ExplainedRun:
    """A run whose neck is shown."""

    name: str
    """Its name on the page."""
    path: Path
    predictor: Predictor
    detector: Detector

    @classmethod
    def open(cls, run: Path, name: str, size: str | None, device: str) -> ExplainedRun:
        """Read the weights of a run. Raises UserError."""
        if format_of(run):
            raise UserError(
                f"run '{run}' is an exported file, whose inside cannot be seen: name the run's folder"
            )
        predictor = Predictor.open(run, size=size, device=device)
        assert isinstance(predictor.detector, Detector)
        return cls(name, run, predictor, predictor.detector)

    @torch.no_grad()
    def observe(self, pixels: NDArray[np.uint8], score: float | None = None) -> Observation:
        """Record the neck on an image (H, W, 3) RGB; detect if a score is given."""
        device, size = self.predictor.device, self.predictor.size
        batch = self.predictor.batch([pixels])
        predictions = None
        with telling_memory(1, size), watching(self.detector.neck) as record:
            if score is None or self.detector.takes_proposals:
                self.detector.pyramid(batch.images.to(device), batch.sizes.to(device))
            else:
                (predictions,) = predict_batch(self.detector, batch, device, score)
        height, width = batch.sizes[0].tolist()
        padded = batch.images.shape[2], batch.images.shape[3]
        return Observation(record, predictions, (height, width), padded)


def write_explanation(plan: ExplanationPlan, *, size: str | None, device: str) -> dict[str, Any]:
    """Write the page and its numbers; see `msefpn.commands.inspect.explain`."""
    runs, names, out, numbers, pixels = plan.runs, plan.names, plan.out, plan.numbers, plan.pixels
    opened = [ExplainedRun.open(run, name, size, device) for run, name in zip(runs, names, strict=True)]
    observed = [run.observe(pixels, plan.score) for run in opened]
    measured, unreadable = _measure_levels(opened, observed, plan.images)
    result: dict[str, Any] = {
        "image": str(plan.image),
        "score": plan.score,
        "runs": [_about(*pair, pixels.shape[:2]) for pair in zip(opened, observed, strict=True)],
        "similarity": level_similarity(names, measured),
    }
    sections = map_sections(list(zip(names, observed, strict=True)))
    with replacing(out) as page, replacing(numbers) as table:  # both or neither
        page.write_text(explanation_page(result, pixels, sections), encoding="utf-8")
        table.write_text(json.dumps(result, indent=1), encoding="utf-8")
    say(*(f"skipped: {text}" for text in unreadable))
    say(*summary(result), f"{out} and {numbers}")
    return result


def _measure_levels(
    runs: Sequence[ExplainedRun], observed: Sequence[Observation], images: Sequence[Path]
) -> tuple[list[dict[LevelPair, Moments]], list[str]]:
    """Moments (images, 3) of each run, and the unreadable images; without images, of the image shown."""
    rows = [[level_moments(one)] for one in observed]
    unreadable = []
    if images:
        rows = [[] for _ in runs]
        with Bar("explain", len(images)) as bar:
            for file in images:
                pixels = pixels_or_reason(file)
                if isinstance(pixels, str):
                    unreadable.append(pixels)
                else:
                    for own, run in zip(rows, runs, strict=True):
                        own.append(level_moments(run.observe(pixels)))
                bar.seen(1)
        if len(unreadable) == len(images):
            raise UserError(
                f"none of the {len(images)} images can be read: {unreadable[0]}: give other files"
            )
    return [{key: np.stack([row[key] for row in own]) for key in own[0]} for own in rows], unreadable


def _about(run: ExplainedRun, observed: Observation, size: tuple[int, int]) -> dict[str, Any]:
    config = run.detector.config
    return {
        "name": run.name,
        "run": str(run.path),
        "detector": config.detector,
        "backbone": config.backbone,
        "neck": config.neck,
        "seen_at": list(observed.size),
        "levels": {level_name(s): {"stride": s} for s in observed.record.stages["P"]},
        "detections": _detections(run.detector, observed),
    }


def _detections(detector: Detector, observed: Observation) -> list[dict[str, Any]] | None:
    """Best first; boxes xyxy, pixels of the file, and the level of each as the detector tells it."""
    predictions = observed.predictions
    if predictions is None:
        return None
    strides = predictions.strides
    levels = [None] * len(predictions.boxes) if strides is None else [level_name(s) for s in strides.tolist()]
    rows = zip(predictions.boxes, predictions.scores, predictions.labels, levels, strict=True)
    listed = [
        {
            "class": detector.classes[label],
            "score": round(float(score), 4),
            "box": [round(float(side), 1) for side in box],
            "level": level,
        }
        for box, score, label, level in rows
    ]
    return sorted(listed, key=lambda item: -float(str(item["score"])))

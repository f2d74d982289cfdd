"""How good the detections of the best weights are, beyond COCO's numbers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msefpn.data.coco import CocoData
from msefpn.data.values import is_box
from msefpn.errors import UserError
from msefpn.metrics.confusion import match_outcomes
from msefpn.metrics.curves import OperatingPoint, SizeBin, ap_over_sizes, best_f1, precision_curves
from msefpn.metrics.errors import ErrorAnalysis, analyse_errors
from msefpn.metrics.matching import BoxPredictions, GroundTruth
from msefpn.reading import MAX_JSON, Record, read_json


@dataclass(frozen=True)
class Analysis:
    """The detections of the best weights on the validation set. T: thresholds of IoU, K: classes."""

    classes: tuple[str, ...]
    images: int
    objects: list[int]
    """(K) objects of each class, without crowds."""
    precision: NDArray[np.float64]
    """(T, 101, K), see `PrecisionCurves`."""
    sizes: list[SizeBin]
    errors: ErrorAnalysis
    best: OperatingPoint
    """Where F1 at IoU 0.5 is highest: the score, and precision and recall at that score."""
    matrix: NDArray[np.int64]
    """(K + 1, K + 1) confusions at that score and IoU 0.5, see `DetectionOutcomes`."""


def analyse(
    data: CocoData, truth: GroundTruth, predicted: BoxPredictions, edges: Sequence[float]
) -> Analysis:
    """Measure detections.

    Args:
        data: the validation set.
        truth: its objects.
        predicted: the detections.
        edges: borders of the size bins, see `size_edges`.
    """
    classes = len(data.classes)
    curves = precision_curves(truth, predicted, classes)
    best = best_f1(truth, predicted, curves)
    return Analysis(
        classes=data.classes,
        images=len(data),
        objects=np.bincount(truth.label[~truth.crowd], minlength=classes).tolist(),
        precision=curves.precision,
        sizes=ap_over_sizes(truth, predicted, classes, list(edges)),
        errors=analyse_errors(truth, predicted, classes),
        best=best,
        matrix=match_outcomes(truth, predicted, classes, len(data), score=best.score).matrix,
    )


def ground_truth_of(data: CocoData) -> GroundTruth:
    """The objects of a data set; images are numbered in the order of their ids, as in COCO's protocol."""
    image = np.repeat(_numbers_of(data), np.diff(data.offsets))
    boxes = np.concatenate([data.boxes[:, :2], data.boxes[:, 2:] - data.boxes[:, :2]], 1).astype(np.float64)
    return GroundTruth(image, data.labels, boxes, data.areas, data.crowd)


def read_predictions(path: Path, data: CocoData) -> BoxPredictions:
    """Read predictions.json; those of unknown images or categories are ignored. Raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no {path}")
    results = read_json(path, "evaluate the run again", most=MAX_JSON)
    image_of = dict(zip(data.ids.tolist(), _numbers_of(data).tolist(), strict=True))
    label_of = {id: label for label, id in enumerate(data.category_ids)}
    if not isinstance(results, list):
        raise UserError(f"{path} is not a list of detections: evaluate the run again")
    known = []
    for number, item in enumerate(results):
        entry = Record(item, f"{path}: entry {number}", "evaluate the run again")
        entry.number("score")
        if not is_box(entry.values.get("bbox")):
            raise entry.fault("has no bbox of 4 numbers")
        if entry.whole("image_id") in image_of and entry.whole("category_id") in label_of:
            known.append(entry.values)
    predictions = BoxPredictions(
        np.array([image_of[item["image_id"]] for item in known], dtype=np.int64),
        np.array([label_of[item["category_id"]] for item in known], dtype=np.int64),
        np.array([item["bbox"] for item in known], dtype=np.float64).reshape(-1, 4),
        np.array([item["score"] for item in known], dtype=np.float64),
    )
    return predictions.where(np.argsort(predictions.image, kind="stable"))


def checksum(data: CocoData) -> int:
    """A number that differs for other images, classes or boxes."""
    names = repr((data.classes, data.names, data.ids.tolist())).encode()
    return zlib.crc32(data.labels.tobytes(), zlib.crc32(data.boxes.tobytes(), zlib.crc32(names)))


def _numbers_of(data: CocoData) -> NDArray[np.int64]:
    numbers = np.empty(len(data), dtype=np.int64)
    numbers[np.argsort(data.ids)] = np.arange(len(data))
    return numbers

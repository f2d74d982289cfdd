"""The 12 numbers of COCO's protocol and AP per class, by faster-coco-eval."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""In COCO's order: IoU 0.50:0.95, 0.50, 0.75; area under 32^2, to 96^2, over; most detections per image."""

MASK = "mask_"
"""What the names of the masks' numbers begin with."""


def evaluate_coco(
    truth: dict[str, Any] | Path, predictions: list[dict[str, Any]], *, masks: bool = False
) -> dict[str, Any]:
    """Compare predictions with the truth by COCO's protocol (cocodataset.org/#detection-eval).

    Args:
        truth: a COCO json, read or as a path; an annotation's `area` is that of its box if it is missing.
        predictions: COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height; pixels), `score`.
        masks: compare the masks too; then both sides have `segmentation`, the predictions' in run lengths.

    Returns:
        The `NUMBERS`, 0..1 or -1 where there is nothing to find, and `per_class`: name -> AP. With masks also
        theirs, under the same names after `MASK`.
    """
    content = json.loads(truth.read_bytes()) if isinstance(truth, Path) else truth
    numbers = _compared(content, predictions, "bbox")
    if masks:
        drawn = _compared(content, predictions, "segm")
        numbers |= {f"{MASK}{name}": value for name, value in drawn.items()}
    return numbers


def scores_of(numbers: dict[str, Any]) -> dict[str, float]:
    """Those of `evaluate_coco`'s values that are `NUMBERS`, of boxes and masks."""
    return {name: value for name, value in numbers.items() if name.removeprefix(MASK) in NUMBERS}


def _compared(content: dict[str, Any], predictions: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    shared = {"images": content["images"], "categories": content["categories"]}
    expected = COCO(shared | {"annotations": _with_areas(content["annotations"], _box_area)})
    area = _box_area if kind == "bbox" else _mask_area
    found = COCO(shared | {"annotations": _with_areas(predictions, area)})
    evaluator = COCOeval_faster(expected, found, iouType=kind)
    evaluator.run()
    numbers = dict(zip(NUMBERS, map(float, evaluator.stats[: len(NUMBERS)]), strict=True))
    return numbers | {"per_class": _per_class(evaluator, content["categories"])}


def _with_areas(
    annotations: list[dict[str, Any]], area: Callable[[dict[str, Any]], float]
) -> list[dict[str, Any]]:
    """Copies, numbered from 1 (0 means 'not matched' in the protocol), with the keys that it needs."""
    return [
        {"area": area(item), "iscrowd": 0, **item, "id": number} for number, item in enumerate(annotations, 1)
    ]


def _box_area(item: dict[str, Any]) -> float:
    area: float = item["bbox"][2] * item["bbox"][3]
    return area


def _mask_area(item: dict[str, Any]) -> float:
    return float(coco_mask.area(item["segmentation"]))


def _per_class(evaluator: COCOeval_faster, categories: list[dict[str, Any]]) -> dict[str, float]:
    names = {item["id"]: item["name"] for item in categories}
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]  # (IoU, recall, class)
    per_class = {}
    for index, category in enumerate(evaluator.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        per_class[names[int(category)]] = float(values.mean()) if values.size else -1.0
    return per_class

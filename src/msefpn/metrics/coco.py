"""The 12 numbers of COCO's protocol and AP per class, by hotcoco or, where it cannot, by faster-coco-eval."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

try:
    import hotcoco
except ImportError:  # not every machine has a wheel of it
    hotcoco = None  # type: ignore[assignment]  # stands where the module would

Curves = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision (T, R, K, A, L) and recall (T, K, A, L), -1 where there is nothing to find: T thresholds of IoU
(0.50:0.95), R of recall; K categories in the order of their ids; A areas (all, small, medium, large);
L limits of an image's detections of a category (1, 10, 100)."""

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
    curves = _curves_by_hotcoco if _hotcoco_can(content) else _curves_by_faster_coco_eval
    precision, recall = curves(content, predictions, kind)
    most = precision[..., -1]  # (T, R, K, A), as AP is defined
    values = [most[..., 0], most[0, ..., 0], most[5, ..., 0]]
    values += [most[..., area] for area in (1, 2, 3)]
    values += [recall[:, :, 0, limit] for limit in (0, 1, 2)]
    values += [recall[:, :, area, -1] for area in (1, 2, 3)]
    numbers: dict[str, Any] = dict(zip(NUMBERS, map(_mean, values), strict=True))
    names = {item["id"]: item["name"] for item in content["categories"]}
    per_class = {names[id]: _mean(most[:, :, index, 0]) for index, id in enumerate(sorted(names))}
    return numbers | {"per_class": per_class}


def _mean(values: NDArray[np.float64]) -> float:
    """That of the values that are there; -1 without any."""
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def _hotcoco_can(content: dict[str, Any]) -> bool:
    """It is installed, and takes the ids: none below 0."""
    return hotcoco is not None and all(
        item["id"] >= 0 for kind in ("images", "categories") for item in content[kind]
    )


def _curves_by_hotcoco(content: dict[str, Any], predictions: list[dict[str, Any]], kind: str) -> Curves:
    """Image by image: all at once it holds three times the memory."""
    known = {item["id"] for item in content["categories"]}
    expected = _by_image(_with_areas(content["annotations"], _box_area), known)
    found = _by_image(predictions, known)
    evaluator = hotcoco.StreamingEval(content["categories"], kind)
    for image in content["images"]:
        here = found.get(image["id"], [])
        if kind == "segm":  # it would take the area of a box, if there is one, for that of the mask
            here = [{key: value for key, value in item.items() if key != "bbox"} for item in here]
        evaluator.update([image], expected.get(image["id"], []), here)
    whole = evaluator.finalize()
    whole.accumulate()
    curves = whole.eval or {}  # a copy; None before the line above
    return curves["precision"], curves["recall"]


def _curves_by_faster_coco_eval(
    content: dict[str, Any], predictions: list[dict[str, Any]], kind: str
) -> Curves:
    shared = {"images": content["images"], "categories": content["categories"]}
    expected = COCO(shared | {"annotations": _with_areas(content["annotations"], _box_area)})
    area = _box_area if kind == "bbox" else _mask_area
    found = COCO(shared | {"annotations": _with_areas(predictions, area)})
    evaluator = COCOeval_faster(expected, found, iouType=kind)
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def _by_image(
    items: Iterable[dict[str, Any]], categories: Collection[int]
) -> dict[int, list[dict[str, Any]]]:
    """Those of the categories: hotcoco refuses others, which count for nothing in the protocol."""
    groups = defaultdict(list)
    for item in items:
        if item["category_id"] in categories:
            groups[item["image_id"]].append(item)
    return groups


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

"""The 12 numbers of COCO's protocol and AP per class, by hotcoco or, where it cannot, by faster-coco-eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from msefpn.errors import UserError
from msefpn.reading import MAX_JSON, read_json

try:
    import hotcoco
except ImportError:  # an extra; there are machines without a wheel of it
    hotcoco = None  # type: ignore[assignment]  # in the place of the module

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""In COCO's order: IoU 0.50:0.95, 0.50, 0.75; area under 32^2, to 96^2, over; most detections per image."""

_PrecisionRecall = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision (T, R, K, A, L) and recall (T, K, A, L), -1 where there are no objects: T thresholds of IoU
(0.50:0.95), R of recall; K categories in the order of their ids; A areas (all, small, medium, large);
L limits of an image's detections of a category (1, 10, 100)."""


@dataclass(frozen=True)
class CocoScores:
    """COCO's numbers of boxes or of masks, 0..1, or -1 where there are no objects."""

    numbers: dict[str, float]
    """The `NUMBERS`, by name."""
    per_class: dict[str, float]
    """Class -> AP."""

    def to_json(self) -> dict[str, Any]:
        """As it is written to files."""
        return {**self.numbers, "per_class": self.per_class}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CocoScores:
        """Read what `to_json` gave; other keys are ignored."""
        return cls({name: content[name] for name in NUMBERS}, content.get("per_class", {}))


@dataclass(frozen=True)
class CocoEvaluation:
    """COCO's numbers of boxes and masks."""

    box: CocoScores
    mask: CocoScores | None = None
    """None where masks were not compared."""

    def to_json(self) -> dict[str, Any]:
        """As it is written to files: the boxes' numbers and, under 'mask', the masks'."""
        return self.box.to_json() | ({} if self.mask is None else {"mask": self.mask.to_json()})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CocoEvaluation:
        """Read what `to_json` gave; other keys are ignored. Raises UserError for the layout of 0.1."""
        if "mask_AP" in content:
            raise UserError("the numbers of masks are in the layout of msefpn 0.1: evaluate the run again")
        mask = content.get("mask")
        return cls(CocoScores.from_json(content), None if mask is None else CocoScores.from_json(mask))

    def named(self) -> dict[str, float]:
        """All numbers by a name of their own, for logs: AP, ..., mask_AP, ..."""
        masks = {} if self.mask is None else self.mask.numbers
        return self.box.numbers | {f"mask_{name}": value for name, value in masks.items()}


def evaluate_coco(
    truth: dict[str, Any] | Path, predictions: list[dict[str, Any]], *, masks: bool = False
) -> CocoEvaluation:
    """Compare predictions with the ground truth by COCO's protocol (cocodataset.org/#detection-eval).

    Args:
        truth: a COCO json, read or as a path; an annotation's `area` is that of its box if it is missing.
        predictions: COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height; pixels), `score`.
        masks: compare the masks too; then both sides have `segmentation`, the predictions' in run lengths.
    """
    content = read_json(truth, "restore it", most=MAX_JSON) if isinstance(truth, Path) else truth
    return CocoEvaluation(
        _compared(content, predictions, "bbox"), _compared(content, predictions, "segm") if masks else None
    )


def _compared(content: dict[str, Any], predictions: list[dict[str, Any]], kind: str) -> CocoScores:
    curves = _curves_by_hotcoco if _hotcoco_can(content) else _curves_by_faster_coco_eval
    precision, recall = curves(content, predictions, kind)
    most = precision[..., -1]  # (T, R, K, A), as AP is defined
    values = [most[..., 0], most[0, ..., 0], most[5, ..., 0]]
    values += [most[..., area] for area in (1, 2, 3)]
    values += [recall[:, :, 0, limit] for limit in (0, 1, 2)]
    values += [recall[:, :, area, -1] for area in (1, 2, 3)]
    numbers = dict(zip(NUMBERS, map(_mean, values), strict=True))
    names = {item["id"]: item["name"] for item in content["categories"]}
    per_class = {names[id]: _mean(most[:, :, index, 0]) for index, id in enumerate(sorted(names))}
    return CocoScores(numbers, per_class)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not -1; -1 without any."""
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def _hotcoco_can(content: dict[str, Any]) -> bool:
    """Whether it is installed and takes the ids: none below 0."""
    return hotcoco is not None and all(
        item["id"] >= 0 for kind in ("images", "categories") for item in content[kind]
    )


def _curves_by_hotcoco(
    content: dict[str, Any], predictions: list[dict[str, Any]], kind: str
) -> _PrecisionRecall:
    """Image by image: all at once it holds three times the memory."""
    known = {item["id"] for item in content["categories"]}
    expected = _by_image(_with_areas(content["annotations"], _box_area), known)
    found = _by_image(predictions, known)
    evaluator = hotcoco.StreamingEval(content["categories"], kind)
    for image in content["images"]:
        here = found.get(image["id"], [])
        if kind == "segm":  # it would use the area of a box, if there is one, for the mask
            here = [{key: value for key, value in item.items() if key != "bbox"} for item in here]
        evaluator.update([image], expected.get(image["id"], []), here)
    whole = evaluator.finalize()
    whole.accumulate()
    curves = whole.eval or {}  # a copy; None before the line above
    return curves["precision"], curves["recall"]


def _curves_by_faster_coco_eval(
    content: dict[str, Any], predictions: list[dict[str, Any]], kind: str
) -> _PrecisionRecall:
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
    """The items of the categories, by image: hotcoco refuses others, which the protocol ignores."""
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

"""The detections of all runs on one image, of any score: the page filters them itself."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.masks import resized_mask
from msefpn.inference.detect import as_results
from msefpn.inference.draw import class_colour
from msefpn.inference.predictor import Predictor
from msefpn.web.limits import Limits

SHOWN_SIDE = (960, 1280)
"""Least and greatest longest side of the shown image, pixels; the least keeps labels legible."""


@dataclass(frozen=True)
class ServedRun:
    """A run on the page."""

    name: str
    """Name of its folder or file, without the path."""
    predictor: Predictor


def all_classes(runs: Sequence[ServedRun]) -> list[str]:
    """The classes of all runs, each once, so that a class has the same colour in all runs."""
    return list(dict.fromkeys(name for run in runs for name in run.predictor.classes))


def describe_runs(runs: Sequence[ServedRun], limits: Limits) -> dict[str, Any]:
    """What the page shows before there is an image: names of runs, names and colours of classes."""
    classes = [{"name": name, "colour": class_colour(place)} for place, name in enumerate(all_classes(runs))]
    return {"runs": [run.name for run in runs], "classes": classes, "bytes": limits.bytes}


def detect_all(runs: Sequence[ServedRun], pixels: NDArray[np.uint8]) -> bytes:
    """Detect on an image (H, W, 3) RGB with each run, one forward each.

    Returns:
        A json: `height` and `width` of the image; `picture`, the shown image as a data URI, whose longest
        side is within `SHOWN_SIDE`; and `runs`, with for each its `name`, the `seconds` from pixels to boxes
        and `found`, all detections of any score, best first.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    factor = min(max(longest, SHOWN_SIDE[0]), SHOWN_SIDE[1]) / longest
    shown = max(1, round(height * factor)), max(1, round(width * factor))
    answer = {
        "height": height,
        "width": width,
        "picture": _data_uri(pixels, shown),
        "runs": [_detect(run, pixels, shown, all_classes(runs)) for run in runs],
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def _detect(
    run: ServedRun, pixels: NDArray[np.uint8], shown: tuple[int, int], classes: list[str]
) -> dict[str, Any]:
    """Detections of a run.

    Each has `result`, an item of COCO's result format in pixels of the image; the name of its `category`; its
    `label`, an index of `classes`; the `stride` of its level, if known; its `mask`, if any, in pixels of the
    `shown` image (height, width).
    """
    began = time.perf_counter()
    found = run.predictor([pixels], score=0.0)[0]
    seconds = time.perf_counter() - began
    found = found.where(found.scores.argsort(kind="stable")[::-1])
    found = replace(found, image_ids=np.zeros(len(found.scores), np.int64))
    items = []
    for row, result in enumerate(as_results(found, run.predictor.category_ids)):
        category = run.predictor.classes[found.labels[row]]
        item = {"label": classes.index(category), "category": category, "result": result}
        if found.strides is not None:
            item["stride"] = int(found.strides[row])
        if "segmentation" in result and (small := resized_mask(result["segmentation"], shown)):
            item["mask"] = small["counts"]
        items.append(item)
    return {"name": run.name, "seconds": seconds, "found": items}


def _data_uri(pixels: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """An image (H, W, 3) resized to `size`, height and width, as a data URI of a JPEG."""
    buffer = BytesIO()
    small = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2)
    small.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

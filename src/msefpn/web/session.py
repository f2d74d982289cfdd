"""The detections of all runs on an upload, kept complete: score and classes filter them without a forward."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.masks import decode_masks, encode_mask, run_lengths
from msefpn.inference.detect import Predictions, as_results
from msefpn.inference.draw import draw
from msefpn.inference.predictor import Predictor
from msefpn.web.upload import Upload

SHOWN_SIDE = (960, 1280)
"""Least and greatest longest side of the shown image, pixels; the least keeps labels legible."""


@dataclass(frozen=True)
class ServedRun:
    """A run on the page."""

    name: str
    """Name of its folder or file, without the path."""
    predictor: Predictor
    lock: Lock = field(default_factory=Lock)
    """A detector processes one image at a time."""


@dataclass(frozen=True)
class RunDetections:
    """All detections of one run on one image, of any score, best first."""

    run: str
    full: Predictions
    """In pixels of the image."""
    small: Predictions
    """In pixels of the shown image; labels are indices of `all_classes`."""
    seconds: float
    """Time from pixels to boxes."""


@dataclass(frozen=True)
class Session:
    """What the page keeps of a visitor: the last image with its detections."""

    name: str
    """File name of the image."""
    size: tuple[int, int]
    """Height and width of the image, pixels."""
    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB, the shown image; its longest side is within `SHOWN_SIDE`."""
    detections: tuple[RunDetections, ...]


def all_classes(runs: Sequence[ServedRun]) -> list[str]:
    """The classes of all runs, each once, so that a class has the same colour in all runs."""
    return list(dict.fromkeys(name for run in runs for name in run.predictor.classes))


def detect_all(runs: Sequence[ServedRun], upload: Upload) -> Session:
    """Detect on an upload with each run, one forward each."""
    height, width = upload.pixels.shape[:2]
    longest = max(height, width)
    factor = min(max(longest, SHOWN_SIDE[0]), SHOWN_SIDE[1]) / longest
    shown = max(1, round(height * factor)), max(1, round(width * factor))
    image = Image.fromarray(upload.pixels).resize(shown[::-1], Image.Resampling.BICUBIC, reducing_gap=2)
    detections = tuple(_detect(run, upload.pixels, shown, all_classes(runs)) for run in runs)
    return Session(upload.name, (height, width), np.asarray(image), detections)


def _detect(
    run: ServedRun, pixels: NDArray[np.uint8], shown: tuple[int, int], classes: list[str]
) -> RunDetections:
    with run.lock:
        began = time.perf_counter()
        found = run.predictor([pixels], score=0.0)[0]
        seconds = time.perf_counter() - began
    found = found.where(found.scores.argsort(kind="stable")[::-1])
    places = np.array([classes.index(name) for name in run.predictor.classes], np.int64)
    factor = np.array(shown, np.float32)[[1, 0, 1, 0]] / np.array(pixels.shape[:2], np.float32)[[1, 0, 1, 0]]
    masks = None if found.masks is None else _resized(found.masks, pixels.shape[:2], shown)
    small = replace(found, boxes=found.boxes * factor, labels=places[found.labels], masks=masks)
    return RunDetections(run.name, found, small, seconds)


def _resized(
    masks: NDArray[np.object_], size: tuple[int, int], shown: tuple[int, int]
) -> NDArray[np.object_]:
    """Resize masks, run lengths (M,), from one size (height, width) to another, nearest."""
    rows, columns = ((np.arange(new) * old // new) for old, new in zip(size, shown, strict=True))
    resized = np.empty(len(masks), dtype=object)
    for place, item in enumerate(masks):
        mask = decode_masks([item["counts"].encode()], size)[0]
        resized[place] = run_lengths(encode_mask(mask[rows][:, columns]), shown)
    return resized


def choose_rows(
    detections: RunDetections, score: float, wanted: Collection[str], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Indices (m,), best first, of detections with at least `score`, of the wanted classes; none: all."""
    keep = detections.full.scores >= score
    if wanted:
        keep &= np.isin(
            detections.small.labels, [place for place, name in enumerate(classes) if name in wanted]
        )
    return keep.nonzero()[0]


def draw_detections(
    pixels: NDArray[np.uint8], detections: RunDetections, rows: NDArray[np.int64], classes: Sequence[str]
) -> str:
    """The shown image with some detections, drawn as by `predict`: a data URI of a JPEG."""
    buffer = BytesIO()
    Image.fromarray(draw(pixels, detections.small.where(rows), classes)).save(buffer, "JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def results_json(detections: RunDetections, rows: NDArray[np.int64], run: ServedRun, file_name: str) -> str:
    """Some detections in COCO's result format with names: a data URI of a json."""
    found = detections.full.where(rows)
    found = replace(found, image_ids=np.zeros(len(rows), np.int64))
    names = dict(zip(run.predictor.category_ids, run.predictor.classes, strict=True))
    items = [
        {"file_name": file_name, "category": names[item["category_id"]], **item}
        for item in as_results(found, run.predictor.category_ids)
    ]
    return _data_uri("application/json", json.dumps(items, indent=1).encode())


def json_name(image: str, run: str) -> str:
    """File name of the json."""
    return f"{Path(image).stem}-{run}.json"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

"""What runs found on a picture, kept whole: score and classes choose from it without a new forward."""

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
from msefpn.web.picture import Picture

SHOWN = (960, 1280)
"""Longest side of the picture on the page, pixels: at least, so that labels can be read, and at most."""


@dataclass(frozen=True)
class Shown:
    """A run on the page."""

    name: str
    """Its folder's or file's own name, without the path."""
    predictor: Predictor
    lock: Lock = field(default_factory=Lock)
    """One picture at a time goes through a detector, whoever sent it."""


@dataclass(frozen=True)
class Look:
    """What one run found on one picture: everything, whatever its score."""

    run: str
    found: Predictions
    """In pixels of the picture."""
    small: Predictions
    """In pixels of what is shown of it, labels in the page's list of classes."""
    seconds: float
    """From pixels to boxes."""


@dataclass(frozen=True)
class Visit:
    """What the page keeps for one visitor: the last picture and what was found on it."""

    name: str
    size: tuple[int, int]
    """Height and width of the picture, pixels."""
    pixels: NDArray[np.uint8]
    """(h, w, 3), its longest side within `SHOWN`."""
    looks: tuple[Look, ...]


def all_classes(runs: Sequence[Shown]) -> list[str]:
    """The classes of all runs, each once: a class has the same place, and so the same colour, in all."""
    return list(dict.fromkeys(name for run in runs for name in run.predictor.classes))


def visit(runs: Sequence[Shown], picture: Picture) -> Visit:
    """Detect on a picture with each run, one forward each."""
    height, width = picture.pixels.shape[:2]
    longest = max(height, width)
    factor = min(max(longest, SHOWN[0]), SHOWN[1]) / longest
    shown = max(1, round(height * factor)), max(1, round(width * factor))
    image = Image.fromarray(picture.pixels).resize(shown[::-1], Image.Resampling.BICUBIC, reducing_gap=2)
    looks = tuple(_look(run, picture.pixels, shown, all_classes(runs)) for run in runs)
    return Visit(picture.name, (height, width), np.asarray(image), looks)


def _look(run: Shown, pixels: NDArray[np.uint8], shown: tuple[int, int], classes: list[str]) -> Look:
    with run.lock:
        began = time.perf_counter()
        found = run.predictor([pixels], score=0.0)[0]
        seconds = time.perf_counter() - began
    found = found.where(found.scores.argsort(kind="stable")[::-1])
    places = np.array([classes.index(name) for name in run.predictor.classes], np.int64)
    factor = np.array(shown, np.float32)[[1, 0, 1, 0]] / np.array(pixels.shape[:2], np.float32)[[1, 0, 1, 0]]
    masks = None if found.masks is None else _resized(found.masks, pixels.shape[:2], shown)
    small = replace(found, boxes=found.boxes * factor, labels=places[found.labels], masks=masks)
    return Look(run.name, found, small, seconds)


def _resized(
    masks: NDArray[np.object_], size: tuple[int, int], shown: tuple[int, int]
) -> NDArray[np.object_]:
    """Run lengths (M,) of masks of one size (height, width) as those of another, by the nearest pixel."""
    rows, columns = ((np.arange(new) * old // new) for old, new in zip(size, shown, strict=True))
    resized = np.empty(len(masks), dtype=object)
    for place, item in enumerate(masks):
        mask = decode_masks([item["counts"].encode()], size)[0]
        resized[place] = run_lengths(encode_mask(mask[rows][:, columns]), shown)
    return resized


def chosen(look: Look, score: float, wanted: Collection[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Indices (m,), best first, of the detections of at least `score` and of wanted classes; none: all."""
    keep = look.found.scores >= score
    if wanted:
        keep &= np.isin(look.small.labels, [place for place, name in enumerate(classes) if name in wanted])
    return keep.nonzero()[0]


def drawn(pixels: NDArray[np.uint8], look: Look, rows: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The picture with some of the detections, as `predict` draws them: a data URI of a JPEG."""
    buffer = BytesIO()
    Image.fromarray(draw(pixels, look.small.where(rows), classes)).save(buffer, "JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def results(look: Look, rows: NDArray[np.int64], run: Shown, file_name: str) -> str:
    """Some of the detections in COCO's result format with names, as a data URI of a json."""
    found = look.found.where(rows)
    found = replace(found, image_ids=np.zeros(len(rows), np.int64))
    names = dict(zip(run.predictor.category_ids, run.predictor.classes, strict=True))
    items = [
        {"file_name": file_name, "category": names[item["category_id"]], **item}
        for item in as_results(found, run.predictor.category_ids)
    ]
    return _data_uri("application/json", json.dumps(items, indent=1).encode())


def json_name(picture: str, run: str) -> str:
    """File name of the json."""
    return f"{Path(picture).stem}-{run}.json"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

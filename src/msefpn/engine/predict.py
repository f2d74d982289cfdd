"""Prediction: a run and images into pictures and one json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.images import ImageFault, read_image
from msefpn.data.masks import decode_masks
from msefpn.engine.detect import Found, as_results
from msefpn.engine.inputs import Prediction, picture_names
from msefpn.engine.predictor import Predictor
from msefpn.engine.run import PREDICTIONS, new_folder, write_text
from msefpn.engine.screen import Bar, say, show_cut
from msefpn.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about OpenCV, which it does without
    import supervision as sv

_COLOURS = sv.ColorPalette.DEFAULT
_TEXT_COLOURS = sv.ColorPalette(
    [
        sv.Color.BLACK if 0.299 * colour.r + 0.587 * colour.g + 0.114 * colour.b > 150 else sv.Color.WHITE
        for colour in _COLOURS.colors
    ]
)
"""What can be read on them (luma of ITU-R BT.601)."""


class _Picture(NamedTuple):
    number: int
    pixels: NDArray[np.uint8]  # (H, W, 3) RGB


def predict(plan: Prediction, *, device: str) -> list[dict[str, Any]]:
    """Detect on images as planned; see `msefpn.api.predict`."""
    predictor = Predictor.open(plan.run, size=plan.size, device=device)
    files, names = plan.files, picture_names(plan.files)
    class_of = dict(zip(predictor.category_ids, predictor.classes, strict=True))
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    cut = 0
    with new_folder(plan.out):
        with Bar("predict", len(files)) as bar:
            for chunk in _chunks(files, plan.batch, unreadable):
                regions = plan.proposals and [plan.proposals[p.number] for p in chunk]
                found = predictor([p.pixels for p in chunk], score=plan.score, proposals=regions)
                for picture, mine in zip(chunk, found, strict=True):
                    cut += mine.cut
                    placed = replace(mine, image_ids=np.full_like(mine.image_ids, picture.number))
                    results += [
                        {
                            "file_name": str(files[picture.number]),
                            "category": class_of[item["category_id"]],
                            **item,
                        }
                        for item in as_results(placed, predictor.category_ids)
                    ]
                    drawn = draw(picture.pixels, mine, predictor.classes)
                    Image.fromarray(drawn).save(plan.out / names[picture.number], quality=92)
                bar.seen(len(chunk))
        if len(unreadable) == len(files):
            raise UserError(f"none of the {len(files)} images can be read: {unreadable[0]}: give other files")
        write_text(plan.out / PREDICTIONS, json.dumps(results, indent=1))
    say(*(f"skipped: {text}" for text in unreadable))
    show_cut(cut)
    skipped = f", {len(unreadable)} skipped" if unreadable else ""
    say(f"{len(results)} objects in {len(files) - len(unreadable)} images{skipped}: {plan.out}")
    return results


def draw(pixels: NDArray[np.uint8], found: Found, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Draw boxes, labels and masks into a copy of an image (H, W, 3) RGB."""
    height, width = pixels.shape[:2]
    found = found.where(found.scores.argsort())  # the best on top
    detections = sv.Detections(xyxy=found.boxes, confidence=found.scores, class_id=found.labels.astype(int))
    if found.masks is not None:
        counts = [item["counts"].encode() for item in found.masks]
        detections.mask = decode_masks(counts, (height, width)).astype(bool)
    thickness = max(1, round(min(width, height) / 300))
    text_scale = max(0.35, min(width, height) / 1200)
    padding = round(6 * text_scale)
    texts = [f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
    scene = np.ascontiguousarray(pixels[..., ::-1])  # supervision draws in BGR
    if detections.mask is not None:
        scene = sv.MaskAnnotator(_COLOURS, opacity=0.4).annotate(scene, detections)
    scene = sv.BoxAnnotator(_COLOURS, thickness=thickness).annotate(scene, detections)
    annotator = sv.LabelAnnotator(
        _COLOURS,
        text_color=_TEXT_COLOURS,
        text_scale=text_scale,
        text_thickness=max(1, thickness // 2),
        text_padding=padding,
    )
    # A label stands on its box; at the upper edge there is no room for it, so it goes down into the image.
    label_height = round(24 * text_scale) + 2 * padding
    labelled = replace(detections, xyxy=np.maximum(found.boxes, [0, label_height, 0, label_height]))
    drawn: NDArray[np.uint8] = annotator.annotate(scene, labelled, texts)[..., ::-1]
    return np.ascontiguousarray(drawn)


def class_colour(label: int) -> str:
    """The colour in which `draw` shows a class, as #rrggbb."""
    return str(_COLOURS.by_idx(label).as_hex())


def _chunks(files: Sequence[Path], batch: int, unreadable: list[str]) -> Iterator[list[_Picture]]:
    """Decoded images in groups; the next group is read while the last is looked at."""
    with ThreadPoolExecutor(2) as pool:
        groups = [range(start, min(start + batch, len(files))) for start in range(0, len(files), batch)]
        ahead = [pool.submit(_read, files[index]) for index in groups[0]]
        for group, following in zip(groups, [*groups[1:], range(0)], strict=True):
            current, ahead = ahead, [pool.submit(_read, files[index]) for index in following]
            chunk = []
            for index, future in zip(group, current, strict=True):
                pixels = future.result()
                if isinstance(pixels, str):
                    unreadable.append(pixels)
                else:
                    chunk.append(_Picture(index, pixels))
            if chunk:
                yield chunk


def _read(file: Path) -> NDArray[np.uint8] | str:
    """The pixels, or why there are none."""
    try:
        return read_image(file)
    except (OSError, ImageFault) as error:
        return f"{file}: {' '.join(str(error).split())}"

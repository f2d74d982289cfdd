"""What was found, drawn into its picture."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from msefpn.data.masks import decode_masks
from msefpn.inference.detect import Predictions

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
_FONT = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
"""It knows more letters than Pillow's own."""
_LONGEST = 32
"""Letters of a class name that a label shows."""


def as_supervision(found: Predictions, classes: Sequence[str], size: tuple[int, int]) -> Any:
    """What was found on one image, as `supervision.Detections`.

    Args:
        found: of one image.
        classes: names of the K classes.
        size: height and width of the image, pixels.

    Returns:
        Detections with xyxy, confidence, class_id, mask (M, H, W) bool or None, and data["class_name"].
    """
    names = np.array([classes[label] for label in found.labels], dtype=str)
    mask = None
    if found.masks is not None:
        mask = decode_masks([item["counts"].encode() for item in found.masks], size).astype(bool)
    return sv.Detections(
        xyxy=found.boxes,
        confidence=found.scores,
        class_id=found.labels.astype(int),
        mask=mask,
        data={"class_name": names},
    )


def draw(pixels: NDArray[np.uint8], found: Predictions, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Draw boxes, labels and masks into a copy of an image (H, W, 3) RGB; a class keeps its colour."""
    if not len(found.boxes):
        return pixels.copy()
    height, width = pixels.shape[:2]
    found = found.where(found.scores.argsort())  # the best on top
    detections = as_supervision(found, classes, (height, width))
    thickness = max(1, round(min(width, height) / 300))
    letters = max(11, round(min(width, height) / 42))
    padding = max(2, round(letters / 4))
    scene = np.ascontiguousarray(pixels[..., ::-1])  # supervision draws in BGR
    if detections.mask is not None:
        scene = sv.MaskAnnotator(_COLOURS, opacity=0.4).annotate(scene, detections)
    scene = sv.BoxAnnotator(_COLOURS, thickness=thickness).annotate(scene, detections)
    names = [_shown(classes[label]) for label in found.labels]
    texts = [f"{name} {score:.2f}" for name, score in zip(names, found.scores, strict=True)]
    annotator = sv.RichLabelAnnotator(
        _COLOURS, text_color=_TEXT_COLOURS, font_path=_FONT, font_size=letters, text_padding=padding
    )
    labelled = replace(detections, xyxy=_room(found.boxes, texts, (height, width), letters, padding))
    drawn: NDArray[np.uint8] = annotator.annotate(scene, labelled, texts)[..., ::-1]
    return np.ascontiguousarray(drawn)


def class_colour(label: int) -> str:
    """The colour in which `draw` shows a class, as #rrggbb."""
    return str(_COLOURS.by_idx(label).as_hex())


def _shown(name: str) -> str:
    """A class name in a line of bounded length."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _room(
    boxes: NDArray[np.float32], texts: Sequence[str], size: tuple[int, int], letters: int, padding: int
) -> NDArray[np.float32]:
    """Boxes moved so that their labels, which stand on their upper left corners, are inside the picture."""
    widths = np.array([_font(letters).getlength(text) for text in texts]) + 2 * padding
    label_height = 1.3 * letters + 2 * padding
    moved = boxes.copy()
    moved[:, 0] = np.minimum(moved[:, 0], size[1] - widths).clip(min=0)
    moved[:, 1] = np.maximum(moved[:, 1], label_height)
    moved[:, 2:] = np.maximum(boxes[:, 2:], moved[:, :2])
    return moved


@functools.cache
def _font(letters: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONT, letters)

"""The page of `check`: colours of classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from msefpn.data.reader import read_coco
from msefpn.reporting.dataset import class_paint, draw_boxes


def test_classes_have_colours_of_their_own() -> None:
    colours = np.array([ImageColor.getrgb(class_paint(label))[:3] for label in range(30)], dtype=float)
    apart = np.linalg.norm(colours[:, None] - colours, axis=2) + 999 * np.eye(30)
    assert apart.min() > 30


def test_a_class_keeps_its_colour_in_every_picture(tiny_set: Path) -> None:
    data, _ = read_coco(tiny_set / "train.json", tiny_set / "train")
    for index in range(4):
        picture, key = draw_boxes(data, index)
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)
        for label in set(data.boxes_of(index)[1].tolist()):
            assert class_paint(label) in key
            paint = ImageColor.getrgb(class_paint(label))[:3]
            near = np.linalg.norm(pixels - paint, axis=2) < 60  # the file is JPEG
            assert near.sum() > 50, "its box, and the plate of its name"

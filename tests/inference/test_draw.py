"""Pictures with boxes: what is drawn where, and names that are hard to draw."""

import numpy as np
import pytest

from msefpn.data.masks import encode_mask, run_lengths
from msefpn.inference.detect import Predictions
from msefpn.inference.draw import as_supervision, draw


def test_drawing_changes_the_boxes_alone() -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    box = np.array([[100, 80, 180, 150]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([1]))
    drawn = draw(pixels, found, ["cat", "dog"])
    assert (pixels == 128).all(), "the input is left as it was"
    changed = (drawn != pixels).any(-1)
    assert changed[80, 100:180].all()
    assert changed[80:150, 100].all()
    assert not changed[90:140, 110:170].any()
    assert not changed[160:].any()
    nothing = Predictions(found.image_ids[:0], box[:0], found.scores[:0], found.labels[:0])
    assert (draw(pixels, nothing, ["cat", "dog"]) == pixels).all()


def test_a_label_stays_inside_the_picture() -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    at_the_top = Predictions(
        np.array([0]), np.array([[50, 0, 250, 190]], np.float32), np.array([0.9], np.float32), np.array([0])
    )
    changed = (draw(pixels, at_the_top, ["cat"]) != pixels).any(-1)
    assert changed[3:12, 55:75].mean() > 0.5


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "猫 🐈 кот", "x" * 5000, "", "a\nb\tc", "\x00"]
)
def test_any_name_can_be_drawn(name: str) -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    box = np.array([[250, 100, 290, 150]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([0]))
    drawn = draw(pixels, found, [name])
    assert drawn.shape == pixels.shape
    changed = (drawn != pixels).any(-1)
    assert changed[100, 250:290].all()
    assert not changed[160:].any()
    assert not changed[:70].any(), "the label is one line"


def test_a_label_at_the_right_edge_can_be_read_whole() -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    box = np.array([[280, 100, 299, 150]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([0]))
    changed = (draw(pixels, found, ["thrombocyte"]) != pixels).any(-1)
    assert changed[90, 210:290].mean() > 0.9


def test_detections_of_supervision_hold_names_and_masks() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:10, 8:20] = True
    masks = np.empty(1, dtype=object)
    masks[0] = run_lengths(encode_mask(mask), (20, 30))
    box = np.array([[8, 5, 20, 10]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([1]), masks)
    detections = as_supervision(found, ["cat", "dog"], (20, 30))
    assert detections.data["class_name"].tolist() == ["dog"]
    assert detections.class_id.tolist() == [1]
    assert (detections.mask[0] == mask).all()
    nothing = as_supervision(found.where(np.array([False])), ["cat", "dog"], (20, 30))
    assert len(nothing) == 0

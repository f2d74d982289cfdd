"""Pictures with boxes: what is drawn where, and names that are hard to draw."""

import sys
from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

from msefpn.data.masks import encode_mask, run_lengths
from msefpn.inference.detect import Predictions
from msefpn.inference.draw import _font, class_colour, draw


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


def test_a_mask_tints_its_pixels_in_the_colour_of_its_class() -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[90:140, 110:170] = True
    masks = np.empty(1, dtype=object)
    masks[0] = run_lengths(encode_mask(mask), mask.shape)
    box = np.array([[100, 80, 180, 150]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([1]), masks)
    drawn = draw(pixels, found, ["cat", "dog"])
    colour = np.array([int(class_colour(1)[k : k + 2], 16) for k in (1, 3, 5)])
    tinted = np.broadcast_to(0.6 * 128 + 0.4 * colour, (50, 60, 3))
    np.testing.assert_allclose(drawn[90:140, 110:170], tinted, atol=2)
    assert (drawn[82:88, 110:170] == 128).all()


def test_classes_have_colours_of_their_own() -> None:
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    assert colours == [class_colour(label) for label in range(80)]


def test_drawing_needs_neither_supervision_nor_a_system_font(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_files(font: Any, *given: Any, **options: Any) -> Any:
        if font == "DejaVuSans.ttf":
            raise OSError("cannot open resource")
        return real(font, *given, **options)

    real = ImageFont.truetype
    monkeypatch.setattr(ImageFont, "truetype", only_files)
    for name in ("supervision", "matplotlib", "cv2", "scipy", "av"):
        monkeypatch.setitem(sys.modules, name, None)
    pixels = np.full((200, 300, 3), 128, np.uint8)
    box = np.array([[100, 80, 180, 150]], np.float32)
    found = Predictions(np.array([0]), box, np.array([0.9], np.float32), np.array([0]))
    _font.cache_clear()
    assert (draw(pixels, found, ["cat"]) != pixels)[60:78, 100:150].mean() > 0.5
    _font.cache_clear()

"""Boxes, masks and labels drawn into an image, with Pillow."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from msefpn.data.images import to_rgb
from msefpn.inference.detect import Predictions

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
_OPACITY = 0.4
"""Of masks."""
_MAX_LETTERS = 32
"""Letters of a class name that a label shows."""
_GOLDEN = 0.618034
"""Golden ratio: hues that are this far apart fill the circle evenly, however many there are."""


class Canvas:
    """A copy of an image to draw on; lines and letters grow with it.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        thickness: of lines, pixels; None: by the size of the image.
        letters: height of letters, pixels; None: by the size of the image.
    """

    def __init__(
        self, pixels: NDArray[np.uint8], *, thickness: int | None = None, letters: int | None = None
    ) -> None:
        side = min(pixels.shape[:2])
        self.thickness = thickness or max(1, round(side / 300))
        self.letters = letters or max(11, round(side / 42))
        self.image = Image.fromarray(pixels)  # of three channels it copies
        self._pen = ImageDraw.Draw(self.image)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image as drawn, (H, W, 3) uint8 RGB."""
        return to_rgb(self.image)

    def mask(self, mask: NDArray[np.bool_], colour: Colour) -> None:
        """Tint the pixels of a mask (H, W)."""
        alpha = Image.fromarray(mask.astype(np.uint8) * round(255 * _OPACITY))
        self.image.paste(colour, (0, 0, *self.image.size), alpha)

    def box(self, box: NDArray[np.floating], colour: Colour, *, thickness: int | None = None) -> None:
        """Outline a box (4,) xyxy, pixels."""
        left, top, right, bottom = np.rint(box).tolist()
        corners = left, top, max(left, right - 1), max(top, bottom - 1)
        self._pen.rectangle(corners, outline=colour, width=thickness or self.thickness)

    def label(self, box: NDArray[np.floating], text: str, colour: Colour, *, below: bool = False) -> None:
        """Write one line at the upper (or lower) left corner of a box (4,) xyxy, inside the image.

        The line is black or white on a plate of `colour`.
        """
        font, padding = _font(self.letters), max(2, round(self.letters / 4))
        ascent, descent = font.getmetrics()
        width = round(font.getlength(text)) + 2 * padding
        height = ascent + descent + padding
        left, bottom = min(box[0], self.image.width - width), box[3] if below else box[1] - height
        x, y = max(0, round(float(left))), min(max(0, round(float(bottom))), self.image.height - height)
        self._pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        self._pen.text((x + padding, y + padding // 2), text, fill=_readable_on(colour), font=font)


def draw(pixels: NDArray[np.uint8], found: Predictions, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Draw boxes, labels and masks into a copy of an image (H, W, 3) RGB; a class keeps its colour."""
    canvas = Canvas(pixels)
    found = found.where(found.scores.argsort(kind="stable"))  # the best on top
    colours = [_colour(int(label)) for label in found.labels]
    for row, colour in enumerate(colours):
        mask = found.where(np.array([row])).decoded_masks(pixels.shape[:2])
        if mask is not None:
            canvas.mask(mask[0], colour)
    for box, colour in zip(found.boxes, colours, strict=True):
        canvas.box(box, colour)
    for box, label, score, colour in zip(found.boxes, found.labels, found.scores, colours, strict=True):
        canvas.label(box, f"{_shown(classes[label])} {score:.2f}", colour)
    return canvas.pixels


def class_colour(label: int) -> str:
    """The colour in which `draw` shows a class, as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*_colour(label))


def _colour(label: int) -> Colour:
    """A vivid colour for a class; neighbours differ in hue and every third one is darker."""
    hue = (0.6 + label * _GOLDEN) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, (1.0, 0.9, 0.65)[label % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _readable_on(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more (luma of ITU-R BT.601)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else (255, 255, 255)


def _shown(name: str) -> str:
    """A class name in one line of bounded length."""
    line = " ".join(name.split())
    return line if len(line) <= _MAX_LETTERS else f"{line[: _MAX_LETTERS - 1]}…"


@functools.cache
def _font(letters: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", letters)  # it has more letters than Pillow's own
    except OSError:
        font = ImageFont.load_default(letters)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font

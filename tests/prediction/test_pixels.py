"""Images in memory: what is one, whatever holds it, and the line for what is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msefpn.data.images import read_image
from msefpn.errors import UserError
from msefpn.prediction.pixels import read_pixels

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RGB[0, 0] = 0
RGB[0, 1] = 255
GREY = RGB[..., 0]
PLANES = torch.from_numpy(RGB.copy()).permute(2, 0, 1)
FLOATS = RGB.astype(np.float32) / 255


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        RGB[:, ::-1][:, ::-1],
        FLOATS,
        FLOATS.astype(np.float64),
        FLOATS.astype(np.float16),
        PLANES,
        PLANES.float() / 255,
        (PLANES.double() / 255).requires_grad_(),
        Image.fromarray(RGB),
        Image.fromarray(RGB).convert("RGBA"),
    ],
)
def test_colours(image: Any) -> None:
    pixels = read_pixels(image, "the image")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, RGB)
    assert not isinstance(image, np.ndarray) or not np.shares_memory(pixels, image)


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        GREY[..., None],
        GREY.astype(np.float32) / 255,
        PLANES[:1],
        PLANES[0],
        Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(FLOATS[..., 0]),
    ],
)
def test_grey(image: Any) -> None:
    np.testing.assert_array_equal(read_pixels(image, "the image"), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_modes_of_pil_are_read_as_those_of_files(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(GREY.astype(np.int32) * 257) if mode == "I" else None
    image = image or (
        Image.fromarray(GREY.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(RGB).convert(mode)
    )
    file = tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png")
    if mode in ("HSV", "YCbCr"):  # no file holds them
        expected = np.array(image.convert("RGB"))
    else:
        image.save(file)
        expected = read_image(file)
    np.testing.assert_array_equal(read_pixels(image, "the image"), expected)


def test_exif_turns_files_and_pil_images_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(RGB, -1)
    for image in (tmp_path / "turned.png", str(tmp_path / "turned.png")):
        np.testing.assert_array_equal(read_pixels(image, "the image"), expected)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(read_pixels(opened, "the image"), expected)
        assert opened.size == (8, 6)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            RGB.transpose(2, 0, 1),
            r"images\[1\] is channels first, \(3, 6, 8\): give image.transpose\(1, 2, 0\)",
        ),
        (GREY[None], "channels first"),
        (PLANES.permute(1, 2, 0), r"channels last, \(6, 8, 3\): give image.permute\(2, 0, 1\)"),
        (np.zeros((6, 8, 4), np.uint8), r"four channels, \(6, 8, 4\): drop the fourth with image\[..., :3\]"),
        (torch.zeros(4, 6, 8), r"four channels, \(4, 6, 8\): drop the fourth with image\[:3\]"),
        (np.zeros((6, 8, 2), np.uint8), "has 2 channels"),
        (torch.zeros(7, 6, 8), "has 7 channels"),
        (np.zeros((0, 8, 3), np.uint8), r"is empty, \(0, 8, 3\)"),
        (torch.zeros(3, 6, 0), "is empty"),
        (Image.new("RGB", (0, 5)), "is empty: it has 0 x 5 pixels"),
        (RGB[None], r"has 4 dimensions, \(1, 6, 8, 3\): .*give a batch as a list"),
        (np.zeros(5, np.uint8), "has 1 dimensions"),
        (RGB.astype(np.int64), "is of dtype int64: give uint8"),
        (RGB.astype(np.uint16), "is of dtype uint16"),
        (RGB > 3, "is of dtype bool"),
        (PLANES.long(), r"is of dtype torch.int64"),
        (RGB.astype(np.float32), "has values from 0 to 255: floats must be 0 to 1, and not normalised"),
        (FLOATS - 2, r"has values from -2 to -1"),
        (np.where(FLOATS > 0.5, np.nan, FLOATS), "NaN or infinite"),
        (PLANES.float() * float("inf"), "NaN or infinite"),
        (Image.fromarray(FLOATS[..., 0] * 255), "has values from 0 to 255"),
        (None, "is of type NoneType: give a numpy array"),
        ([1, 2], "is of type list"),
        ("nothing.jpg", "is 'nothing.jpg', which cannot be read: No such file"),
        (".", "which is not an image file: give it to msefpn.stream"),
        ("https://example.org/a.jpg", "not an image file: give it to msefpn.stream"),
        (__file__, "no image format"),
    ],
)
def test_what_is_not_an_image(image: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_pixels(image, "images[1]")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("images[1] ")

"""Which files the page accepts; every refusal is one line that names nothing of the server."""

import numpy as np
import pytest
from PIL import Image

from msefpn.data.images import MAX_SCANS
from msefpn.web.limits import Limits
from msefpn.web.upload import IMAGE_FORMATS, BadUpload, read_upload
from tests.web.serving import encoded, jpeg_of, png_of, split_jpeg_of, tiff_of

LIMITS = Limits(megabytes=0.1, megapixels=0.2)


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_upload_is_read(kind: str) -> None:
    pixels = read_upload(encoded(kind), LIMITS)
    assert pixels.shape == (30, 40, 3)
    assert abs(pixels.mean((0, 1)) - [255, 0, 0]).max() < 3


def test_upload_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert read_upload(encoded("JPEG", exif=exif), LIMITS).shape == (40, 30, 3)


def test_a_photo_with_a_film_behind_it_is_read() -> None:
    film = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    data = encoded("JPEG", progressive=True) + film + b"\xff\xda" * MAX_SCANS
    assert read_upload(data, LIMITS).shape == (30, 40, 3)
    assert read_upload(jpeg_of(MAX_SCANS), LIMITS).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a", "is not a readable image: give a JPEG, PNG"),
        (encoded("GIF"), "is not a readable image"),
        (encoded("PPM"), "is not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a readable image"),
        (encoded()[:60], "is damaged or incomplete"),
        (encoded("JPEG")[:-300], "is damaged or incomplete"),
        (encoded("TIFF")[:-100], "is damaged or incomplete"),
        (b"II*\0\xff\xff\xff\xff", "is "),
        (png_of(500, 401), "500 x 401, the page accepts 0.2 million"),
        (png_of(30_000, 30_000), "too many pixels"),
        (png_of(2**31 - 1, 2**31 - 1), "too many pixels"),
        (tiff_of(40_000), "it has 1600 million pixels, the limit is 100 million"),
        (tiff_of(40_000, (322, 16), (323, 16)), "a tag of its TIFF directory is there twice"),
        (split_jpeg_of(MAX_SCANS + 1), "it has more than 100 scans"),
        (jpeg_of(MAX_SCANS + 1), "it has more than 100 scans"),
    ],
)
def test_upload_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadUpload, match=message) as caught:
        read_upload(data, LIMITS)
    assert "\n" not in str(caught.value)
    assert "/" not in str(caught.value)
    assert "0x" not in str(caught.value)

"""Uploaded images: checked before they are decoded, because no upload can be trusted."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from msefpn.data.images import ImageFault, check_picture, pixels_of
from msefpn.web.limits import Limits

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow's names of the accepted formats; its rarer decoders cannot be reached from the page."""
ACCEPTED = "give a JPEG, PNG, WebP, BMP or TIFF file"


class BadUpload(Exception):  # noqa: N818  (a fault of the visitor's file)
    """An upload that is not accepted; the message is for the visitor and names nothing of the server."""


def read_upload(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Decode an uploaded file to RGB (H, W, 3), upright.

    The number of pixels is that of the file's header; nothing is decoded before it is checked.

    Raises:
        BadUpload: it is not an image, is damaged, or has too many pixels.
    """
    if not data:
        raise BadUpload(f"is empty: {ACCEPTED}")
    try:
        with Image.open(file := BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > limits.megapixels * 1e6:
                size = f"{image.width} x {image.height}, the page accepts {limits.megapixels:g} million"
                raise BadUpload(f"has too many pixels: {size}")
            _check(image, file)
            return pixels_of(image)
    except BadUpload:
        raise
    except Image.DecompressionBombError:
        raise BadUpload(f"has too many pixels: the page accepts {limits.megapixels:g} million") from None
    except UnidentifiedImageError:
        raise BadUpload(f"is not a readable image: {ACCEPTED}") from None
    except Exception:  # decoders raise nearly anything on broken bytes, and their words are not for visitors
        raise BadUpload("is damaged or incomplete: save or copy it again") from None


def _check(image: Image.Image, file: BytesIO) -> None:
    """Raise BadUpload where decoding would take more than the package's own bounds."""
    try:
        check_picture(image, file)
    except ImageFault as fault:
        raise BadUpload(f"cannot be used: {fault}") from None

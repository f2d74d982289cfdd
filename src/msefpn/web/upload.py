"""Uploaded images: checked before they are decoded, because no upload can be trusted."""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from msefpn.data.images import ImageFault, read_image
from msefpn.errors import UserError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow's names of the accepted formats; its rarer decoders cannot be reached from the page."""
ACCEPTED = "give a JPEG, PNG, WebP, BMP or TIFF file"


@dataclass(frozen=True)
class UploadLimits:
    """How large an upload may be."""

    megabytes: float
    """Of the file; 10^6 bytes."""
    megapixels: float
    """Width times height; 10^6 pixels."""

    @property
    def bytes(self) -> int:
        """Largest file, bytes."""
        return int(self.megabytes * 1e6)


@dataclass(frozen=True)
class Upload:
    """An uploaded image."""

    name: str
    """File name, without a folder."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB, upright."""


def read_upload(sent: Mapping[str, Any], limits: UploadLimits) -> Upload:
    """Decode what a browser sent.

    Args:
        sent: `name` of the file and `data`, its bytes in base64.
        limits: of the bytes before decoding, and of the pixels that the header states.

    Raises:
        UserError: it is too large or not an image; the message is for the visitor.
    """
    name, text = sent.get("name"), sent.get("data")
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError("no file arrived: choose it again")
    name = name.replace("\\", "/").rpartition("/")[2][:100] or "image"
    if len(text) * 3 // 4 > limits.bytes + 2:
        raise UserError(
            f"{name} is too large: {len(text) * 0.75e-6:.1f} MB, the page accepts {limits.megabytes:g} MB"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} did not arrive completely: choose it again") from None
    if not data:
        raise UserError(f"{name} is empty: {ACCEPTED}")
    _check_header(name, data, limits)
    try:
        return Upload(name, read_image(BytesIO(data)))
    except ImageFault as fault:
        raise UserError(f"{name} cannot be read: {fault}") from None


def _check_header(name: str, data: bytes, limits: UploadLimits) -> None:
    """Raise UserError where the header is not that of an image, or of one that is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the limit below is the page's own
            with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise UserError(
            f"{name} has too many pixels: the page accepts {limits.megapixels:g} million"
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a readable image: {ACCEPTED}") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise UserError(f"{name} is damaged: {type(error).__name__}") from None
    if width * height > limits.megapixels * 1e6:
        raise UserError(
            f"{name} has too many pixels: {width} x {height}, the page accepts {limits.megapixels:g} million"
        )

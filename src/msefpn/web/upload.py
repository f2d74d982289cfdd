"""Uploaded images: checked before they are decoded, because no upload can be trusted."""

from __future__ import annotations

import re
import struct
import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from msefpn.data.images import pixels_of
from msefpn.web.limits import Limits

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow's names of the accepted formats; its rarer decoders cannot be reached from the page."""
ACCEPTED = "give a JPEG, PNG, WebP, BMP or TIFF file"
MAX_SCANS = 50
"""Scans of a JPEG: each takes a pass over all pixels and may have 75 bytes; encoders write about ten."""
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""ITU-T T.81, table B.1: markers with a length behind them, and the end of the image."""
_END, _SCAN = 0xD9, 0xDA
_TILE_SIZE = (322, 323)
"""TIFF 6.0: width and height of a tile; a decoder allocates whole ones."""


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limits below are the page's own
            with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
                _check_header(image, data, limits)
                return pixels_of(image)
    except BadUpload:
        raise
    except Image.DecompressionBombError:
        raise BadUpload(f"has too many pixels: the page accepts {limits.megapixels:g} million") from None
    except UnidentifiedImageError:
        raise BadUpload(f"is not a readable image: {ACCEPTED}") from None
    except Exception:  # decoders raise nearly anything on broken bytes, and their words are not for visitors
        raise BadUpload("is damaged or incomplete: save or copy it again") from None


def _check_header(image: Image.Image, data: bytes, limits: Limits) -> None:
    """Raise BadUpload where decoding would take more memory or time than the limits allow."""
    sizes = [image.size]
    if image.format == "TIFF":
        if _has_doubles(data):  # decoders differ in which one they take
            raise BadUpload("is damaged: a tag is there twice")
        tags = image.tag_v2  # type: ignore[attr-defined]  # a TIFF has them
        sizes.append((int(tags.get(_TILE_SIZE[0], 1)), int(tags.get(_TILE_SIZE[1], 1))))
    for width, height in sizes:
        if width * height > limits.megapixels * 1e6:
            size = f"{width} x {height}, the page accepts {limits.megapixels:g} million"
            raise BadUpload(f"has too many pixels: {size}")
    if image.format in ("JPEG", "MPO") and _has_many_scans(data):
        raise BadUpload(f"has over {MAX_SCANS} scans: save it as a usual JPEG")


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `MAX_SCANS`, without decoding it."""
    place, scans = 0, 0
    while scans <= MAX_SCANS:
        marker = _MARKER.search(data, place)
        if marker is None or marker[1][0] == _END:
            return False
        scans += marker[1][0] == _SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return True


def _has_doubles(data: bytes) -> bool:
    """Whether a tag is twice in the first directory of a TIFF or a BigTIFF. Raises struct.error."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    first, step = (start + 8, 20) if big else (start + 2, 12)
    places = range(first, min(first + step * count, len(data) - 1), step)
    tags = [struct.unpack_from(order + "H", data, place)[0] for place in places]
    return len(set(tags)) < len(tags)

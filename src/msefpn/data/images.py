"""Image files into RGB arrays, whatever their mode, depth and orientation.

Alpha is dropped and not blended, as OpenCV's colour reading does; values of 16 bits are scaled to 0..255 from
the range of 10, 12, 14 or 16 bits that the file states, else from the least of these that holds them all;
grey is repeated over the three channels; CMYK is converted. Of several frames, the first is taken.
"""

import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from msefpn.data.jpeg import quick_size
from msefpn.data.values import common_factor
from msefpn.reading import open_file, reason_of

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FRAMED = ("GIF", "TIFF", "WEBP", "PNG", "AVIF")
"""Formats whose files may hold several frames that are pictures of their own."""
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's names of the formats that are read; it has others, of which EPS runs a program."""
MAX_PIXELS = 100_000_000
"""Largest width times height; decoding it takes less than 1 GB."""
MAX_PICTURE = 1 << 30
"""Largest file."""
MAX_SCANS = 100
"""Most scans of a progressive JPEG file; cameras and programs write about ten."""
MAX_PIXELS_PER_BYTE = 10_000
"""Most pixels for each byte of a large picture; deflate, at its best, gives 8,256 of one bit."""
_LARGE = 16_000_000
"""Pixels from which pictures are decoded one at a time, in all threads together."""
_ONE_LARGE = threading.Lock()
_BAND = 4_000_000
"""Pixels that are converted at a time."""
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""ITU-T T.81, table B.1: markers with a length behind them, and the end of the image."""
_JPEG_END, _JPEG_SCAN = b"\xd9", b"\xda"
_HEAD = 1 << 16
"""Bytes within which the first scan of most JPEG files begins."""
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
"""TIFF 6.0: of a tile, pixels; a decoder allocates whole ones, 2 GB for a picture of 16 x 16."""
_MAX_SAMPLE = 281
"""TIFF 6.0: the tag of the largest value."""
_DEPTHS = (10, 12, 14, 16)
"""Bits that cameras store in 16: the least that holds all values of an image is taken as its depth."""


# Pillow warns from half of the size that it refuses; see MAX_PIXELS.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageFault(Exception):  # noqa: N818  (a fault in the sense of `faults`)
    """An image file that cannot be read; the message says why in a few words."""


class Header(NamedTuple):
    """What `read_image` will give, without the pixels."""

    size: tuple[int, int]
    """Height and width of the array, pixels."""
    mode: str
    """Pillow's mode of the stored pixels."""
    alpha: bool
    turned: bool | None
    """Whether the EXIF orientation is applied; None where the file has none."""
    frames: int = 1
    """Frames in the file, of which the first is taken."""
    bits: int = 8
    """Of a value: what is scaled to 8."""


def read_header(path: Path, size: tuple[int, int] | None = None, *, decode: bool = False) -> Header:
    """Look at an image file without decoding it, unless `decode` or the end of the file looks cut off.

    Args:
        path: the image file.
        size: height and width that the annotation file states; see `_is_turned`.
        decode: decode the pixels too, to find damage inside the file.

    Raises:
        FileNotFoundError: there is no such file.
        ImageFault: the file is not an image, is truncated or cannot be converted.
    """
    try:
        if not decode and (plain := _plain_header(path)) is not None:
            return plain
        with _opened(path) as image:
            orientation = _orientation(image)
            turned = _is_turned(image, orientation, size) if orientation else None
            height, width = _turned_size(image, orientation) if turned else (image.height, image.width)
            alpha = "transparency" in image.info or "A" in image.getbands()
            frames = getattr(image, "n_frames", 1) if image.format in _FRAMED else 1
            image.seek(0)
            bits = _bits(image) if image.mode.startswith("I") else 8
            header = Header((height, width), image.mode, alpha, turned, frames, bits)
            if decode or image.mode == "F" or not _has_end(path):
                to_rgb(image)
            return header
    except (FileNotFoundError, ImageFault):
        raise
    except OSError as error:
        raise ImageFault(_reason(error) if error.filename is None else reason_of(error)) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ImageFault(_reason(error)) from error


def _plain_header(path: Path) -> Header | None:
    """The header of an ordinary JPEG file. Raises FileNotFoundError."""
    try:
        found = quick_size(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):  # it is opened again, to say what is wrong
        return None
    if found is None or found[0] * found[1] > _LARGE or found[2] > MAX_PICTURE:
        return None
    return Header(found[:2], "L" if found[3] else "RGB", alpha=False, turned=None)


def read_image(path: Path | BinaryIO, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode an image file to RGB, (height, width, 3) uint8, turned upright by its EXIF orientation.

    `size` is the height and width that the annotation file states: where it fits only the pixels as they are
    stored, they are left so, because the boxes refer to them. Raises FileNotFoundError and ImageFault.
    """
    return read_reduced(path, size)[0]


def read_reduced(
    path: Path | BinaryIO, size: tuple[int, int] | None = None, least: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode like `read_image`, and give the height and width that it would give.

    Where a half, a quarter or an eighth of these is still `least` or more, a JPEG file is decoded at that
    size, rounded up: its decoder leaves fine detail out, in half the time. None: at full size.
    """
    try:
        with _opened(path) as image:
            orientation = _orientation(image)
            turned = orientation and _is_turned(image, orientation, size)
            whole = _turned_size(image, orientation if turned else 0)
            if least is not None:
                height, width = least if not turned or orientation < 5 else least[::-1]
                image.draft(None, (width, height))
            pixels: Image.Image = image.transpose(_TURNS[orientation]) if turned else image
            return to_rgb(pixels), whole
    except (FileNotFoundError, ImageFault):
        raise
    except OSError as error:
        raise ImageFault(_reason(error) if error.filename is None else reason_of(error)) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ImageFault(_reason(error)) from error


def write_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image file. Raises OSError, also where a disk is full: Pillow itself may not notice that."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[path.suffix.lower()], **options)
    path.write_bytes(buffer.getbuffer())


@contextmanager
def _opened(path: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture whose size is within the bounds; large ones are opened one after the other.

    Raises what Pillow raises, OSError for what is not a regular file, and ImageFault over a bound.
    """
    with open_file(path) if isinstance(path, Path) else nullcontext(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size > MAX_PICTURE:
            raise ImageFault(f"it has {size / 2**20:.0f} MB, the limit is {MAX_PICTURE / 2**20:.0f} MB")
        if not Image.OPEN.keys() >= set(FORMATS):
            Image.init()
        with Image.open(file, formats=FORMATS) as image:
            check_picture(image, file)
            count = image.width * image.height
            pixels_per_byte = count / max(1, size)
            if count > _LARGE and pixels_per_byte > MAX_PIXELS_PER_BYTE:
                raise ImageFault(f"{size} bytes cannot hold its {count / 1e6:.0f} million pixels")
            with _ONE_LARGE if count > _LARGE else nullcontext():
                yield image


def check_size(width: int, height: int) -> None:
    """Raise ImageFault for a picture, or a frame of a video, that has too many pixels."""
    if width * height > MAX_PIXELS:
        raise ImageFault(_too_many(width * height))


def _too_many(pixels: int) -> str:
    return (
        f"it has {pixels / 1e6:.0f} million pixels, the limit is {MAX_PIXELS / 1e6:.0f} million: "
        "cut it into parts"
    )


def check_picture(image: Image.Image, file: BinaryIO) -> None:
    """Raise ImageFault where decoding an open picture would take too much memory or time."""
    check_size(image.width, image.height)
    place = file.tell()
    file.seek(0)
    if image.format == "TIFF":
        if _has_doubles(file):  # decoders differ in which of two tags they take
            raise ImageFault("a tag of its TIFF directory is there twice: save it again")
        tags = image.tag_v2  # type: ignore[attr-defined]  # a TIFF has them
        check_size(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_HEIGHT, 1)))
    if isinstance(image, JpegImageFile):
        components = 0 if image.info.get("progressive") else image.layers
        head = file.read(_HEAD)
        if not _begins_with_all(head, components) and _has_many_scans(head + file.read(), components):
            raise ImageFault(f"it has more than {MAX_SCANS} scans of its pixels: save it again")
    file.seek(place)


def _begins_with_all(head: bytes, components: int) -> bool:
    """Whether the first scan of a JPEG begins in these first bytes, and is the only one."""
    place = 0
    while (marker := _MARKER.search(head, place)) is not None and marker.end() + 2 < len(head):
        if marker[1] == _JPEG_SCAN:
            return head[marker.end() + 2 : marker.end() + 3] == bytes([components])
        place = marker.end() + int.from_bytes(head[marker.end() : marker.end() + 2])
    return False


def _has_many_scans(data: bytes, components: int) -> bool:
    """Whether a JPEG has more than `MAX_SCANS`; what is behind its end, as a phone's film, does not count.

    Args:
        data: the file.
        components: of a first scan that is the only one; 0: there are several in any case.
    """
    place, scans = 0, 0
    while scans <= MAX_SCANS:
        marker = _MARKER.search(data, place)
        if marker is None or marker[1] == _JPEG_END:
            return False
        if marker[1] == _JPEG_SCAN:
            scans += 1
            if scans == 1 and data[marker.end() + 2 : marker.end() + 3] == bytes([components]):
                return False
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return True


def _has_doubles(file: BinaryIO) -> bool:
    """Whether a tag is twice in the first directory of a TIFF or a BigTIFF. Raises struct.error."""
    head = file.read(16)
    order, big = "<" if head.startswith(b"II") else ">", 43 in head[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    file.seek(start)
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    entries = file.read(min(count, 65_536) * (step := 20 if big else 12))
    tags = [entries[place : place + 2] for place in range(0, len(entries), step)]
    return len(set(tags)) < len(tags)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return what `read_image` would give of an open image; the image stays as it is. Raises ImageFault."""
    try:
        orientation = _orientation(image)
        return to_rgb(image.transpose(_TURNS[orientation]) if orientation else image)
    except ImageFault:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ImageFault(_reason(error)) from error


def _orientation(image: Image.Image) -> int:
    # Without this guard Pillow decodes a whole PNG to look for EXIF data behind the pixels.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if image.info.get("exif") else 1
    return orientation if orientation in _TURNS else 0


def _turned_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return (image.width, image.height) if orientation >= 5 else (image.height, image.width)


def _is_turned(image: Image.Image, orientation: int, size: tuple[int, int] | None) -> bool:
    """Whether to turn: unless the annotation's size is, or was before a resize, that of the stored pixels."""
    stored, upright = (image.height, image.width), _turned_size(image, orientation)
    if size is None or upright in (stored, size):
        return True
    return size != stored and (common_factor(size, upright) or not common_factor(size, stored))


def _has_end(path: Path) -> bool:
    """Whether a JPEG or PNG file ends as it should (EOI marker, IEND chunk); other formats: False."""
    with open_file(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
        tail = file.read()
    return b"\xff\xd9" in tail or b"IEND" in tail


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels as they are stored, as RGB (height, width, 3) uint8. Raises ImageFault."""
    if image.mode == "F":
        raise ImageFault("floating-point pixels have no known range")
    bits = _bits(image) if image.mode.startswith("I") else 8
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for rows in _bands(image):
        pixels[top : top + rows.height] = _rgb_of(rows, bits)
        top += rows.height
    return pixels


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """Rows of a picture, a few million pixels at a time: what is made of all at once takes as much memory."""
    image.load()
    step = max(1, _BAND // max(1, image.width))
    if image.height <= step:
        yield image
        return
    for top in range(0, image.height, step):
        yield image.crop((0, top, image.width, min(image.height, top + step)))


def _rgb_of(image: Image.Image, bits: int) -> NDArray[np.uint8]:
    """The pixels of a part of a picture whose grey values, if it has such, have so many bits."""
    if image.mode.startswith("I"):
        top = (1 << bits) - 1
        grey = np.rint(np.clip(np.asarray(image), 0, top) * (255 / top)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert would copy


def _bits(image: Image.Image) -> int:
    """Bits of the values of a 16-bit image, by the largest that its TIFF states or that it has."""
    stated = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE)
    values = [stated] if isinstance(stated, int) else list(stated or ())  # one for each channel
    highest = max([int(np.asarray(rows).max(initial=0)) for rows in _bands(image)] + values)
    return next((bits for bits in _DEPTHS if highest < 1 << bits), 16)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that can be read"
    if isinstance(error, Image.DecompressionBombError):  # a small file may unfold to fill the memory
        pixels = int(re.findall(r"\d+", str(error))[0])
        return _too_many(pixels)
    return " ".join(str(error).split()) or type(error).__name__


def fitted_size(height: int, width: int, long: int, short: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width that fit into long x short, ratio kept, rounded as mmcv's `rescale_size` does."""
    factor = scale * min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

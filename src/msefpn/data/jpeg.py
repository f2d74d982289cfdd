"""The size of an ordinary JPEG file from its first bytes, in a tenth of a decoder's own start-up time.

ITU-T T.81, annex B: a file consists of segments, each with a marker and its length. Files with more (EXIF,
Adobe's segments, progressive or arithmetic coding, 12 bits, CMYK, tables out of place), and files that may be
cut off, are left to the decoder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_HEAD = 1 << 13
"""Bytes that are read: enough for the segments before the pixels of a usual file without EXIF."""
_TAIL = 64
"""Bytes at the end in which the end marker is looked for."""
_JFIF = b"JFIF\0"
_APP0, _APP2, _COMMENT, _RESTART = 0xE0, 0xE2, 0xFE, 0xDD
_QUANTISATION, _HUFFMAN, _SCAN = 0xDB, 0xC4, 0xDA
_BASELINE = (0xC0, 0xC1)
_TABLE = 65
"""Bytes of a quantisation table of 8 bits, its name included."""
_GREY, _COLOUR = 1, 3


def quick_size(path: Path) -> tuple[int, int, int, bool] | None:
    """Height and width in pixels, size in bytes, and whether it is grey, of an ordinary, complete JPEG file.

    None for a file that a decoder has to look at. Raises OSError.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        about = os.fstat(number)
        head = os.read(number, _HEAD) if stat.S_ISREG(about.st_mode) else b""
        found = _parse(head)
        if found is None:
            return None
        if about.st_size > len(head):
            os.lseek(number, about.st_size - _TAIL, os.SEEK_SET)
            head = os.read(number, _TAIL)
        return (*found[:2], about.st_size, found[2]) if b"\xff\xd9" in head[-_TAIL:] else None
    finally:
        os.close(number)


def _parse(head: bytes) -> tuple[int, int, bool] | None:
    """Height, width and whether it is grey."""
    if head[:2] != b"\xff\xd8":
        return None
    place, frame, tables = 2, None, 0
    while place + 4 <= len(head) and head[place] == 0xFF:
        kind, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4])
        body = head[place + 4 : place + 2 + length]
        if length < 2 or len(body) != length - 2:
            return None
        if kind == _SCAN:
            parts = body[0] if body else 0
            if frame is None or not tables or parts != frame[2] or len(body) != 4 + 2 * parts:
                return None
            return frame[0], frame[1], parts == _GREY
        if kind in _BASELINE:
            frame = _frame(body) if frame is None else None
            if frame is None:
                return None
        elif kind == _QUANTISATION:
            if len(body) % _TABLE or any(name > 3 for name in body[::_TABLE]):
                return None
            tables += len(body) // _TABLE
        elif kind == _APP0:
            if place != 2 or length != 16 or body[:5] != _JFIF:
                return None
        elif kind == _APP2:
            if length < 32 or body[:12] != b"ICC_PROFILE\0":
                return None
        elif kind not in (_HUFFMAN, _COMMENT, _RESTART):
            return None
        place += 2 + length
    return None


def _frame(body: bytes) -> tuple[int, int, int] | None:
    """Height, width and components of a frame of 8 bits with one or three."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (_GREY, _COLOUR) or len(body) != 6 + 3 * body[5]:
        return None
    height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    if not height or not width:
        return None
    if any(not 1 <= sampling >> 4 <= 4 or not 1 <= sampling & 15 <= 4 for sampling in body[7::3]):
        return None
    return height, width, body[5]

"""A large json of lists of objects, read a piece at a time: as a whole it takes ten times its size in memory.

The values are those of `msefpn.reading.parse_json`. Where that would refuse a file, or the file has an
unusual form, `Unusual` is raised, and the caller reads it as a whole: that tells the exact place of a fault,
and takes every form.
"""

from __future__ import annotations

import codecs
import collections
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from msefpn.reading import ESCAPED_SURROGATE, MAX_DEPTH, check_plain, is_deep, open_file

PIECE = 1 << 20
"""Bytes that are parsed at a time."""
MAX_RECORD = 1 << 26
"""Bytes of the largest record of a list."""
MAX_PIECES = 1 << 36
"""Bytes of the largest file that is read in pieces."""
_SPACE = re.compile(rb"[ \t\n\r]*")
_LIST_END = re.compile(rb"\}[ \t\n\r]*\](?=[ \t\n\r]*[,}])")
_NEXT = re.compile(rb"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")
_KEYS = 1000
"""Most keys of the outermost object."""
_LAST = 1 << 14
"""Bytes at the end of a piece in which its last record is looked for first."""
_BLANK = re.compile(r"[ \t\n\r]*")
_BOM = b"\xef\xbb\xbf"
_DECODE = json.JSONDecoder().raw_decode


class Unusual(Exception):  # noqa: N818  (not an error: the file is read in another way)
    """A file that is not read in pieces; the message says why, in the words of a fault."""


class Pieces:
    """The lists of a json's outermost object, in the order of the file.

    Args:
        file: a regular file.

    Attributes:
        digest: SHA-256 of what was read, in hexadecimal, once `lists` has come to the end.

    Raises:
        OSError: it cannot be opened.
        Unusual: see the module.
    """

    def __init__(self, file: Path) -> None:
        if file.stat().st_size > MAX_PIECES:
            raise Unusual(f"has more than {MAX_PIECES >> 30} GB, which is the limit")
        self._file: BinaryIO = open_file(file)
        self._hash = hashlib.sha256()
        self._buffer, self._at, self._ended = b"", 0, False
        self._before = 0
        self.digest = ""

    def lists(self) -> Iterator[str]:
        """The keys whose values are lists; each list's records must be taken before the next key.

        The other values are only checked.
        """
        with self._file:
            self._need(4)
            if not json.detect_encoding(self._buffer[:4]).startswith("utf-8"):
                raise Unusual("is not UTF-8 text")
            self._at = len(_BOM) if self._buffer.startswith(_BOM) else 0
            self._take(b"{")
            seen: set[str] = set()
            while True:
                key = self._value()
                if not isinstance(key, str) or key in seen or len(seen) > _KEYS:
                    raise self._unusual(f"has more than {_KEYS} keys, or one that is repeated or not a text,")
                seen.add(key)
                self._take(b":")
                if self._next() == b"[":
                    self._at += 1
                    yield key
                else:
                    self._value()
                if self._next() == b"}":
                    break
                self._take(b",")
            self._at += 1
            if self._next() or not self._ended:
                raise self._unusual("has more than one json,")
            self.digest = self._hash.hexdigest()

    def records(self, quick: Callable[[bytes], bool], careful: Callable[[Any], None]) -> None:
        """Take the records of the list that has begun.

        Args:
            quick: takes the json of a list of records, and says whether it could; it must take all or none.
            careful: takes a record of those that `quick` left.
        """
        if self._next() == b"]":
            self._at += 1
            return
        while True:
            self._need(PIECE)
            end = _LIST_END.search(self._buffer, self._at)
            cut = end or self._last_gap()
            if cut is not None and quick(b"[" + self._buffer[self._at : cut.start() + 1] + b"]"):
                self._at = cut.end()
            else:
                end = None
                if self._one_by_one(careful):
                    return
            if end is not None:
                return

    def _last_gap(self) -> re.Match[bytes] | None:
        """Where the last whole record of the buffer seems to end."""
        near = max(self._at, len(self._buffer) - _LAST)
        for start in dict.fromkeys((near, self._at)):
            gaps = collections.deque(_NEXT.finditer(self._buffer, start), maxlen=1)
            if gaps:
                return gaps[0]
        return None

    def _one_by_one(self, take: Callable[[Any], None]) -> bool:
        """Take the buffer's whole records, at least one; return whether the list ended."""
        take(self._value(MAX_DEPTH - 2))
        text, place = self._text(), 0
        while True:
            place = _skip(text, place)
            sign = text[place : place + 1]
            if sign != ",":
                break
            try:
                value, end = _DECODE(text, _skip(text, place + 1))
            except (ValueError, RecursionError):  # cut off, or wrong
                break
            if end == len(text) and not self._ended:  # a number may go on
                break
            _check(text[place:end], value, MAX_DEPTH - 2)
            take(value)
            place = end
        self._at += len(text[:place].encode())
        if self._next() == b"]":
            self._at += 1
            return True
        self._take(b",")
        return False

    def _value(self, depth: int = MAX_DEPTH - 1) -> Any:
        """The json value that begins here, nested at most `depth` deep."""
        self._next()
        size = PIECE
        while True:
            text = self._text()
            try:
                found, end = _DECODE(text)
                if end < len(text) or self._ended:  # a number may go on
                    break
            except (ValueError, RecursionError):  # cut off, or wrong
                pass
            if self._ended or size > MAX_RECORD:
                raise self._unusual("is not a complete json, or has a large record,")
            size *= 2
            self._need(size)
        self._at += len(text[:end].encode())
        _check(text[:end], found, depth)
        return found

    def _text(self) -> str:
        """The rest of the buffer as text, without an incomplete character at its end."""
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(self._buffer[self._at :], self._ended)
        except UnicodeDecodeError:
            raise self._unusual("is not UTF-8 text") from None

    def _unusual(self, text: str) -> Unusual:
        return Unusual(f"{text} near byte {self._before + self._at}")

    def _next(self) -> bytes:
        """The byte at which the next value or sign begins; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._need(1)

    def _take(self, sign: bytes) -> None:
        if self._next() != sign:
            raise self._unusual(f"has no {sign.decode()}")
        self._at += 1

    def _need(self, count: int) -> None:
        """Read until `count` bytes are ahead, or to the end of the file."""
        missing = count - (len(self._buffer) - self._at)
        if missing <= 0 or self._ended:
            return
        more = self._file.read(max(PIECE, missing))
        self._hash.update(more)
        self._ended = len(more) < max(PIECE, missing)
        self._buffer = self._buffer[self._at :] + more
        self._before += self._at
        self._at = 0


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()


def _check(text: str, value: Any, depth: int) -> None:
    """Raise Unusual where `parse_json` would refuse a part of a file."""
    if is_deep(text, depth):
        raise Unusual(f"is nested more than {MAX_DEPTH} deep")
    if ESCAPED_SURROGATE.search(text):
        try:
            check_plain(value)
        except ValueError as error:
            raise Unusual(str(error)) from None

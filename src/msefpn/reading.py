"""Files that others wrote, read with bounds: regular files, so many bytes, so deep, in plain Unicode text.

A reader that does not use these functions would wait for ever on a pipe, read a device without end, or fail
somewhere inside on what a hostile file holds. A file that is over a bound is refused by an OSError, its
content by a ValueError that says where; `read_json` and `read_yaml` make one UserError of both.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import yaml

from msefpn.errors import UserError

MAX_JSON = 2 << 30
"""Bytes of the largest json; that of COCO's training images has 0.5 GB."""
MAX_TEXT = 64 << 20
"""Bytes of the largest label file, list, log or xml."""
MAX_YAML = 1 << 18
"""Bytes of the largest YAML file."""
MAX_DEPTH = 64
"""Lists and objects inside each other, in json, YAML and xml."""
MAX_YAML_VALUES = 30_000
"""Values of a YAML file, those that aliases repeat included."""
_CHUNK = 1 << 20
_SURROGATE = re.compile(r"[\ud800-\udfff]")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Half of a pair of code points, as json writes it; alone, it is not Unicode."""
_SHOWN = 80
"""Characters of a value that a message shows."""


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file to read it.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device, a socket or a folder.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:  # a name that no file can have
        raise OSError(errno.EINVAL, "is not a file name", str(path)) from None
    kind = os.fstat(number).st_mode
    if not stat.S_ISREG(kind):
        os.close(number)
        what = "is a folder" if stat.S_ISDIR(kind) else "is not a regular file"
        raise OSError(errno.EINVAL, what, str(path))
    return os.fdopen(number, "rb")


def real_path(path: str | Path) -> Path:
    """A path without links and relative parts; one that leads nowhere, as a loop of links, stays as it is."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # Path.resolve would raise RuntimeError
        return Path(os.path.abspath(path))


def read_bytes(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Raises OSError."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"has more than {most / 2**20:.0f} MB, which is the limit", str(path))
    return content


def digest_of(path: str | Path) -> str:
    """SHA-256 of a regular file in hexadecimal. Raises OSError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto


def read_text(path: str | Path, most: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file, without a byte-order mark. Raises OSError, and ValueError for other bytes."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def parse_json(content: bytes | str) -> Any:
    """What a json says.

    Raises:
        ValueError: it is not a json, is nested too deeply, or has text that is not Unicode.
    """
    if isinstance(content, bytes):
        try:
            content = content.decode(json.detect_encoding(content))
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8 text") from None
    text = content.removeprefix("\ufeff")
    if is_deep(text):
        raise ValueError(f"is nested more than {MAX_DEPTH} deep")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not a complete json ({error})") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits
        raise ValueError("has a number or a nesting that is too large") from None
    if ESCAPED_SURROGATE.search(text) or _SURROGATE.search(text):
        check_plain(found)
    return found


def is_deep(text: str, most: int = MAX_DEPTH) -> bool:
    """Whether a json's brackets open more than `most` deep, those in texts aside."""
    if text.count("[") + text.count("{") <= most:
        return False
    return _depth(text) > most and _depth(re.sub(r'"(?:[^"\\]|\\.)*"', "", text)) > most


def _depth(text: str) -> int:
    if len(text) <= MAX_YAML:  # recipes, which the command line reads without numpy
        deepest = level = 0
        for bracket in re.findall(r"[][{}]", text):
            level += 1 if bracket in "[{" else -1
            deepest = max(deepest, level)
        return deepest
    import numpy as np  # noqa: PLC0415  only long texts need it

    steps = np.zeros(256, np.int8)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    deepest = level = 0
    for start in range(0, len(text), _CHUNK):
        part = np.frombuffer(text[start : start + _CHUNK].encode("utf-8", "surrogatepass"), np.uint8)
        levels = np.cumsum(steps[part], dtype=np.int32)
        deepest, level = max(deepest, level + int(levels.max())), level + int(levels[-1])
    return deepest


def check_plain(content: Any, most: int | None = None) -> None:
    """Check that values are plain, no deeper than `MAX_DEPTH`, and text that can be encoded.

    Args:
        content: dictionaries, lists and single values.
        most: values that there may be; None: any number.

    Raises:
        ValueError: they are not; it names the place, such as `images[3].file_name`.
    """
    count, waiting = 0, [(content, "", 0)]
    while waiting:
        value, place, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep, or inside itself")
        if most is not None and count > most:
            raise ValueError(f"holds more than {most} values")
        if isinstance(value, str):
            if _SURROGATE.search(value):
                raise ValueError(f"has text that is not Unicode at {place or 'its top'}")
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(key, str) and _SURROGATE.search(key):
                    raise ValueError(f"has a key that is not Unicode at {place or 'its top'}")
                waiting.append((inner, f"{place}.{key}" if place else str(key), depth + 1))
        elif isinstance(value, list):
            waiting += [(inner, f"{place}[{number}]", depth + 1) for number, inner in enumerate(value)]
        elif value is not None and not isinstance(value, (bool, int, float)):
            raise ValueError(f"has a {type(value).__name__} at {place or 'its top'}: write it as text")


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain values; what looks like a date is a text."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, *, texts: bool = False) -> Any:
    """What a YAML text says: dictionaries, lists, texts, numbers, booleans and None.

    Args:
        text: at most `MAX_YAML` bytes are expected.
        texts: take every single value as a text.

    Raises:
        ValueError: it is not YAML, is nested too deeply or in itself, or holds too many or other values.
    """
    if _depth(text) > MAX_DEPTH:  # the parser's time grows with its square
        raise ValueError(f"is nested more than {MAX_DEPTH} deep")
    if text.count(",") + text.count("\n") > MAX_YAML_VALUES:
        raise ValueError(f"holds more than {MAX_YAML_VALUES} values")
    try:
        content = yaml.load(text, yaml.BaseLoader) if texts else yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("is nested too deeply, or in itself") from None
    except Exception as error:  # constructors raise whatever a wrong value leads to
        raise ValueError(f"is not valid YAML: {' '.join(str(error).split())[:100]}") from None
    check_plain(content, MAX_YAML_VALUES)
    return content


class _Bounded(ElementTree.TreeBuilder):
    """Builds a tree of bounded depth; entities cannot be declared."""

    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse: entities unfold, and may name files."""
        raise ValueError("has a DOCTYPE, which no annotation needs: remove it")

    def start(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        """Begin an element."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")
        return super().start(tag, attributes)

    def end(self, tag: str) -> ElementTree.Element:
        """End an element."""
        self.depth -= 1
        return super().end(tag)


def parse_xml(content: bytes) -> ElementTree.Element:
    """The root of an xml. Raises ValueError: it is not one, is nested too deeply, or declares entities."""
    try:
        parser = ElementTree.XMLParser(target=_Bounded())
        return ElementTree.fromstring(content, parser)
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"is not a complete xml ({error})") from None


def read_json(path: str | Path, fix: str, *, most: int = MAX_TEXT) -> Any:
    """What a json file says.

    Args:
        path: the file.
        fix: what the user can do about a wrong one, such as "restore it".
        most: its largest size, bytes.

    Raises:
        UserError: it cannot be read, or not as `parse_json` reads it.
    """
    try:
        return parse_json(read_bytes(path, most))
    except OSError as error:
        raise unreadable(path, error, fix) from None
    except ValueError as error:
        raise UserError(f"'{path}' {error}: {fix}") from None


def read_yaml(path: str | Path, fix: str, *, texts: bool = False) -> Any:
    """What a YAML file says; arguments as of `read_json` and `parse_yaml`. Raises UserError."""
    try:
        return parse_yaml(read_text(path, MAX_YAML), texts=texts)
    except OSError as error:
        raise unreadable(path, error, fix) from None
    except ValueError as error:
        raise UserError(f"'{path}' {error}: {fix}") from None


def unreadable(path: str | Path, error: OSError, fix: str) -> UserError:
    """Build the error for a file that cannot be opened or read."""
    return UserError(f"'{path}' {reason_of(error)}: {fix}")


def reason_of(error: OSError) -> str:
    """Why a file cannot be read, in a few words."""
    said = error.strerror or str(error) or type(error).__name__
    ours = said.startswith(("is ", "has "))
    return said if ours else f"cannot be read ({said})"


class Record:
    """An object of a json or YAML file, whose values are read by key and type.

    Args:
        values: what the file holds there.
        where: the file and the place in it, for messages.
        fix: what the user can do.

    Raises:
        UserError: `values` is not an object.
    """

    def __init__(self, values: Any, where: str, fix: str) -> None:
        self.where, self.fix = where, fix
        if not isinstance(values, dict):
            raise self.fault(f"is {shown(values)}, not an object with keys")
        self.values = values

    def fault(self, text: str) -> UserError:
        """The error for this record."""
        return UserError(f"{self.where} {text}: {self.fix}")

    def _get(self, key: str) -> Any:
        if key not in self.values:
            raise self.fault(f"has no '{key}'")
        return self.values[key]

    def _wrong(self, key: str, what: str) -> UserError:
        return self.fault(f"has {shown(self.values[key])} as '{key}', not {what}")

    def record(self, key: str) -> Record:
        """An object inside. Raises UserError, as all below."""
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object with keys")
        return Record(value, f"{self.where} ({key})", self.fix)

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self._get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a text")
        return value

    def number(self, key: str, low: float = -1e300, high: float = 1e300) -> float:
        """A finite number."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self._wrong(key, "a number" if low < -1e299 else f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
        """A whole number of 64 bits."""
        value = self._get(key)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(key, "a whole number")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, none empty or twice."""
        return self._list(key, "a list of texts", lambda item: isinstance(item, str) and item != "")

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of different whole numbers of 64 bits."""
        what = "a list of different whole numbers"
        return self._list(key, what, lambda item: type(item) is int and abs(item) < 1 << 63)

    def _list(self, key: str, what: str, is_good: Callable[[Any], bool]) -> tuple[Any, ...]:
        """A list of different values."""
        value = self._get(key)
        if not isinstance(value, (list, tuple)) or not all(map(is_good, value)):
            raise self._wrong(key, what)
        if len(set(value)) < len(value):
            raise self.fault(f"has a value twice in '{key}'")
        return tuple(value)


def shown(value: Any) -> str:
    """A value as a message shows it: cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "a value too large to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

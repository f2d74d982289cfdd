"""Text that others wrote, made harmless where it is shown: in a terminal, a log, a line or a spreadsheet.

File names, class names and a server's words may hold escape sequences, which a terminal obeys, or a formula,
which a spreadsheet computes. Everything that is printed passes `printable`, everything that goes into a csv
file `cell`; HTML is escaped where it is written.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Any, TextIO

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, delete, and C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # direction of writing, and line separators
    "\ud800-\udfff"  # halves of a pair: they cannot be encoded
    "\U000e0000-\U000e007f]"  # tags, which are invisible
)
_FORMULA = re.compile(r"\s*[=+\-@|%\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""How a cell begins that a spreadsheet takes for a formula; also the wide forms of the signs."""


def printable(text: str) -> str:
    """A text whose control characters are written out, such as \\x1b; tabs and line feeds stay."""
    return _CONTROL.sub(_written_out, text)


def one_line(text: str) -> str:
    """A text as `printable` gives it, on one line."""
    return printable(" ".join(text.split()))


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cell(value: Any) -> Any:
    """A value for a csv file: numbers as they are; a text that would be a formula after an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(value) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


class CsvRows:
    """Rows of a csv file, with an apostrophe before a text that a spreadsheet would compute.

    Args:
        file: opened with newline="".
        ending: of each row.
    """

    def __init__(self, file: TextIO, ending: str = "\r\n") -> None:
        self._rows = csv.writer(file, lineterminator=ending)

    def add(self, row: Iterable[Any]) -> None:
        """Write a row; None is an empty cell."""
        self._rows.writerow([cell(value) for value in row])

"""Images that are named elsewhere: in lists, which are text or Parquet files, and at addresses of fsspec."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from msefpn import remote
from msefpn.data.finding import UNREAD_SUFFIXES, is_image_name
from msefpn.errors import UserError, missing_extra
from msefpn.places import is_address
from msefpn.reading import open_file, reason_of

LIST_SUFFIXES = (".txt", ".parquet")
"""Suffixes of the files that are read as lists."""
NAME_COLUMNS = ("image", "path", "file_name", "url")
"""Columns of a Parquet file that may hold the names, the first that is there is taken."""
_REMOTE = remote.OBJECT_STORES | {"hdfs", "file", "memory"}
"""Protocols of fsspec by which images are read; others, such as webhdfs or github, ask web servers."""
_LONGEST = 8192
"""Bytes of the longest line."""
_WEB = re.compile(r"https?://", re.IGNORECASE)


def check_remote(address: str) -> str:
    """Return an address at which images or results may be. Raises UserError for others."""
    protocol, _, rest = address.partition("://")
    said = remote.without_secrets(address)
    if protocol.lower() not in _REMOTE:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hdfs", "file"))
        raise UserError(
            f"'{said}' cannot be used: give a file, an address of {known}, or to read, a URL that begins "
            "with http:// or https://"
        )
    if "::" in rest:  # fsspec's chains, by which a file system asks another one
        raise UserError(f"'{said}' has '::' in it, which chains file systems: give the address of one")
    return address


def names_in(place: str) -> Iterator[str]:
    """The images that a list names, in its order.

    A text has one on each line; blank lines are ignored. Of a Parquet file, the first of `NAME_COLUMNS` is
    taken. Relative names are taken from the list's own folder.

    Args:
        place: path or address of the list.

    Raises:
        UserError: it cannot be read, is not a list, or is empty.
    """
    read = _in_parquet if place.lower().endswith(".parquet") else _in_text
    home = place.rpartition("/")[0] if is_address(place) else str(Path(place).parent)
    count = 0
    with _opened(place) as file:
        for where, name in read(file, place):
            if "\0" in name:
                raise UserError(f"'{place}' is not a list of images: {where} has a null character: {_FIX}")
            count += 1
            yield _placed(name, home)
    if not count:
        raise UserError(f"'{place}' lists no images: {_FIX}")


_FIX = "give a text with a path or an address on each line, or a Parquet file with a column of them"


def _placed(name: str, home: str) -> str:
    """A name as it is read from here."""
    if _WEB.match(name):
        return name
    if "://" in name:
        return check_remote(name)
    if "://" in home and not name.startswith("/"):
        return remote.below(home, name)
    return str(Path(home) / name)


@contextlib.contextmanager
def _opened(place: str) -> Iterator[BinaryIO | io.BufferedReader]:
    if is_address(place):
        with remote.open_address(check_remote(place)) as file:
            yield io.BufferedReader(cast(io.RawIOBase, file))  # some have no bounded readline
        return
    try:
        with open_file(place) as file:
            yield file
    except OSError as error:
        raise UserError(f"'{place}' {reason_of(error)}: {_FIX}") from None


def _in_text(file: BinaryIO | io.BufferedReader, place: str) -> Iterator[tuple[str, str]]:
    for number in itertools.count(1):
        line = file.readline(_LONGEST + 1)
        if not line:
            return
        where = f"line {number}"
        if len(line) > _LONGEST:
            raise UserError(
                f"'{place}' is not a list of images: {where} has more than {_LONGEST} bytes: {_FIX}"
            )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise UserError(f"'{place}' is not a list of images: {where} is not UTF-8: {_FIX}") from None
        if text:
            yield where, text


def _in_parquet(file: BinaryIO | io.BufferedReader, place: str) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow as pa  # noqa: PLC0415  (of an extra)
        import pyarrow.parquet as pq  # noqa: PLC0415  (likewise)
    except ImportError:
        raise missing_extra(f"reading '{place}'", "parquet") from None
    try:
        table = pq.ParquetFile(file)
        column = _column(table.schema_arrow, pa, place)
        row = 0
        for batch in table.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                row += 1
                if not value:
                    raise UserError(f"'{place}' names no image in row {row} of '{column}': {_FIX}")
                yield f"row {row}", value
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(f"'{place}' is not a whole Parquet file ({said}): take another copy of it") from None


def _column(schema: Any, pa: Any, place: str) -> str:
    """The column with the names. Raises UserError."""
    texts = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    for name in NAME_COLUMNS:
        if name in texts:
            return name
    raise UserError(
        f"'{place}' has no column of texts named {', '.join(NAME_COLUMNS[:-1])} or {NAME_COLUMNS[-1]}: "
        "rename one"
    )


def find_remote(address: str) -> Iterator[str]:
    """The images at an address: a file, those in a folder and the folders in it, or matches of a glob.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    check_remote(address)
    if re.search(r"[*?\[]", address):
        found = [entry.address for entry in remote.files_matching(address)]
        if not found:
            raise UserError(f"no image found at '{remote.without_secrets(address)}': check the pattern")
        yield from found
        return
    kind = remote.kind_at(address)
    if kind is None:
        raise UserError(f"no image found at '{remote.without_secrets(address)}': check the address")
    if kind != "directory":
        yield address
        return
    files = [entry.address for entry in remote.files_below(address)]
    images = [name for name in files if is_image_name(name) or name.lower().endswith(UNREAD_SUFFIXES)]
    if not any(map(is_image_name, images)):
        raise UserError(
            f"no image found at '{remote.without_secrets(address)}': it has no file with the suffix .jpg, "
            ".png or the like"
        )
    yield from images

"""Files at addresses of other file systems, such as s3://BUCKET/PATH, through fsspec.

An address is a text PROTOCOL://PATH of any protocol that fsspec knows, except those of http, the Hugging Face
hub and cameras, which other modules read. Every function raises `UserError` for what a user can cause: one
line that names the address without its password.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from msefpn.errors import UserError, missing_extra
from msefpn.places import ADDRESS
from msefpn.writing import FULL, OTHER_PLACE, cannot_write, unique_part_of

OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"))
"""Protocols of object stores: a file appears there only when all of it has arrived; renaming copies it."""
_WITH_EXTRA = frozenset(("s3", "s3a", "gs", "gcs"))
"""Protocols whose packages the extra `remote` installs."""
_LONGEST = 160
"""Characters of what a file system says that a message repeats."""


class Listed(NamedTuple):
    """A file at an address."""

    address: str
    size: int
    """Bytes."""
    name: str
    """Its path below the folder that was listed, or its address without protocol where a pattern was."""


def address_name(address: str) -> str:
    """The last part of an address: a file's name."""
    return posixpath.basename(address.rstrip("/"))


def below(address: str, *parts: str) -> str:
    """The address of a file below a folder's."""
    return "/".join([address.rstrip("/"), *parts])


def without_secrets(text: str) -> str:
    """A text in which passwords and signatures of addresses are replaced by ***."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s@]*@", r"\1:***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", text)


def check_address(address: str) -> None:
    """Raise UserError if the protocol is unknown, or a package that it needs is missing."""
    _system(address, "used")


def kind_at(address: str) -> str | None:
    """What is at an address: "file", "directory", or None where nothing is. Raises UserError."""
    system, path = _system(address, "read")
    with _telling(address, "read"):
        system.invalidate_cache()
        try:
            return str(system.info(path)["type"])
        except FileNotFoundError:
            return None


def check_new(address: str) -> None:
    """Raise UserError if a file or a folder with files is at an address where results are to be written."""
    kind = kind_at(address)
    out = f"out '{without_secrets(address)}'"
    if kind == "directory" and files_below(address):
        raise UserError(f"{out} is not empty: name another folder")
    if kind == "file":
        raise UserError(f"{out} is a file: name a folder")


def files_below(address: str) -> list[Listed]:
    """Find all files below a folder, sorted by address.

    Raises:
        UserError: there is no folder, or it cannot be read.
    """
    return _listed(address, "find")


def files_matching(pattern: str) -> list[Listed]:
    """Find the files that match an address with *, ?, [...] or **, sorted by address. Raises UserError."""
    return _listed(pattern, "glob")


def _listed(address: str, how: str) -> list[Listed]:
    system, path = _system(address, "read")
    with _telling(address, "read"):
        system.invalidate_cache()
        found = getattr(system, how)(path, detail=True)
        if not found and how == "find":
            system.info(path)  # raises if the folder is missing
        entries = [
            Listed(
                str(system.unstrip_protocol(name)),
                int(about.get("size") or 0),
                name.removeprefix(path.rstrip("/")).lstrip("/"),
            )
            for name, about in sorted(found.items())
            if about.get("type") == "file" and not name.endswith("/")
        ]
    return entries


@contextlib.contextmanager
def open_address(address: str) -> Iterator[BinaryIO]:
    """Open a file to read it.

    Raises:
        UserError: it cannot be opened, or a read fails inside the body.
    """
    system, path = _system(address, "read")
    with _telling(address, "read"):
        file: BinaryIO = system.open(path, "rb")
    with file, _telling(address, "read", only=(OSError,)):
        yield file


def read_address(address: str, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes. Raises UserError."""
    with open_address(address) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(
            f"'{without_secrets(address)}' has more than {most / 2**20:.0f} MB, which is the limit"
        )
    return content


def copy_from(address: str, path: Path) -> None:
    """Copy a file to this machine. Raises UserError; then nothing is at `path`."""
    system, remote = _system(address, "read")
    try:
        with _telling(address, "read"):
            system.get_file(remote, str(path))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def copy_to(path: Path, address: str) -> None:
    """Upload a file whole or not at all: what was there before stays until then.

    An object store shows a file only when all of it has arrived. Elsewhere it is written under a name that
    begins with a dot in the same folder, and then renamed.

    Raises:
        UserError: the file system refuses, or cannot be reached.
    """
    system, remote = _system(address, "written")
    with _telling(address, "written"):
        if _protocol(address) in OBJECT_STORES:
            system.put_file(str(path), remote)
            return
        if system.exists(remote) and system.info(remote)["type"] != "file":
            raise UserError(
                f"'{without_secrets(address)}' cannot be written: it is not a regular file: name another"
            )
        folder, name = posixpath.split(remote)
        system.makedirs(folder, exist_ok=True)
        part = posixpath.join(folder, unique_part_of(Path(name)).name)
        try:
            system.put_file(str(path), part)
            system.mv(part, remote)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(part)
            raise


@contextlib.contextmanager
def writing_to(address: str, fix: str = "") -> Iterator[Path]:
    """Give a path on this machine to write to, and upload that file when the body has ended well.

    Args:
        address: of the file.
        fix: what the user can do after freeing some space, or after the upload works again.

    Raises:
        UserError: this machine or the file system refuses, or the file system cannot be reached.
    """
    check_address(address)
    with tempfile.TemporaryDirectory(prefix="msefpn-") as folder:
        path = Path(folder) / address_name(address)
        try:
            yield path
        except OSError as error:
            raise cannot_write(path, error, fix or OTHER_PLACE) from None
        try:
            copy_to(path, address)
        except UserError as error:
            raise UserError(f"{error}; {fix}" if fix else str(error)) from None


def rename_at(source: str, target: str) -> None:
    """Rename a file within a file system, replacing one at `target`. Raises UserError."""
    system, path = _system(source, "written")
    with _telling(target, "written"):
        system.mv(path, _system(target, "written")[1])


def remove_at(address: str) -> None:
    """Remove a file if it exists. Raises UserError."""
    system, path = _system(address, "written")
    with _telling(address, "removed"), contextlib.suppress(FileNotFoundError):
        system.rm_file(path)


def _protocol(address: str) -> str:
    found = ADDRESS.match(address)
    if found is None:
        raise UserError(f"'{address}' is not an address: write PROTOCOL://PATH, such as s3://bucket/folder")
    return found[1].lower()


def _system(address: str, verb: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises UserError."""
    import fsspec  # noqa: PLC0415  (most commands do not need it)

    protocol = _protocol(address)
    if protocol not in fsspec.available_protocols():
        raise UserError(
            f"'{without_secrets(address)}' is of an unknown kind: known are s3://, gs://, file:// and others "
            "of fsspec"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        if protocol in _WITH_EXTRA:
            raise missing_extra(f"'{without_secrets(address)}'", "remote") from None
        said = " ".join(str(error).split())
        raise UserError(f"'{without_secrets(address)}' needs another package: {said}") from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks
    with _telling(address, verb):
        system, path = fsspec.core.url_to_fs(address)
    return system, str(path)


@contextlib.contextmanager
def _telling(address: str, verb: str, only: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn a file system's exceptions, of whatever type, into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except only as error:
        raise _told(address, verb, error) from None


def _told(address: str, verb: str, error: Exception) -> UserError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = without_secrets(" ".join(str(error).split()))[:_LONGEST] or type(error).__name__
    start = f"'{without_secrets(address)}' cannot be {verb}"
    if isinstance(error, FileNotFoundError):
        what = "bucket or folder does not exist" if verb == "written" else "it does not exist"
        return UserError(f"{start}: {what}: check the address")
    refused = isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403)
    if refused or any("Credentials" in kind or "RefreshError" in kind for kind in kinds):
        return UserError(f"{start}: {said}: check the rights, and the credentials that are used")
    if isinstance(error, OSError) and error.errno in FULL:
        return UserError(f"{start}: {error.strerror}: free some space there, or name another place")
    lost = ("ConnectionError", "HTTPClientError", "TimeoutError", "ClientConnectionError", "TransportError")
    if kinds.intersection(lost):
        return UserError(f"{start}: {said}: check the network and the endpoint, then try again")
    return UserError(f"{start}: {said}: remove the cause, or name another place")

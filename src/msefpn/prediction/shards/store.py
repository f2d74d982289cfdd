"""Where the results of a job are: a folder or an address of fsspec, with one interface."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from msefpn import remote
from msefpn.errors import UserError
from msefpn.inference.listed import check_remote
from msefpn.places import is_address
from msefpn.reading import read_bytes, unreadable
from msefpn.runs.folder import check_out
from msefpn.writing import cannot_write, missing_folders, remove_empty, replacing, working_in

MAX_FILE = 1 << 31
"""Bytes of the largest shard."""
JOB = "job.json"
"""The file in a store that describes the job."""
SHARDS, BEGUN = "shards", "begun"
FOLDERS = (SHARDS, BEGUN)
"""The folders in a store: of the shards, and of marks of those that are being made."""
GO_ON = "then run the same command again: whole shards are kept"
"""What the user can do after results could not be written, as the end of a message."""


class Store(ABC):
    """A folder of results. A name in it may have one folder before a slash."""

    @abstractmethod
    def shown(self, name: str = "") -> str:
        """The store, or a file in it, for messages."""

    @abstractmethod
    def check_new(self) -> None:
        """Raise UserError if it holds something, or cannot be made."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of the files in one of its folders, without parts left by a writer that died."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if it is missing. Raises UserError."""

    @abstractmethod
    def writing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Give a path to write a file to, which appears whole or not at all. Raises UserError.

        Several processes may write the same file at the same time.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists. Raises UserError."""

    @abstractmethod
    def working(self) -> contextlib.AbstractContextManager[None]:
        """Make the store if it is missing, and work there alone. Raises UserError."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all. Raises UserError."""
        with self.writing(name) as path:
            path.write_bytes(content)

    def clear(self, *folders: str, files: tuple[str, ...] = ()) -> None:
        """Remove the files in some folders, and other files."""
        for name in [*(f"{folder}/{own}" for folder in folders for own in self.names(folder)), *files]:
            self.remove(name)


class Folder(Store):
    """A folder of this machine, or on a disk that all machines share."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def shown(self, name: str = "") -> str:
        """See `Store`."""
        return str(self.path / name)

    def check_new(self) -> None:
        """See `Store`."""
        check_out(self.path)

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        try:
            found = os.listdir(self.path / folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self.path / folder, error, "make it readable") from None
        return sorted(name for name in found if not name.startswith("."))

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return read_bytes(self.path / name, MAX_FILE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.path / name, error, "make it readable, or remove it") from None

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        with replacing(self.path / name, GO_ON, shared=True) as part:
            yield part

    def remove(self, name: str) -> None:
        """See `Store`."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path / name, error, GO_ON) from None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """See `Store`."""
        missing = missing_folders(self.path)
        inner = [self.path / folder for folder in FOLDERS]
        try:
            for folder in inner:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remove_empty([*inner, *missing])
            raise cannot_write(self.path, error, "or name another folder") from None
        try:
            with working_in(self.path, "msefpn predict"):
                self._clear_parts()
                yield
        finally:
            for folder in (*inner, *missing):
                remove_empty([folder])

    def _clear_parts(self) -> None:
        """Remove parts left by writers that died in the inner folders."""
        with contextlib.suppress(OSError):
            for folder in FOLDERS:
                for path in (self.path / folder).glob(".*.part"):
                    path.unlink()


class Address(Store):
    """A folder at an address of fsspec. It is not locked: a second job would write the same files."""

    def __init__(self, address: str) -> None:
        self.address = address

    def shown(self, name: str = "") -> str:
        """See `Store`."""
        return remote.without_secrets(remote.below(self.address, name) if name else self.address)

    def check_new(self) -> None:
        """See `Store`."""
        remote.check_new(self.address)

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        store = remote.below(self.address, folder)
        if remote.kind_at(store) is None:
            return []
        found = [remote.address_name(entry.address) for entry in remote.files_below(store)]
        return [name for name in found if not name.startswith(".")]

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        store = remote.below(self.address, name)
        try:
            return remote.read_address(store, MAX_FILE)
        except UserError:
            if remote.kind_at(store) is None:
                return None
            raise

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        with remote.writing_to(remote.below(self.address, name), GO_ON) as path:
            yield path

    def remove(self, name: str) -> None:
        """See `Store`."""
        remote.remove_at(remote.below(self.address, name))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """See `Store`."""
        yield


def open_store(out: str) -> Store:
    """The store of a path or an address. Raises UserError for an address that cannot be used."""
    if not is_address(out):
        return Folder(out)
    remote.check_address(check_remote(out))
    return Address(out)

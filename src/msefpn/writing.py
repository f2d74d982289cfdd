"""Files that are written whole or not at all, and folders that one process at a time works in.

A process may die at any point, and a disk may fill up at any write. A file is written beside its place, under
the name that `part_of` gives, and then renamed. Files that belong together are all written before the first
is renamed; a journal in the folder names them meanwhile, so that whoever opens the folder next can finish
what a process that died had begun.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from msefpn.errors import UserError
from msefpn.reading import MAX_TEXT, parse_json, read_bytes

LOCK = ".lock"
"""The file that is locked while a process works in a folder; the system unlocks it when the process ends."""
JOURNAL = ".commit"
"""Names of the files of a folder that are written and are to be renamed."""
OTHER_PLACE = "or name another place"
"""What the user can do instead of freeing some space."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""
_GONE = (errno.ENOENT, errno.ENOTDIR)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_WAIT = 10.0
"""Seconds that a reader waits for the process that is renaming files."""


def part_of(path: Path) -> Path:
    """Return where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.part")


def unique_part_of(path: Path) -> Path:
    """Return such a place that no other process writes to at the same time."""
    return part_of(path.with_name(f"{path.name}.{secrets.token_hex(4)}"))


def is_leftover(path: Path) -> bool:
    """Whether a file is one that only a process which died leaves: a lock, or a part of a file."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".part"))


def cannot_write(path: Path, error: OSError, fix: str = OTHER_PLACE) -> UserError:
    """Say in one line why a file cannot be written.

    Args:
        path: the file, under its final name.
        error: what the system said.
        fix: what the user can do, after or instead of freeing some space.
    """
    reason = error.strerror or " ".join(str(error).split())
    folder = path.absolute().parent
    if error.errno in _GONE and not folder.is_dir():
        return UserError(f"'{path}' cannot be written: the folder '{folder}' is gone: name another place")
    first = "remove the cause"
    if error.errno in _REFUSED:
        first = f"make '{folder}' writable"
    elif error.errno in (None, *FULL):  # writers that are not Python's give no number
        first = "free some space"
    return UserError(f"'{path}' cannot be written: {reason}: {first}, {fix}")


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder and those above it that are not there, from the lowest up."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made, from the lowest up, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def new_parents(file: Path) -> Iterator[None]:
    """Make the folders above a file that are missing; after an error remove them. Raises UserError."""
    missing = missing_folders(file.parent)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        remove_empty(missing)
        if isinstance(error, OSError):
            raise cannot_write(file, error) from None
        raise


@contextlib.contextmanager
def replacing(
    path: Path, fix: str = OTHER_PLACE, *, durable: bool = False, shared: bool = False
) -> Iterator[Path]:
    """Give a path to write to, and put that file in the place of `path` when the body has ended well.

    Args:
        path: the file.
        fix: see `cannot_write`.
        durable: have the disk hold the file before it takes its place, so that it outlives a power cut.
        shared: other processes may write the same file at the same time.

    Raises:
        UserError: the file system refuses.
    """
    part = unique_part_of(path) if shared else part_of(path)
    try:
        with _as_users_file(part):
            yield part
        if durable:
            _sync(part)
        part.replace(path)
        if durable:
            _sync(path.absolute().parent)
    except OSError as error:
        raise cannot_write(path, error, fix) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str, fix: str = OTHER_PLACE, *, durable: bool = False) -> None:
    """Write a text file whole or not at all, see `replacing`. Raises UserError."""
    with replacing(path, fix, durable=durable) as part:
        part.write_text(text, encoding="utf-8")


class Parts:
    """Files of a folder that take their places together.

    Args:
        folder: where they belong.
        fix: see `cannot_write`.
    """

    def __init__(self, folder: Path, fix: str) -> None:
        self.folder, self.fix = folder, fix
        self.names: list[str] = []

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Give a path to write a file to. Raises UserError where the file system refuses."""
        part = part_of(self.folder / name)
        self.names.append(name)
        try:
            with _as_users_file(part):
                yield part
            _sync(part)
        except OSError as error:
            raise cannot_write(self.folder / name, error, self.fix) from None

    def text(self, name: str, content: str) -> None:
        """Write a text file. Raises UserError."""
        with self.write(name) as part:
            part.write_text(content, encoding="utf-8")


@contextlib.contextmanager
def replacing_together(folder: Path, fix: str = OTHER_PLACE) -> Iterator[Parts]:
    """Give `Parts` to write, and put all of them in their places when the body has ended well, or none.

    Where the process dies between two of them, `settle` puts the others in their places. One process at a
    time may do this in a folder, see `working_in`.

    Raises:
        UserError: the file system refuses.
    """
    parts = Parts(folder, fix)
    try:
        yield parts
        with parts.write(JOURNAL) as part:
            parts.names.remove(JOURNAL)
            part.write_text(json.dumps(parts.names), encoding="utf-8")
        try:
            part.replace(folder / JOURNAL)
            _sync(folder)
            _finish(folder)
        except OSError as error:
            raise cannot_write(folder / parts.names[0], error, fix) from None
    finally:
        if not (folder / JOURNAL).exists():
            for name in (*parts.names, JOURNAL):
                with contextlib.suppress(OSError):
                    part_of(folder / name).unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Put files in their places that a process which died had written, as their readers need them.

    Raises:
        UserError: the folder cannot be written, or another process does not finish doing so.
    """
    end = time.monotonic() + _WAIT
    while (folder / JOURNAL).exists():
        try:
            with _locked(folder):
                _finish(folder)
        except Timeout:
            if time.monotonic() > end:
                raise UserError(f"'{folder}' is being written by another process: try again later") from None
            time.sleep(0.02)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"'{folder}' was left while files were renamed, and cannot be written: {reason}: make it "
                "writable"
            ) from None


@contextlib.contextmanager
def working_in(folder: Path, what: str) -> Iterator[None]:
    """Work in a folder alone, after finishing or removing what a process that died has left there.

    Args:
        folder: it must be there.
        what: the work, for the message, such as 'msefpn train'.

    Raises:
        UserError: another process works there, or the folder cannot be written.
    """
    held = _locked(folder)
    try:
        held.__enter__()
    except Timeout:
        raise UserError(
            f"'{folder}' is in use: another {what} is working there: wait, stop that, or name another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        said = error if isinstance(error, OSError) else OSError(str(error))
        raise cannot_write(folder / LOCK, said) from None
    with contextlib.ExitStack() as stack:
        stack.push(held)
        _clear(folder)
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises Timeout where another process does; OSError, NotImplementedError."""
    with FileLock(folder / LOCK, timeout=0):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink()


def _clear(folder: Path) -> None:
    """Finish or remove what a process that died has left. Raises UserError."""
    try:
        _finish(folder)
        for path in folder.iterdir():
            if is_leftover(path) and path.name != LOCK:
                path.unlink()
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from None


def _finish(folder: Path) -> None:
    """Rename the files that the journal names, and remove it."""
    journal = folder / JOURNAL
    try:
        names = parse_json(read_bytes(journal, MAX_TEXT))
    except FileNotFoundError:  # its writer has finished
        return
    except ValueError:
        names = None
    if not isinstance(names, list) or any(name != Path(str(name)).name for name in names):
        raise UserError(
            f"'{journal}' is damaged: remove it; the files of the last epoch may not fit together"
        )
    for name in names:
        part = part_of(folder / name)
        if part.exists():
            part.replace(folder / name)
    _sync(folder)
    journal.unlink()


@contextlib.contextmanager
def _as_users_file(path: Path) -> Iterator[None]:
    """Make an empty file, and see that it ends with the mode that the user's umask gave it."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    yield
    if path.stat().st_mode != mode:  # its writer has put a private temporary file in its place
        path.chmod(mode)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names of a folder where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)

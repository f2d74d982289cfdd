"""A hook on every change of a folder: it counts them, keeps what is there before each, or refuses them.

Python tells an audit hook of each file that it opens, renames or removes, and of each folder that it makes or
removes. A hook that raises prevents that.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATHS = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
}
"""Events, and the places of the paths in their arguments."""
NEEDS_ROOM = ("open", "os.mkdir", "os.symlink", "os.link")
"""What a full disk refuses: there, files can still be renamed and removed."""

_watcher: Callable[[str, list[str]], None] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watcher is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        _watcher(event, [os.fsdecode(path)])
    elif event in _PATHS:
        _watcher(event, [os.fsdecode(arguments[place]) for place in _PATHS[event]])


sys.addaudithook(_hook)


@contextmanager
def watching(folder: Path, saw: Callable[[str, list[str]], None]) -> Iterator[None]:
    """Call `saw` before each change of a folder, with the event and its paths."""
    global _watcher

    def watch(event: str, paths: list[str]) -> None:
        global _watcher
        whole = [Path(os.path.abspath(path)) for path in paths]
        if any(path == folder or folder in path.parents for path in whole):
            own, _watcher = _watcher, None
            try:
                saw(event, paths)
            finally:
                _watcher = own

    before, _watcher = _watcher, watch
    try:
        yield
    finally:
        _watcher = before


@contextmanager
def unwatched() -> Iterator[None]:
    """Let nothing be seen, as of another process."""
    global _watcher
    own, _watcher = _watcher, None
    try:
        yield
    finally:
        _watcher = own


def copy_run(folder: Path, place: Path) -> Path:
    """Copy a run folder: links to the large files, which are replaced and never written in their place."""

    def copy(source: str, target: str) -> None:
        whole = Path(source).suffix in (".safetensors", ".ckpt")
        (os.link if whole else shutil.copyfile)(source, target)

    shutil.copytree(folder, place, copy_function=copy)
    return place


class Snapshots:
    """Copies of a folder as it is before each change: what a process that dies there leaves."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.taken: list[tuple[str, Path]] = []

    def __call__(self, event: str, paths: list[str]) -> None:
        place = self.copies / f"{len(self.taken):03}"
        if self.folder.exists():
            copy_run(self.folder, place)
        self.taken.append((f"{event} {Path(paths[0]).name}", place))


class FullDisk:
    """Refuses what needs room, from the nth time on."""

    def __init__(self, number: int) -> None:
        self.left, self.seen = number, 0

    def __call__(self, event: str, paths: list[str]) -> None:
        if event in NEEDS_ROOM:
            self.seen += 1
            if self.seen > self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

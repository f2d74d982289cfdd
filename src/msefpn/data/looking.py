"""The image files of a data set: which can be read, how large they are, and what is said about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from msefpn.data.faults import FaultReport
from msefpn.data.images import Header, ImageFault, read_header
from msefpn.data.repair import PictureNames, hint

_TASK = 256
"""Files that a thread looks at before it asks for more."""
_MANY = 2000
"""Files from which on the progress is shown."""
_PLAIN = Header((0, 0), "RGB", alpha=False, turned=None)[1:]
"""The header, but for its size, of a colour image without anything to report."""


class Counter(Protocol):
    """Shows progress."""

    def seen(self, count: int) -> None:
        """Move on by `count`."""


Progress = Callable[[str, int], AbstractContextManager[Counter]]
"""Makes a progress bar from its title and total, such as `msefpn.runs.console.Bar`."""
Stamp = tuple[int, int, int, int]
"""Of a file: bytes, times of the last change of its content and of its inode (ns), inode number."""
_Found = Header | tuple[int, int] | Exception
"""A header; the size of a file without anything to report; or why a file cannot be read."""
NO_STAMP: Stamp = (-1, -1, -1, -1)
"""Of a missing file."""
Known = Callable[[str, Stamp], tuple[int, int] | None]
"""Height and width of an image by its name and stamp, if it was looked at before without a report."""


class Looked(NamedTuple):
    """What was found of N images."""

    sizes: NDArray[np.int64]
    """(N, 2) height and width as they are decoded, pixels; as stated for those that cannot be read."""
    usable: NDArray[np.bool_]
    """(N,) those that can be read."""
    stamps: NDArray[np.int64]
    """(N, 4) taken before the file was opened, see `Stamp`."""
    plain: NDArray[np.bool_]
    """(N,) those without anything to report."""


class Looking(NamedTuple):
    """How image files are looked at."""

    decode: bool = False
    """Decode them, to find damage inside."""
    skip: bool = False
    """Report a missing image as an unreadable one, which does not stop a run."""
    progress: Progress | None = None
    known: Known | None = None


LOOKING = Looking()
"""Read headers and ends."""


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a file; `NO_STAMP` where there is none."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return NO_STAMP
    return (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino & (1 << 63) - 1)


def stamps_of(folder: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """The stamps (N, 4) of files of a folder."""
    return np.array([stamp_of(f"{folder}{os.sep}{name}") for name in names], np.int64).reshape(-1, 4)


def look_at_images(
    finder: PictureNames,
    ids: Sequence[int] | NDArray[np.int64],
    names: Sequence[str],
    stated: NDArray[np.int64],
    report: FaultReport,
    how: Looking,
) -> Looked:
    """Look at all images, several at a time.

    Args:
        finder: knows their folder, and pictures of similar names.
        ids: of the N images.
        names: their files, from the folder.
        stated: (N, 2) height and width that the annotation file states; 0: it states none.
        report: takes the faults.
        how: see `Looking`.
    """
    folder, count = finder.folder, len(names)
    found = Looked(
        sizes=np.ones((count, 2), np.int64),
        usable=np.zeros(count, np.bool_),
        stamps=np.zeros((count, 4), np.int64),
        plain=np.zeros(count, np.bool_),
    )
    outside = {fault.file for fault in report.of("outside image")}

    def look(rows: range) -> list[_Found]:
        said = stated[rows.start : rows.stop].tolist()
        parts = zip(names[rows.start : rows.stop], said, strict=True)
        pairs = [_look(folder, name, None if 0 in size else tuple(size), how) for name, size in parts]
        found.stamps[rows.start : rows.stop] = [stamp for stamp, _ in pairs]
        return [header for _, header in pairs]

    tasks = [range(start, min(count, start + _TASK)) for start in range(0, count, _TASK)]
    show = how.progress("look at images", count) if how.progress and count >= _MANY else nullcontext()
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool, show as bar:
        for rows, headers in zip(tasks, _in_order(pool, look, tasks), strict=True):
            for row, header in zip(rows, headers, strict=True):
                if not isinstance(header, (Header, Exception)) and names[row] not in outside:
                    found.sizes[row], found.usable[row], found.plain[row] = header, True, True
                    continue
                name, where = names[row], f"image {ids[row]}"
                if name in outside:
                    pass  # reported already, and not used even where the file exists
                elif isinstance(header, FileNotFoundError):
                    text = f"is missing in {folder}{hint(finder.similar(name))}"
                    report.add("unreadable image" if how.skip else "missing image", name, where, text)
                elif isinstance(header, Exception):
                    report.add("unreadable image", name, where, str(header))
                elif isinstance(header, Header):
                    found.sizes[row], found.usable[row] = header.size, True
                    _note_header(header, stated[row], name, where, report)
                if not found.usable[row]:  # its boxes are not judged by a guess
                    found.sizes[row] = stated[row] if stated[row].all() else (1 << 30, 1 << 30)
            if bar is not None:
                bar.seen(len(rows))
    return found


def _look(folder: Path, name: str, stated: tuple[int, int] | None, how: Looking) -> tuple[Stamp, _Found]:
    """The stamp of a file, taken before it is opened, and what is known of it or read."""
    path = f"{folder}{os.sep}{name}"
    stamp = stamp_of(path)
    if how.known is not None and stated is not None and (size := how.known(name, stamp)) is not None:
        return stamp, size
    try:
        header = read_header(Path(path), stated, decode=how.decode)
    except (FileNotFoundError, ImageFault) as error:
        return stamp, error
    return stamp, header.size if stated is not None and header == (header.size, *_PLAIN) else header


def _in_order(
    pool: ThreadPoolExecutor, look: Callable[[range], list[_Found]], tasks: Sequence[range]
) -> Iterator[list[_Found]]:
    """The results in the order of the tasks; at most 64 are ahead, as each takes memory."""
    waiting: list[Future[list[_Found]]] = []
    for task in tasks:
        waiting.append(pool.submit(look, task))
        if len(waiting) > 64:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _note_header(
    header: Header, stated: NDArray[np.int64], name: str, where: str, report: FaultReport
) -> None:
    height, width = header.size
    if not stated.all():
        report.add("size not in the json", name, where, f"{width} x {height}")
    if header.turned is not None:
        report.add("EXIF rotation", name, where, "turned upright" if header.turned else "left as stored")
    if header.alpha:
        report.add("alpha channel", name, where)
    if header.mode.startswith("I"):
        report.add("16-bit image", name, where, f"from {header.bits} bits")
    if header.mode == "CMYK":
        report.add("CMYK image", name, where)
    if header.frames > 1:
        report.add("several frames", name, where, f"{header.frames} frames, the first is taken")

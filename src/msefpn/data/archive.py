"""Data sets in a zip file, unpacked for as long as they are read."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msefpn.errors import UserError

MAX_FILES = 5_000_000
"""Most files in a zip file."""
MAX_UNPACKED = 100
"""A zip file of over a gigabyte unpacked unpacks to at most so many times its size."""
_SMALL = 1_000_000_000


def is_zip(path: Path) -> bool:
    """Whether a path is a zip file by its suffix."""
    return path.suffix.lower() == ".zip" and path.is_file()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of a zip file's content while the body runs; any other path as it is.

    A single folder that holds all of it is gone into. Raises UserError: it is broken, or does not fit.
    """
    if not is_zip(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="msefpn-") as place:
        folder = Path(place) / path.stem
        try:
            with zipfile.ZipFile(path) as archive:
                need, count = sum(item.file_size for item in archive.infolist()), len(archive.infolist())
                if count > MAX_FILES or need > max(_SMALL, MAX_UNPACKED * path.stat().st_size):
                    raise UserError(
                        f"'{path}' unpacks to {count} files of {need / 1e9:.1f} GB, more than data sets do: "
                        "unpack it yourself and give the folder"
                    )
                free = shutil.disk_usage(place).free
                if need > free:
                    raise UserError(
                        f"'{path}' unpacks to {need / 1e9:.1f} GB, but {place} has {free / 1e9:.1f} GB: "
                        "unpack it elsewhere and give the folder"
                    )
                archive.extractall(folder)  # leaves no name outside the folder
        except UserError:
            raise
        except Exception as error:  # zipfile and its decoders raise nearly anything on broken bytes
            raise UserError(
                f"'{path}' cannot be unpacked ({error}): make it again, or give a folder"
            ) from None
        shutil.rmtree(folder / "__MACOSX", ignore_errors=True)
        inner = [item for item in folder.iterdir() if not item.name.startswith(".")]
        yield inner[0] if len(inner) == 1 and inner[0].is_dir() and inner[0].name not in _SPLITS else folder


_SPLITS = ("train", "val", "valid", "test", "images", "annotations")
"""Folders that are part of a layout: they are not gone into."""

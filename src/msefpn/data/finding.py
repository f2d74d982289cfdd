"""Pictures in folders: which files are some, which are left out, and where one of a similar name lies."""

from __future__ import annotations

import functools
import operator
import os
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".mpo"),
)
"""Suffixes of the files that are taken from a folder as images: Pillow reads them."""
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    *(".exr", ".psd", ".xcf", ".svg", ".dcm"),
)
"""Suffixes of pictures that are not read: they are named and counted."""
_MOST = 3
"""Examples in a message."""


def files_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """The files of a folder, by name, hidden ones aside; `deep`: also of the folders in it.

    Symbolic links are followed, except for one that leads to a folder that it lies in.
    """
    return sorted(_walk(folder, deep, (os.path.realpath(folder),)), key=operator.attrgetter("parts"))


def _walk(folder: Path, deep: bool, above: tuple[str, ...]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in found:
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # links that lead to each other
            continue
        if not is_folder:
            if is_file:
                yield Path(entry.path)
        elif deep:
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(Path(entry.path), deep, (*above, real))


def is_image_name(name: str | Path) -> bool:
    """Whether a file of that name is taken as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def images_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """The image files of a folder, see `files_in`."""
    return [file for file in files_in(folder, deep=deep) if is_image_name(file)]


def unlisted(listed: Iterable[Path]) -> list[str]:
    """Sentences about the images of folders that are not listed; `listed`: the files, of one data set."""
    files = {os.path.abspath(file) for file in listed}
    texts = []
    for folder in sorted({place for file in files if os.path.isdir(place := os.path.dirname(file))}):
        there = files_in(Path(folder))
        rest = [file.name for file in there if os.path.abspath(file) not in files and is_image_name(file)]
        if rest:
            texts.append(
                f"{len(rest)} images in '{folder}' are not listed and are skipped ({examples(rest)})"
            )
        if text := describe_unread(file for file in there if _is_unread(file)):
            texts.append(f"'{folder}': {text}")
    return texts


def unread_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """The pictures of a folder that are not read for their suffix, see `files_in`."""
    return [file for file in files_in(folder, deep=deep) if _is_unread(file)]


def _is_unread(file: Path) -> bool:
    return os.path.splitext(file)[1].lower() in UNREAD_SUFFIXES


def describe_unread(files: Iterable[Path]) -> str:
    """Name and count pictures that are not read; empty for none."""
    found = list(files)
    if not found:
        return ""
    endings = ", ".join(
        f"{count} {suffix}" for suffix, count in sorted(Counter(file.suffix for file in found).items())
    )
    pictures = "1 picture is" if len(found) == 1 else f"{len(found)} pictures are"
    return f"{pictures} not read ({endings}; {examples(file.name for file in found)}): convert to PNG or JPEG"


def examples(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:_MOST]) + (f" and {len(found) - _MOST} more" if len(found) > _MOST else "")


class SimilarNames:
    """The pictures below a folder, to be found by a name that is written otherwise.

    Case, Unicode form, the slash, percent escapes and leading folders may differ.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @functools.cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Made when the first name is looked for: there may be many pictures, and none missing."""
        found: dict[str, list[Path]] = {}
        for file in images_in(self.root, deep=True) if self.root.is_dir() else []:
            found.setdefault(_parts(file.name)[-1], []).append(file)
        return found

    def find(self, name: str) -> list[Path]:
        """The pictures that a name may mean: those that share the most of its last parts."""
        parts = _parts(name)
        if not parts:
            return []
        best, found = 0, list[Path]()
        for file in self._by_name.get(parts[-1], []):
            own = _parts(file.relative_to(self.root).as_posix())
            shared = 0
            for mine, given in zip(reversed(own), reversed(parts), strict=False):
                if mine != given:
                    break
                shared += 1
            if shared >= best:
                found = [*(found if shared == best else []), file]
                best = shared
        return found


def _parts(name: str) -> list[str]:
    plain = unicodedata.normalize("NFC", urllib.parse.unquote(name)).replace("\\", "/").casefold()
    return [part for part in plain.split("/") if part not in ("", ".", "..")]

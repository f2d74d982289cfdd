"""Symbolic links that lead out of a data folder: by them, a data set of others could show private files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from msefpn.errors import UserError


def check_links(*roots: Path | None, follow: bool = False) -> None:
    """Raise UserError where a link inside a folder leads out of all folders that are given.

    Args:
        roots: folders, or annotation files, which stand for their data folder; None and missing ones are
            ignored.
        follow: the user has asked for links to be followed: nothing is looked at.
    """
    if follow:
        return
    homes = [os.path.realpath(_home(root)) for root in roots if root is not None and root.exists()]
    for home in dict.fromkeys(homes):
        for link in _links(home):
            target = os.path.realpath(link)
            if os.path.exists(target) and not any(_is_below(target, other) for other in homes):
                raise UserError(
                    f"'{link}' is a link that leads out of '{home}', to '{target}': put the files there, or, "
                    "where you trust the data, give --follow-links"
                )


def _home(root: Path) -> Path:
    """The data folder of an annotation file: the one that it is in, or the one above `annotations`."""
    if root.is_dir():
        return root
    folder = Path(os.path.abspath(root)).parent
    return folder.parent if folder.name == "annotations" else folder


def roots_of(file: Path, folder: Path | None) -> tuple[Path, ...]:
    """The folders of a split for `check_links`: that of its json, and that of its images where it is named.

    Names in a json may lead to the json's own folder where the images are below it.
    """
    home = Path(os.path.abspath(file)).parent
    if folder is None:
        return (home,)
    above = Path(os.path.abspath(folder)).is_relative_to(home)
    return (folder, home) if above else (folder,)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _links(folder: str) -> Iterator[str]:
    """All links below a folder; folders that they lead to are looked at where they are."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:  # what is not allowed to be listed is not read either
        return
    for entry in found:
        if entry.is_symlink():
            yield entry.path
        elif entry.is_dir(follow_symlinks=False):
            yield from _links(entry.path)

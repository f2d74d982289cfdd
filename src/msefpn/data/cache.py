"""Cache of large data sets that were read: a file of arrays for each, never code.

An entry is used if it is whole, of this version and of this json (by SHA-256), and if no image file has
changed (size, times and inode number). Otherwise it is ignored, and the data is read again. No error of the
cache reaches the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from msefpn.data.coco import CocoData, Scan
from msefpn.data.faults import DataFault, FaultReport
from msefpn.data.looking import Known, Stamp, stamps_of
from msefpn.data.masks import Masks
from msefpn.data.packed import PackedNames
from msefpn.reading import digest_of, open_file, parse_json, real_path

VARIABLE = "MSEFPN_CACHE"
"""Environment variable: the folder of the cache, or "off"."""
FORM = 1
"""Version of the entries: raise it where a reader gives something else for the same files."""
MAX_CACHE = 4 << 30
"""Bytes of all entries together; the least recently used ones are removed."""
MAX_FAULTS = 100_000
"""Most faults of an entry; data with more is not cached."""
SETTLED = 2 * 10**9
"""Nanoseconds: a later change is sure to change a file's times, which file systems count coarsely."""
_OURS = re.compile(r"data-([0-9a-f]{32}\.npz|\w{8}\.part)")
"""Names of entries and their parts; the user may have other files in the folder."""
_COLUMNS: dict[str, tuple[str, int]] = {
    "ids": ("int64", 1),
    "offsets": ("int64", 1),
    "boxes": ("float32", 2),
    "areas": ("float64", 1),
    "labels": ("int64", 1),
    "crowd": ("bool", 1),
    "annotated": ("bool", 1),
}
"""Arrays of `CocoData` that are kept: type and dimensions."""
_PICTURES: dict[str, tuple[str, int]] = {
    "names": ("uint8", 1),
    "name_offsets": ("int64", 1),
    "stamps": ("int64", 2),
    "looked": ("int64", 2),
    "usable": ("bool", 1),
    "plain": ("bool", 1),
}


class EntryKey(NamedTuple):
    """What an entry is found by."""

    file: Path
    """The json."""
    folder: Path
    """Of the images."""
    decode: bool
    masks: bool

    def path(self) -> Path | None:
        """The entry's file; None where the cache is off."""
        root = cache_folder()
        if root is None:
            return None
        own = [str(self.file), str(real_path(self.file)), str(self.folder), str(real_path(self.folder))]
        mark = hashlib.sha256(json.dumps([*own, self.decode, self.masks]).encode("utf-8", "surrogatepass"))
        return root / f"data-{mark.hexdigest()[:32]}.npz"


class KnownImages(NamedTuple):
    """What was found of all images of a json, in its order."""

    names: PackedNames
    stamps: NDArray[np.int64]
    sizes: NDArray[np.int64]
    usable: NDArray[np.bool_]
    plain: NDArray[np.bool_]

    def known(self) -> Known:
        """A look-up of the sizes of images that had no fault."""
        rows = np.flatnonzero(self.plain & self.usable).tolist()
        row_of = {self.names[row]: row for row in rows}

        def look(name: str, stamp: Stamp) -> tuple[int, int] | None:
            row = row_of.get(name)
            if row is None or tuple(self.stamps[row].tolist()) != stamp:
                return None
            return int(self.sizes[row, 0]), int(self.sizes[row, 1])

        return look


class Entry(NamedTuple):
    """The content of a file of the cache."""

    pictures: KnownImages
    data: CocoData | None
    """None where a fault stopped the run."""
    report: FaultReport
    digest: str
    """SHA-256 of the json."""


def entry_of(scan: Scan, start: int) -> Entry:
    """An entry of what was read; `start`: when that began, ns.

    Files that cannot be read, or that changed just before, get a stamp that no file has, so that they are
    looked at again.
    """
    assert scan.looked is not None
    sizes, usable, stamps, plain = scan.looked
    settled = usable & (stamps[:, 1:3].max(1, initial=0) < start - SETTLED)
    names = PackedNames.pack(scan.names)
    pictures = KnownImages(names, np.where(settled[:, None], stamps, -2), sizes, usable, plain)
    return Entry(pictures, scan.data, scan.report, scan.digest)


def is_current(entry: Entry) -> bool:
    """Whether the json and all images of an entry with data are as they were."""
    pictures, data = entry.pictures, entry.data
    assert data is not None
    if (pictures.stamps[:, 0] < 0).any():
        return False
    try:
        if digest_of(data.file) != entry.digest:
            return False
    except OSError:  # the json is gone, or unreadable
        return False
    return np.array_equal(stamps_of(data.folder, pictures.names), pictures.stamps)


def cache_folder() -> Path | None:
    """The folder that `MSEFPN_CACHE` names, else `msefpn` in the user's cache folder; None: no cache."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.strip().lower() in ("", "off", "0") else Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "msefpn"
    except RuntimeError:  # the user has no home folder
        return None


def load(place: EntryKey) -> Entry | None:
    """The entry of a split; None where it is missing, damaged or of another version."""
    path = place.path()
    try:
        if path is None or not path.is_file():
            return None
        with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            entry = _unpacked(dict(arrays), place)
        os.utime(path)
    except (Exception, MemoryError):  # whatever a damaged file leads to
        return None
    return entry


def store(place: EntryKey, entry: Entry) -> None:
    """Write an entry, in the place of an older one; where that fails, do nothing."""
    path = place.path()
    if path is None or len(entry.report.faults) > MAX_FAULTS:
        return
    with contextlib.suppress(OSError, ValueError, MemoryError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _part(path) as part:
            with part.open("wb") as file:
                np.savez(file, **_packed(place, entry))  # type: ignore[arg-type]  # the stub takes a flag
            part.replace(path)
        _prune(path)


@contextlib.contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A new file in the entry's folder, for this process alone."""
    number, name = tempfile.mkstemp(".part", "data-", path.parent)
    os.close(number)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _prune(newest: Path) -> None:
    """Remove the least recently used entries, and files that processes which died have left."""
    found = []
    for path in newest.parent.iterdir():
        with contextlib.suppress(OSError):
            if _OURS.fullmatch(path.name):
                found.append((path.stat(), path))
    left = sum(about.st_size for about, _ in found)
    for about, path in sorted(found, key=lambda pair: pair[0].st_mtime):
        stale = path.suffix == ".part" and time.time() - about.st_mtime > 86_400
        if path != newest and (stale or (left > MAX_CACHE and path.suffix == ".npz")):
            with contextlib.suppress(OSError):
                path.unlink()
            left -= about.st_size


def _version() -> list[Any]:
    return [FORM, np.__version__, PIL.__version__]


def _packed(place: EntryKey, entry: Entry) -> dict[str, NDArray[Any]]:
    """The arrays of an entry's file."""
    pictures, data = entry.pictures, entry.data
    about: dict[str, Any] = {
        "version": _version(),
        "place": [str(part) for part in place],
        "digest": entry.digest,
        "faults": [list(fault) for fault in entry.report.faults],
    }
    arrays: dict[str, NDArray[Any]] = {
        "names": pictures.names.text,
        "name_offsets": pictures.names.offsets,
        "stamps": pictures.stamps,
        "looked": pictures.sizes,
        "usable": pictures.usable,
        "plain": pictures.plain,
    }
    if data is not None:
        about |= {
            "classes": data.classes,
            "category_ids": data.category_ids,
            "left_out": sorted(data.left_out),
        }
        arrays |= {name: getattr(data, name) for name in _COLUMNS}
        if data.masks is not None:
            arrays |= {"masks": data.masks.text, "mask_offsets": data.masks.offsets}
    text = json.dumps(about).encode()
    return arrays | {"about": np.frombuffer(text, np.uint8)}


def _unpacked(arrays: dict[str, NDArray[Any]], place: EntryKey) -> Entry:
    """An entry from its file's arrays. Raises whatever wrong arrays lead to."""
    about = parse_json(arrays["about"].tobytes())
    if about["version"] != _version() or about["place"] != [str(part) for part in place]:
        raise ValueError
    _check(arrays, _PICTURES)
    pictures = KnownImages(
        PackedNames(arrays["names"], arrays["name_offsets"]),
        arrays["stamps"],
        arrays["looked"],
        arrays["usable"],
        arrays["plain"],
    )
    count = len(pictures.names)
    _check_offsets(pictures.names.offsets, len(pictures.names.text))
    if {len(arrays[name]) for name in ("stamps", "looked", "usable", "plain")} != {count}:
        raise ValueError
    report = FaultReport(place.file)
    report.faults += [DataFault(*fault) for fault in about["faults"]]
    data = _data(arrays, about, pictures, place) if "classes" in about else None
    return Entry(pictures, data, report, about["digest"])


def _data(
    arrays: dict[str, NDArray[Any]], about: dict[str, Any], pictures: KnownImages, place: EntryKey
) -> CocoData:
    """The images and boxes of an entry. Raises whatever wrong arrays lead to."""
    _check(arrays, _COLUMNS)
    columns: dict[str, Any] = {name: arrays[name] for name in _COLUMNS}
    rows = np.flatnonzero(pictures.usable)
    whole = len(rows) == len(pictures.names)
    boxes, images = len(columns["boxes"]), len(rows)
    _check_offsets(columns["offsets"], boxes)
    same = {len(columns[name]) for name in ("areas", "labels", "crowd")} == {boxes}
    same = same and {len(columns["ids"]), len(columns["annotated"]), len(columns["offsets"]) - 1} == {images}
    labels = columns["labels"]
    if not same or (boxes and not 0 <= labels.min() <= labels.max() < len(about["classes"])):
        raise ValueError
    masks = None
    if place.masks:
        masks = Masks(arrays["masks"], arrays["mask_offsets"])
        _check_offsets(masks.offsets, len(masks.text))
        if len(masks) != boxes:
            raise ValueError
    return CocoData(
        file=place.file,
        folder=place.folder,
        names=pictures.names if whole else pictures.names.take(rows),
        sizes=pictures.sizes if whole else pictures.sizes[rows],
        classes=tuple(about["classes"]),
        category_ids=tuple(about["category_ids"]),
        left_out=frozenset(about["left_out"]),
        masks=masks,
        **columns,
    )


def _check(arrays: dict[str, NDArray[Any]], expected: dict[str, tuple[str, int]]) -> None:
    """Raise where an array is missing or of another kind."""
    for name, (kind, dimensions) in expected.items():
        if arrays[name].dtype != kind or arrays[name].ndim != dimensions:
            raise ValueError(name)


def _check_offsets(offsets: NDArray[np.int64], total: int) -> None:
    """Raise where offsets do not rise from 0 to `total`."""
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError

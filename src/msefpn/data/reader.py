"""Annotation files as arrays: from the cache, in pieces or as a whole."""

from __future__ import annotations

import time
from pathlib import Path

from msefpn.data import cache
from msefpn.data.coco import CocoData, Scan, scan_coco
from msefpn.data.faults import FaultReport
from msefpn.data.looking import Looking, Progress
from msefpn.data.pieces import Unusual
from msefpn.data.quick import scan_in_pieces
from msefpn.reading import MAX_JSON

_QUICK = 1 << 24
"""Bytes of annotations that are read in about a second."""
MANY = 5000
"""Images from which on data is cached."""
_LEAST = 25
"""Bytes of an image's shortest entry, with its comma: `{"id":1,"file_name":"a"},`."""


def reads_quickly(*files: Path) -> bool:
    """Whether annotation files are so small that reading them takes about a second at most."""
    return sum(file.stat().st_size for file in files if file.is_file()) <= _QUICK


def read_coco(
    file: Path, folder: Path, *, decode: bool = False, masks: bool = False, progress: Progress | None = None
) -> tuple[CocoData, FaultReport]:
    """Read an annotation file and check its images; fix and count what can be fixed.

    Args:
        file: the COCO json.
        folder: the folder of the images.
        decode: decode every image, to find damage inside a file. Otherwise its header and its end are read:
            enough to find a missing or truncated file, at some seconds per 100,000 images.
        masks: read the objects' masks too; one without a mask is a fault then.
        progress: shows how many images were looked at.

    Raises:
        UserError: for the first fault that only the user can fix (`faults.STOPS`).
    """
    data, report = scan_split(file, folder, decode=decode, masks=masks, progress=progress)
    report.raise_if_stopped()
    assert data is not None
    return data, report


def read_images_alone(
    file: Path, folder: Path, *, progress: Progress | None = None
) -> tuple[CocoData, FaultReport]:
    """Read the images and classes of a json that may have no annotations; arguments and errors as above."""
    data, report, *_ = scan_coco(file, folder, Looking(progress=progress), truth=False)
    report.raise_if_stopped()
    assert data is not None
    return data, report


def scan_split(
    file: Path, folder: Path, *, decode: bool = False, masks: bool = False, progress: Progress | None = None
) -> tuple[CocoData | None, FaultReport]:
    """Like `read_coco`, but faults that only the user can fix are reported; the data is None then.

    Large data is read in pieces, and cached for the next time, see `msefpn.data.cache`.
    """
    how = Looking(decode, progress=progress)
    if file.is_file() and file.stat().st_size < MANY * _LEAST:
        scan = scan_coco(file, folder, how, masks=masks)
        return scan.data, scan.report
    return _scan_large(file, folder, how, masks=masks)


def _scan_large(
    file: Path, folder: Path, how: Looking, *, masks: bool
) -> tuple[CocoData | None, FaultReport]:
    place = cache.EntryKey(file, folder, how.decode, masks)
    before = cache.load(place)
    if before is not None and before.data is not None and cache.is_current(before):
        return before.data, before.report
    start = time.time_ns()
    known = None if before is None else before.pictures.known()
    scan = _scan(file, folder, how._replace(known=known), masks=masks)
    if scan.looked is not None and scan.digest and (len(scan.names) >= MANY or not reads_quickly(file)):
        cache.store(place, cache.entry_of(scan, start))
    return scan.data, scan.report


def _scan(file: Path, folder: Path, how: Looking, *, masks: bool) -> Scan:
    if not masks:
        try:
            return scan_in_pieces(file, folder, how)
        except OSError:  # it is read again, to say what is wrong
            pass
        except Unusual as error:
            if file.stat().st_size > MAX_JSON:  # too large to be read at once
                report = FaultReport(file)
                report.add("not JSON", str(file), text=str(error))
                return Scan(None, report)
    return scan_coco(file, folder, how, masks=masks)

"""The image files of a data set: which can be read, how large they are, and what is said about them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from msefpn.data.faults import FaultReport
from msefpn.data.images import Header, ImageFault, read_header
from msefpn.data.repair import PictureNames, hint


def look_at_images(
    finder: PictureNames,
    ids: list[int],
    names: list[str],
    stated: list[tuple[int, int] | None],
    report: FaultReport,
    *,
    decode: bool,
    skip: bool,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sizes (N, 2) of the images as decoded, pixels, and which of them (N,) can be read.

    Args:
        finder: knows their folder, and pictures of similar names.
        ids: of the images.
        names: their files, from the folder.
        stated: height and width that the annotation file states.
        report: takes the faults.
        decode: decode them, to find damage inside.
        skip: report a missing image as one that cannot be read, which stops nothing.
    """
    folder = finder.folder

    def look(name: str, size: tuple[int, int] | None) -> Header | Exception:
        try:
            return read_header(folder / name, size, decode=decode)
        except (FileNotFoundError, ImageFault) as error:
            return error

    sizes = np.ones((len(names), 2), dtype=np.int64)
    usable = np.zeros(len(names), dtype=np.bool_)
    outside = {fault.file for fault in report.of("outside image")}
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        headers = pool.map(look, names, stated, chunksize=64)
        for index, header in enumerate(headers):
            name, where = names[index], f"image {ids[index]}"
            if name in outside:
                pass  # named already, and not to be used even where it is there
            elif isinstance(header, FileNotFoundError):
                text = f"is missing in {folder}{hint(finder.similar(name))}"
                report.add("unreadable image" if skip else "missing image", name, where, text)
            elif isinstance(header, Exception):
                report.add("unreadable image", name, where, str(header))
            else:
                sizes[index], usable[index] = header.size, True
                _note_header(header, stated[index], name, where, report)
            if not usable[index]:
                sizes[index] = stated[index] or (1 << 30, 1 << 30)  # its boxes are not judged by a guess
    return sizes, usable


def _note_header(
    header: Header, stated: tuple[int, int] | None, name: str, where: str, report: FaultReport
) -> None:
    height, width = header.size
    if stated is None:
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

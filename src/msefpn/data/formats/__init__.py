"""Annotation formats: folders and files as others have them, read as COCO's content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msefpn.data.formats.base import Log, Part, Source
from msefpn.data.formats.coco import is_coco, read_coco_source
from msefpn.data.formats.createml import is_createml, read_createml
from msefpn.data.formats.labelme import is_labelme, read_labelme
from msefpn.data.formats.voc import is_voc, read_voc
from msefpn.data.formats.yolo import is_yolo, read_yolo
from msefpn.errors import UserError, unknown_name

__all__ = ["FORMATS", "Log", "Part", "Source", "detect_format", "open_source"]


class _Format(NamedTuple):
    holds: Callable[[Path], bool]
    """Whether a folder or file is of this format."""
    read: Callable[[Path, Path | None, Log], Source]


FORMATS = {
    "coco": _Format(is_coco, read_coco_source),
    "voc": _Format(is_voc, read_voc),
    "labelme": _Format(is_labelme, read_labelme),
    "createml": _Format(is_createml, read_createml),
    "yolo": _Format(is_yolo, read_yolo),
}
"""Name -> format, in the order in which they are looked for."""


def detect_format(path: Path) -> str | None:
    """The format of a folder or file; None where it is of none."""
    return next((name for name, format in FORMATS.items() if format.holds(path)), None)


def open_source(path: Path, format: str | None = None, images: Path | None = None) -> Source:
    """Read a data set in any of the formats.

    Args:
        path: its folder, or the file that says what is in it.
        format: key of `FORMATS`; None: `detect_format`.
        images: folder of the images, where they are not where the format has them.

    Raises:
        UserError: it is not there, of no or another format, or nothing of it can be used.
    """
    if not path.exists():
        raise UserError(f"'{path}' does not exist: name a folder of images and annotations")
    if images is not None and not images.is_dir():
        raise UserError(f"image folder '{images}' does not exist: name another")
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format is None:
        format = detect_format(path)
        if format is None:
            raise UserError(
                f"no annotations found in '{path}': it has neither COCO's jsons (train.json), VOC's xml "
                "files, LabelMe's or Create ML's jsons nor YOLO's data.yaml: name the folder that holds them"
            )
    elif not FORMATS[format].holds(path):
        raise UserError(f"'{path}' is not in the format {format}: leave --format out to have it found")
    return FORMATS[format].read(path, images, Log())

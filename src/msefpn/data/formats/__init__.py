"""Annotation formats: folders and files as other tools write them, read as COCO's content.

A format of your own is a class with the two methods of `Format`, registered under a name:

    from msefpn.data.formats import LabelledImage, LabelledObject, assemble, size_of
    from msefpn.plugins import register

    @register("format", "rows")
    class Rows:
        def holds(self, path): ...
        def read(self, path, images, log):
            return assemble(path, "rows", {"train": [LabelledImage(...)]}, None, log)
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from msefpn import plugins
from msefpn.data.finding import images_in
from msefpn.data.formats.base import (
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    Split,
    assemble,
    read_all,
    size_of,
)
from msefpn.data.formats.coco import CocoFormat
from msefpn.data.formats.createml import CreateMLFormat
from msefpn.data.formats.labelme import LabelMeFormat
from msefpn.data.formats.voc import VocFormat
from msefpn.data.formats.yolo import YoloFormat
from msefpn.data.locate import has_splits
from msefpn.errors import UserError
from msefpn.links import check_links

__all__ = [
    "Format",
    "LabelFault",
    "LabelledImage",
    "LabelledObject",
    "LoadedDataset",
    "ReadLog",
    "Split",
    "assemble",
    "detect_format",
    "images_in",
    "needs_no_copy",
    "open_source",
    "read_all",
    "size_of",
]


class Format(Protocol):
    """What an annotation format can do; a class is called without arguments to get one."""

    def holds(self, path: Path) -> bool:
        """Whether a folder or file is in this format; it must not raise for one that is not."""

    def read(self, path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
        """Read a data set; `assemble` makes one from labelled images.

        Args:
            path: its folder, or the file that says what is in it.
            images: folder of the images; None: where the format has them.
            log: takes the files that are skipped and what else the user has to know.

        Raises:
            UserError: nothing can be used.
        """


# In the order of detection: of a folder that holds two formats, the first one is read.
plugins.register("format", "coco")(CocoFormat)
plugins.register("format", "voc")(VocFormat)
plugins.register("format", "labelme")(LabelMeFormat)
plugins.register("format", "createml")(CreateMLFormat)
plugins.register("format", "yolo")(YoloFormat)


def detect_format(path: Path) -> str | None:
    """The format of a folder or file, the package's own first, then plug-ins'; None where it is in none."""
    table = plugins.known("format")
    names = sorted(table, key=lambda name: table[name].origin != plugins.OURS)  # stable
    return next((name for name in names if _format(name).holds(path)), None)


def needs_no_copy(data: Path) -> bool:
    """Whether data is read where it is; formats other than COCO's are converted into a copy."""
    return has_splits(data, ("train", "val")) or detect_format(data) in (None, "coco")


def open_source(
    path: Path,
    format: str | None = None,
    images: Path | None = None,
    *,
    fix_names: bool = False,
    follow_links: bool = False,
) -> LoadedDataset:
    """Read a data set in any of the formats.

    Args:
        path: its folder, or the file that says what is in it.
        format: name of a format; None: `detect_format`.
        images: folder of the images, where they are not where the format has them.
        fix_names: take the picture of a similar name where one is missing.
        follow_links: read what symbolic links, or paths in YOLO's yaml, lead to outside of the folder.

    Raises:
        UserError: it does not exist, is in no or another format, or nothing in it can be used.
    """
    if not path.exists():
        raise UserError(f"'{path}' does not exist: give a folder of images and annotations")
    if images is not None and not images.is_dir():
        raise UserError(f"image folder '{images}' does not exist: give another")
    check_links(path, images, follow=follow_links)
    if format is None:
        format = detect_format(path)
        if format is None:
            raise UserError(
                f"no annotations found in '{path}': it has neither COCO jsons (train.json), VOC xml files, "
                "LabelMe or Create ML jsons nor YOLO's data.yaml: give the folder that holds them"
            )
        reader = _format(format)
    else:
        reader = _format(format)
        if not reader.holds(path):
            raise UserError(f"'{path}' is not in the format {format}: leave out --format to detect it")
    dataset = reader.read(path, images, ReadLog(fix_names=fix_names, follow_links=follow_links))
    if not isinstance(dataset, LoadedDataset):
        raise UserError(
            f"format '{format}' returned a {type(dataset).__name__}, not a LoadedDataset: return what "
            "msefpn.data.formats.assemble gives"
        )
    return dataset


def _format(name: str) -> Format:
    registered = plugins.find("format", name)
    format: Format = registered() if isinstance(registered, type) else registered
    return format

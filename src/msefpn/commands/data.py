"""The public functions that look at data sets and make them; each is a command too, see `api`."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msefpn.commands.arguments import as_path
from msefpn.config import parse_size

if TYPE_CHECKING:
    from msefpn.commands.dataset import Conversion
    from msefpn.data.check import Check
    from msefpn.data.split import Division


def check(
    data: str | Path | None = None,
    *,
    train_json: str | Path | None = None,
    train_images: str | Path | None = None,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    masks: bool = False,
    size: str | int = "1333x800",
    out: str | Path | None = None,
) -> Check:
    """Look at every image and box of a data set, say what is wrong or unusual, and advise; with out, draw it.

    Args:
        data: folder with train.json + train/ and val.json + val/, or in COCO's, Pascal VOC's, YOLO's,
            LabelMe's or Create ML's layout
        train_json: COCO json of the training images, instead of a data folder
        train_images: folder of the training images; the one beside the json with its name
        val_json: COCO json of the validation images
        val_images: folder of the validation images; the one beside the json with its name
        masks: look at the objects' masks too, which mask_rcnn learns from
        size: images will be resized, ratio kept, to fit into this
        out: folder for check.html: images with their boxes, and charts of sizes, shapes and classes

    Raises:
        UserError: there is no data to look at.
    """
    from msefpn.commands.dataset import check as look

    return look(
        data,
        train_json=train_json,
        train_images=train_images,
        val_json=val_json,
        val_images=val_images,
        masks=masks,
        size=parse_size(str(size)),
        out=as_path(out),
    )


def convert(
    source: str | Path,
    *,
    out: str | Path | None = None,
    to: str = "coco",
    format: str | None = None,
    images: str | Path | None = None,
    link: bool = False,
) -> Conversion:
    """Turn Pascal VOC, YOLO, LabelMe, Create ML or COCO annotations into COCO json or YOLO.

    A file that cannot be used is left out and named. Of Pascal VOC, the lists in ImageSets/Main are the
    splits; of the others, folders called train, val (valid, dev) and test, or what YOLO's data.yaml names.

    Args:
        source: folder of the data set, or its json or data.yaml
        out: folder for the result, which --data takes; the first free one of converted-1, converted-2, ...
        to: coco (SPLIT.json + SPLIT/) or yolo (data.yaml, images/ and labels/)
        format: coco, voc, labelme, createml or yolo; found by the files
        images: folder of the images, where they are not where the format has them
        link: make links to the images instead of copies

    Returns:
        Folder, format found, images per split and the files left out.

    Raises:
        UserError: nothing can be used, or the folder holds something; the message says what to change.
    """
    from msefpn.commands import dataset
    from msefpn.runs.folder import free_folder

    return dataset.convert(
        Path(source),
        as_path(out) or free_folder(Path("converted")),
        to=to,
        format=format,
        images=as_path(images),
        link=link,
    )


def split(
    source: str | Path,
    *,
    out: str | Path | None = None,
    val: float = 0.2,
    seed: int = 0,
    group: str | None = None,
    format: str | None = None,
    images: str | Path | None = None,
    link: bool = False,
) -> Division:
    """Divide a data set into train and val: every class in its share, what belongs together on one side.

    Splits that are there already are put together first, but for test, which is kept. Files with the same
    bytes are never on both sides.

    Args:
        source: data set in any format that convert reads
        out: folder for the result, which --data takes; the first free one of split-1, split-2, ...
        val: share of the images for validation, 0 to 1
        seed: another one divides otherwise
        group: what must not be on both sides: a regular expression whose first group, found in the file name,
            names the group, like '^(patient\\d+)', or a key of the images in COCO's json
        format: coco, voc, labelme, createml or yolo; found by the files
        images: folder of the images, where they are not where the format has them
        link: make links to the images instead of copies

    Returns:
        The parts and their boxes per class.

    Raises:
        UserError: it cannot be divided so, or the folder holds something; the message says what to change.
    """
    from msefpn.commands import dataset
    from msefpn.runs.folder import free_folder

    return dataset.split(
        Path(source),
        as_path(out) or free_folder(Path("split")),
        val=val,
        seed=seed,
        group=group,
        format=format,
        images=as_path(images),
        link=link,
    )

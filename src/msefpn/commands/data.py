"""The public functions that check data sets and make them; each is a command too."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msefpn.commands.arguments import SplitFiles, as_path, configured, takes
from msefpn.config import Config, load_recipe, parse_size
from msefpn.errors import UserError, unknown_name
from msefpn.names import check_name
from msefpn.runs.folder import default_recipe

if TYPE_CHECKING:
    from msefpn.data.check import Check
    from msefpn.data.formats import ReadLog, Split
    from msefpn.data.split import Division

_ANNOTATIONS = ("train_json", "train_images", "val_json", "val_images")
_PLANNED = ("detector", "anchors")
"""Options of a training that `check` takes too."""
SKIPPED = "skipped.txt"
"""The files that could not be used, one a line, where there are any."""


class Conversion(NamedTuple):
    """What `convert` did."""

    out: Path
    format: str
    """The format that the source was read as."""
    images: dict[str, int]
    """Split -> images."""
    skipped: tuple[str, ...]
    """Files that could not be used, each with the reason."""


_FOLLOW = " --follow-links"
"""What data needs that is made of links to images elsewhere."""


@takes(SplitFiles, Config, only=(*_ANNOTATIONS, *_PLANNED))
def check(
    data: str | Path | None = None,
    *,
    masks: bool = False,
    headers: bool = False,
    size: str | int | None = None,
    recipe: str | Path | None = None,
    set: Sequence[str] = (),
    out: str | Path | None = None,
    fix_names: bool = False,
    follow_links: bool = False,
    **options: Any,
) -> Check:
    """Check every image and box of a data set, report what is wrong or unusual, and advise on training.

    Args:
        data: folder with train.json + train/ and val.json + val/, or in the layout of COCO, Pascal
            VOC, YOLO, LabelMe, Create ML or a plug-in's format; also one json, a folder that is not divided,
            or a zip file of one
        masks: check the objects' masks too, which mask_rcnn learns from
        headers: read only the header and end of each image, seconds for 100,000 of them (default: decode
            every image, which finds damage inside)
        size: longest x shortest side, pixels, that images will be resized to fit into (default: the
            recipe's)
        recipe: name or YAML file of the training that is planned, whose anchors are compared with the
            boxes (default: faster_rcnn_r50_mse_fpn_1x)
        set: further settings of it as key=value or key.path=value
        out: folder for check.html: images with their boxes, and charts of sizes, shapes and classes
        fix_names: where a picture is missing, take the one of a similar name (other case, slashes, folders)
        follow_links: follow symbolic links that lead out of the data folder

    Returns:
        What was found; `str()` gives it as text.

    Raises:
        UserError: the training split is missing, data and the jsons contradict each other, or the recipe or
            its anchors are not understood.
    """
    values, _ = configured({"size": size, **{key: options.pop(key, None) for key in _PLANNED}}, set)
    config = load_recipe(str(recipe or default_recipe(builtin=False)), **values)
    check_name("detector", config.detector)

    from msefpn.data.anchors import Chosen
    from msefpn.data.archive import unpacked
    from msefpn.data.check import inspect_splits
    from msefpn.reporting import dataset as page
    from msefpn.runs.console import Bar, say
    from msefpn.runs.folder import check_out, new_folder
    from msefpn.training.anchors import settle_anchors

    folder = as_path(out)
    if folder is not None:
        check_out(folder)
    config = settle_anchors(config, values)
    chosen = Chosen(
        config.detector, config.detector_options, config.neck_options, auto=config.anchors == "auto"
    )
    with unpacked(Path(data)) if data is not None else nullcontext() as place:
        result = inspect_splits(
            place,
            **options,
            masks=masks,
            headers=headers,
            progress=Bar,
            size=parse_size(config.size),
            detector=chosen,
            fix_names=fix_names,
            follow_links=follow_links,
        )
        say(str(result))
        if folder is not None:
            with new_folder(folder):
                page.write_check_page(result, folder)
            say(f"page: {folder / page.CHECK_FILE}")
    return result


def convert(
    source: str | Path,
    *,
    out: str | Path | None = None,
    to: str = "coco",
    format: str | None = None,
    images: str | Path | None = None,
    link: bool = False,
    fix_names: bool = False,
    follow_links: bool = False,
) -> Conversion:
    """Convert Pascal VOC, YOLO, LabelMe, Create ML or COCO annotations to COCO json or YOLO.

    A file that cannot be used is named and skipped. For Pascal VOC, the splits are the lists in
    ImageSets/Main; else folders named train, val (valid, dev) and test, or what YOLO's data.yaml names.

    Args:
        source: folder of the data set, its json or data.yaml, or a zip file of it
        out: folder for the result, which --data takes (default: the first free converted-1, converted-2, ...)
        to: coco (SPLIT.json + SPLIT/) or yolo (data.yaml, images/ and labels/)
        format: coco, voc, labelme, createml, yolo or a plug-in's (default: detected)
        images: folder with the images (default: where the format has them)
        link: link to the images instead of copying them; the result then needs --follow-links
        fix_names: where a picture is missing, take the one of a similar name (other case, slashes, folders)
        follow_links: follow symbolic links that lead out of the data folder

    Returns:
        Folder, detected format, images per split and the skipped files.

    Raises:
        UserError: nothing can be used, or the folder is not empty.
    """
    from msefpn.data.archive import unpacked
    from msefpn.data.formats import open_source
    from msefpn.runs.console import say
    from msefpn.runs.folder import check_out, free_folder

    folder = as_path(out) or free_folder(Path("converted"))
    if to not in ("coco", "yolo"):
        raise unknown_name("format to write", to, ("coco", "yolo"))
    check_out(folder)
    _refuse_links(Path(source), link)
    with unpacked(Path(source)) as place:
        dataset = open_source(place, format, as_path(images), fix_names=fix_names, follow_links=follow_links)
        splits = {name: part.cleaned(dataset.log) for name, part in dataset.splits.items()}
        _write(splits, folder, dataset.log, to=to, link=link)
    counts = {name: len(part.content["images"]) for name, part in splits.items()}
    say(*dataset.log.lines(), *(_summary(name, part) for name, part in splits.items()))
    next_step = f"train on it with msefpn train --data {folder}{_FOLLOW * link}"
    if "train" not in counts or len(counts) < 2:
        next_step = f"divide it into train and val with msefpn split {folder}{_FOLLOW * link}"
    say(f"{source} ({dataset.format}) to {folder} ({to}){_skipped(dataset.log, folder)}; {next_step}")
    return Conversion(folder, dataset.format, counts, tuple(dataset.log.skipped))


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
    fix_names: bool = False,
    follow_links: bool = False,
) -> Division:
    """Divide a data set into train and val, with every class in proportion and groups kept together.

    Existing splits are merged first, except for test, which is kept. Files with the same bytes are never on
    both sides.

    Args:
        source: data set in any format that convert reads
        out: folder for the result, which --data takes (default: the first free split-1, split-2, ...)
        val: share of the images for validation, 0 to 1
        seed: decides between equally good divisions
        group: images that must stay on one side: a regular expression whose first group, in the file name,
            is the group's name, like '^(patient\\d+)', or a key of the images in COCO's json
        format: coco, voc, labelme, createml, yolo or a plug-in's (default: detected)
        images: folder with the images (default: where the format has them)
        link: link to the images instead of copying them; the result then needs --follow-links
        fix_names: where a picture is missing, take the one of a similar name (other case, slashes, folders)
        follow_links: follow symbolic links that lead out of the data folder

    Returns:
        The splits and their boxes per class.

    Raises:
        UserError: it cannot be divided that way, or the folder is not empty.
    """
    from msefpn.data.archive import unpacked
    from msefpn.data.formats import open_source
    from msefpn.data.split import divide
    from msefpn.runs.console import say
    from msefpn.runs.folder import check_out, free_folder

    folder = as_path(out) or free_folder(Path("split"))
    check_out(folder)
    _refuse_links(Path(source), link)
    with unpacked(Path(source)) as place:
        dataset = open_source(place, format, as_path(images), fix_names=fix_names, follow_links=follow_links)
        splits = {name: part.cleaned(dataset.log) for name, part in dataset.splits.items()}
        division = divide(replace(dataset, splits=splits), val, seed, group)
        _write(division.splits, folder, dataset.log, to="coco", link=link)
    say(*dataset.log.lines(), str(division))
    say(
        f"{source} ({dataset.format}) to {folder}{_skipped(dataset.log, folder)}; "
        f"train on it with msefpn train --data {folder}{_FOLLOW * link}"
    )
    return division


def _write(splits: Mapping[str, Split], out: Path, log: ReadLog, *, to: str, link: bool) -> None:
    """Write the splits into a new folder. Raises UserError for a fault that only the user can fix."""
    from msefpn.data.formats.write import bytes_of, write_coco, write_yolo
    from msefpn.runs.folder import check_out, new_folder
    from msefpn.writing import write_text

    check_out(out, room=0 if link else bytes_of(splits))
    with new_folder(out):
        if to == "coco":
            write_coco(splits, out, link=link)
        else:
            write_yolo(splits, out, log, link=link)
        if log.skipped:
            write_text(out / SKIPPED, "".join(f"{text}\n" for text in log.skipped))


def _refuse_links(source: Path, link: bool) -> None:
    """Raise UserError for links into a zip file, whose content is there only while it is read."""
    if link and source.suffix.lower() == ".zip":
        raise UserError(f"link cannot be used with '{source}': leave it out, or unpack the zip file")


def _summary(name: str, part: Split) -> str:
    content = part.content
    empty = len(content["images"]) - len({note["image_id"] for note in content["annotations"]})
    names = {item["id"]: item["name"] for item in content["categories"]}
    shown = ", ".join(list(names.values())[:12]) + (", ..." if len(names) > 12 else "")
    return (
        f"{name}: {len(content['images'])} images, {empty} without objects; "
        f"{len(content['annotations'])} boxes; {len(names)} classes: {shown}"
    )


def _skipped(log: ReadLog, out: Path) -> str:
    files = "1 file" if len(log.skipped) == 1 else f"{len(log.skipped)} files"
    return f"; {files} skipped, see {out / SKIPPED}" if log.skipped else ""

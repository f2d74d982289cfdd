"""What is in a data set: faults, classes, and object sizes against the pyramid and its anchors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msefpn.data.advice import ANCHOR_SIDES, NARROW, PYRAMID_STRIDES, TINY, advise, resized_boxes
from msefpn.data.anchors import MANY_MISSED, Chosen, advise_on_anchors, missed_share
from msefpn.data.coco import CocoData, scan_coco
from msefpn.data.faults import FaultReport
from msefpn.data.finding import examples, unlisted
from msefpn.data.formats import LoadedDataset, detect_format, open_source
from msefpn.data.formats.coco import coco_places
from msefpn.data.locate import has_splits, locate_split, refuse_unread
from msefpn.data.looking import Looking, Progress
from msefpn.data.reader import scan_split
from msefpn.data.split import content_marks
from msefpn.errors import UserError
from msefpn.links import check_links, roots_of
from msefpn.reading import real_path

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True)
class BoxSizes:
    """The boxes of a split after the images are resized. Shares are 0..1 of all boxes."""

    quantiles: dict[int, float]
    """Per cent -> square root of the box area, pixels."""
    level_share: dict[int, float]
    """Stride -> boxes whose closest anchor side is that level's, by ratio."""
    tiny_share: float
    """Boxes whose longer side is under two cells of the finest level."""
    narrow_share: float
    """Boxes more than three times as wide as high, or the other way round."""


@dataclass(frozen=True)
class SplitCheck:
    """One split."""

    name: str
    file: Path
    folder: Path
    report: FaultReport
    images: int = 0
    boxes: int = 0
    crowd: int = 0
    empty: int = 0
    per_class: dict[str, int] = field(default_factory=dict)
    """Class -> boxes."""
    sizes: BoxSizes | None = None
    """None where nothing could be read."""
    data: CocoData | None = field(default=None, repr=False, compare=False)
    """Its images and boxes; None where these could not be read."""


@dataclass(frozen=True)
class Check:
    """The result of `inspect_splits`; `str()` gives it as text."""

    size: tuple[int, int]
    """Longest and shortest side that images are resized to fit into, pixels."""
    splits: tuple[SplitCheck, ...]
    differences: tuple[str, ...]
    """How the classes of the splits differ, a sentence each."""
    missing: str
    """Why there is no validation split; empty where there is one."""
    advice: tuple[str, ...] = ()
    """How to train on it, a sentence each."""
    name: str = ""
    """Of the data set."""
    read: tuple[str, ...] = ()
    """What had to be reported while reading a format other than COCO's, a line each."""
    anchors: tuple[str, ...] = ()
    """How the training boxes meet the chosen detector's anchors, a line each."""

    @property
    def usable(self) -> bool:
        """Whether a run would start: both splits, no fault that only the user can fix, the same classes."""
        stops = bool(self.missing) or any(split.report.stops for split in self.splits)
        return not stops and not any(text.startswith("classes") for text in self.differences)

    @property
    def exit_code(self) -> int:
        """What the command line returns: 0 where the data set is usable, else 2."""
        return 0 if self.usable else 2

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> kind of fault -> how many."""
        return {split.name: split.report.counts for split in self.splits}

    def __str__(self) -> str:
        lines = [*self.read, *(line for split in self.splits for line in _split_lines(split, self.size))]
        lines += [f"val: stops a run: {self.missing}"] * bool(self.missing)
        lines += ["between the splits:", *(f"  {text}" for text in self.differences)] * bool(self.differences)
        lines += self.anchors
        lines += ["advice:", *(f"  {text}" for text in self.advice)] * bool(self.advice)
        lines.append("ready to train" if self.usable else "not ready: fix what stops a run")
        return "\n".join(lines)


def inspect_splits(
    data: str | Path | None = None,
    *,
    train_json: str | Path | None = None,
    train_images: str | Path | None = None,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    masks: bool = False,
    size: tuple[int, int] = (1333, 800),
    detector: Chosen | None = None,
    headers: bool = False,
    fix_names: bool = False,
    follow_links: bool = False,
    progress: Progress | None = None,
) -> Check:
    """Check every image and box of a data set.

    Args:
        data: a folder whose splits are found by convention, see `find_split`, one json, or one in another
            format.
        train_json: the training json, instead of a `data` folder.
        train_images: its image folder; None: the folder named like the json.
        val_json: the validation json.
        val_images: its image folder.
        masks: check the objects' masks too.
        size: (longest, shortest side) that images are resized to fit into, pixels.
        detector: whose anchors are compared with the training boxes; None: Faster R-CNN's.
        headers: read only each image's header and end; otherwise decode it, which finds damage inside.
        fix_names: take the picture of a similar name where one is missing.
        follow_links: read what symbolic links, or paths in YOLO's yaml, lead to outside of the data.
        progress: shows how many images have been looked at.

    Raises:
        UserError: there is no training split, or `data` would not be used. Other faults are in the result.
    """
    refuse_unread(data, train_json, val_json)
    check_links(None if data is None else Path(data), follow=follow_links)
    for file, images in ((train_json, train_images), (val_json, val_images)):
        if file is not None:
            named = None if images is None else Path(images)
            check_links(*roots_of(Path(file), named), follow=follow_links)
    source = _foreign(data, fix_names=fix_names, follow_links=follow_links)
    train = _find("train", data, source, train_json, train_images)
    if train is None:
        raise UserError("no data to check: give a data folder, or the training json and its image folder")
    val, missing = _find_val(data, source, val_json, val_images)
    places = {"train": train} | ({} if val is None else {"val": val})
    scans = {
        name: (
            place,
            *_scanned(place, Looking(not headers, progress=progress), masks=masks, fix_names=fix_names),
        )
        for name, place in places.items()
    }
    splits = tuple(_describe(name, *scan, size) for name, scan in scans.items())
    found = {name: data for name, (_, data, _) in scans.items() if data is not None}
    differences = class_differences(*found.values()) if len(found) == 2 else []
    advice, anchors = _advice(found.get("train"), size, detector or Chosen("faster_rcnn"))
    return Check(
        size,
        splits,
        (*differences, *shared_images(found)),
        missing,
        advice,
        name=_name(data, train.file),
        read=tuple(unlisted(_listed(scans.values())))
        if source is None
        else (f"{source.path}: read as {source.format}", *source.log.lines()),
        anchors=anchors,
    )


def _scanned(
    place: _Place, how: Looking, *, masks: bool, fix_names: bool
) -> tuple[CocoData | None, FaultReport]:
    if place.content is None and not fix_names:
        return scan_split(place.file, place.folder, decode=how.decode, masks=masks, progress=how.progress)
    scan = scan_coco(place.file, place.folder, how, masks=masks, content=place.content, fix_names=fix_names)
    return scan.data, scan.report


def _advice(
    data: CocoData | None, size: tuple[int, int], chosen: Chosen
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences of advice, and the lines on the anchors."""
    if data is None or data.crowd.all():
        return (), ()
    anchors = advise_on_anchors(data, size, chosen)

    def misses(other: tuple[int, int]) -> bool:
        if other == size:
            return bool(anchors.advice)
        return missed_share(data, other, chosen) > MANY_MISSED

    lines = [anchors.advice] if anchors.advice else []
    return (*lines, *advise(data, size, misses)), tuple(anchors.lines())


def _listed(scans: Iterable[tuple[_Place, CocoData | None, FaultReport]]) -> Iterator[Path]:
    """The files that the splits list, also those that cannot be read; none where a split cannot be used."""
    found = list(scans)
    if all(data is not None for _, data, _ in found):
        for place, data, report in found:
            yield from (data.path_of(row) for row in range(len(data))) if data else ()
            yield from (place.folder / fault.file for fault in report.faults)


def _name(data: str | Path | None, file: Path) -> str:
    """What the data set is called."""
    path = real_path(data if data is not None else file)
    return path.name if path.is_dir() else path.stem


def shared_images(splits: dict[str, CocoData]) -> list[str]:
    """Say which pictures are there twice, by their bytes: in both splits, or in one."""
    files = [
        (name, data.names[row], data.path_of(row))
        for name, data in splits.items()
        for row in range(len(data))
    ]
    first: dict[str, tuple[str, str]] = {}
    across, within = [], []
    for (split, name, _), mark in zip(files, content_marks([path for *_, path in files]), strict=True):
        if mark is None:
            continue
        other = first.setdefault(mark, (split, name))
        if other[0] != split:
            across.append(f"{name} is {other[1]} of {other[0]}")
        elif other[1] != name:
            within.append(f"{name} is {other[1]} of {other[0]}")
    texts = []
    if across:
        texts.append(
            f"{len(across)} pictures of val are in train too ({examples(across)}), so its numbers are too "
            "good: leave them out on one side, or divide with 'msefpn split'"
        )
    if within:
        texts.append(f"{len(within)} pictures are in their split twice ({examples(within)})")
    return texts


def class_differences(train: CocoData, val: CocoData) -> list[str]:
    """Say how the classes of two splits differ; lines that begin with 'classes' stop a run."""
    texts = []
    ours, theirs = set(train.classes), set(val.classes)  # the ids may differ: a run goes by the names
    if ours != theirs:
        only = [
            f"{place} only: {', '.join(sorted(names))}"
            for place, names in (("train", ours - theirs), ("val", theirs - ours))
            if names
        ]
        texts.append(f"classes differ, {'; '.join(only)}: give both jsons the same categories")
    seen = {train.classes[label] for label in np.unique(train.labels)}
    unseen = [val.classes[label] for label in np.unique(val.labels) if val.classes[label] not in seen]
    if unseen:
        texts.append(f"without a training box, but in val: {', '.join(unseen)}")
    return texts


def box_sizes(data: CocoData, size: tuple[int, int]) -> BoxSizes:
    """Compare the boxes, crowd regions aside, with the pyramid's strides and anchors after the resize."""
    extent = resized_boxes(data, size)
    side = np.sqrt(extent.prod(1))
    levels = np.abs(np.log2(side[:, None] / np.array(ANCHOR_SIDES))).argmin(1)
    ratio = extent[:, 0] / extent[:, 1]
    return BoxSizes(
        quantiles={part: float(np.percentile(side, part)) for part in _QUANTILES},
        level_share={stride: float((levels == level).mean()) for level, stride in enumerate(PYRAMID_STRIDES)},
        tiny_share=float((extent.max(1) < TINY).mean()),
        narrow_share=float(((ratio > NARROW) | (ratio < 1 / NARROW)).mean()),
    )


class _Place(NamedTuple):
    """Where a split is."""

    file: Path
    folder: Path
    content: dict[str, Any] | None
    """Of another format, as COCO's object."""


def _foreign(data: str | Path | None, *, fix_names: bool, follow_links: bool) -> LoadedDataset | None:
    """What a folder in a format other than COCO's holds."""
    if data is None or not Path(data).exists():
        return None
    format = detect_format(Path(data))
    return (
        None
        if format in (None, "coco")
        else open_source(Path(data), format, fix_names=fix_names, follow_links=follow_links)
    )


def _find(
    split: str,
    data: str | Path | None,
    source: LoadedDataset | None,
    file: str | Path | None,
    folder: str | Path | None,
) -> _Place | None:
    """The place of a split; None where nothing is given. Raises UserError."""
    alone = file is folder is None
    if data is not None and source is None and alone and not has_splits(Path(data), ["train"]):
        found = coco_places(Path(data), None)
        if len(found) == 1 and split == "train":  # what is not divided is looked at as training data
            return _Place(*next(iter(found.values())), None)
        if len(found) == 1:
            raise UserError(f"no val split in '{data}': 'msefpn split {data} --out NEW' makes one")
    if source is None or not alone:
        place = locate_split(data, split, file, folder)
        return None if place is None else _Place(*place, None)
    part = (
        next(iter(source.splits.values()))
        if split == "train" and len(source.splits) == 1
        else source.split(split)
    )
    return _Place(part.file, part.folder, part.content)


def _find_val(
    data: str | Path | None, source: LoadedDataset | None, file: str | Path | None, folder: str | Path | None
) -> tuple[_Place | None, str]:
    """The place of the validation split, or None and why there is none."""
    try:
        place = _find("val", data, source, file, folder)
    except UserError as error:
        return None, str(error)
    return place, "" if place else "no val split: give the validation json and its image folder"


def _describe(
    name: str, place: _Place, data: CocoData | None, report: FaultReport, size: tuple[int, int]
) -> SplitCheck:
    if data is None:
        return SplitCheck(name, place.file, place.folder, report)
    per_class = np.bincount(data.labels, minlength=len(data.classes)).tolist()
    return SplitCheck(
        name,
        place.file,
        place.folder,
        report,
        images=len(data),
        boxes=len(data.boxes),
        crowd=int(data.crowd.sum()),
        empty=int((np.diff(data.offsets) == 0).sum()),
        per_class=dict(zip(data.classes, per_class, strict=True)),
        sizes=box_sizes(data, size) if not data.crowd.all() else None,
        data=data,
    )


def _split_lines(split: SplitCheck, size: tuple[int, int]) -> list[str]:
    lines = [f"{split.name}: {split.file}, images in {split.folder}"]
    if split.images:
        crowd = f", {split.crowd} of them crowd regions" if split.crowd else ""
        lines.append(f"  {split.images} images, {split.empty} without objects; {split.boxes} boxes{crowd}")
        classes = sorted(split.per_class.items(), key=lambda item: -item[1])
        counts = ", ".join(f"{name} {count}" for name, count in classes)
        lines.append(f"  {len(classes)} classes: {counts}")
    if split.sizes is not None:
        quantiles = ", ".join(f"{part} %: {side:.0f}" for part, side in split.sizes.quantiles.items())
        lines.append(
            f"  box sizes in px (root of the area) after a resize into {size[0]} x {size[1]}: {quantiles}"
        )
        shares = zip(split.sizes.level_share.items(), ANCHOR_SIDES, strict=True)
        levels = ", ".join(f"{stride}/{anchor}: {share:.0%}" for (stride, share), anchor in shares)
        lines.append(f"  closest level (stride/anchor): {levels}")
        lines.append(
            f"  smaller than two cells of stride {PYRAMID_STRIDES[0]}: {split.sizes.tiny_share:.1%}; "
            f"longer than 3:1: {split.sizes.narrow_share:.1%}"
        )
    if split.report.faults:
        lines += ["  faults:", *(f"    {line}" for line in split.report.lines())]
    else:
        lines.append("  no faults")
    return lines

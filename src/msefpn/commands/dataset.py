"""Data sets from one format into another, and into two parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from msefpn.data.check import Check
from msefpn.data.check import check as check_data
from msefpn.data.formats import Log, Part, open_source
from msefpn.data.formats.write import bytes_of, write_coco, write_yolo
from msefpn.data.split import Division, divide
from msefpn.errors import unknown_name
from msefpn.report.dataset import CHECK_FILE, write_check_page
from msefpn.runs.console import say
from msefpn.runs.folder import check_out, new_folder, write_text

SKIPPED = "left_out.txt"
"""The files that could not be used, one a line, where there are any."""


def check(
    data: str | Path | None,
    *,
    train_json: str | Path | None,
    train_images: str | Path | None,
    val_json: str | Path | None,
    val_images: str | Path | None,
    masks: bool,
    size: tuple[int, int],
    out: Path | None,
) -> Check:
    """Look at a data set; see `msefpn.commands.data.check`."""
    if out is not None:
        check_out(out)
    report = check_data(
        data,
        train_json=train_json,
        train_images=train_images,
        val_json=val_json,
        val_images=val_images,
        masks=masks,
        size=size,
    )
    say(str(report))
    if out is not None:
        with new_folder(out):
            write_check_page(report, out)
        say(f"pictures: {out / CHECK_FILE}")
    return report


class Conversion(NamedTuple):
    """What `convert` did."""

    out: Path
    format: str
    """What the source was read as."""
    images: dict[str, int]
    """Split -> images."""
    left_out: tuple[str, ...]
    """Files that could not be used, each with the reason."""


def convert(
    source: Path, out: Path, *, to: str, format: str | None, images: Path | None, link: bool
) -> Conversion:
    """Write a data set in another format; see `msefpn.commands.data.convert`."""
    if to not in ("coco", "yolo"):
        raise unknown_name("format to write", to, ("coco", "yolo"))
    check_out(out)
    read = open_source(source, format, images)
    _write(read.parts, out, read.log, to=to, link=link)
    counts = {split: len(part.content["images"]) for split, part in read.parts.items()}
    say(*read.log.lines(), *(_summary(split, part) for split, part in read.parts.items()))
    use = f"msefpn train --data {out} trains on it"
    if "train" not in counts or len(counts) < 2:
        use = f"msefpn split {out} divides it into train and val"
    say(f"{source} ({read.format}) to {out} ({to}){_left_out(read.log, out)}; {use}")
    return Conversion(out, read.format, counts, tuple(read.log.skipped))


def split(
    source: Path,
    out: Path,
    *,
    val: float,
    seed: int,
    group: str | None,
    format: str | None,
    images: Path | None,
    link: bool,
) -> Division:
    """Divide a data set; see `msefpn.commands.data.split`."""
    check_out(out)
    read = open_source(source, format, images)
    for part in read.parts.values():
        part.read(Log())
    division = divide(read, val, seed, group)
    _write(division.parts, out, read.log, to="coco", link=link)
    say(*read.log.lines(), str(division))
    say(
        f"{source} ({read.format}) to {out}{_left_out(read.log, out)}; msefpn train --data {out} trains on it"
    )
    return division


def _write(parts: Mapping[str, Part], out: Path, log: Log, *, to: str, link: bool) -> None:
    """Write the parts into a new folder. Raises UserError for a fault that only the user can mend."""
    check_out(out, room=0 if link else bytes_of(parts))
    with new_folder(out):
        if to == "coco":
            for part in parts.values():
                part.read(log)
            write_coco(parts, out, link=link)
        else:
            write_yolo(parts, out, log, link=link)
        if log.skipped:
            write_text(out / SKIPPED, "".join(f"{text}\n" for text in log.skipped))


def _summary(split: str, part: Part) -> str:
    content = part.content
    empty = len(content["images"]) - len({note["image_id"] for note in content["annotations"]})
    names = {item["id"]: item["name"] for item in content["categories"]}
    shown = ", ".join(list(names.values())[:12]) + (", ..." if len(names) > 12 else "")
    return (
        f"{split}: {len(content['images'])} images, {empty} without boxes; "
        f"{len(content['annotations'])} boxes; {len(names)} classes: {shown}"
    )


def _left_out(log: Log, out: Path) -> str:
    return f"; {len(log.skipped)} files left out, see {out / SKIPPED}" if log.skipped else ""

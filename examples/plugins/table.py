"""A data format: a folder with train.csv and val.csv, one row for each object, and the images beside them."""

import csv
from collections import defaultdict
from pathlib import Path

from msefpn.data.formats import (
    LabelFault,
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    read_all,
    size_of,
)
from msefpn.plugins import register

COLUMNS = ["file", "class", "left", "top", "right", "bottom"]


@register("format", "table")
class Table:
    """Boxes in pixels of the image; an image without objects has one row with the file alone."""

    def holds(self, path: Path) -> bool:
        """Whether it is a folder with a train.csv of these columns."""
        file = path / "train.csv"
        return file.is_file() and file.read_bytes().split(b"\n")[0].strip() == ",".join(COLUMNS).encode()

    def read(self, path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
        """Read the splits; an image that cannot be used is named in the log and skipped."""
        splits = {}
        for name in ("train", "val", "test"):
            if (path / f"{name}.csv").is_file():
                rows = _rows_by_file(path / f"{name}.csv", images or path)
                splits[name] = read_all(_labelled, rows.items(), log)
        return assemble(path, "table", splits, None, log)


def _rows_by_file(table: Path, folder: Path) -> dict[Path, list[dict[str, str]]]:
    rows = defaultdict(list)
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[folder / row["file"]].append(row)
    return rows


def _labelled(item: tuple[Path, list[dict[str, str]]]) -> LabelledImage:
    """One image with its objects. Raises LabelFault."""
    file, rows = item
    objects = []
    for row in rows:
        if row["class"]:
            try:
                left, top, right, bottom = (float(row[side]) for side in COLUMNS[2:])
            except (TypeError, ValueError):
                raise LabelFault(f"{file}: the box of a {row['class']} is not four numbers") from None
            objects.append(LabelledObject(row["class"], (left, top, right - left, bottom - top)))
    return LabelledImage(file, size_of(file), tuple(objects))

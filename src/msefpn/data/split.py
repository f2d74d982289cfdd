"""A data set divided into two: each class in its share, what belongs together on one side.

Iterative stratification after Sechidis et al., On the stratification of multi-label data (ECML 2011): the
class with the fewest images left is dealt first, each image to the side that lacks most of it. Here the lack
is measured relative to the side's share, so that a class with two images is on both sides, and a group is
dealt as a whole.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.data.formats import LoadedDataset, ReadLog, Split
from msefpn.errors import UserError
from msefpn.reading import digest_of


@dataclass(frozen=True)
class Division:
    """The result of a division; `str()` gives it as text."""

    splits: dict[str, Split]
    """'train' and 'val', and 'test' where the data set had one."""
    groups: int
    """Groups that were dealt; as many as images where none belong together."""
    boxes: dict[str, dict[str, int]]
    """Class -> split -> boxes."""

    def __str__(self) -> str:
        images = {name: len(split.content["images"]) for name, split in self.splits.items()}
        width = max(5, *(len(name) for name in self.boxes))
        heads = "".join(f"{split:>9}" for split in images)
        lines = [f"{'':{width}} {heads}  share of val"]
        rows = {"images": images, **self.boxes}
        for name, counts in rows.items():
            dealt = counts["train"] + counts["val"]
            share = f"{counts['val'] / dealt:13.1%}" if dealt else f"{'none':>13}"
            lines.append(f"{name:{width}} " + "".join(f"{counts[split]:9}" for split in images) + share)
        lines += [
            f"'{name}' is not in {split}: it is in too few groups"
            for name, counts in self.boxes.items()
            for split in ("train", "val")
            if not counts[split] and counts["train"] + counts["val"]
        ]
        lines.append(f"{self.groups} groups of images were dealt")
        return "\n".join(lines)


def divide(dataset: LoadedDataset, share: float, seed: int, group: str | None) -> Division:
    """Divide the images of a data set into 'train' and 'val'; a test split beside others stays as it is.

    Files with the same bytes are always one group.

    Args:
        dataset: what was read; train and val are put together first.
        share: of the images that go to 'val', 0 to 1.
        seed: decides between equally good choices.
        group: what belongs together: a key of the images' entries, or a regular expression that is searched
            in the file name and whose first group is the name of the group.

    Raises:
        UserError: a wrong share or group, fewer than two groups, or classes that differ between the splits.
    """
    if not 0 < share < 1:
        raise UserError(f"val is {share}: it must be more than 0 and less than 1")
    kept = {name: one for name, one in dataset.splits.items() if name == "test" and len(dataset.splits) > 1}
    whole = _together({name: one for name, one in dataset.splits.items() if name not in kept})
    images, notes = whole.content["images"], whole.content["annotations"]
    keys = _group_keys(images, group, dataset.log)
    members = _groups(keys, [whole.folder / item["file_name"] for item in images])
    place = {item["id"]: index for index, item in enumerate(images)}
    column = {item["id"]: index for index, item in enumerate(whole.content["categories"])}
    has = np.zeros((len(images), len(column) + 2), dtype=np.float64)
    for note in notes:
        has[place[note["image_id"]], column[note["category_id"]]] += 1
    has[:, -2] = has.sum(1) == 0  # images without objects are dealt like a class
    has[:, -1] = 1
    counts = np.stack([has[rows].sum(0) for rows in members])
    chosen = _deal(counts, share, seed)
    sides = {"train": ~chosen, "val": chosen}
    if not chosen.any() or chosen.all():
        raise UserError(
            f"{len(members)} groups of images cannot be divided with val {share}: "
            + ("use a finer --group" if len(members) < 2 else "choose a val nearer to 0.5")
        )
    splits = {}
    for name, side in sides.items():
        rows = sorted(
            row for group_rows, mine in zip(members, side, strict=True) if mine for row in group_rows
        )
        splits[name] = _taken(whole, {images[row]["id"] for row in rows})
    splits |= kept
    names = [item["name"] for item in whole.content["categories"]]
    found = {name: _per_class(split) for name, split in splits.items()}
    boxes = {name: {split: count[name] for split, count in found.items()} for name in names}
    return Division(splits, len(members), boxes)


def _deal(counts: NDArray[np.float64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which groups (G,) go to 'val'.

    Args:
        counts: (G, K + 2) objects of each class, images without any, images.
        share: see `divide`.
        seed: see `divide`.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(counts))
    missing = np.stack([(1 - share) * counts.sum(0), share * counts.sum(0)])  # (2, K + 2) still to come
    side = np.full(len(counts), -1)
    while (open_rows := order[side[order] < 0]).size:
        groups_with = (counts[open_rows] > 0).sum(0).astype(float)
        groups_with[groups_with == 0] = np.inf
        rarest = int(groups_with[:-1].argmin())
        mine = open_rows[counts[open_rows, rarest] > 0]
        # large groups first: the small ones level out
        for row in mine[np.argsort(-counts[mine, rarest], kind="stable")]:
            train, val = (missing[:, [rarest, -1]] / [[1 - share], [share]]).round(6).tolist()
            to = int(val > train and len(mine) > 1)  # the one group of a class is trained on
            side[row] = to
            missing[to] -= counts[row]
    chosen: NDArray[np.bool_] = side == 1
    return chosen


def _group_keys(images: Sequence[Mapping[str, Any]], group: str | None, log: ReadLog) -> list[str | None]:
    """Name of the group of each image; None: it is alone."""
    if group is None:
        return [None] * len(images)
    if any(group in item for item in images):
        return [None if item.get(group) is None else str(item[group]) for item in images]
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise UserError(
            f"group '{group}' is neither a key of the images nor a regular expression ({error}): fix it"
        ) from None
    found = [pattern.search(item["file_name"]) for item in images]
    keys = [None if hit is None else hit.group(1 if pattern.groups else 0) for hit in found]
    if not any(found):
        raise UserError(
            f"group '{group}' matches no file name, such as '{images[0]['file_name']}', and is not a key of "
            "the images: fix it"
        )
    log.count(sum(key is None for key in keys), "images are in no group: each is dealt on its own")
    return keys


def _groups(keys: Sequence[str | None], files: Sequence[Path]) -> list[list[int]]:
    """Rows of the images that belong together: by their group's name, or because they are the same file."""
    parent = list(range(len(keys)))

    def top(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[object, int] = {}
    for row, (key, same) in enumerate(zip(keys, content_marks(files), strict=True)):
        for name in (("group", key), ("bytes", same)):
            if name[1] is not None:
                parent[top(row)] = top(first.setdefault(name, row))
    found: dict[int, list[int]] = {}
    for row in range(len(keys)):
        found.setdefault(top(row), []).append(row)
    return list(found.values())


def content_marks(files: Sequence[Path]) -> list[str | None]:
    """A hash of each file that may equal another one; None for the others.

    Only files of the same size with the same bytes in the middle are read whole, and hard links to one file
    once.
    """
    found = [file.stat() for file in files]
    sizes = Counter(about.st_size for about in found)
    first: dict[tuple[int, int], int] = {}
    of = [first.setdefault((about.st_dev, about.st_ino), row) for row, about in enumerate(found)]
    rows = [row for row in first.values() if sizes[found[row].st_size] > 1]
    with ThreadPoolExecutor(8) as pool:
        parts = dict(zip(rows, pool.map(_middle, [files[row] for row in rows]), strict=True))
        keys = {row: (found[row].st_size, parts[row]) for row in rows}
        seen = Counter(keys.values())
        alike = [row for row in rows if seen[keys[row]] > 1]
        marks = dict(zip(alike, pool.map(digest_of, [files[row] for row in alike]), strict=True))
    linked = Counter(of)
    return [
        marks.get(row, f"{found[row].st_dev} {found[row].st_ino}" if linked[row] > 1 else None) for row in of
    ]


def _middle(file: Path) -> bytes:
    """Bytes from the middle of a file: pictures often begin alike."""
    with file.open("rb") as opened:
        opened.seek(file.stat().st_size // 2)
        return opened.read(64)


def _together(splits: Mapping[str, Split]) -> Split:
    """All images of several splits as one, with new ids and file names from their common folder."""
    if len(splits) == 1:
        return next(iter(splits.values()))
    folder = Path(os.path.commonpath([split.folder.absolute() for split in splits.values()]))
    first = next(iter(splits.values()))
    id_of = {item["name"]: item["id"] for item in first.content["categories"]}
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for name, split in splits.items():
        names = {item["id"]: item["name"] for item in split.content["categories"]}
        if set(names.values()) != set(id_of):
            raise UserError(
                f"the splits have different classes: {sorted(id_of)}, {name} {sorted(names.values())}: "
                "give both the same"
            )
        new = {item["id"]: len(images) + place for place, item in enumerate(split.content["images"], 1)}
        below = split.folder.absolute().relative_to(folder)
        for item in split.content["images"]:
            images.append(
                {**item, "id": new[item["id"]], "file_name": (below / item["file_name"]).as_posix()}
            )
        for note in split.content["annotations"]:
            place = {"id": len(notes) + 1, "image_id": new[note["image_id"]]}
            notes.append({**note, **place, "category_id": id_of[names[note["category_id"]]]})
    return Split(first.file, folder, first.content | {"images": images, "annotations": notes})


def _taken(whole: Split, ids: set[Any]) -> Split:
    images = [item for item in whole.content["images"] if item["id"] in ids]
    notes = [note for note in whole.content["annotations"] if note["image_id"] in ids]
    return Split(whole.file, whole.folder, whole.content | {"images": images, "annotations": notes})


def _per_class(split: Split) -> Counter[str]:
    """Class -> boxes."""
    names = {item["id"]: item["name"] for item in split.content["categories"]}
    return Counter(names[note["category_id"]] for note in split.content["annotations"])

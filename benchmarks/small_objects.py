"""A cut of small objects of a data set in COCO's layout: python -m benchmarks.small_objects DATA OUT

Keeps the classes of which there are many objects, half of them small, and of the images that show one an even
choice. Objects are measured in pixels of the files, on the training split; no object of a class that is kept
is left out, nor its crowd regions. OUT is what `--data` takes; its images are links.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msefpn.data.formats import Split, open_source
from msefpn.data.formats.write import write_coco
from msefpn.runs.folder import check_out, new_folder


def small_classes(content: dict[str, Any], side: float, objects: int) -> list[int]:
    """Category ids with at least `objects` objects whose median side, root of the area, is at most `side`."""
    sides = defaultdict(list)
    for note in content["annotations"]:
        if not note.get("iscrowd"):
            sides[note["category_id"]].append(np.sqrt(note["bbox"][2] * note["bbox"][3]))
    return sorted(id for id, own in sides.items() if len(own) >= objects and np.median(own) <= side)


def cut(split: Split, classes: Collection[int], most: int) -> Split:
    """Those classes, and at most `most` images that show one, evenly chosen."""
    content = split.content
    notes = [note for note in content["annotations"] if note["category_id"] in classes]
    shown = sorted({note["image_id"] for note in notes if not note.get("iscrowd")})
    if len(shown) > most:
        shown = [shown[at] for at in np.linspace(0, len(shown) - 1, most).round().astype(int)]
    kept = set(shown)
    chosen = {
        "images": [item for item in content["images"] if item["id"] in kept],
        "annotations": [note for note in notes if note["image_id"] in kept],
        "categories": [item for item in content["categories"] if item["id"] in classes],
    }
    return Split(split.file, split.folder, content | chosen)


def main(words: Sequence[str] | None = None) -> None:
    """Write the cut, and print what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--side", type=float, default=22, help="largest median side of a class, pixels")
    parser.add_argument("--objects", type=int, default=200, help="fewest objects of a class")
    parser.add_argument("--images", type=int, default=300, help="most images of a split")
    args = parser.parse_args(words)
    dataset = open_source(args.data)
    whole = {name: split.cleaned(dataset.log) for name, split in dataset.splits.items()}
    classes = small_classes(whole["train"].content, args.side, args.objects)
    if not classes:
        parser.error(f"no class of {args.data} has {args.objects} objects of a median side up to {args.side}")
    splits = {name: cut(split, classes, args.images) for name, split in whole.items()}
    check_out(args.out)
    with new_folder(args.out):
        write_coco(splits, args.out, link=True)
    for name, split in splits.items():
        images, notes = split.content["images"], split.content["annotations"]
        names = {item["id"]: item["name"] for item in split.content["categories"]}
        count = {label: sum(note["category_id"] == id for note in notes) for id, label in names.items()}
        print(f"{name}: {len(images)} images, {len(notes)} boxes:", count)


if __name__ == "__main__":
    main()

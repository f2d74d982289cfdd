"""The frequent classes of a COCO json: python -m benchmarks.frequent TRAIN_JSON VAL_JSON OUT

Keeps the classes that have --objects objects or more in TRAIN_JSON, crowd regions not counted, and of its
images --images that hold one, drawn with --seed. Of VAL_JSON all images are kept. OUT gets train.json and
val.json; the images stay where they are: `--train-images` and `--val-images` name their folders.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.runs.folder import check_out, new_folder


def frequent_classes(content: dict[str, Any], objects: int) -> list[dict[str, Any]]:
    """The categories of COCO's content with enough objects."""
    count = Counter(note["category_id"] for note in content["annotations"] if not note.get("iscrowd"))
    return [category for category in content["categories"] if count[category["id"]] >= objects]


def reduced(content: dict[str, Any], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO's content with these categories and their annotations alone, and all images."""
    ids = {category["id"] for category in categories}
    notes = [note for note in content["annotations"] if note["category_id"] in ids]
    return content | {"categories": categories, "annotations": notes}


def drawn(content: dict[str, Any], count: int | None, seed: int) -> dict[str, Any]:
    """COCO's content with `count` of the images that hold an object, or all of these."""
    holding = sorted({note["image_id"] for note in content["annotations"] if not note.get("iscrowd")})
    ids = set(holding if count is None else random.Random(seed).sample(holding, min(count, len(holding))))
    images = [image for image in content["images"] if image["id"] in ids]
    notes = [note for note in content["annotations"] if note["image_id"] in ids]
    return content | {"images": images, "annotations": notes}


def main(words: Sequence[str] | None = None) -> None:
    """Write both files, and print what is in them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="COCO json of the training images")
    parser.add_argument("val", type=Path, help="COCO json of the validation images")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--objects", type=int, default=100, help="least number (default: %(default)s)")
    parser.add_argument("--images", type=int, help="number of training images (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    args = parser.parse_args(words)
    train, val = (json.loads(path.read_text(encoding="utf-8")) for path in (args.train, args.val))
    categories = frequent_classes(train, args.objects)
    if not categories:
        parser.error(f"{args.train} has no class with {args.objects} objects")
    parts = {
        "train": drawn(reduced(train, categories), args.images, args.seed),
        "val": reduced(val, categories),
    }
    check_out(args.out)
    with new_folder(args.out):
        for name, content in parts.items():
            (args.out / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            images, notes = len(content["images"]), len(content["annotations"])
            print(f"{name}: classes {len(categories)}, images {images}, objects {notes}")


if __name__ == "__main__":
    main()

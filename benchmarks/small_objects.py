"""Tiles with small objects of one class: python -m benchmarks.small_objects DATA OUT

Each image of a data set in COCO's layout is cut into square tiles side by side, without resizing. A tile is
kept if it has an object, and if all objects of the class that reach into it have a side (root of the area)
within --sides, in pixels of the file; crowd regions have none. An object belongs to the tile that its centre
is in, and is clipped to that. OUT is what `--data` takes; its images are PNG files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.coco import CocoData
from msefpn.data.formats import open_source
from msefpn.data.images import read_image, write_image
from msefpn.runs.folder import check_out, new_folder


def corners(height: int, width: int, tile: int) -> list[tuple[int, int]]:
    """Left and top of the whole tiles of an image, row by row; what is over is left on both sides alike."""
    columns, rows = width // tile, height // tile
    left, top = (width - columns * tile) // 2, (height - rows * tile) // 2
    return [(left + column * tile, top + row * tile) for row in range(rows) for column in range(columns)]


def in_tile(
    boxes: NDArray[np.float32], fit: NDArray[np.bool_], corner: tuple[int, int], tile: int
) -> NDArray[np.float32]:
    """The boxes of a tile, xyxy in its pixels; none where the tile is not to be kept.

    Args:
        boxes: (G, 4) xyxy, all of the class in the image.
        fit: (G,) those of the sides asked for, and no crowd.
        corner: left and top of the tile.
        tile: its side.
    """
    moved = boxes - np.array(corner * 2, dtype=np.float32)
    reaches = (moved[:, :2] < tile).all(1) & (moved[:, 2:] > 0).all(1)
    if (reaches & ~fit).any():
        return moved[:0]
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    return moved[((centres >= 0) & (centres < tile)).all(1)].clip(0, tile)


def cut(data: CocoData, label: int, tile: int, sides: tuple[float, float], folder: Path) -> dict[str, Any]:
    """Write the tiles of a split to a folder, and return COCO's content."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    category = {"id": data.category_ids[label], "name": data.classes[label]}
    for index, (height, width) in enumerate(data.sizes.tolist()):
        boxes, labels, crowd = data.boxes_of(index)
        boxes, crowd = boxes[labels == label], crowd[labels == label]
        side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
        fit = ~crowd & (side >= sides[0]) & (side < sides[1])
        whole = read_image(data.path_of(index), (height, width)) if fit.any() else None
        for left, top in corners(height, width, tile):
            found = in_tile(boxes, fit, (left, top), tile)
            if not len(found) or whole is None:
                continue
            name = f"{data.ids[index]}_{left}_{top}.png"
            write_image(Image.fromarray(whole[top : top + tile, left : left + tile]), folder / name)
            images.append({"id": len(images) + 1, "file_name": name, "width": tile, "height": tile})
            for x1, y1, x2, y2 in found.tolist():
                note = {"id": len(notes) + 1, "image_id": len(images), "category_id": category["id"]}
                note |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                notes.append(note)
    return {"images": images, "annotations": notes, "categories": [category]}


def main(words: Sequence[str] | None = None) -> None:
    """Write the tiles, and print what is in them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--name", default="person", help="name of the class (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=96, help="side of a tile, pixels (default: %(default)s)")
    parser.add_argument(
        "--sides",
        type=float,
        nargs=2,
        default=(8, 32),
        help="least and upper bound, pixels (default: 8 32)",
    )
    args = parser.parse_args(words)
    dataset = open_source(args.data)
    read = {name: split.read(dataset.log) for name, split in dataset.splits.items()}
    for data in read.values():
        if args.name not in data.classes:
            parser.error(f"{data.file} has no class '{args.name}'")
    check_out(args.out)
    with new_folder(args.out):
        for name, data in read.items():
            (args.out / name).mkdir()
            content = cut(data, data.classes.index(args.name), args.tile, tuple(args.sides), args.out / name)
            (args.out / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            areas = [note["area"] for note in content["annotations"]]
            if not areas:
                parser.error(f"{data.file} has no tile of {args.tile} pixels with such objects alone")
            side = np.median(np.sqrt(areas))
            print(f"{name}: tiles {len(content['images'])}, objects {len(areas)}, median side {side:.0f} px")


if __name__ == "__main__":
    main()

"""Data sets of the size of COCO's train2017 and of Objects365: drawn annotations, linked images."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

LINKS = 60_000
"""Hard links of one file; ext4 allows 65,000."""
FRAME = (640, 480)
"""Width and height of the picture."""
_BLOCK = 100_000
_SHAPES = 4000
"""Outlines that are drawn, each for many objects."""


class Size(NamedTuple):
    """How much is drawn."""

    name: str
    images: int
    boxes: int
    classes: int
    corners: float
    """Mean of an outline; 0: there are none."""


TRAIN2017 = Size("train2017", 118_287, 860_001, 80, 27.0)
OBJECTS365 = Size("objects365", 1_700_000, 25_000_000, 365, 0.0)


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture with a photograph's spectrum: octaves of noise, weaker towards the finer ones."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    cells, strength = 4, 48.0
    while cells <= max(width, height):
        rows, columns = max(2, cells * height // width), cells
        grid = Image.fromarray(rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8))
        octave = grid.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(octave, dtype=np.float32) / 127.5 - 1) * strength
        cells, strength = cells * 2, strength * 0.65
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def _outlines(rng: np.random.Generator, corners: float) -> list[str]:
    """Texts of `segmentation`: one to three polygons, of as many corners as an exponential law says."""
    texts = []
    for _ in range(_SHAPES):
        polygons = []
        for _ in range(rng.choice([1, 2, 3], p=[0.85, 0.1, 0.05])):
            count = 4 + int(rng.exponential(corners / 1.2 - 4))
            angles = np.sort(rng.uniform(0, 2 * np.pi, count))
            spread = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(20, 100, (count, 1))
            points = (spread + rng.uniform(100, 380, 2)).round(2).reshape(-1)
            polygons.append(f"[{','.join(map(str, points.tolist()))}]")
        texts.append(f"[{','.join(polygons)}]")
    return texts


def _regions(rng: np.random.Generator) -> list[str]:
    """Texts of `segmentation` of crowd regions: run lengths of the whole picture."""
    width, height = FRAME
    texts = []
    for _ in range(50):
        ends = np.sort(rng.choice(width * height - 1, 401, replace=False)) + 1
        counts = np.diff(np.concatenate([[0], ends, [width * height]])).tolist()
        texts.append(json.dumps({"counts": counts, "size": [height, width]}, separators=(",", ": ")))
    return texts


def _images(size: Size) -> Iterator[str]:
    width, height = FRAME
    for row in range(size.images):
        name = f"{3 * row + 9:012d}.jpg"
        yield (
            f'{{"license": {row % 8 + 1},"file_name": "{name}","coco_url": '
            f'"http://images.cocodataset.org/{size.name}/{name}","height": {height},"width": {width},'
            f'"date_captured": "2013-11-14 11:18:45","flickr_url": '
            f'"http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg","id": {3 * row + 9}}}'
        )


def _annotations(size: Size, rng: np.random.Generator) -> Iterator[str]:
    """Boxes in the order of a shuffled list of images, as COCO's: neighbours are of different images."""
    crowded, common = rng.gamma(1.5, size=size.images), 1 / np.arange(1, size.classes + 1)
    crowded[rng.random(size.images) < 0.009] = 0  # images without objects, as 1,021 of train2017's
    images, labels = crowded / crowded.sum(), common / common.sum()
    outlines, regions = (_outlines(rng, size.corners), _regions(rng)) if size.corners else ([], [])
    for first in range(0, size.boxes, _BLOCK):
        count = min(_BLOCK, size.boxes - first)
        sides = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
        boxes = np.concatenate([rng.uniform(0, 1, (count, 2)) * (FRAME - sides - 1), sides], 1).round(2)
        areas = (boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, count)).round(6)
        columns = [boxes, areas, rng.choice(size.images, count, p=images)]
        columns += [rng.choice(size.classes, count, p=labels), rng.random(count) < 0.012]
        columns += [rng.integers(max(1, len(outlines)), size=count), rng.integers(50, size=count)]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for id, ((x, y, width, height), area, image, label, crowd, shape, region) in enumerate(rows, first):
            if outlines:
                text = regions[region] if crowd else outlines[shape]
                start = f'{{"segmentation": {text},"area": {area},"iscrowd": {int(crowd)},'
            else:
                start = f'{{"iscrowd": 0,"isfake": 0,"isreflected": 0,"area": {area},'
            yield (
                f'{start}"image_id": {3 * image + 9},"bbox": [{x},{y},{width},{height}],'
                f'"category_id": {label + 1},"id": {id + 1}}}'
            )


def write_json(file: Path, size: Size, seed: int = 0) -> None:
    """Write the annotations, with spaces and an order of the keys as COCO's."""
    rng = np.random.default_rng(seed)
    with file.open("w", encoding="ascii") as out:
        out.write('{"info": {"description": "drawn"},"licenses": [],"images": [')
        _write_list(out, _images(size))
        out.write('],"annotations": [')
        _write_list(out, _annotations(size, rng))
        classes = [{"supercategory": "thing", "id": id + 1, "name": f"c{id}"} for id in range(size.classes)]
        out.write(f'],"categories": {json.dumps(classes)}}}')


def _write_list(out: Any, texts: Iterator[str]) -> None:
    out.write(next(texts))
    for text in texts:
        out.write(f",{text}")


def link_images(folder: Path, size: Size) -> None:
    """Make the images: hard links of one JPEG file, which are regular files to every reader."""
    folder.mkdir()
    source = folder.with_name(f"{folder.name}.jpg")
    for row in range(size.images):
        if row % LINKS == 0:
            source.unlink(missing_ok=True)
            noise(*FRAME, seed=row).save(source, quality=90, subsampling="4:2:0")
        os.link(source, folder / f"{3 * row + 9:012d}.jpg")
    source.unlink()


def make(folder: Path, size: Size, *, images: bool = True) -> tuple[Path, Path]:
    """Make a set, unless it is there; the json and the folder of the images."""
    folder.mkdir(parents=True, exist_ok=True)
    file, pictures = folder / f"{size.name}.json", folder / size.name
    if not file.exists():
        part = file.with_suffix(".part")
        write_json(part, size)
        part.replace(file)
    if images and not pictures.exists():
        part = pictures.with_name(f"{size.name}-part")
        shutil.rmtree(part, ignore_errors=True)
        link_images(part, size)
        part.replace(pictures)
    return file, pictures

"""Makers of small data sets for tests: pictures, and labels in several formats."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msefpn.data.coco import CocoData, scan_coco
from msefpn.data.faults import FaultReport
from msefpn.data.formats import ReadLog, open_source
from msefpn.data.looking import LOOKING, Looking
from msefpn.data.masks import Masks
from msefpn.data.pieces import Unusual
from msefpn.data.quick import scan_in_pieces
from msefpn.names import DetectorInputs

SIZE = (100, 80)
"""Width and height."""
BOXES_ALONE = DetectorInputs("faster_rcnn", masks=False, proposals=False)
"""What most detectors read beside images."""


def picture(file: Path, size: tuple[int, int] = SIZE, seed: int | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, file.name)) if seed is None else seed)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(file)
    return file


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def coco(
    root: Path,
    images: dict[Any, str],
    notes: list[dict[str, Any]],
    size: tuple[int, int] = SIZE,
    split: str = "train",
) -> Path:
    """A json of one class; `notes` without id, category and such."""
    write(
        root / f"{split}.json",
        {
            "images": [
                {"id": id, "file_name": name, "width": size[0], "height": size[1]}
                for id, name in images.items()
            ],
            "annotations": [
                {"id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0, **note}
                for n, note in enumerate(notes)
            ],
            "categories": [{"id": 1, "name": "part"}],
        },
    )
    (root / split).mkdir(exist_ok=True)
    return root


def voc(file: Path, corners: tuple[Any, ...], name: str = "", size: tuple[int, int] = SIZE) -> None:
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(names, corners, strict=True))
    write(
        file,
        f"<annotation><filename>{name or file.stem + '.png'}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height></size><object><name>part</name><bndbox>{box}</bndbox></object></annotation>",
    )


def labelme(
    file: Path, image: str, size: tuple[int, int] = SIZE, box: tuple[int, ...] = (10, 10, 30, 30)
) -> None:
    shape = {"label": "part", "points": [box[:2], box[2:]], "shape_type": "rectangle"}
    write(file, {"shapes": [shape], "imagePath": image, "imageWidth": size[0], "imageHeight": size[1]})


def boxes(root: Path, log: list[str] | None = None, **options: Any) -> dict[str, list[list[float]]]:
    """File name -> boxes of the train split; `log` takes what is told."""
    source = open_source(root, **options)
    data = source.splits["train"].read(ReadLog())
    if log is not None:
        log += source.log.lines(100)
    found = {}
    for index, name in enumerate(data.names):
        x1, y1, x2, y2 = data.boxes_of(index)[0].T
        found[name] = np.stack([x1, y1, x2 - x1, y2 - y1], 1).round(2).tolist()
    return found


def scan_both(file: Path, folder: Path, how: Looking = LOOKING) -> tuple[CocoData | None, FaultReport]:
    """Scan a json as a whole and, where it is read so, in pieces: both find the same."""
    whole = scan_coco(file, folder, how)
    with contextlib.suppress(Unusual, OSError):
        parts = scan_in_pieces(file, folder, how)
        assert parts.report.faults == whole.report.faults
        assert_same(parts.data, whole.data)
    return whole.data, whole.report


def assert_same(one: CocoData | None, other: CocoData | None) -> None:
    """All of the data is equal, but for the places in the json's list."""
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        for name, value in vars(one).items():
            if name == "rows":
                continue
            if isinstance(value, np.ndarray):
                assert value.dtype == getattr(other, name).dtype
                np.testing.assert_array_equal(value, getattr(other, name))
            elif isinstance(value, Masks):
                assert value.counts(range(len(value))) == getattr(other, name).counts(range(len(value)))
            else:
                assert value == getattr(other, name), name

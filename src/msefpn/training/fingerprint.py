"""What a state says of its run: configuration, classes, and marks of the data that it has learned from."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from msefpn.config import Config, to_yaml
from msefpn.data.coco import CocoData
from msefpn.models import Detector
from msefpn.reading import open_file

BUDGET = 2**30
"""Bytes of pictures that are read at most, but for a block at each end of each file."""
_BLOCK = 4096
_CHUNK = 2**20
_MISSING = -1
"""The mark of a file that cannot be read: the training will say so."""


@dataclass(frozen=True)
class DataMarks:
    """Marks of both splits; those of pictures are made in the first process of each node only."""

    train: int
    val: int
    pictures: dict[str, Tensor]
    """Split -> (N,) int64."""

    @classmethod
    def of(cls, train: CocoData, val: CocoData, *, pictures: bool = True) -> DataMarks:
        """Read what the marks are made of; the pictures where asked for."""
        marks = mark_pictures([train, val]) if pictures else []
        of_pictures = dict(zip(("train", "val"), marks, strict=False))
        return cls(mark_annotations(train), mark_annotations(val), of_pictures)

    def to_state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"train": self.train, "val": self.val, "pictures": self.pictures}


def settings_of(config: Config) -> dict[str, Any]:
    """A configuration as plain values."""
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return values


def about_run(detector: Detector, config: Config, marks: DataMarks) -> dict[str, Any]:
    """What a state says about its run, except how far it is."""
    return {
        "classes": list(detector.classes),
        "category_ids": list(detector.category_ids),
        "config": settings_of(config),
        "data": marks.to_state(),
    }


def mark_annotations(data: CocoData) -> int:
    """Return a number that changes with the images' names and sizes, boxes, masks, classes and proposals."""
    value = zlib.crc32("\n".join([*data.names, *data.classes]).encode("utf-8", "surrogatepass"))
    columns: list[NDArray[Any]] = [data.ids, data.sizes, data.offsets, data.boxes, data.labels, data.crowd]
    columns += [] if data.masks is None else [data.masks.text]
    columns += [] if data.proposals is None else [data.proposals.offsets, data.proposals.boxes]
    for column in columns:
        value = zlib.crc32(column.tobytes(), value)
    return value


def mark_pictures(splits: Sequence[CocoData], budget: int = BUDGET) -> list[Tensor]:
    """Return a number for each picture of each split (N,) int64, that changes with the bytes of its file.

    All bytes are read where the splits have `budget` or less; otherwise the size of each file, its first and
    last 4 KiB, and blocks of 4 KiB evenly spread between them.
    """
    files = [[data.path_of(index) for index in range(len(data))] for data in splits]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_size, [file for part in files for file in part]))
        blocks = None if sum(sizes) <= budget else max(2, budget // _BLOCK // max(1, len(sizes)))
        return [
            torch.tensor(list(pool.map(lambda file: _mark(file, blocks), part)), dtype=torch.int64)
            for part in files
        ]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _mark(file: Path, blocks: int | None) -> int:
    """The mark of a file, from that many blocks; None: from all of it."""
    try:
        with open_file(file) as opened:
            size = os.fstat(opened.fileno()).st_size
            value = zlib.crc32(str(size).encode())
            if blocks is None or size <= blocks * _BLOCK:
                while chunk := opened.read(_CHUNK):
                    value = zlib.crc32(chunk, value)
                return value
            for block in range(blocks):
                opened.seek((size - _BLOCK) * block // (blocks - 1))
                value = zlib.crc32(opened.read(_BLOCK), value)
            return value
    except OSError:
        return _MISSING

"""What an export format is, and what an exported file says of itself."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from msefpn.checkpoint import VERSION
from msefpn.config import Config, parse_size
from msefpn.version import __version__

if TYPE_CHECKING:
    from msefpn.models import Detector
    from msefpn.structures import Batch

Arrays = dict[str, NDArray[Any]]

MIN_HALVED = 1024
"""Fewest values of a weight that fp16 stores in float16; smaller ones are anchors, offsets and the like."""


class Graph(NamedTuple):
    """A graph, ready to run on the CPU; several threads may share it."""

    inputs: tuple[str, ...]
    """Names of what it takes, of `msefpn.models.graph.INPUT_NAMES`."""
    outputs: tuple[str, ...]
    """Names of what it returns, of `msefpn.models.graph.OUTPUT_NAMES`."""
    run: Callable[[Arrays], Mapping[str, Any]]
    """Inputs by name to outputs by name."""


class Exporter(Protocol):
    """An export format: writes a detector to a file, reads what the file says of itself, and runs it."""

    suffix: str
    """Of the file that users name, with the dot."""
    suffixes: tuple[str, ...]
    """Of all files that are written, of one stem."""
    packages: tuple[str, ...]
    """Modules of the extra `export` that writing needs."""
    executes: bool
    """Whether opening a file of a stranger can run programs."""
    precisions: tuple[str, ...]
    """Of fp32, fp16 (weights are stored in 16 bits and computed with in 32) and int8 (calibrated)."""

    def refuse(self, config: Config) -> str:
        """Why a detector of this configuration cannot be written, as half a sentence; empty if it can."""

    def write(
        self, detector: Detector, info: str, path: Path, precision: str, samples: Iterable[Batch]
    ) -> None:
        """Write the files.

        Args:
            detector: in evaluation mode, in float32 on the CPU.
            info: what the file says of itself, see `describe`.
            path: the file that users name.
            precision: one of `precisions`.
            samples: images to calibrate int8 on.
        """

    def read(self, path: Path) -> str | None:
        """Return what a file says of itself; None where msefpn did not write it. May raise anything."""

    def open(self, path: Path) -> Graph:
        """Make a file ready to run. May raise anything."""


def describe(detector: Detector, size: str, precision: str, packages: Iterable[str]) -> str:
    """Return what an exported file says of itself, as json.

    Args:
        detector: what is exported.
        size: longest x shortest side, pixels, that images are to be resized to fit into.
        precision: fp32, fp16 or int8.
        packages: the format's.
    """
    from msefpn.models.graph import MAX_SIDE, MIN_SIDE  # noqa: PLC0415  slow to import

    info = {
        "version": VERSION,
        "made_with": {"msefpn": __version__}
        | {name: importlib.metadata.version(name) for name in ("torch", "torchvision", *packages)},
        "classes": detector.classes,
        "category_ids": detector.category_ids,
        "size": parse_size(size),
        "mean": [round(x, 4) for x in detector.mean.flatten().tolist()],
        "std": [round(x, 4) for x in (1 / detector.scale).flatten().tolist()],
        "multiple": 32,
        "sides": [MIN_SIDE, MAX_SIDE],
        "precision": precision,
        "config": asdict(replace(detector.config, size=size)),
    }
    return json.dumps(info)


def fits_half(values: NDArray[np.float32]) -> bool:
    """Whether fp16 stores a weight in float16."""
    return values.size >= MIN_HALVED and bool(np.abs(values).max() <= np.finfo(np.float16).max)

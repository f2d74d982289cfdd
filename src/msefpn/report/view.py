"""What the page of a run shows, gathered: the values that the page's parts take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.metrics.curves import SizeBin
from msefpn.metrics.errors import ErrorAnalysis


@dataclass(frozen=True)
class Analysis:
    """What the best weights' detections are worth, beyond COCO's numbers. T: thresholds, K: classes."""

    classes: tuple[str, ...]
    images: int
    objects: list[int]
    """(K) of each class, crowds aside."""
    precision: NDArray[np.float64]
    """(T, 101, K), as in `metrics.curves.PrecisionCurves`."""
    sizes: list[SizeBin]
    errors: ErrorAnalysis
    matrix: NDArray[np.int64]
    """(K + 1, K + 1) rows: truth, columns: detections; last: background; at `score` and IoU 0.5."""
    score: float
    """From which on detections are kept: that of the greatest F1 at IoU 0.5."""
    f1: float
    found: float
    """Precision at `score`."""
    recall: float
    """At `score`."""


@dataclass(frozen=True)
class Price:
    """What a prediction costs on this machine."""

    parameters: int
    macs: dict[str, int]
    """Part -> multiply-accumulates for an image of `size`; and `all`."""
    size: tuple[int, int]
    """Height and width of the tensor, pixels."""
    seconds: float
    """Median of a prediction of one image."""
    setting: str
    """Images, device, threads, versions."""


@dataclass(frozen=True)
class Curve:
    """Values over the steps of a training."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class RunView:
    """A run, as far as its folder tells. What is None or empty is told of in `missing`."""

    name: str
    """Told apart from the other runs of the page."""
    folder: str
    summary: str
    config: str
    """As YAML."""
    command: str
    data: str
    """The validation data in words."""
    same_data: bool
    """Whether the validation data is that of the page's first run."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """The log: a row for each epoch."""
    steps: dict[str, Curve] = field(default_factory=dict)
    """Losses and `lr` over the steps."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """Of the best epoch, as in metrics.json."""
    epochs: int = 0
    """Of the whole training."""
    analysis: Analysis | None = None
    price: Price | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """What is not there -> why: keys 'log', 'steps', 'numbers', 'analysis', 'price', 'pictures'."""


@dataclass(frozen=True)
class Shot:
    """An image with what a run found on it."""

    picture: bytes
    """WebP."""
    told: str
    """Counts of right, wrong and missed."""


@dataclass(frozen=True)
class Row:
    """An image, as each run sees it."""

    file: str
    shots: list[Shot]
    """One for each run that is shown."""


@dataclass(frozen=True)
class Gallery:
    """Images chosen for one reason."""

    title: str
    about: str
    rows: list[Row]


@dataclass(frozen=True)
class Pictures:
    """The galleries, and the runs that they show."""

    runs: list[str]
    galleries: list[Gallery]

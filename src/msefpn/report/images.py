"""The images of a report: which ones, and truth and detections drawn over them."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from msefpn.data.coco import CocoData
from msefpn.data.images import ImageFault, read_reduced
from msefpn.metrics.confusion import DetectionOutcomes, match_outcomes
from msefpn.metrics.matching import BoxPredictions, GroundTruth
from msefpn.report.view import Gallery, Pictures, Row, Shot

SIDE = 560
"""Longest side of a picture, pixels."""
MOST = 24
"""Pictures on a page."""
LABELS = 25
"""Wrong boxes of a picture that are named."""
BYTES = 60_000
"""Of a picture, about; with `MOST` it bounds the page to 2 MB."""
RIGHT, WRONG, MISSED = (0, 200, 168), (255, 112, 16), (240, 40, 190)
"""Colours of boxes on photographs."""


@dataclass(frozen=True)
class Seen:
    """A run's detections on data that all runs share."""

    name: str
    data: CocoData
    truth: GroundTruth
    predicted: BoxPredictions
    score: float
    """Detections under it are not shown."""


def pictures_of(runs: Sequence[Seen]) -> Pictures | None:
    """Choose and draw images; None without a run."""
    if not runs:
        return None
    data, classes = runs[0].data, len(runs[0].data.classes)
    verdicts = [match_outcomes(run.truth, run.predicted, classes, len(data), score=run.score) for run in runs]
    quality = np.stack([verdict.quality for verdict in verdicts])  # (runs, images)
    wrongness = np.stack([verdict.wrongness for verdict in verdicts]).mean(axis=0)
    crowdedness = np.bincount(runs[0].truth.image, minlength=len(data))
    mean = quality.mean(axis=0)
    wanted = [
        (
            "The best",
            "Highest quality of all images with objects.",
            _first(-mean, -crowdedness, crowdedness > 0),
        ),
        ("The worst", "Lowest quality.", _first(mean, -crowdedness, crowdedness >= 0)),
        (
            "The most confusing",
            "The most and best scored wrong boxes.",
            _first(-wrongness, mean, wrongness > 0),
        ),
    ]
    if len(runs) > 1:
        spread = np.ptp(quality, axis=0)
        order = _first(-spread, mean, spread > 0)
        wanted.append(("Where the runs differ most", "The largest difference in quality.", order))
    most = max(1, min(4 // len(runs), MOST // (len(wanted) * len(runs))))
    shown: set[int] = set()
    galleries = []
    for title, about, order in wanted:
        rows: list[Row] = []
        for place in order:
            if len(rows) == most or place in shown:
                continue
            row = _row(place, runs, verdicts)
            if row is not None:
                rows.append(row)
                shown.add(place)
        if rows:
            galleries.append(Gallery(title, about, rows))
    return Pictures([run.name for run in runs], galleries)


def _first(value: NDArray[np.float64], then: NDArray[Any], among: NDArray[np.bool_]) -> list[int]:
    """Places by rising value."""
    return [int(place) for place in np.lexsort((then, value)) if among[place]]


def _row(place: int, runs: Sequence[Seen], verdicts: Sequence[DetectionOutcomes]) -> Row | None:
    """An image as each run sees it; None where it cannot be read. `place`: in the order of the ids."""
    data = runs[0].data
    index = int(np.argsort(data.ids)[place])
    height, width = data.sizes[index].tolist()
    scale = min(4.0, SIDE / max(height, width))  # a small image grows: labels keep their size
    small = max(1, round(height * scale)), max(1, round(width * scale))
    try:
        pixels, _ = read_reduced(data.path_of(index), (height, width), small)
    except (OSError, ImageFault):
        return None
    image = Image.fromarray(pixels).resize(small[::-1], Image.Resampling.LANCZOS)
    shots = [_shot(image, scale, place, run, verdict) for run, verdict in zip(runs, verdicts, strict=True)]
    return Row(data.names[index], shots)


def _shot(image: Image.Image, scale: float, place: int, run: Seen, verdict: DetectionOutcomes) -> Shot:
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    classes = run.data.classes
    found = run.predicted.where(verdict.kept)
    mine = found.image == place
    right, wrong = mine & verdict.right, mine & ~verdict.right & ~verdict.left_out
    missed = verdict.missed[run.truth.image[verdict.missed] == place]
    for row in np.flatnonzero(right):
        _outline(pen, run.truth.boxes[verdict.taken[row]] * scale, (255, 255, 255), 1)
    for row in np.flatnonzero(right):
        _outline(pen, found.boxes[row] * scale, RIGHT, 2)
    for row in missed:
        _dashes(pen, run.truth.boxes[row] * scale, MISSED)
    for row in np.flatnonzero(wrong):
        _outline(pen, found.boxes[row] * scale, WRONG, 2)
    for row in missed:
        _label(pen, drawn.size, run.truth.boxes[row] * scale, classes[run.truth.label[row]], MISSED, low=True)
    for row in _best(wrong, found.score):
        text = f"{classes[found.label[row]]} {found.score[row]:.2f}"
        _label(pen, drawn.size, found.boxes[row] * scale, text, WRONG)
    told = f"{int(right.sum())} right, {int(wrong.sum())} wrong, {len(missed)} missed"
    return Shot(_encoded(drawn), told)


def _best(among: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rows of the `LABELS` best scored, the best last."""
    rows = np.flatnonzero(among)
    best: NDArray[np.int64] = rows[np.argsort(score[rows], kind="stable")][-LABELS:]
    return best


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(12)


def _corners(box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x, y, width, height = box.tolist()
    return x, y, x + max(width, 1), y + max(height, 1)


def _outline(
    pen: ImageDraw.ImageDraw, box: NDArray[np.float64], color: tuple[int, int, int], width: int
) -> None:
    x, y, right, low = _corners(box)
    pen.rectangle((x, y, right, low), outline=color, width=width)


def _dashes(pen: ImageDraw.ImageDraw, box: NDArray[np.float64], color: tuple[int, int, int]) -> None:
    x, y, right, low = _corners(box)
    for across, start, end in ((y, x, right), (low, x, right)):
        for at in np.arange(start, end, 9):
            pen.line((at, across, min(at + 5, end), across), fill=color, width=2)
    for along, start, end in ((x, y, low), (right, y, low)):
        for at in np.arange(start, end, 9):
            pen.line((along, at, along, min(at + 5, end)), fill=color, width=2)


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: NDArray[np.float64],
    text: str,
    color: tuple[int, int, int],
    *,
    low: bool = False,
) -> None:
    """Write a text over a box, or under it, inside the image."""
    font = _font()
    text = text if len(text) <= 24 else f"{text[:22]}…"
    _, _, width, height = (int(value) for value in pen.textbbox((0, 0), text, font=font))
    left, top, _, bottom = _corners(box)
    x = min(max(0, left), max(0, size[0] - width - 6))
    y = min(max(0, bottom if low else top - height - 4), size[1] - height - 4)
    pen.rectangle((x, y, x + width + 5, y + height + 3), fill=color)
    pen.text((x + 3, y + 1), text, fill=(0, 0, 0), font=font)


def _encoded(image: Image.Image) -> bytes:
    """As WebP, as well as `BYTES` allow."""
    for quality in (78, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= BYTES:
            break
    return buffer.getvalue()

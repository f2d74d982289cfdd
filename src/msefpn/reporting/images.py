"""The images of a report: which ones, with ground truth and detections drawn over them."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from msefpn.data.images import ImageFault, read_reduced
from msefpn.metrics.confusion import DetectionOutcomes, match_outcomes
from msefpn.reporting.run import ReportedRun

IMAGE_SIDE = 560
"""Longest side of an image, pixels."""
PAGE_IMAGES = 24
"""Images on a page."""
MAX_LABELS = 25
"""Wrong boxes of an image that are labelled."""
IMAGE_BYTES = 60_000
"""Size of an image, about; with `PAGE_IMAGES` it bounds the page to 2 MB."""
CORRECT_COLOR, WRONG_COLOR, MISSED_COLOR = (0, 200, 168), (255, 112, 16), (240, 40, 190)
"""Colours of boxes on photographs."""


@dataclass(frozen=True)
class DrawnImage:
    """An image with the detections of one run."""

    run: str
    data: bytes
    """WebP."""
    caption: str
    """Counts of correct, wrong and missed."""


@dataclass(frozen=True)
class ImageRow:
    """An image with the detections of each run."""

    file: str
    images: list[DrawnImage]


@dataclass(frozen=True)
class ImageGroup:
    """Images that were chosen for one reason."""

    title: str
    about: str
    rows: list[ImageRow]


def image_groups(runs: Sequence[ReportedRun]) -> list[ImageGroup] | None:
    """Choose and draw images, for the runs on the data of the first; None where no run was analysed."""
    shown = [run for run in runs if run.analysis is not None and run.same_data]
    if not shown:
        return None
    outcomes = [_outcomes(run) for run in shown]
    count = max(1, min(4 // len(shown), PAGE_IMAGES // ((3 + (len(shown) > 1)) * len(shown))))
    used: set[int] = set()
    groups = []
    for title, about, order in _choices(shown, outcomes):
        rows: list[ImageRow] = []
        for number in order:
            if len(rows) == count or number in used:
                continue
            row = _row(number, shown, outcomes)
            if row is not None:
                rows.append(row)
                used.add(number)
        if rows:
            groups.append(ImageGroup(title, about, rows))
    return groups


def _outcomes(run: ReportedRun) -> DetectionOutcomes:
    assert run.data is not None
    assert run.truth is not None
    assert run.predictions is not None
    assert run.analysis is not None
    score = run.analysis.best.score
    return match_outcomes(run.truth, run.predictions, len(run.data.classes), len(run.data), score=score)


def _choices(
    runs: Sequence[ReportedRun], outcomes: Sequence[DetectionOutcomes]
) -> list[tuple[str, str, list[int]]]:
    """Title and reason of each group, and the numbers of images in the order of preference."""
    assert runs[0].truth is not None
    quality = np.stack([outcome.quality for outcome in outcomes])  # (runs, images)
    wrong = np.stack([outcome.wrong_score for outcome in outcomes]).mean(axis=0)
    objects = np.bincount(runs[0].truth.image, minlength=quality.shape[1])
    mean = quality.mean(axis=0)
    best = _ascending(-mean, -objects, objects > 0)
    choices = [
        ("The best", "Highest quality of all images with objects.", best),
        ("The worst", "Lowest quality.", _ascending(mean, -objects, objects >= 0)),
        ("The most confusing", "The most and best scored wrong boxes.", _ascending(-wrong, mean, wrong > 0)),
    ]
    if len(runs) > 1:
        spread = np.ptp(quality, axis=0)
        order = _ascending(-spread, mean, spread > 0)
        choices.append(("Where the runs differ most", "The largest difference in quality.", order))
    return choices


def _ascending(value: NDArray[np.float64], then: NDArray[Any], among: NDArray[np.bool_]) -> list[int]:
    """Numbers of images by rising value."""
    return [int(number) for number in np.lexsort((then, value)) if among[number]]


def _row(number: int, runs: Sequence[ReportedRun], outcomes: Sequence[DetectionOutcomes]) -> ImageRow | None:
    """An image with each run's detections; None where it cannot be read. Ids in rising order are numbered."""
    data = runs[0].data
    assert data is not None
    index = int(np.argsort(data.ids)[number])
    height, width = data.sizes[index].tolist()
    scale = min(4.0, IMAGE_SIDE / max(height, width))  # small images are enlarged: labels keep their size
    small = max(1, round(height * scale)), max(1, round(width * scale))
    try:
        pixels, _ = read_reduced(data.path_of(index), (height, width), small)
    except (OSError, ImageFault):
        return None
    image = Image.fromarray(pixels).resize(small[::-1], Image.Resampling.LANCZOS)
    images = [_draw(image, scale, number, *pair) for pair in zip(runs, outcomes, strict=True)]
    return ImageRow(data.names[index], images)


def _draw(
    image: Image.Image, scale: float, number: int, run: ReportedRun, outcome: DetectionOutcomes
) -> DrawnImage:
    assert run.data is not None
    assert run.truth is not None
    assert run.predictions is not None
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    classes, truth = run.data.classes, run.truth
    kept = run.predictions.where(outcome.kept)
    here = kept.image == number
    correct, wrong = here & outcome.correct, here & ~outcome.correct & ~outcome.ignored
    missed = outcome.missed[truth.image[outcome.missed] == number]
    for row in np.flatnonzero(correct):
        _outline(pen, truth.boxes[outcome.matched[row]] * scale, (255, 255, 255), 1)
    for row in np.flatnonzero(correct):
        _outline(pen, kept.boxes[row] * scale, CORRECT_COLOR, 2)
    for row in missed:
        _dashes(pen, truth.boxes[row] * scale, MISSED_COLOR)
    for row in np.flatnonzero(wrong):
        _outline(pen, kept.boxes[row] * scale, WRONG_COLOR, 2)
    for row in missed:
        _label(pen, drawn.size, truth.boxes[row] * scale, classes[truth.label[row]], MISSED_COLOR, low=True)
    for row in _best(wrong, kept.score):
        text = f"{classes[kept.label[row]]} {kept.score[row]:.2f}"
        _label(pen, drawn.size, kept.boxes[row] * scale, text, WRONG_COLOR)
    caption = f"{int(correct.sum())} correct, {int(wrong.sum())} wrong, {len(missed)} missed"
    return DrawnImage(run.name, _encoded(drawn), caption)


def _best(among: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of the `MAX_LABELS` highest scores, the highest last."""
    rows = np.flatnonzero(among)
    best: NDArray[np.int64] = rows[np.argsort(score[rows], kind="stable")][-MAX_LABELS:]
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
    """Write a text above a box, or below it, inside the image."""
    font = _font()
    text = text if len(text) <= 24 else f"{text[:22]}…"
    _, _, width, height = (int(value) for value in pen.textbbox((0, 0), text, font=font))
    left, top, _, bottom = _corners(box)
    x = min(max(0, left), max(0, size[0] - width - 6))
    y = min(max(0, bottom if low else top - height - 4), size[1] - height - 4)
    pen.rectangle((x, y, x + width + 5, y + height + 3), fill=color)
    pen.text((x + 3, y + 1), text, fill=(0, 0, 0), font=font)


def _encoded(image: Image.Image) -> bytes:
    """WebP of the best quality within `IMAGE_BYTES`."""
    for quality in (78, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= IMAGE_BYTES:
            break
    return buffer.getvalue()

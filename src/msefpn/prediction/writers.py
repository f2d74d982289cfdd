"""The results of a prediction in files: pictures, videos, tables, texts and crops."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from msefpn.data.images import write_image
from msefpn.inference.detect import Predictions, as_results
from msefpn.inference.draw import draw
from msefpn.inference.frames import MAX_NAME, Frame, InputSource, safe_name
from msefpn.plain import CsvRows
from msefpn.runs.folder import PREDICTIONS
from msefpn.writing import write_text

if TYPE_CHECKING:
    from msefpn.inference.video import VideoFile

_QUALITY = 92
"""Of JPEG files."""


class Output(NamedTuple):
    """Where results are written, and what they are of."""

    folder: Path
    sources: Sequence[InputSource]
    classes: Sequence[str]
    category_ids: Sequence[int]

    @property
    def stems(self) -> list[str]:
        """A file name for the results of each source."""
        return unique_stems(self.sources)


class Writer(Protocol):
    """Writes one kind of results, image by image."""

    def add(self, frame: Frame, found: Predictions, entries: list[dict[str, Any]]) -> None:
        """Write the results of one image.

        Args:
            frame: the image.
            found: its predictions.
            entries: the same as `entries_of` returns them.
        """

    def close(self) -> None:
        """Finish the files."""


def entries_of(found: Predictions, frame: Frame, number: int, output: Output) -> list[dict[str, Any]]:
    """Return the predictions of an image as they go into predictions.json; `number` is their image_id."""
    names = dict(zip(output.category_ids, output.classes, strict=True))
    index: dict[str, Any] = {} if frame.number is None else {"frame": frame.number}
    index |= {} if frame.time is None else {"time": round(frame.time, 6)}
    return [
        {
            "file_name": output.sources[frame.source].name,
            **index,
            "category": names[item["category_id"]],
            **item,
            "image_id": number,
        }
        for item in as_results(found, output.category_ids)
    ]


class PictureWriter:
    """The images and videos, with boxes and masks drawn into them."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.stems = output.stems
        self.video: tuple[int, VideoFile] | None = None

    def add(self, frame: Frame, found: Predictions, entries: list[dict[str, Any]]) -> None:
        """Draw an image, or the next frame of a video."""
        drawn = draw(frame.pixels, found, self.output.classes)
        stem = self.stems[frame.source]
        if frame.number is None:
            write_image(Image.fromarray(drawn), self.output.folder / f"{stem}.jpg", quality=_QUALITY)
            return
        if self.video is None or self.video[0] != frame.source:
            from msefpn.inference.video import VideoFile  # noqa: PLC0415  (of an extra)

            self.close()
            height, width = drawn.shape[:2]
            path = self.output.folder / f"{stem}.mp4"
            self.video = frame.source, VideoFile(path, (height, width), frame.rate or 25)
        self.video[1].add(drawn, frame.time)

    def close(self) -> None:
        """Finish the video that is being written."""
        if self.video is not None:
            self.video[1].close()
            self.video = None


class JsonWriter:
    """All objects in one file, in COCO's result format."""

    def __init__(self, output: Output) -> None:
        self.path = output.folder / PREDICTIONS
        self.entries: list[dict[str, Any]] = []

    def add(self, frame: Frame, found: Predictions, entries: list[dict[str, Any]]) -> None:
        """Keep the objects."""
        self.entries += entries

    def close(self) -> None:
        """Write the file."""
        write_text(self.path, json.dumps(self.entries, indent=1))


class CsvWriter:
    """A line per object: csv in UTF-8; boxes in pixels."""

    HEAD = (
        *("file_name", "frame", "time", "image_id", "category", "category_id", "score"),
        *("x", "y", "width", "height"),
    )

    def __init__(self, output: Output) -> None:
        self.file = (output.folder / "predictions.csv").open("w", newline="", encoding="utf-8")
        self.rows = CsvRows(self.file)
        self.rows.add(self.HEAD)

    def add(self, frame: Frame, found: Predictions, entries: list[dict[str, Any]]) -> None:
        """Write the objects."""
        for entry in entries:
            row = entry | dict(zip(self.HEAD[-4:], entry["bbox"], strict=True))
            self.rows.add(row.get(name, "") for name in self.HEAD)

    def close(self) -> None:
        """Finish the file."""
        self.file.close()


class YoloWriter:
    """A text per image, those of a video in a folder. A line: class x y width height score.

    The first four numbers are the centre and the sides of a box, as fractions of the image's sides.
    """

    def __init__(self, output: Output) -> None:
        self.stems = output.stems
        self.folder = output.folder / "labels"
        names = (" ".join(name.split()) for name in output.classes)
        write_text(output.folder / "classes.txt", "".join(f"{name}\n" for name in names))

    def add(self, frame: Frame, found: Predictions, entries: list[dict[str, Any]]) -> None:
        """Write the text of one image, empty where nothing was found."""
        path = self.folder / f"{self.stems[frame.source]}.txt"
        if frame.number is not None:
            path = self.folder / self.stems[frame.source] / f"{frame.number:06}.txt"
        height, width = frame.pixels.shape[:2]
        corners = found.boxes / np.array([width, height, width, height], np.float32)
        centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        rows = zip(found.labels, np.concatenate([centres, sides], 1), found.scores, strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(
                f"{label} {' '.join(f'{number:.6f}' for number in box)} {score:.5f}\n"
                for label, box, score in rows
            )
        )

    def close(self) -> None:
        """Every text is complete already."""


class CropWriter:
    """A picture per object, in a folder per class."""

    def __init__(self, output: Output) -> None:
        self.folder = output.folder / "crops"
        self.stems = output.stems
        self.classes = class_folders(output.classes)

    def add(self, frame: Frame, found: Predictions, entries: list[dict[str, Any]]) -> None:
        """Cut the objects out."""
        height, width = frame.pixels.shape[:2]
        stem = f"{self.stems[frame.source]}{'' if frame.number is None else f'-{frame.number:06}'}"
        number = 0
        for box, label in zip(found.boxes, found.labels, strict=True):
            left, top = np.floor(box[:2]).astype(int).clip(0, [width - 1, height - 1])
            right, bottom = np.ceil(box[2:]).astype(int).clip([left + 1, top + 1], [width, height])
            folder = self.folder / self.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            number += 1
            while (path := folder / f"{stem}-{number}.jpg").exists():
                number += 1
            write_image(Image.fromarray(frame.pixels[top:bottom, left:right]), path, quality=_QUALITY)

    def close(self) -> None:
        """Every picture is complete already."""


def unique_stems(sources: Sequence[InputSource]) -> list[str]:
    """Return a file name for the results of each source: its own, numbered where two are equal."""
    taken: set[str] = set()
    stems = []
    for source in sources:
        first = source.stem[:MAX_NAME]
        stem, number = first, 2
        while stem in taken:
            stem, number = f"{first}-{number}", number + 1
        taken.add(stem)
        stems.append(stem)
    return stems


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return a folder name for each class; no two are equal on any file system."""
    taken: set[str] = set()
    names = []
    for number, text in enumerate(classes, start=1):
        name = safe_name(unicodedata.normalize("NFC", text)) or "class"
        if name.casefold() in taken:
            name = f"{name}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


RESULT_WRITERS: dict[
    str, type[PictureWriter] | type[JsonWriter] | type[CsvWriter] | type[YoloWriter] | type[CropWriter]
] = {
    "pictures": PictureWriter,
    "json": JsonWriter,
    "csv": CsvWriter,
    "yolo": YoloWriter,
    "crops": CropWriter,
}
"""By the names of `request.RESULT_KINDS`."""

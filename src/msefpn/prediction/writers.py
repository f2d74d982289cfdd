"""The results of a prediction in files: pictures, videos, tables, texts and crops."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.inference.detect import Predictions, as_results
from msefpn.inference.draw import draw
from msefpn.prediction.request import Source, safe_name, unique_stems
from msefpn.prediction.sources import Picture
from msefpn.runs.folder import PREDICTIONS, write_text

_QUALITY = 92
"""Of JPEG files."""


class Looked(NamedTuple):
    """A picture and what was found on it."""

    picture: Picture
    found: Predictions
    entries: list[dict[str, Any]]
    """An object each, in COCO's result format with file and class names."""


class Writer(Protocol):
    """Writes one kind of results, picture by picture."""

    def add(self, looked: Looked) -> None:
        """Write what belongs to one picture."""

    def close(self) -> None:
        """End the files."""


class About(NamedTuple):
    """What the writers have to know."""

    out: Path
    sources: Sequence[Source]
    classes: Sequence[str]
    category_ids: Sequence[int]

    @property
    def stems(self) -> list[str]:
        """A file name for the results of each source."""
        return unique_stems(self.sources)


def entries_of(found: Predictions, picture: Picture, number: int, about: About) -> list[dict[str, Any]]:
    """The objects of a picture as they go into predictions.json; `number` is their image_id."""
    ids, names = about.category_ids, dict(zip(about.category_ids, about.classes, strict=True))
    frame = {} if picture.frame is None else {"frame": picture.frame}
    return [
        {
            "file_name": about.sources[picture.source].name,
            **frame,
            "category": names[item["category_id"]],
            **item,
            "image_id": number,
        }
        for item in as_results(found, ids)
    ]


class Pictures:
    """The images and videos, with boxes and masks drawn into them."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.stems = about.stems
        self.video: tuple[int, _Video] | None = None

    def add(self, looked: Looked) -> None:
        """Draw an image, or a video's next frame."""
        picture = looked.picture
        drawn = draw(picture.pixels, looked.found, self.about.classes)
        stem = self.stems[picture.source]
        if picture.frame is None:
            Image.fromarray(drawn).save(self.about.out / f"{stem}.jpg", quality=_QUALITY)
            return
        if self.video is None or self.video[0] != picture.source:
            self.close()
            path = self.about.out / f"{stem}.mp4"
            self.video = picture.source, _Video(path, drawn.shape[:2], picture.rate or 25)
        self.video[1].add(drawn)

    def close(self) -> None:
        """End the video that is being written."""
        if self.video is not None:
            self.video[1].close()
            self.video = None


class _Video:
    """An H.264 file; frames of another size than the first are fitted to it."""

    def __init__(self, path: Path, size: tuple[int, ...], rate: float) -> None:
        self.container = av.open(str(path), "w")
        self.stream = self.container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        self.stream.height, self.stream.width = (side + side % 2 for side in size)  # 4:2:0 wants even sides
        self.stream.pix_fmt = "yuv420p"

    def add(self, pixels: NDArray[np.uint8]) -> None:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        fitted = frame.reformat(width=self.stream.width, height=self.stream.height)
        self.container.mux(self.stream.encode(fitted))

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


class Json:
    """All objects in one file, COCO's result format."""

    def __init__(self, about: About) -> None:
        self.path = about.out / PREDICTIONS
        self.entries: list[dict[str, Any]] = []

    def add(self, looked: Looked) -> None:
        """Keep the objects."""
        self.entries += looked.entries

    def close(self) -> None:
        """Write the file."""
        write_text(self.path, json.dumps(self.entries, indent=1))


class Table:
    """A line per object: csv, in UTF-8; pixels."""

    HEAD = ("file_name", "frame", "image_id", "category", "category_id", "score", "x", "y", "width", "height")

    def __init__(self, about: About) -> None:
        self.file = (about.out / "predictions.csv").open("w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.file)
        self.rows.writerow(self.HEAD)

    def add(self, looked: Looked) -> None:
        """Write the objects."""
        for entry in looked.entries:
            row = entry | dict(zip(self.HEAD[6:], entry["bbox"], strict=True))
            self.rows.writerow([row.get(name, "") for name in self.HEAD])

    def close(self) -> None:
        """End the file."""
        self.file.close()


class Yolo:
    """A text per image, frames in a folder: class x y width height score; centres; parts of the sides."""

    def __init__(self, about: About) -> None:
        self.stems = about.stems
        self.folder = about.out / "labels"
        names = (" ".join(name.split()) for name in about.classes)
        write_text(about.out / "classes.txt", "".join(f"{name}\n" for name in names))

    def add(self, looked: Looked) -> None:
        """Write the text of one picture, empty where nothing was found."""
        picture, found = looked.picture, looked.found
        path = self.folder / f"{self.stems[picture.source]}.txt"
        if picture.frame is not None:
            path = self.folder / self.stems[picture.source] / f"{picture.frame:06}.txt"
        height, width = picture.pixels.shape[:2]
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
        """Every text is whole already."""


class Crops:
    """A picture per object, in a folder per class."""

    def __init__(self, about: About) -> None:
        self.folder = about.out / "crops"
        self.stems = about.stems
        self.classes = class_folders(about.classes)

    def add(self, looked: Looked) -> None:
        """Cut the objects out."""
        picture = looked.picture
        height, width = picture.pixels.shape[:2]
        frame = "" if picture.frame is None else f"-{picture.frame:06}"
        stem = f"{self.stems[picture.source]}{frame}"
        number = 0
        for box, label in zip(looked.found.boxes, looked.found.labels, strict=True):
            left, top = np.floor(box[:2]).astype(int).clip(0, [width - 1, height - 1])
            right, bottom = np.ceil(box[2:]).astype(int).clip([left + 1, top + 1], [width, height])
            folder = self.folder / self.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            number += 1
            while (path := folder / f"{stem}-{number}.jpg").exists():
                number += 1
            Image.fromarray(picture.pixels[top:bottom, left:right]).save(path, quality=_QUALITY)

    def close(self) -> None:
        """Every picture is whole already."""


def class_folders(classes: Sequence[str]) -> list[str]:
    """A folder name for each class, whatever its name holds; no two that any file system takes for one."""
    taken: set[str] = set()
    names = []
    for number, text in enumerate(classes, start=1):
        name = safe_name(unicodedata.normalize("NFC", text)) or "class"
        if name.casefold() in taken:
            name = f"{name}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


WRITERS: dict[str, type[Pictures] | type[Json] | type[Table] | type[Yolo] | type[Crops]] = {
    "pictures": Pictures,
    "json": Json,
    "csv": Table,
    "yolo": Yolo,
    "crops": Crops,
}
"""One for each of `inputs.SAVES`."""

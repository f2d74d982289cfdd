"""The images to predict on."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msefpn.config import parse_size
from msefpn.engine.run import check_out, free_folder
from msefpn.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
"""Of the files that are taken from a folder."""


@dataclass(frozen=True)
class Prediction:
    """A prediction, as far as it can be prepared without torch."""

    run: Path
    files: list[Path]
    out: Path
    score: float
    batch: int
    size: tuple[int, int] | None
    """Longest and shortest side, pixels; None: the run's."""


def plan_prediction(
    run: Path, images: Sequence[str | Path], *, out: Path | None, score: float, batch: int, size: str | None
) -> Prediction:
    """Find the images and settle the folder. Raises UserError."""
    if batch < 1:
        raise UserError(f"batch is {batch}: it must be at least 1")
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}: it must be 0 to 1")
    sides = None if size is None else parse_size(size)
    files = find_images(images)
    out = out or free_folder(Path("predictions"))
    check_out(out)
    return Prediction(run, files, out, score, batch, sides)


def find_images(given: Sequence[str | Path]) -> list[Path]:
    """Files, all images under folders, and matches of globs, each once. Raises UserError if one has none."""
    files: list[Path] = []
    for item in given:
        path = Path(item)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = [
                Path(name) for name in sorted(glob.glob(str(item), recursive=True)) if Path(name).is_file()
            ]
        if not found:
            raise UserError(f"no image found at '{item}': give files, folders or globs like 'photos/*.jpg'")
        files += found
    if not files:
        raise UserError("no image given: give files, folders or globs")
    return list(dict.fromkeys(files))


def picture_names(files: Sequence[Path]) -> list[str]:
    """A file name for each picture: the image's own with .jpg; numbered where two are alike."""
    taken: set[str] = set()
    names = []
    for file in files:
        name, number = f"{file.stem}.jpg", 2
        while name in taken:
            name, number = f"{file.stem}-{number}.jpg", number + 1
        taken.add(name)
        names.append(name)
    return names

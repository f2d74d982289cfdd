"""What is read: data in any format, and the images to predict on."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msefpn.checkpoint import read_about
from msefpn.config import Config, parse_size
from msefpn.data.formats.write import as_coco
from msefpn.data.images import ImageFault, read_header
from msefpn.data.proposals import proposals_of_files
from msefpn.engine.run import check_out, free_folder, is_first_process
from msefpn.engine.screen import say
from msefpn.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
"""Of the files that are taken from a folder."""


@dataclass(frozen=True)
class Prediction:
    """A prediction, as far as it can be prepared without torch."""

    run: Path
    files: list[Path]
    proposals: list[NDArray[np.float32]] | None
    """Regions (r, 4) of each file, xyxy, pixels; None: the detector finds its own."""
    out: Path
    score: float
    batch: int
    size: str | None
    """Longest and shortest side, pixels, as in a recipe; None: the run's."""


def plan_prediction(
    run: Path,
    images: Sequence[str | Path],
    *,
    proposals: Path | None,
    out: Path | None,
    score: float,
    batch: int,
    size: str | None,
) -> Prediction:
    """Find the images and settle the folder. Raises UserError."""
    if batch < 1:
        raise UserError(f"batch is {batch}: it must be at least 1")
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}: it must be 0 to 1")
    if size is not None:
        parse_size(size)
    files = find_images(images)
    config = read_about(run).config
    check_given(config, proposals, run)
    out = out or free_folder(Path("predictions"))
    check_out(out)
    regions = None if proposals is None else proposals_of_files(proposals, files, _sizes(files))
    return Prediction(run, files, regions, out, score, batch, size)


def _sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Height and width of image files, pixels; one that cannot be read may have any region."""
    sizes = []
    for file in files:
        try:
            sizes.append(read_header(file).size)
        except (OSError, ImageFault):
            sizes.append((1 << 30, 1 << 30))
    return sizes


def check_given(config: Config, proposals: Path | None, run: Path) -> None:
    """Raise UserError where a run needs proposals and has none, or the other way round."""
    if config.takes_proposals and proposals is None:
        raise UserError(f"the run {run} is a {config.detector}: name the regions to look at with --proposals")
    if proposals is not None and not config.takes_proposals:
        raise UserError(f"the run {run} is a {config.detector}, which finds its own: leave out --proposals")


def in_coco(data: Path, parent: Path, *needed: str) -> Path:
    """A data set in COCO's layout: the given one, or what is made of it in `parent`, see `as_coco`.

    Args:
        data: folder of the data set, or the file that says what is in it.
        parent: where the folder `converted` may be made.
        needed: the splits that must be there.

    Raises:
        UserError: nothing of it can be used, or a split is missing.
    """
    folder, log = as_coco(data, parent / "converted", needed)
    if is_first_process():
        say(*log.lines())
    return folder


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

"""What is read: data in any format, and what to predict on and how, settled without torch."""

from __future__ import annotations

import glob
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msefpn.checkpoint import About, read_about
from msefpn.config import Config, parse_size
from msefpn.data.formats.write import as_coco
from msefpn.data.images import ImageFault, read_header
from msefpn.data.proposals import proposals_of_files
from msefpn.errors import UserError, unknown_name
from msefpn.runs.console import say
from msefpn.runs.folder import check_out, free_folder, is_first_process

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
"""Suffixes of the files that are taken from a folder."""
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
"""Suffixes of the files that are read as videos; any other is read as an image."""
SAVES = {
    "pictures": "the images and videos with boxes and masks drawn into them",
    "json": "predictions.json in COCO's result format",
    "csv": "predictions.csv, a line per object",
    "yolo": "a text per image and frame in labels/",
    "crops": "a picture per object in crops/CLASS/",
}
"""What can be written, and what it is."""
_STEM = 100
"""Characters of a source's name that its results keep."""


class Source(NamedTuple):
    """Something that pictures come from."""

    kind: str
    """image or video, a file; url, a file of either kind; camera."""
    name: str
    """As the user knows it."""

    @property
    def stem(self) -> str:
        """A file name without suffix for its results."""
        if self.kind == "camera":
            return f"camera-{self.name.rpartition(':')[2]}"
        if self.kind != "url":
            return Path(self.name).stem
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.name).path)
        return safe_name(Path(path).stem) or "download"


class Tiling(NamedTuple):
    """Large images are also looked at in parts."""

    size: tuple[int, int] | None
    """Width and height of a tile, pixels of the image; None: the size that the detector looks at."""
    overlap: float
    """Of neighbouring tiles, as a part of a tile's side."""


@dataclass(frozen=True)
class Request:
    """What to look at and what to look for."""

    run: Path
    sources: list[Source]
    proposals: list[NDArray[np.float32]] | None
    """Regions (r, 4) of each source, xyxy, pixels; None: the detector finds its own."""
    score: float
    classes: tuple[str, ...] | None
    """Names of those that are wanted; None: all."""
    batch: int
    size: str | None
    """Longest and shortest side, pixels, as in a recipe; None: the run's."""
    stride: int
    frames: int | None
    tiling: Tiling | None


@dataclass(frozen=True)
class Prediction:
    """A request, and where its results go."""

    request: Request
    out: Path
    save: tuple[str, ...]


def plan_prediction(
    run: Path, sources: Sequence[str | Path], *, out: Path | None, save: Sequence[str] | None, **options: Any
) -> Prediction:
    """Find the sources and settle the folder; `options` are those of `plan_request`. Raises UserError."""
    kinds = tuple(dict.fromkeys(("pictures", "json") if save is None else save))
    for kind in kinds:
        if kind not in SAVES:
            raise unknown_name("kind of results", kind, SAVES)
    if not kinds:
        raise UserError(f"nothing to save: name some of {', '.join(SAVES)}")
    request = plan_request(run, sources, **options)
    out = out or free_folder(Path("predictions"))
    check_out(out)
    return Prediction(request, out, kinds)


def plan_request(
    run: Path,
    sources: Sequence[str | Path],
    *,
    proposals: Path | None,
    score: float,
    classes: Sequence[str] | None,
    batch: int,
    size: str | None,
    stride: int,
    frames: int | None,
    tiling: Tiling | None,
) -> Request:
    """Find the sources and check the options. Raises UserError."""
    for name, value in (("batch", batch), ("stride", stride), ("frames", 1 if frames is None else frames)):
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}: it must be 0 to 1")
    if size is not None:
        parse_size(size)
    found = find_sources(sources)
    wanted = None if classes is None else tuple(dict.fromkeys(classes))
    request = Request(run, found, None, score, wanted, batch, size, stride, frames, tiling)
    about = read_about(run)
    _check_fit(request, about, given=proposals is not None)
    if proposals is None:
        return request
    files = [Path(source.name) for source in found]
    regions = proposals_of_files(proposals, files, _sizes(files))
    return replace(request, proposals=regions)


def plan_tiling(*, tile: bool, tile_size: str | None, overlap: float) -> Tiling | None:
    """Settle how images are cut; None: they are not. Raises UserError."""
    if not 0 <= overlap < 0.9:
        raise UserError(f"overlap is {overlap}: it must be 0 to below 0.9")
    if not tile:
        if tile_size is not None:
            raise UserError(f"tile-size {tile_size} without --tile: add it, or leave the size out")
        return None
    return Tiling(None if tile_size is None else parse_size(tile_size), overlap)


def _check_fit(request: Request, about: About, *, given: bool) -> None:
    """Raise UserError where a request does not fit the detector; `given`: it comes with proposals."""
    check_given(about.config, given, request.run)
    for name in request.classes or ():
        if name not in about.classes:
            raise unknown_name("class", name, about.classes)
    if given and request.tiling is not None:
        raise UserError(f"the run {request.run} looks at given regions, not at tiles: leave out --tile")
    other = next((source.name for source in request.sources if source.kind != "image"), None)
    if given and other is not None:
        raise UserError(f"'{other}' is no image file, and proposals are of these alone: leave it out")


def check_given(config: Config, given: bool, run: Path) -> None:
    """Raise UserError where a run needs proposals and has none, or the other way round."""
    if config.takes_proposals and not given:
        raise UserError(f"the run {run} is a {config.detector}: name the regions to look at with --proposals")
    if given and not config.takes_proposals:
        raise UserError(f"the run {run} is a {config.detector}, which finds its own: leave out --proposals")


def find_sources(given: Sequence[str | Path]) -> list[Source]:
    """Files, all images under folders, matches of globs, URLs and cameras, each once.

    Raises UserError if one has none.
    """
    found = [source for item in given for source in _sources(str(item))]
    if not found:
        raise UserError("nothing given to look at: give files, folders, globs, URLs or a camera")
    return list(dict.fromkeys(found))


def find_images(given: Sequence[str | Path]) -> list[Path]:
    """Image files, all under folders, and matches of globs, each once. Raises UserError if one has none."""
    found = find_sources(given)
    other = next((source.name for source in found if source.kind != "image"), None)
    if other is not None:
        raise UserError(f"'{other}' is no image file: give files, folders or globs like 'photos/*.jpg'")
    return [Path(source.name) for source in found]


def _sources(item: str) -> list[Source]:
    if re.match(r"https?://", item, re.IGNORECASE):
        return [Source("url", item)]
    if re.match(r"[a-z][a-z0-9+.-]+://", item, re.IGNORECASE):
        raise UserError(f"'{item}' is no URL that can be read: give one that begins with http:// or https://")
    path = Path(item)
    if path.is_dir():
        return _images_under(path)
    if path.exists():
        return [_file(path)]
    if camera := re.fullmatch(r"(?:camera:)?(\d+)", item):
        return [Source("camera", f"camera:{camera[1]}")]
    matches = sorted(glob.glob(item, recursive=True))
    files = [_file(Path(name)) for name in matches if Path(name).is_file()]
    if not files:
        raise UserError(f"no image found at '{item}': give files, folders or globs like 'photos/*.jpg'")
    return files


def _images_under(folder: Path) -> list[Source]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = [Source("image", str(file)) for file in files if file.suffix.lower() in IMAGES]
    if found:
        return found
    video = next((file for file in files if file.suffix.lower() in VIDEOS), None)
    if video is not None:
        raise UserError(f"no image found at '{folder}': its videos are to be named, as in '{video}'")
    raise UserError(f"no image found at '{folder}': it holds no file named {', '.join(sorted(IMAGES))}")


def _file(path: Path) -> Source:
    return Source("video" if path.suffix.lower() in VIDEOS else "image", str(path))


def unique_stems(sources: Sequence[Source]) -> list[str]:
    """A name for the results of each source: its own, numbered where two are alike."""
    taken: set[str] = set()
    stems = []
    for source in sources:
        first = source.stem[:_STEM]
        stem, number = first, 2
        while stem in taken:
            stem, number = f"{first}-{number}", number + 1
        taken.add(stem)
        stems.append(stem)
    return stems


def safe_name(text: str) -> str:
    """What of a text can be the name of a file or folder anywhere; may be nothing."""
    kept = re.sub(r"[^\w.+-]+", "_", text).strip("._ ")
    return kept.encode()[:_STEM].decode(errors="ignore")


def _sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Height and width of image files, pixels; one that cannot be read may have any region."""
    sizes = []
    for file in files:
        try:
            sizes.append(read_header(file).size)
        except (OSError, ImageFault):
            sizes.append((1 << 30, 1 << 30))
    return sizes


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

"""What an explanation is to show, and where; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msefpn.data.images import ImageFault, read_image
from msefpn.errors import UserError
from msefpn.inference.sources import find_images
from msefpn.runs.folder import check_page


@dataclass(frozen=True)
class ExplanationPlan:
    """An explanation that has been asked for."""

    runs: Sequence[Path]
    names: list[str]
    """Of the runs, on the page."""
    image: Path
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB, of the image."""
    images: Sequence[Path]
    """Those that similarity is measured on; none: the image alone."""
    out: Path
    """The page."""
    numbers: Path
    """The json beside it."""
    score: float


def plan_explanation(
    runs: Sequence[Path],
    image: Path,
    images: Sequence[str | Path],
    *,
    out: Path | None,
    score: float,
    follow_links: bool = False,
) -> ExplanationPlan:
    """Check a request and read its image; arguments as of `msefpn.commands.inspect.explain`.

    Raises UserError.
    """
    out = out or _free_page()
    numbers = out.with_suffix(".json")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out '{out}' is not an HTML file: name a new .html file")
    check_page(out, numbers)
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}: it must be 0 to 1")
    pixels = pixels_or_reason(image)
    if isinstance(pixels, str):
        raise UserError(f"{pixels}: give another image")
    files = find_images(images, follow_links=follow_links) if images else []
    return ExplanationPlan(runs, _names(runs), image, pixels, files, out, numbers, score)


def _free_page() -> Path:
    number = 1
    while any(Path(f"explain-{number}").with_suffix(suffix).exists() for suffix in (".html", ".json")):
        number += 1
    return Path(f"explain-{number}.html")


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ. Raises UserError where a run is given twice."""
    parts = [run.absolute().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise UserError(f"run '{runs[0]}' is named twice: give another with --against")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(own[-length:]) for own in parts]


def pixels_or_reason(file: Path) -> NDArray[np.uint8] | str:
    """The pixels, or why they cannot be read."""
    try:
        return read_image(file)
    except (OSError, ImageFault) as error:
        return f"{file}: {' '.join(str(error).split())}"

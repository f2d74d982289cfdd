"""The public functions that show what a run does; each is a command of the same name, see `api`."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.api import as_path, as_text


def explain(
    run: str | Path,
    image: str | Path,
    *,
    against: str | Path | None = None,
    images: Sequence[str | Path] | str | Path | None = None,
    score: float = 0.3,
    size: str | int | None = None,
    device: str = "auto",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Show what a neck does to a picture: one HTML page of each level's maps, gates and attention.

    Beside the maps, the page says how alike neighbouring levels are before and after the neck, by linear CKA
    (arXiv 1905.00414). A json file of the same name holds the numbers.

    Args:
        run: run folder (its best weights) or a .safetensors file of one, with any neck
        image: the picture
        against: a second run, shown beside the first with the same scales
        images: files, folders or globs to measure how alike levels are; the picture alone has no interval
        score: detections below are left out; 0 to 1
        size: as in training; each run's own
        device: auto, cpu or gpu
        out: the page, a new .html file; the first free one of explain-1.html, explain-2.html, ...

    Returns:
        The numbers, as in the json file: of each run its neck, levels and detections, and CKA at each stage,
        with spread and 95 % interval over the images.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.engine.explain import explain as engine
    from msefpn.engine.inputs import find_images

    given = [images] if isinstance(images, (str, Path)) else list(images or [])
    return engine(
        [Path(run), *([] if against is None else [Path(against)])],
        Path(image),
        find_images(given) if given else [],
        out=None if out is None else Path(out),
        score=score,
        size=as_text(size),
        device=device,
    )


def report(runs: Sequence[str | Path] | str | Path, *, out: str | Path | None = None) -> Path:
    """Write a page about one run, or about several side by side; one HTML file, without network.

    Curves of the training, COCO's numbers, AP by class and size, precision over recall, confusion, what each
    kind of error costs, the best and the worst images, speed and cost, the configuration and the command.
    With several runs, what differs from the first is marked.

    Args:
        runs: run folders, at most 6
        out: the HTML file; for one run RUN/report.html, else the first free one of report-1.html, ...

    Returns:
        The HTML file.

    Raises:
        UserError: a folder is no run, or the file cannot be written. What is missing in a run is said on
            the page.
    """
    from msefpn.engine.report import report as engine

    folders = [runs] if isinstance(runs, (str, Path)) else runs
    return engine([Path(run) for run in folders], as_path(out))

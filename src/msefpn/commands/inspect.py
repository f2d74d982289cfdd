"""The public functions that show what a run does; each is a command of the same name, see `api`."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.commands.arguments import as_path, as_text
from msefpn.errors import UserError


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
    from msefpn.explain.explain import explain as engine
    from msefpn.inference.sources import find_images

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
    from msefpn.report.report import report as engine

    folders = [runs] if isinstance(runs, (str, Path)) else runs
    return engine([Path(run) for run in folders], as_path(out))


def demo(
    runs: Sequence[str | Path] | str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    size: str | int | None = None,
    device: str = "auto",
    max_megabytes: float = 20.0,
    max_megapixels: float = 50.0,
) -> None:
    """Serve a page on which a picture, dropped or from the camera, shows its boxes; two runs are compared.

    Needs the extra `demo`. A picture stays in this process's memory: it is written nowhere, and forgotten
    half an hour after its visitor has gone.

    Args:
        runs: one or two run folders (their best weights), .safetensors or exported files; none: the newest
            run in runs/
        host: address to listen on; 0.0.0.0 opens the page to the network
        port: 0: any free one
        size: as in training; the run's own
        device: auto, cpu or gpu
        max_megabytes: largest file that is taken
        max_megapixels: largest width times height that is taken

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs the extra: pip install "msefpn[demo]"')

    from msefpn.web.picture import Limits
    from msefpn.web.start import start

    given = [] if runs is None else [runs] if isinstance(runs, (str, Path)) else runs
    start(
        [Path(run) for run in given],
        host=host,
        port=port,
        limits=Limits(max_megabytes, max_megapixels),
        size=as_text(size),
        device=device,
    )

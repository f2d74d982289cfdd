"""The public functions that show what a run does; each is a command of the same name."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.checkpoint import check_run
from msefpn.commands.arguments import as_list, as_path, as_text, at_hand
from msefpn.errors import UserError, missing_extra
from msefpn.runs.folder import free_file, read_run
from msefpn.runs.imports import import_models


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
    follow_links: bool = False,
) -> dict[str, Any]:
    """Show what a neck does to an image: one HTML page with the maps, gates and attention of each level.

    The page also shows how similar neighbouring levels are before and after the neck, by linear CKA (arXiv
    1905.00414). A json file of the same name holds the numbers.

    Args:
        run: run folder (its best weights), a .safetensors file of one, or a name of `msefpn models`; with any
            neck
        image: the image file
        against: a second run, shown beside the first with the same scales
        images: files, folders or globs on which similarity is measured; needed for an interval
        score: least score of a shown detection; 0 to 1
        size: as in training; each run's own
        device: auto, cpu or gpu
        out: the page, a new .html file; the first free one of explain-1.html, explain-2.html, ...
        follow_links: follow symbolic links that lead out of a given folder

    Returns:
        The numbers, as in the json file: neck, levels and detections of each run, and CKA at each stage, with
        standard deviation and 95 % interval over the images.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    runs = [Path(run), *([] if against is None else [Path(against)])]
    for one in runs:
        check_run(one)

    from msefpn.explaining.plan import plan_explanation

    given = [images] if isinstance(images, (str, Path)) else list(images or [])
    plan = plan_explanation(
        runs, Path(image), given, out=as_path(out), score=score, follow_links=follow_links
    )

    import_models()

    from msefpn.explaining.explain import write_explanation

    return write_explanation(plan, size=as_text(size), device=device)


def report(runs: Sequence[str | Path] | str | Path, *, out: str | Path | None = None) -> Path:
    """Write one HTML page about a run, or about several side by side; it loads nothing from the network.

    Training curves, COCO's numbers, AP by class and size, precision over recall, the confusion matrix, the
    cost of each kind of error, the best and the worst images, speed and cost, the configuration and the
    command. With several runs, differences to the first are shown.

    Args:
        runs: run folders, also at addresses s3://..., at most 6
        out: the HTML file; for one run RUN/report.html, else the first free one of report-1.html, ...

    Returns:
        The HTML file.

    Raises:
        UserError: a folder is not a run folder, or the file cannot be written. The page says what is missing
            in a run.
    """
    given = as_list(runs)
    folders = [Path(at_hand(run, whole=True)) for run in given]
    if out is None and len(given) == 1 and folders[0] != Path(given[0]):
        out = free_file(Path("report.html"))
    for folder in folders:
        read_run(folder)

    from msefpn.reporting.plan import check_report

    check_report(folders, as_path(out))
    import_models()

    from msefpn.reporting.report import write_report

    return write_report(folders, as_path(out))


def demo(
    runs: Sequence[str | Path] | str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_host: Sequence[str] | str | None = None,
    size: str | int | None = None,
    device: str = "auto",
    max_megabytes: float = 20.0,
    max_megapixels: float = 50.0,
) -> None:
    """Serve a page that detects on a dropped image or a camera picture; two runs are compared.

    Needs the extra `demo`. Images stay in the memory of this process while they are detected on: they are
    never written to disk, and nothing of them is kept. The page answers to `localhost` and the address that
    it listens on; other host names are refused, so that pages of other sites cannot read it.

    Args:
        runs: one or two run folders (their best weights), .safetensors or exported files, or names of
            `msefpn models`; none: the newest run in runs/
        host: address to listen on; 0.0.0.0 opens the page to the network
        port: port to listen on; 0 for any free one
        allowed_host: further host names under which the page is opened, such as that of a proxy in front
        size: as in training; the run's own
        device: auto, cpu or gpu
        max_megabytes: largest accepted file
        max_megapixels: largest accepted width times height

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    if importlib.util.find_spec("uvicorn") is None:
        raise missing_extra("the demo page", "demo")
    given = [Path(run) for run in as_list(runs)]
    if len(given) > 2:
        raise UserError(f"{len(given)} runs are given: the page shows one, or compares two")
    for run in given:
        check_run(run)
    import_models()

    from msefpn.web.demo import serve_demo
    from msefpn.web.limits import Limits

    serve_demo(
        given,
        host=host,
        port=port,
        allowed_hosts=as_list(allowed_host),
        limits=Limits(max_megabytes, max_megapixels),
        size=as_text(size),
        device=device,
    )

"""What a model card says of a run: data, numbers, command and a picture."""

from __future__ import annotations

import shlex
from pathlib import Path

from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.reading import real_path
from msefpn.reporting.images import image_groups
from msefpn.reporting.numbers import MEANING
from msefpn.reporting.run import ReportedRun
from msefpn.runs.console import percent
from msefpn.runs.folder import CONFIG

PICTURE = "detections.webp"
"""The best validation image, with its detections."""


def describe_run(run: Path, folder: Path) -> str:
    """Write a picture of a run's detections into a folder, and return the text that the card has of the run.

    Files are named without their folders, which are private.

    Args:
        run: the run folder.
        folder: where the card will be.

    Raises:
        UserError: it is not a run folder.
    """
    found = ReportedRun.read(run, real_path(run).name)
    found.analyse(found)
    parts = [_picture(found, folder), _data(found), _numbers(found), _command(found)]
    return "\n".join(part for part in parts if part)


def _picture(run: ReportedRun, folder: Path) -> str:
    groups = image_groups([run])
    if not groups:
        return ""
    shown = groups[0].rows[0].images[0]
    (folder / PICTURE).write_bytes(shown.data)
    return (
        f"![Detections on a validation image]({PICTURE})\n\n"
        f"A validation image that it does best on: {shown.caption}.\n"
    )


def _data(run: ReportedRun) -> str:
    lines = []
    for split in ("train", "val"):
        file, images = run.files[f"{split}_json"], run.files[f"{split}_images"]
        try:
            data, _ = read_coco(file, images)
        except (UserError, OSError) as error:
            lines.append(f"| {split} | {file.name} | cannot be read: {type(error).__name__} | |")
        else:
            lines.append(f"| {split} | {file.name} | {len(data)} | {int((~data.crowd).sum())} |")
    head = "## Data\n\n| split | annotations | images | objects |\n|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n"


def _numbers(run: ReportedRun) -> str:
    if not run.numbers:
        return ""
    kinds = {"boxes": run.numbers} | ({"masks": run.numbers["mask"]} if "mask" in run.numbers else {})
    rows = [
        f"| {name} | {about} | " + " | ".join(percent(values.get(name)) for values in kinds.values()) + " |"
        for name, about in MEANING.items()
    ]
    head = f"| number | | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}\n"
    about = (
        "On the validation images, in percent, of the best epoch; that epoch was chosen by these numbers.\n\n"
    )
    return "## Numbers\n\n" + about + head + "\n".join(rows) + "\n"


def _command(run: ReportedRun) -> str:
    words = [word for key, path in run.files.items() for word in (f"--{key.replace('_', '-')}", path.name)]
    command = shlex.join(["msefpn", "train", "--recipe", CONFIG, *words])
    return f"## Training\n\n```sh\n{command}\n```\n\n`{CONFIG}` holds the configuration below.\n"

"""What a report is asked to be of; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msefpn.errors import UserError
from msefpn.html.page import COLORS
from msefpn.runs.folder import check_page


def check_report(folders: Sequence[Path], out: Path | None) -> None:
    """Raise UserError where runs cannot be shown together, or the page cannot be written."""
    if not folders:
        raise UserError("no run is given: name the folders that 'msefpn train' wrote")
    if len(folders) > COLORS:
        raise UserError(f"{len(folders)} runs are too many for one page: give at most {COLORS}")
    if twice := sorted({str(run) for run in folders if folders.count(run) > 1}):
        raise UserError(f"run '{twice[0]}' is given twice: name each run once")
    if out is not None:
        check_page(out)

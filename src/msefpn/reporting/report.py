"""The report of runs: one page from what their folders hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msefpn.reading import real_path
from msefpn.reporting.cost import measure_runs
from msefpn.reporting.images import image_groups
from msefpn.reporting.page import report_page
from msefpn.reporting.plan import check_report
from msefpn.reporting.run import ReportedRun
from msefpn.runs.console import say
from msefpn.runs.folder import free_file
from msefpn.writing import write_text

REPORT_FILE = "report.html"


def write_report(folders: Sequence[Path], out: Path | None) -> Path:
    """Write the page of one run, or of several side by side; see `msefpn.commands.inspect.report`."""
    check_report(folders, out)
    runs = [ReportedRun.read(*pair) for pair in zip(folders, _names(folders), strict=True)]
    file = out or (folders[0] / REPORT_FILE if len(runs) == 1 else free_file(Path(REPORT_FILE)))
    for run in runs:
        run.analyse(runs[0])
    costs = measure_runs([(run.folder, run.data, run.files.get("val_proposals")) for run in runs])
    for run, cost in zip(runs, costs, strict=True):
        if isinstance(cost, str):
            run.missing["cost"] = cost
        else:
            run.cost = cost
    page = report_page(runs, image_groups(runs))
    write_text(file, page)
    say(f"report: {file} ({len(page.encode()) / 2**20:.1f} MB)")
    return file


def report_training(folder: Path) -> None:
    """Write the page of a run that has just ended; if that fails, print why in one line."""
    try:
        write_report([folder], None)
    except Exception as error:  # a page must not make a training fail
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"no report of this run: {reason}; try msefpn report {folder}")


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    parts = [list(real_path(folder).parts) for folder in folders]
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]

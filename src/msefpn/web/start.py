"""From the command to a page that is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msefpn.errors import UserError
from msefpn.inference.predictor import Predictor
from msefpn.runs.console import say
from msefpn.runs.folder import BEST
from msefpn.web.page import build_page
from msefpn.web.picture import Limits
from msefpn.web.serve import is_local, listen, server_of
from msefpn.web.visit import Shown

RUNS = Path("runs")
"""Where `train` puts the runs that are given no folder."""


def start(
    runs: Sequence[Path], *, host: str, port: int, limits: Limits, size: str | None, device: str
) -> None:
    """Serve the page until Ctrl-C; see `msefpn.commands.inspect.demo`."""
    if len(runs) > 2:
        raise UserError(f"{len(runs)} runs are given: the page shows one, or compares two")
    if limits.megabytes <= 0 or limits.megapixels <= 0:
        raise UserError(
            "the limits of pictures must be above 0: give --max-megabytes and --max-megapixels so"
        )
    with listen(host, port) as taken:  # before the weights are read: a port in use is told at once
        shown = open_runs(runs or [newest_run(RUNS)], size=size, device=device)
        server = server_of(build_page(shown, limits), limits)
        if not is_local(taken):
            say("warning: whoever reaches this machine can open the page: it has no password")
        address, number = taken.getsockname()[:2]
        at = f"[{address}]" if ":" in address else address
        say(f"{' and '.join(run.name for run in shown)}: http://{at}:{number} (Ctrl-C ends it)")
        try:
            server.run(sockets=[taken])
        except KeyboardInterrupt:  # how a page ends
            say("")


def open_runs(runs: Sequence[Path], *, size: str | None, device: str) -> list[Shown]:
    """Read the weights of runs. Raises UserError."""
    shown = []
    for run in runs:
        predictor = Predictor.open(run, size=size, device=device)
        if predictor.detector.config.takes_proposals:
            raise UserError(
                f"{run} is a {predictor.detector.config.detector}, which wants regions with a picture"
            )
        shown.append(Shown(_name(run.resolve()), predictor))
    return shown


def _name(path: Path) -> str:
    """A run's folder, and a file in it that is not its best weights."""
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == BEST else f"{path.parent.name} {path.name}"


def newest_run(folder: Path) -> Path:
    """The run in a folder whose best weights are the youngest. Raises UserError where there is none."""
    found = sorted(folder.glob(f"*/{BEST}"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(
            f"no run is given and '{folder}' holds none: name one, or make one with 'msefpn train'"
        )
    return found[-1].parent

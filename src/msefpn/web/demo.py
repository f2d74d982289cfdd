"""`msefpn demo`: from the runs to the served page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from msefpn.errors import UserError
from msefpn.inference.predictor import Predictor
from msefpn.places import is_named
from msefpn.reading import real_path
from msefpn.runs.console import say
from msefpn.runs.folder import BEST
from msefpn.web.access import Doorkeeper
from msefpn.web.app import App
from msefpn.web.detections import ServedRun
from msefpn.web.limits import Limits
from msefpn.web.server import is_local, listen, make_server

RUNS_FOLDER = Path("runs")
"""Where `train` puts runs without `--out`."""


def serve_demo(
    runs: Sequence[Path],
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    limits: Limits,
    size: str | None,
    device: str,
) -> None:
    """Serve the page until Ctrl-C; see `msefpn.commands.inspect.demo`."""
    if not (0 < limits.megabytes < math.inf and 0 < limits.megapixels < math.inf):
        raise UserError("the limits of images must be above 0: change --max-megabytes and --max-megapixels")
    with listen(host, port) as taken:  # before reading weights, so that a port in use is reported at once
        doorkeeper = Doorkeeper(taken, [*allowed_hosts, host])
        shown = open_runs(runs or [newest_run(RUNS_FOLDER)], size=size, device=device)
        server = make_server(App(shown, limits, doorkeeper))
        if not is_local(taken):
            say("warning: everyone who can reach this machine can open the page: it has no password")
        say(f"{' and '.join(run.name for run in shown)}: {doorkeeper.address} (Ctrl-C ends it)")
        try:
            server.run(sockets=[taken])
        except KeyboardInterrupt:  # the way to stop the page
            say("")


def open_runs(runs: Sequence[Path], *, size: str | None, device: str) -> list[ServedRun]:
    """Read the weights of runs. Raises UserError."""
    shown = []
    for run in runs:
        predictor = Predictor.open(run, size=size, device=device)
        if predictor.detector.takes_proposals:
            raise UserError(
                f"{run} is a {predictor.detector.config.detector}, which needs proposals: the page has none"
            )
        shown.append(ServedRun(str(run) if is_named(run) else _name(real_path(run)), predictor))
    return shown


def _name(path: Path) -> str:
    """The name of a run's folder, and of a file in it other than its best weights."""
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == BEST else f"{path.parent.name} {path.name}"


def newest_run(folder: Path) -> Path:
    """The run with the newest best weights in a folder. Raises UserError where there is none."""
    found = sorted(folder.glob(f"*/{BEST}"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(
            f"no run is given and '{folder}' holds none: name one, or make one with 'msefpn train'"
        )
    return found[-1].parent

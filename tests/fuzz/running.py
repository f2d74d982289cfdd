"""What a command says of broken input, and what is wrong with that."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

from msefpn import plugins
from msefpn.ablation.grid import Trial as Training
from msefpn.cli import main
from msefpn.web.app import App
from tests.fuzz.cases import Trial

SECONDS = 20
"""CPU time that a command may take."""
WAIT = 120
"""Seconds after which it waits for what never comes."""
MEMORY = 1 << 30
"""Bytes that it may take beyond what the process held."""
EXIT_CODES = (0, 1, 2)
ANSWERS = (200, 413, 422)
"""Of the page."""


class Outcome(NamedTuple):
    """How a command ended."""

    code: int | None
    """Its exit code; None: it did not end by itself."""
    fault: str | None = None
    """What is wrong with that; None: nothing."""


class TookTooLongError(BaseException):
    """The command used up its time."""


def run_trial(trial: Trial, folder: Path) -> Outcome:
    """Run the command of a trial; `folder` is what `prepare` was given."""
    told, errors = io.StringIO(), io.StringIO()
    _forget_peak()
    before = _peak()
    try:
        with (
            contextlib.redirect_stdout(told),
            contextlib.redirect_stderr(errors),
            _in_this_process(trial),
            _limited(),
        ):
            code = main(trial.words)
    except TookTooLongError:
        return Outcome(None, f"took over {SECONDS} s of CPU, or waited over {WAIT} s")
    except SystemExit as end:  # argparse's
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        return Outcome(None, traceback.format_exc())
    if code == 130:
        raise KeyboardInterrupt
    more = _peak() - before
    if more > MEMORY:
        return Outcome(code, f"took {more / 2**20:.0f} MB")
    return Outcome(code, _fault(trial, folder, code, told.getvalue(), errors.getvalue()))


def _fault(trial: Trial, folder: Path, code: int, told: str, errors: str) -> str | None:
    """What is wrong with an exit code and what was printed."""
    said = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    if code not in EXIT_CODES or "Traceback" in errors:
        return f"exit code {code}: {errors}"
    reported = trial.words[0] == "check" and not said  # its report names the faults
    if code == 2 and not reported and (len(said) != 1 or not said[0].startswith("error: ")):
        return f"not one line: {said}"
    if code == 0 and trial.planted is not None:
        return _unaccounted(trial.planted, folder, told)
    return None


def _unaccounted(planted: int, folder: Path, told: str) -> str | None:
    """What is wrong where a converted set has other boxes than the source, and nothing was said."""
    written = sum(
        len(json.loads(file.read_text(encoding="utf-8"))["annotations"])
        for file in (folder / "out").glob("*.json")
    )
    named = any(word in told for word in ("skipped", "dropped", "ignored", "left out", "removed"))
    if written == planted or named:
        return None
    return f"{written} of {planted} boxes were written without a word: {told}"


@contextlib.contextmanager
def _in_this_process(trial: Trial) -> Iterator[None]:
    """Start no other process, serve the page without a network, and forget plug-ins afterwards."""
    for kind in plugins.KINDS:
        plugins.known(kind)  # imports what fills its table, which stays so
    with contextlib.ExitStack() as stack:
        for name, instead in {
            "ablation.ablate.run_trials": _fail_all,
            "ablation.cost._peak": lambda config, workload: 0,
            "web.demo.make_server": lambda app: _Visitors(app, trial.uploads),
        }.items():
            stack.enter_context(mock.patch(f"msefpn.{name}", instead))
        for table in (plugins._LOADED, *plugins._TABLES.values()):
            stack.enter_context(mock.patch.dict(table))
        yield


def _fail_all(
    trials: Sequence[Training], *, finished: Callable[[Training, float, str], None], **_: object
) -> dict[Path, str]:
    """Stands for processes that train, as `run_trials`: other cases train on broken input."""
    for one in trials:
        finished(one, 0.0, "not tried")
    return {one.folder: "not tried" for one in trials}


class _Visitors:
    """Stands for uvicorn's server: sends files to the page, and ends."""

    def __init__(self, app: App, uploads: Sequence[Path]) -> None:
        self.app, self.uploads = app, uploads

    def run(self, sockets: object) -> None:
        """Send all, and check the answers."""
        for file in self.uploads:
            status = asyncio.run(self._send(file.read_bytes()))
            assert status in ANSWERS, f"the page answers {status} to {file}"

    async def _send(self, body: bytes) -> int:
        answers: list[dict[str, Any]] = []
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            part = next(parts, None)
            if part is None:
                await never.wait()
            return part or {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answers.append(dict(message))

        head = {b"host": b"127.0.0.1", b"content-type": b"image/png", b"content-length": b"%d" % len(body)}
        scope = {"type": "http", "method": "POST", "path": "/detect", "raw_path": b"/detect"}
        await self.app({**scope, "headers": list(head.items())}, receive, send)
        status: int = answers[0]["status"]
        return status


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TookTooLongError after `SECONDS` of CPU time, or `WAIT` of waiting."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLongError

    kept = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)


def _forget_peak() -> None:
    """Let the peak of this process's memory begin anew; Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> int:
    """Peak resident memory in bytes since it was forgotten."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

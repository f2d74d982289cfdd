"""Child processes that answer requests in lines of json, and end when the parent process ends."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

TIME_TO_END = 20.0
"""Seconds that a process has to end its own child processes."""
Asked = subprocess.Popen[str]
"""A process that `start` has started."""


def start(module: str, *words: str, variables: Mapping[str, str], errors: IO[Any] | None = None) -> Asked:
    """Start a process that `serve`s.

    Args:
        module: what it runs, with `python -m`.
        words: its arguments.
        variables: defaults for its environment; this process's own variables override them.
        errors: file for its standard error; None: that of this process.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        env={**variables, **os.environ},
    )


def send(process: Asked, value: Any) -> None:
    """Send a line. Does not fail if the process has ended; `answer` then returns None."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(f"{json.dumps(value)}\n")
        process.stdin.flush()


def answer(process: Asked) -> Any:
    """The next line of a process; None: it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return json.loads(line) if line.endswith("\n") else None


def end(process: Asked, grace: float = 0.0) -> int:
    """End a process, and return its exit code.

    Args:
        process: it may be killed at any time, since it writes every file whole or not at all.
        grace: seconds that it has to end its own child processes; 0: it is killed at once.
    """
    if grace:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has not read what was sent
            pipe.close()
    return process.wait()


def serve() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Serve the parent process: return a function that waits for its next line, and one that answers.

    The process ends by SIGTERM when the parent has closed the pipe or ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print to stdout, which is for answers
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        with os.fdopen(0, encoding="utf-8", closefd=False) as given:
            for line in given:
                lines.put(line)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIME_TO_END)
        os._exit(1)

    def reply(value: Any) -> None:
        answers.write(f"{json.dumps(value)}\n")
        answers.flush()

    threading.Thread(target=read, daemon=True).start()
    return lambda: json.loads(lines.get()), reply

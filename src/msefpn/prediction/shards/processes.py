"""Shards by processes of this machine, each with a detector; a lost one is replaced, its shard tried again.

A process reads lines from its standard input, a json each: its task first, then a shard at a time. To each
shard it answers the `Report`, as json in a line. It ends when its input does, also where this process was
killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

from msefpn.prediction.shards.job import Job
from msefpn.prediction.shards.work import ATTEMPTS, Report, ShardWorker

Shards = Iterable[tuple[int, list[str]]]
"""Numbers of shards, and their images."""


def in_this_process(job: Job, shards: Shards) -> Iterator[Report]:
    """Predict shards, one after the other."""
    worker = ShardWorker(job.task())
    for index, names in shards:
        yield worker(index, names)


def in_processes(job: Job, shards: Shards, jobs: int) -> Iterator[Report]:
    """Predict shards in as many processes; in the order in which they are finished."""
    pool = _Pool(job, iter(shards))
    threads = [
        threading.Thread(target=pool.serve, args=(number, jobs), daemon=True) for number in range(jobs)
    ]
    try:
        for thread in threads:
            thread.start()
        yield from pool.reports(jobs)
    finally:
        pool.stop()
        for thread in threads:
            thread.join()


class _Pool:
    """Processes that take shards until there are none."""

    def __init__(self, job: Job, shards: Iterator[tuple[int, list[str]]]) -> None:
        self.task = job.task()
        self.shards = shards
        self.lock = threading.Lock()
        self.stopped = False
        self.processes: set[subprocess.Popen[str]] = set()
        self.done: queue.SimpleQueue[Report | BaseException | None] = queue.SimpleQueue()

    def reports(self, jobs: int) -> Iterator[Report]:
        """What becomes of the shards, until all threads have ended."""
        while jobs:
            report = self.done.get()
            if report is None:
                jobs -= 1
            elif isinstance(report, BaseException):
                raise report
            else:
                yield report

    def serve(self, number: int, jobs: int) -> None:
        """Give shards to one process after the other, in a thread of its own."""
        process: subprocess.Popen[str] | None = None
        try:
            while (shard := self._next()) is not None:
                for _ in range(ATTEMPTS + 1):
                    process = process or self._start(number, jobs)
                    report = None if process is None else _ask(process, *shard)
                    if process is None:
                        return
                    if report is not None:
                        break
                    code = process.wait()
                    self._end(process)
                    process = None
                    if self.stopped:
                        return
                else:
                    how = f"signal {-code}" if code < 0 else f"code {code}"
                    report = Report(shard[0], lost=f"processes end before they begin it, the last with {how}")
                self.done.put(report)
        except BaseException as error:  # raised in the thread that waits
            self.done.put(error)
        finally:
            if process is not None:
                self._end(process)
            self.done.put(None)

    def stop(self) -> None:
        """End all processes; what they have not written whole is lost."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.kill()

    def _next(self) -> tuple[int, list[str]] | None:
        with self.lock:
            return None if self.stopped else next(self.shards, None)

    def _start(self, number: int, jobs: int) -> subprocess.Popen[str] | None:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with self.lock:
            if self.stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
            )
            self.processes.add(process)
        _send(process.stdin, self.task)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        for end in (process.stdin, process.stdout):
            if end is not None:
                with contextlib.suppress(OSError):  # it has not read what was sent
                    end.close()
        process.wait()
        with self.lock:
            self.processes.discard(process)


def _ask(process: subprocess.Popen[str], index: int, names: list[str]) -> Report | None:
    """What a process reports of a shard; None: it has ended."""
    _send(process.stdin, json.dumps([index, names]))
    assert process.stdout is not None
    answer = process.stdout.readline()
    return Report(**json.loads(answer)) if answer.endswith("\n") else None


def _send(end: IO[str] | None, line: str) -> None:
    assert end is not None
    with contextlib.suppress(OSError):  # the process has ended: no answer will come
        end.write(f"{line}\n")
        end.flush()


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the first process ends the others
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    worker = ShardWorker(lines.get(), int(sys.argv[1]))
    while True:
        index, names = json.loads(lines.get())
        answers.write(json.dumps(worker(index, names)._asdict()) + "\n")
        answers.flush()


def _read(lines: queue.SimpleQueue[Any]) -> None:
    with os.fdopen(0, encoding="utf-8", closefd=False) as given:
        for line in given:
            lines.put(line)
    os._exit(0)  # at once: files are put in their places whole


if __name__ == "__main__":
    main()

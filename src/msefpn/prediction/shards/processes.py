"""Shards by processes of this machine, each with a detector; lost ones are replaced, their shards retried.

A process receives its task, and then one shard at a time, which it answers with a `Report`.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator

from msefpn.prediction.shards.job import Job
from msefpn.prediction.shards.pipes import Asked, answer, end, send, serve, start
from msefpn.prediction.shards.work import ATTEMPTS, Report, ShardWorker

Shards = Iterable[tuple[int, list[str]]]
"""Numbers of shards, and their images."""


def in_this_process(job: Job, shards: Shards) -> Iterator[Report]:
    """Predict shards, one after the other."""
    worker = ShardWorker(job.task())
    for index, names in shards:
        yield worker(index, names)


def in_processes(job: Job, shards: Shards, jobs: int) -> Iterator[Report]:
    """Predict shards in `jobs` processes; reports come in the order in which shards are finished."""
    pool = _Pool(job, iter(shards), jobs)
    threads = [threading.Thread(target=pool.serve, args=(number,), daemon=True) for number in range(jobs)]
    try:
        for thread in threads:
            thread.start()
        yield from pool.reports()
    finally:
        pool.stop()
        for thread in threads:
            thread.join()


class _Pool:
    """Processes that take shards until there are none; each has a thread here."""

    def __init__(self, job: Job, shards: Iterator[tuple[int, list[str]]], jobs: int) -> None:
        self.task = job.task()
        self.shards = shards
        self.jobs = jobs
        self.lock = threading.Lock()
        self.stopped = False
        self.processes: dict[int, Asked] = {}
        """By number."""
        self.done: queue.SimpleQueue[Report | BaseException | None] = queue.SimpleQueue()

    def reports(self) -> Iterator[Report]:
        """Reports of the shards, until all threads have ended."""
        left = self.jobs
        while left:
            report = self.done.get()
            if report is None:
                left -= 1
            elif isinstance(report, BaseException):
                raise report
            else:
                yield report

    def serve(self, number: int) -> None:
        """Give shards to one process after the other."""
        try:
            while (shard := self._next()) is not None:
                report = self._predict(number, *shard)
                if report is not None:
                    self.done.put(report)
        except BaseException as error:  # raised in the thread that waits
            self.done.put(error)
        finally:
            self._end(number)
            self.done.put(None)

    def stop(self) -> None:
        """End all processes."""
        with self.lock:
            self.stopped = True
            for process in self.processes.values():
                process.kill()

    def _next(self) -> tuple[int, list[str]] | None:
        with self.lock:
            return None if self.stopped else next(self.shards, None)

    def _predict(self, number: int, index: int, names: list[str]) -> Report | None:
        """Have a shard predicted; None: the pool is being stopped."""
        code = 0
        for _ in range(ATTEMPTS + 1):  # the last one only reports that the others were lost
            process = self._started(number)
            if process is None:
                return None
            send(process, [index, names])
            found = answer(process)
            if found is not None:
                return Report(**found)
            process.wait()
            code = self._end(number)
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return Report(index, lost=f"processes end before they begin it, the last with {how}")

    def _started(self, number: int) -> Asked | None:
        """The process of a thread, started if it has none; None: the pool is being stopped."""
        with self.lock:
            if self.stopped:
                return None
            if number in self.processes:
                return self.processes[number]
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            process = start(__name__, str(number), variables={"OMP_NUM_THREADS": str(threads)})
            self.processes[number] = process
        send(process, self.task)
        return process

    def _end(self, number: int) -> int:
        """End the process of a thread; return its exit code, 0 if none was started."""
        with self.lock:
            process = self.processes.pop(number, None)
        return 0 if process is None else end(process)


def main() -> None:
    """Predict shards for the parent process."""
    ask, reply = serve()
    worker = ShardWorker(ask(), int(sys.argv[1]))
    while True:
        index, names = ask()
        reply(worker(index, names)._asdict())


if __name__ == "__main__":
    main()

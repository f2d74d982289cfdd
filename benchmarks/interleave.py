"""Sides in processes of their own, called in turn: a drift of the machine's speed falls on all alike."""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.common import ROOT
from benchmarks.sides import Case, Predictions, prepare
from msefpn.runs.memory import peak_memory


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    seconds: float
    """Median of the counted calls."""
    peak: float
    """MB beyond the imported libraries, the model included: resident; on a GPU what torch has allocated."""
    found: Predictions
    """Detections of the first call; none of a training step."""


def interleaved(cases: Sequence[Case], rounds: int) -> dict[Case, Outcome | str]:
    """Time every case `rounds` times, after a call that does not count; why, where one cannot be run."""
    with contextlib.ExitStack() as stack:
        running: dict[Case, Any] = {}
        first: dict[Case, dict[str, Any]] = {}
        failed: dict[Case, str] = {}
        started = {case: stack.enter_context(_process(case)) for case in cases}
        for case, process in started.items():
            if line := process.stdout.readline():
                running[case], first[case] = process, json.loads(line)
            else:
                failed[case] = process.stderr.read().strip().splitlines()[-1]
        seconds: dict[Case, list[float]] = {case: [] for case in running}
        for _ in range(rounds):
            for case in [case for case in running if case not in failed]:
                if answer := _ask(running[case], "run"):
                    seconds[case].append(answer["seconds"])
                else:
                    failed[case] = "its process was ended: all sides together need too much memory"
        outcomes: dict[Case, Outcome | str] = {}
        for case in cases:
            if case in failed:
                outcomes[case] = failed[case]
                continue
            peak = _ask(running[case], "end")["peak"]
            found = [{key: torch.tensor(x) for key, x in image.items()} for image in first[case]["found"]]
            outcomes[case] = Outcome(statistics.median(seconds[case]), peak / 2**20, found)
        return outcomes


@contextlib.contextmanager
def _process(case: Case) -> Iterator[Any]:
    """A process that runs a case each time it is asked to."""
    command = [sys.executable, "-m", "benchmarks.interleave", json.dumps(dataclasses.asdict(case))]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(process: Any, word: str) -> dict[str, Any]:
    """What the process answers; nothing, if it is no more."""
    with contextlib.suppress(BrokenPipeError):
        print(word, file=process.stdin, flush=True)
    answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
    return answer


def _serve(case: Case) -> None:
    """Run a case once, then each time that standard input says so."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print what they like
    imported = peak_memory()
    call, read = prepare(case)
    result = call()
    found = [] if case.train else read(result)
    lists = [{key: x.cpu().tolist() for key, x in image.items()} for image in found]
    calls = 1
    if case.device == "cuda":  # so short a call would be timed by its start
        calls = math.ceil(0.2 / _seconds(case, call, calls))
    print(json.dumps({"found": lists}), file=out, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps({"seconds": _seconds(case, call, calls)}), file=out, flush=True)
    peak = torch.cuda.max_memory_allocated() if case.device == "cuda" else peak_memory() - imported
    print(json.dumps({"peak": peak}), file=out, flush=True)


def _seconds(case: Case, call: Callable[[], Any], calls: int) -> float:
    """The seconds of a call, of several in a row."""
    clock = time.process_time if case.processor else time.perf_counter
    start = clock()
    for _ in range(calls):
        call()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / calls


if __name__ == "__main__":
    _serve(Case(**json.loads(sys.argv[1])))

"""Try seeds: `python -m tests.fuzz COUNT [--first SEED]`; prints what went wrong, and how commands ended."""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import prepare
from tests.fuzz.running import run_trial
from tests.fuzz.stock import make_stock

ENDS = {0: "well", 1: "in part", 2: "refused", None: "broken off"}


def run() -> int:
    """Return 1 where a seed showed a fault, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    ends, faults, stopped = Counter[tuple[str, int | None]](), 0, False
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(KeyboardInterrupt):
        stopped = True
        stock = make_stock(Path(place, "stock"))
        for seed in range(options.first, options.first + options.count):
            folder = Path(place, str(seed))
            folder.mkdir()
            trial = prepare(seed, stock, folder)
            code, fault = run_trial(trial, folder)
            shutil.rmtree(folder, ignore_errors=True)
            ends[trial.words[0], code] += 1
            if fault is not None:
                faults += 1
                print(f"seed {seed}: msefpn {' '.join(trial.words)}\n{fault}", flush=True)
            if seed % 500 == 499:
                print(f"{ends.total()} tried, {faults} faults", file=sys.stderr, flush=True)
        stopped = False
    for verb in sorted({verb for verb, _ in ends}):
        counts = ", ".join(f"{ends[verb, code]} {name}" for code, name in ENDS.items() if ends[verb, code])
        print(f"{verb}: {counts}")
    print(f"{ends.total()} seeds from {options.first}: {faults} faults")
    return 130 if stopped else int(faults > 0)


if __name__ == "__main__":
    sys.exit(run())

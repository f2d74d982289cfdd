"""Try seeds: `python -m tests.fuzz COUNT [--first SEED]`; prints what went wrong, and how commands ended."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz.cases import fault_of, prepare
from tests.fuzz.stock import make_stock


def run() -> int:
    """Return 1 where a seed showed a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as place:
        stock = make_stock(Path(place, "stock"))
        for seed in range(options.first, options.first + options.count):
            folder = Path(place, str(seed))
            folder.mkdir()
            trial = prepare(seed, stock, folder)
            fault = fault_of(trial, folder)
            shutil.rmtree(folder, ignore_errors=True)
            if fault is not None:
                faults += 1
                print(f"seed {seed}: msefpn {' '.join(trial.words)}\n{fault}", flush=True)
            if seed % 500 == 499:
                print(f"{seed + 1 - options.first} tried, {faults} faults", file=sys.stderr, flush=True)
    print(f"{options.count} seeds from {options.first}: {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(run())

"""Broken input of every kind: a right result, or one line, within bounds of time and memory.

`python -m tests.fuzz 10000` tries more seeds.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from msefpn.cli import COMMANDS
from tests.fuzz.cases import Stock, prepare
from tests.fuzz.running import run_trial
from tests.fuzz.stock import make_stock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
FIXED = range(150)
TODAY = datetime.datetime.now(tz=datetime.UTC).date().toordinal() * 1000
OF_THE_DAY = range(TODAY, TODAY + 50)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"))


def faults_of(seeds: Sequence[int], stock: Stock, folder: Path) -> dict[int, str]:
    """The seeds that show a fault, each with its command."""
    found = {}
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        trial = prepare(seed, stock, place)
        fault = run_trial(trial, place).fault
        if fault is not None:
            found[seed] = f"msefpn {' '.join(trial.words)}\n{fault}"
    return found


@pytest.mark.parametrize("seeds", [FIXED[start : start + 50] for start in range(0, 150, 50)], ids=str)
def test_broken_input_ends_well(seeds: range, stock: Stock, tmp_path: Path) -> None:
    assert not faults_of(seeds, stock, tmp_path)


def test_broken_input_of_the_day_ends_well(stock: Stock, tmp_path: Path) -> None:
    assert not faults_of(OF_THE_DAY, stock, tmp_path)


def test_seeds_try_what_they_should(stock: Stock, tmp_path: Path) -> None:
    verbs, accounted = set(), 0
    for seed in FIXED:
        place = tmp_path / str(seed)
        place.mkdir()
        trial = prepare(seed, stock, place)
        verbs.add(trial.words[0])
        accounted += trial.planted is not None
    assert verbs >= COMMANDS.keys() - {"export"}  # the slowest, and rare
    assert accounted >= 3

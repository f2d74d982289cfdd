"""A data set and a run of two epochs on it, small enough to be copied for each seed."""

from __future__ import annotations

from pathlib import Path

import yaml

from msefpn.cli import main
from msefpn.data import synthetic
from tests.faults.runs import RECIPE
from tests.fuzz.cases import Stock


def make_stock(folder: Path) -> Stock:
    """Draw the data and train."""
    data, run = folder / "data", folder / "run"
    synthetic.draw_builtin_set(data, train=2, val=1, seed=0, size=64)
    (data / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    words = ["train", "--data", data, "--recipe", data / "recipe.yaml", "--epochs", "2", "--out", run]
    assert main([str(word) for word in words]) == 0
    return Stock(data, run)

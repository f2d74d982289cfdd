"""A data set, a run of two epochs on it and more, small enough to be copied for each seed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from msefpn.cli import main
from msefpn.data import synthetic
from tests.faults.runs import RECIPE
from tests.fuzz.cases import GRID, Stock
from tests.importing.configs import write_configs
from tests.models.importers.layouts import CLASSES, as_mmdetection, make

PLUGIN = '''"""A loss."""

import torch

from msefpn.plugins import register


@register("loss", "mine")
class Mine(torch.nn.Module):
    """A loss of mine."""

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compare scores (N,) with targets (N,)."""
        return (scores - targets).abs().mean()
'''


def make_stock(folder: Path) -> Stock:
    """Draw the data and train."""
    stock = Stock(*(folder / name for name in ("data", "run", "grid", "configs", "checkpoints", "mine.py")))
    synthetic.draw_builtin_set(stock.data, train=2, val=1, seed=0, size=64)
    recipe = stock.data / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    words = ["train", "--data", stock.data, "--recipe", recipe, "--epochs", "2", "--out", stock.run]
    assert main([str(word) for word in words]) == 0

    def copy(trials: Any, **_: object) -> dict[Path, str]:
        for trial in trials:
            shutil.copytree(stock.run, trial.folder)
        return {}

    words = ["ablate", recipe, "--data", stock.data, "--epochs", "2", "--out", stock.grid, *GRID]
    with mock.patch("msefpn.ablation.ablate.run_trials", copy):
        assert main([str(word) for word in words]) == 0
    write_configs(stock.configs, 3)
    stock.checkpoints.mkdir()
    _write_checkpoints(stock.checkpoints)
    stock.plugin.write_text(PLUGIN, encoding="utf-8")
    return stock


def _write_checkpoints(folder: Path) -> None:
    """A detector of mmdetection in both formats of torch; its tensors share numbers: the files are small."""
    tensors = as_mmdetection(make("retinanet"))
    numbers = torch.zeros(max(tensor.numel() for tensor in tensors.values()))
    state = {
        name: numbers[: tensor.numel()].view(tensor.shape) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    content = {"meta": {"CLASSES": CLASSES}, "state_dict": state}
    for name, zipped in (("new.pth", True), ("old.pth", False)):
        torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)

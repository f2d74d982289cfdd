"""The benchmarks run, and compare what they say they compare."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("loader")


@pytest.mark.parametrize("given", [False, True], ids=["made up", "given"])
def test_both_sides_of_the_loaders_do_the_same_work(loader: Any, tmp_path: Path, given: bool) -> None:
    if given:
        Image.new("RGB", (50, 50), (200, 100, 0)).save(tmp_path / "x.jpg")
    (tmp_path / "set").mkdir()
    case = loader.Case("tiny", (120, 90), (96, 64), 4)
    data = loader.make_set(tmp_path / "set", case, tmp_path if given else None)
    shapes = []
    for make in (loader.ours, loader.theirs):
        load, floats = make(data, case.size, 2)
        batches = [floats(item) for item in load(0)]
        assert all(batch.dtype == torch.float32 for batch in batches)
        shapes.append([tuple(batch.shape) for batch in batches])
    assert shapes == [[(2, 3, 64, 96)] * 2] * 2


def test_loader_is_measured(loader: Any) -> None:
    threads = torch.get_num_threads()
    row = loader.measure(loader.Case("tiny", (64, 48), (32, 32), 2), rounds=1)
    assert min(row[1:]) > 0
    assert row.ratio == row.ours_floats / row.theirs_floats
    assert torch.get_num_threads() == threads

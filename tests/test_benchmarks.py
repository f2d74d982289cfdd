"""The benchmarks run, and compare what they say they compare."""

import importlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import ROOT


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def loader(module: Callable[[str], Any]) -> Any:
    return module("loader")


def run(*words: str) -> str:
    """What the command prints, at a tiny size."""
    tiny = ["--rounds", "1", "--sizes", "64x96", "--train-sizes", "64x96", "--matrix", "64"]
    command = [sys.executable, "-m", "benchmarks", *words, *tiny]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(printed: str) -> dict[str, list[str]]:
    """The cells of the tables' rows after the first, by the first up to a colon."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("|")
    ]
    return {row[0].partition(":")[0]: row[1:] for row in rows}


@pytest.mark.usefixtures("warm_processes")
def test_sides_and_parts_are_measured() -> None:
    printed = run(
        *("predict", "train", "roofline", "--detectors", "retinanet", "--sides", "torchvision", "ours"),
        *("--batches", "1", "--train-batches", "1"),
    )
    predict, train, parts = (rows_of(part) for part in printed.split("### ")[1:4])
    assert predict["torchvision"][0].endswith(" s")
    assert predict["torchvision"][1].endswith(" MB")
    assert [predict[side][-1] for side in ("torchvision", "ours")] == ["100 %", "100 %"]
    assert min(*map(float, predict["ours"][:2]), *map(float, train["ours"])) > 0
    assert {"backbone", "neck", "rpn", "roi"} <= set(parts)
    assert all(float(parts[name][-2].removesuffix(" %")) > 0 for name in ("backbone", "neck"))


@pytest.mark.usefixtures("warm_processes")
def test_a_side_that_cannot_run_is_named(module: Callable[[str], Any]) -> None:
    case = module("sides").Case("ours", "retinanet", 64, 96, 1, neck="none")
    assert "unknown neck 'none'" in module("interleave").interleaved([case], 1)[case]


def test_agreement_counts_what_is_found_again(module: Callable[[str], Any]) -> None:
    agreement = module("sides").agreement
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    one = [{"boxes": boxes, "scores": torch.ones(2), "labels": torch.tensor([1, 2])}]
    moved = [one[0] | {"boxes": boxes + torch.tensor([[0.0], [3.0]])}]
    renamed = [one[0] | {"labels": torch.tensor([2, 2])}]
    assert [agreement(one, other) for other in (one, moved, renamed)] == [1, 0.5, 0.5]


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


def test_a_cut_keeps_the_small_classes(
    module: Callable[[str], Any], tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = module("small_objects")
    whole = json.loads((tiny_set / "train.json").read_text())
    sides: dict[int, list[float]] = {}
    for note in whole["annotations"]:
        sides.setdefault(note["category_id"], []).append(math.sqrt(note["bbox"][2] * note["bbox"][3]))
    medians = sorted(statistics.median(one) for one in sides.values())
    limit = (medians[0] + medians[-1]) / 2
    cut.main([str(tiny_set), str(tmp_path / "cut"), "--side", str(limit), "--objects", "1", "--images", "3"])
    found = json.loads((tmp_path / "cut/train.json").read_text())
    kept = {item["id"] for item in found["categories"]}
    assert kept == {id for id, one in sides.items() if statistics.median(one) <= limit}
    images = {item["id"] for item in found["images"]}
    expected = [n for n in whole["annotations"] if n["category_id"] in kept and n["image_id"] in images]
    assert len(images) == 3
    assert sorted(n["id"] for n in found["annotations"]) == sorted(n["id"] for n in expected)
    assert all((tmp_path / "cut/train" / item["file_name"]).is_file() for item in found["images"])
    assert "train: 3 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cut.main([str(tiny_set), str(tmp_path / "no"), "--side", "0.1"])
    assert not (tmp_path / "no").exists()


def test_the_first_loss_is_measured(
    module: Callable[[str], Any], tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test_resnet", "--necks", "fpn", "--seeds", "1", "--size", "64"]
    module("first_loss").main([str(tiny_set), *words])
    uniform, *_, row = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert [len(cell.split()) for cell in cells[2:5]] == [4, 5, 1]
    assert float(cells[5].split()[0]) == pytest.approx(float(uniform.split()[1]), abs=0.5)


def test_loader_is_measured(loader: Any) -> None:
    threads = torch.get_num_threads()
    row = loader.measure(loader.Case("tiny", (64, 48), (32, 32), 2), rounds=1)
    assert min(row[1:]) > 0
    assert row.ratio == row.ours_floats / row.theirs_floats
    assert torch.get_num_threads() == threads

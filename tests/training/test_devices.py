"""Two processes on the CPU: the same weights in both, every image evaluated once, mistakes of both told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import msefpn
from msefpn.data.loader import train_loader
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from tests import TINY, copy_to

pytestmark = pytest.mark.usefixtures("warm_processes")

SCRIPT = """
import sys
import torch
import msefpn
import msefpn.training.lightning as lit

data, recipe, out = sys.argv[1:]
fit = lit.fit

def fit_and_keep(training, *rest):
    fit(training, *rest)
    torch.save(training.detector.state_dict(), f"{out}-weights-{training.global_rank}.pt")

lit.fit = fit_and_keep
msefpn.train(data, recipe=recipe, out=out, devices=2, workers=0)
"""


def half_empty(source: Path, folder: Path) -> Path:
    """The same set, every other training image without boxes."""
    folder.mkdir()
    for name in ("train", "val", "val.json"):
        copy_to(source / name, folder / name)
    content: dict[str, Any] = json.loads((source / "train.json").read_text())
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] % 2]
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def run_processes(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run Python, which starts the second process itself."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)


def test_two_processes(tiny_set: Path, tmp_path: Path) -> None:
    data, out, script = half_empty(tiny_set, tmp_path / "set"), tmp_path / "run", tmp_path / "train.py"
    script.write_text(SCRIPT)
    split, _ = read_coco(*find_split(data, "train"))
    loaders = [
        train_loader(
            split, size=(96, 96), augment="paper", batch=1, workers=0, seed=0, epoch=0, rank=rank, world=2
        )
        for rank in range(2)
    ]
    pairs = [[bool(batch.targets.valid.any()) for batch in pair] for pair in zip(*loaders, strict=True)]
    assert [True, False] in pairs or [False, True] in pairs, "no step has one process with empty images alone"
    assert len(read_coco(*find_split(data, "val"))[0]) % 2 == 1

    run_processes(script, data, TINY, out).check_returncode()

    first, second = (torch.load(f"{out}-weights-{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) > 100
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name

    predictions = json.loads((out / "predictions.json").read_text())
    numbers = msefpn.evaluate(out, out=tmp_path / "alone", device="cpu", workers=0)
    assert json.loads((tmp_path / "alone" / "predictions.json").read_text()) == predictions
    assert {item["image_id"] for item in predictions} == set(range(1, 6))
    assert numbers["AP"] == json.loads((out / "metrics.json").read_text())["best"]["AP"]


def train_in_two(data: Path, out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the command with two processes."""
    arguments = ("--data", data, "--recipe", TINY, "--out", out, "--devices", "2", "--workers", "0")
    return run_processes("-m", "msefpn", "train", *arguments, *options)


def test_a_mistake_that_all_processes_meet_is_told_once(tiny_set: Path, tmp_path: Path) -> None:
    done = train_in_two(tiny_set, tmp_path / "run", "--lr", "1e30", "--detector", "retinanet")
    assert "Traceback" not in done.stderr
    assert "not finite" in done.stderr
    assert done.stderr.count("error:") == 1
    assert done.returncode == 2


def test_a_mistake_that_the_second_process_meets_is_told(tiny_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(tiny_set, data)
    split, _ = read_coco(*find_split(data, "train"))
    options: dict[str, Any] = {"size": (96, 96), "augment": "paper", "batch": 1, "workers": 0, "seed": 0}
    first, second = (
        next(iter(train_loader(split, **options, epoch=0, rank=rank, world=2))).ids.item() for rank in (0, 1)
    )
    assert first != second
    file = split.path_of(split.ids.tolist().index(second))
    Image.open(file).save(file, format="PNG")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)

    done = train_in_two(data, tmp_path / "run")
    assert "Traceback" not in done.stderr
    assert f"error: image {file} (id {second}) cannot be read" in done.stderr
    assert "error: another process of this run stopped: its own line tells why" in done.stderr
    assert done.stderr.count("error:") == 2
    assert done.returncode == 2

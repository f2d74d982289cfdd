"""Two processes on the CPU: the same weights in both and in one process, each image evaluated once, and how
both end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import msefpn
from msefpn.data.loader import train_loader
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from msefpn.runs.folder import STEPS
from msefpn.training import lightning as lit
from tests import TINY, copy_to, free_port

pytestmark = pytest.mark.usefixtures("warm_processes")

SCRIPT = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from msefpn.cli import main
import msefpn.training.engine as engine
import msefpn.training.lightning as lit

out, *words = sys.argv[1:]
lit.mixed_seed = lambda *numbers: 0  # what is drawn inside the model: for equal images the same
fit, no_sync, alone = engine.fit, DistributedDataParallel.no_sync, [0]

def fit_and_keep(training, *rest):
    fit(training, *rest)
    rank = training.global_rank
    torch.save([training.detector.state_dict(), alone[0]], f"{out}-weights-{rank}.pt")

def counted(wrapper):
    alone[0] += 1
    return no_sync(wrapper)

engine.fit, DistributedDataParallel.no_sync = fit_and_keep, counted
sys.exit(main(["train", "--out", out, *words]))
"""
RECIPE = f"""
parent: {TINY}
epochs: 1
seed: 2
batch: 4
warmup: 0
workers: 0
"""


def start_two(*words: str | Path, each: tuple[list[str], list[str]] = ([], [])) -> list[Any]:
    """Start Python twice, as a launcher does on two machines with one device each."""
    usual = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    usual["MASTER_PORT"] = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words), *more],
            env=os.environ | usual | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, more in enumerate(each)
    ]


def ends(processes: list[Any]) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def half_empty(source: Path, folder: Path) -> Path:
    """The same set, every other training image without boxes, of both aspects an even number."""
    folder.mkdir()
    for name in ("train", "val", "val.json"):
        copy_to(source / name, folder / name)
    content: dict[str, Any] = json.loads((source / "train.json").read_text())
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] % 2]
    wide = [image["width"] > image["height"] for image in content["images"]]
    drop = {group: next(i for i, one in enumerate(wide) if one == group) for group in set(wide)}
    dropped = {drop[group] for group in drop if wide.count(group) % 2}
    content["images"] = [image for i, image in enumerate(content["images"]) if i not in dropped]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
    (folder / "train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_two_processes(tiny_set: Path, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, script = half_empty(tiny_set, tmp_path / "set"), tmp_path / "run", tmp_path / "train.py"
    script.write_text(SCRIPT)
    split, _ = read_coco(*find_split(data, "train"))
    loaders = [
        train_loader(
            split, size=(96, 96), augment="paper", batch=1, workers=0, seed=2, epoch=0, rank=rank, world=2
        )
        for rank in range(2)
    ]
    pairs = [[bool(batch.targets.valid.any()) for batch in pair] for pair in zip(*loaders, strict=True)]
    assert [True, False] in pairs or [False, True] in pairs, "no step has one process with empty images alone"
    assert len(read_coco(*find_split(data, "val"))[0]) % 2 == 1

    options = ["--nodes", "2", "--accumulate", "2"]
    both = start_two(script, out, "--data", data, "--recipe", recipe, *options)
    assert ends(both) == [(0, ""), (0, "")]

    (first, alone), (second, _) = (torch.load(f"{out}-weights-{i}.pt", weights_only=True) for i in range(2))
    assert len(first) > 100
    assert [name for name, weight in first.items() if not torch.equal(weight, second[name])] == []
    assert alone == len(pairs) // 2, "of two passes one exchanges no gradients"

    predictions = json.loads((out / "predictions.json").read_text())
    numbers = msefpn.evaluate(out, out=tmp_path / "alone", device="cpu", workers=0)
    assert json.loads((tmp_path / "alone" / "predictions.json").read_text()) == predictions
    assert {item["image_id"] for item in predictions} == set(range(1, 6))
    assert numbers["AP"] == json.loads((out / "metrics.json").read_text())["best"]["AP"]

    # One process does the same passes of one image each, four for a step. The sums of the gradients are the
    # same but for their order, so the averaged weights, up to 1, differ by rounding: 3e-8 after three steps.
    monkeypatch.setattr(lit, "mixed_seed", lambda *numbers: 0)
    msefpn.train(data, recipe=recipe, out=tmp_path / "one", accumulate=4)
    averages, of_one = load_file(out / "last.safetensors"), load_file(tmp_path / "one" / "last.safetensors")
    for name, weight in averages.items():
        if "running_" not in name and weight.is_floating_point():  # those are means of both processes
            torch.testing.assert_close(of_one[name], weight, rtol=0, atol=1e-6)


def test_one_folder_and_two_requests(tiny_set: Path, tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "run"
    words: list[str | Path] = ["-m", "msefpn", "train", "--data", tiny_set, "--recipe", recipe, "--out", out]
    words += ["--nodes", "2"]
    both = ends(start_two(*words, each=([], ["--lr", "0.5"])))
    differ = "differ: lr is 0.5 and 0.02: give the same options on all nodes"
    for code, error in both:
        assert code == 2
        assert error.startswith("error: process 1 (")
        assert differ in error
        assert error.count("\n") == 1
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    first, second = ends(start_two(*words))
    refused = f"out '{out}' is not empty: name another folder\n"
    assert first == (2, f"error: {refused}")
    assert second[0] == 2
    assert second[1] == f"error: process 0 ({socket.gethostname()}): {refused}"


def test_one_is_killed(tiny_set: Path, tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "run"
    words: list[str | Path] = ["-m", "msefpn", "train", "--data", tiny_set, "--recipe", recipe, "--out", out]
    first, second = start_two(*words, "--nodes", "2", "--epochs", "100")
    while not (out / STEPS).exists() or not (out / STEPS).read_text():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    (code, error), _ = ends([first, second])
    assert code == 2
    assert error.startswith("error: process 1 (")
    assert "it is gone without a word" in error
    assert error.count("\n") == 1


def test_a_mistake_that_the_second_process_meets_is_told(
    tiny_set: Path, tmp_path: Path, recipe: Path
) -> None:
    data = tmp_path / "set"
    shutil.copytree(tiny_set, data)
    split, _ = read_coco(*find_split(data, "train"))
    options: dict[str, Any] = {"size": (96, 96), "augment": "paper", "batch": 2, "workers": 0, "seed": 2}
    first, second = (
        next(iter(train_loader(split, **options, epoch=0, rank=rank, world=2))).ids.tolist()
        for rank in (0, 1)
    )
    broken = next(id for id in second if id not in first)
    file = split.path_of(split.ids.tolist().index(broken))
    Image.open(file).save(file, format="PNG")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)

    words = ("train", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--devices", "2")
    command = [sys.executable, "-m", "msefpn", *map(str, words)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"error: process 1: image {file} (id {broken}) cannot be read")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2

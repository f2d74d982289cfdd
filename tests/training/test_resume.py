"""A run that is killed, stopped by Ctrl-C and resumed equals an unbroken one, bit for bit."""

import csv
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import msefpn
from tests import TINY

EPOCHS, KILLED = 5, 1
"""Of a whole run, and committed at least when it is killed."""
RECIPE = f"""
parent: {TINY}
epochs: {EPOCHS}
augment: strong
schedule: cosine
"""


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a background job's children ignore it
    command = [sys.executable, "-m", "msefpn", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def epochs_done(out: Path) -> int:
    """Committed epochs: the log is written just before the state."""
    return len(rows(out)) if (out / "resume.ckpt").exists() else 0


def rows(out: Path) -> list[dict[str, str]]:
    path = out / "metrics.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def wait_for_epoch(process: "subprocess.Popen[str]", out: Path, epoch: int) -> None:
    while epochs_done(out) < epoch:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """All leaves of nested dicts and lists."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        return {path: value}
    return {key: leaf for name, item in items for key, leaf in flat(item, f"{path}/{name}").items()}


def assert_equal_bits(one: Any, other: Any) -> None:
    first, second = flat(one), flat(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


@pytest.mark.usefixtures("warm_processes")
def test_killed_and_stopped_and_resumed_equals_unbroken(tiny_set: Path, tmp_path: Path) -> None:
    whole, broken, recipe = tmp_path / "whole", tmp_path / "broken", tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    killed = start("train", "--data", tiny_set, "--recipe", recipe, "--out", broken)
    wait_for_epoch(killed, broken, KILLED)
    time.sleep(random.uniform(0, 0.4))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert KILLED <= len(rows(broken)) < EPOCHS - 2, "killed too late to show anything"

    stopped = start("train", "--resume", "--out", broken)
    wait_for_epoch(stopped, broken, len(rows(broken)) + 1)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=100)
    assert "resumed after epoch" in out
    assert stopped.returncode == 130, err
    assert err.split("\n") == ["", f"interrupted: resume with msefpn train --resume --out {broken}", ""]

    msefpn.train(out=broken, resume=True)
    msefpn.train(tiny_set, recipe=recipe, out=whole)

    states = [torch.load(run / "resume.ckpt", weights_only=True) for run in (whole, broken)]
    assert_equal_bits(*states)
    assert states[0]["epoch"] == EPOCHS
    assert any(name.endswith("momentum_buffer") for name in flat(states[0]["optimizer"]))
    for name in ("best.safetensors", "last.safetensors"):
        assert_equal_bits(load_file(whole / name), load_file(broken / name))
    assert_equal_bits(load_file(whole / "last.safetensors"), states[0]["ema"])
    assert not torch.equal(*(states[0][part]["neck.sem.value.weight"] for part in ("ema", "detector")))
    logs = [[{**row, "images_per_second": ""} for row in rows(run)] for run in (whole, broken)]
    assert logs[0] == logs[1]
    assert [row["epoch"] for row in logs[0]] == [str(epoch + 1) for epoch in range(EPOCHS)]
    for name in ("metrics.json", "predictions.json", "config.yaml", "data.yaml"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert not list(broken.glob(".*")), "no half-written file is left"

"""A run that is killed and stopped within its epochs, and resumed, equals an unbroken one, bit for bit."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from msefpn.cli import main
from msefpn.config import Config
from msefpn.training.resume import change_of_processes
from tests import TINY

pytestmark = pytest.mark.usefixtures("warm_processes")

RECIPE = f"""
parent: {TINY}
epochs: 2
batch: 4
accumulate: 2
augment: mosaic
schedule: cosine
workers: 1
patience: 2
checkpoint_every: 2
keep: 3
"""
SCRIPT = """
import json
import os
import sys
import msefpn.training.lightning as lit
from msefpn.cli import main

signals = json.loads(os.environ["SIGNALS"])
step = lit.Training.optimizer_step

def stepped(training, *rest):
    step(training, *rest)
    for at, number in signals.get(str(training.global_rank), []):
        if training.step == at:
            os.kill(os.getpid(), number)

lit.Training.optimizer_step = stepped
sys.exit(main(sys.argv[1:]))
"""
Signals = dict[int, list[tuple[int, signal.Signals]]]
"""Of each process: after which steps it gets which signals."""


def run(folder: Path, signals: Signals, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Train in a process of its own, which starts others where there are several."""
    (folder / "train.py").write_text(SCRIPT)
    environment = os.environ | {"SIGNALS": json.dumps(signals)}
    command = [sys.executable, str(folder / "train.py"), "train", *map(str, arguments)]
    return subprocess.run(command, env=environment, timeout=200, capture_output=True, text=True, check=False)


def state_of(out: Path, name: str = "resume.ckpt") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / name, weights_only=True)
    return state


def rows(out: Path) -> list[dict[str, str]]:
    found = csv.DictReader((out / "metrics.csv").read_text().splitlines())
    return [{**row, "images_per_second": ""} for row in found]


def events(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for event in found:
        event["values"].pop("images_per_second", None)
    return found


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


def assert_equal_runs(whole: Path, broken: Path) -> None:
    """Weights, averages, optimizer, numbers and logs."""
    states = [state_of(out) for out in (whole, broken)]
    assert_equal_bits(*states)
    assert states[0]["within"] is None
    assert any(name.endswith("momentum_buffer") for name in flat(states[0]["optimizer"]))
    for name in ("best.safetensors", "last.safetensors"):
        assert_equal_bits(load_file(whole / name), load_file(broken / name))
    assert_equal_bits(load_file(whole / "last.safetensors"), states[0]["ema"])
    assert not torch.equal(*(states[0][part]["neck.sem.value.weight"] for part in ("ema", "detector")))
    assert rows(whole) == rows(broken)
    assert [row["epoch"] for row in rows(whole)] == ["1", "2"]
    assert events(whole) == events(broken)
    for name in ("metrics.json", "predictions.json", "config.yaml", "data.yaml"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert not list(broken.glob(".*")), "no half-written file is left"


def test_a_run_that_is_killed_and_stopped_at_steps_equals_an_unbroken_one(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken, recipe = tmp_path / "whole", tmp_path / "broken", tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    asked = ["--data", str(tiny_set), "--recipe", str(recipe), "--out"]
    assert main(["train", *asked, str(whole)]) == 0
    per_epoch = state_of(whole)["step"] // 2
    assert per_epoch == 4
    older = {f"resume-{2 * per_epoch - before}.ckpt" for before in (2, 4)}
    assert {path.name for path in whole.glob("resume-*")} == older
    resuming = ["--resume", "--out", str(broken)]

    stopped = run(tmp_path, {0: [(1, signal.SIGTERM)]}, *asked, broken)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == f"\ninterrupted: resume with msefpn train --resume --out {broken}\n"
    assert state_of(broken)["step"] == 1

    killed = run(tmp_path, {0: [(per_epoch + 3, signal.SIGKILL)]}, *resuming)
    total = state_of(broken)["within"]["of"]
    assert f"resumed after step 1 (batch 2 of {total}) of epoch 1" in killed.stdout, killed.stderr
    assert killed.returncode == -signal.SIGKILL
    state = state_of(broken)
    assert (state["epoch"], state["step"], state["within"]["batches"]) == (1, per_epoch + 2, 4)

    asking: Signals = {0: [(per_epoch + 3, signal.SIGUSR1), (per_epoch + 4, signal.SIGKILL)]}
    asked_for = run(tmp_path, asking, *resuming)
    said = f"resumed after step {per_epoch + 2} (batch 4 of {total}) of epoch 2"
    assert said in asked_for.stdout, asked_for.stdout + asked_for.stderr
    assert state_of(broken)["step"] == per_epoch + 3

    capsys.readouterr()
    assert main(["train", *resuming]) == 0
    said = f"resumed after step {per_epoch + 3} (batch 6 of {total}) of epoch 2"
    assert said in capsys.readouterr().out
    assert_equal_runs(whole, broken)


def test_two_processes_stop_at_the_same_step_whichever_is_told(tiny_set: Path, tmp_path: Path) -> None:
    whole, broken, recipe = tmp_path / "whole", tmp_path / "broken", tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.replace("workers: 1", "workers: 0"))
    asked = ["--data", str(tiny_set), "--recipe", str(recipe), "--devices", "2", "--out"]
    resuming = ["--resume", "--out", str(broken)]
    unbroken = run(tmp_path, {}, *asked, whole)
    assert unbroken.returncode == 0, unbroken.stderr
    per_epoch = state_of(whole)["step"] // 2

    one = run(tmp_path, {1: [(per_epoch - 1, signal.SIGTERM)]}, *asked, broken)
    assert one.returncode == 130, one.stderr
    assert one.stderr.endswith(f"\ninterrupted: resume with msefpn train --resume --out {broken}\n")
    state = state_of(broken)  # the last step before the evaluation
    assert (state["step"], state["epoch"]) == (per_epoch, 0)
    assert state["within"]["batches"] == state["within"]["of"]
    means = [next(iter(part[0].values())) for part in state["within"]["statistics"]]
    assert not torch.equal(*means), "each process has statistics of its own"

    both: Signals = {0: [(per_epoch + 1, signal.SIGTERM)], 1: [(per_epoch + 2, signal.SIGTERM)]}
    two = run(tmp_path, both, *resuming)
    assert two.returncode == 130, two.stderr
    assert state_of(broken)["step"] == per_epoch + 2

    last = run(tmp_path, {1: [(per_epoch + 3, signal.SIGUSR1)]}, *resuming)
    assert last.returncode == 0, last.stderr
    assert_equal_runs(whole, broken)


def test_another_number_of_processes_says_what_changes() -> None:
    config = Config(devices=4)
    assert change_of_processes({"config": {"devices": 4}}, config) == ""
    said = change_of_processes({"config": {"devices": 1}, "within": {}, "epoch": 2}, config)
    assert said.startswith("1 process before, 4 from now on: in the rest of epoch 3 some images come twice")
    assert said.endswith("and so are the final weights")


def test_a_run_that_is_killed_after_any_step_equals_an_unbroken_one(
    tiny_set: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--whole-grid"):
        pytest.skip("takes minutes: --whole-grid")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    asked = ["--data", str(tiny_set), "--recipe", str(recipe), "--out"]
    assert main(["train", *asked, str(tmp_path / "whole")]) == 0
    for step in range(1, state_of(tmp_path / "whole")["step"] + 1):
        broken = tmp_path / str(step)
        killed = run(tmp_path, {0: [(step, signal.SIGKILL)]}, *asked, broken)
        assert killed.returncode == -signal.SIGKILL
        if step < 3:
            assert not (broken / "resume.ckpt").exists() or state_of(broken)["step"] == 2
        assert main(["train", "--resume", "--out", str(broken)]) == 0
        assert_equal_runs(tmp_path / "whole", broken)

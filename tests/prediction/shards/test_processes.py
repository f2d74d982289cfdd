"""Shards by several processes: what is found where some are killed, and the image that kills them all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prediction.shards.conftest import Given, Killer, assert_same, entries, images, list_with_killers

pytestmark = pytest.mark.usefixtures("warm_processes")
Predict = Callable[..., tuple[int, str]]
TWO = ("--jobs", 2, "--shard-size", 2, "--save", "json")


def test_lost_processes_are_replaced_and_what_kills_them_all_is_named(
    given: Given, killer: Killer, predict: Predict, tmp_path: Path
) -> None:
    photos = list_with_killers(given, killer, tmp_path, 1, 3)
    killer.out, killer.kills = tmp_path / "out", {"1": 1, "3": 1000}
    code, said = predict(killer.out, *TWO, sources=photos)
    assert code == 2
    assert "1 process was lost: others made their shards" in said
    line = said.splitlines()[-1]
    assert "1 of 5 shards were left out, first shard 3: 3 processes were lost on it" in line
    assert f"the last at '{killer.address}/3.png'" in line
    assert len(set(killer.killed)) == 4
    assert len(images(killer.out)) == 8
    assert not (killer.out / "predictions.json").exists(), "not of a part"
    killer.kills = {}
    code, said = predict(killer.out, "--jobs", 1, *TWO[2:], sources=photos)
    assert "4 of 5 shards are whole" in said
    assert_same(entries(killer.out), given.found)
    assert not (killer.out / "begun").exists()


def test_the_processes_end_with_a_killed_command(given: Given, killer: Killer, tmp_path: Path) -> None:
    photos = list_with_killers(given, killer, tmp_path, 0, 1)
    killer.out, killer.kills = tmp_path / "out", {"0": 1, "1": 1}
    words = [sys.executable, "-m", "msefpn", "predict", str(given.weights), str(photos)]
    words += [*map(str, TWO), "--device", "cpu", "--out", str(killer.out)]
    asked = list[int]()

    def kill_command(shard: str) -> None:
        """Wait for the second worker, so that both are inside a shard."""
        asked.append(killer.process_of(shard))
        if len(asked) == 2:
            command.kill()

    killer.kill = kill_command  # type: ignore[method-assign]  # of this server
    command = subprocess.Popen(words, stderr=subprocess.PIPE)
    command.communicate(timeout=100)
    end = time.monotonic() + 20
    while any(map(_is_alive, asked)):
        assert time.monotonic() < end, "a worker has outlived the command"
        time.sleep(0.01)
    assert command.returncode == -signal.SIGKILL


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False

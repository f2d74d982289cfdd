"""A grid that dies, or finds the disk full, at any write of its own: as before, or as an unbroken one."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msefpn.ablation import ablate, grid, tables
from msefpn.cli import main
from msefpn.writing import settle, working_in
from tests.data.sets import BOXES_ALONE
from tests.faults import runs
from tests.faults.conftest import Unbroken
from tests.faults.disk import FullDisk, Snapshots, copy_run, unwatched, watching
from tests.faults.test_full_disk import first_writes, one_line

Ablate = Callable[[Path, int], list[str]]
"""Words of the command that trains a grid in a folder with so many seeds."""


class Finished:
    """A training in a process of its own that has ended: the unbroken run, with another seed."""

    returncode = 0
    source = Path()

    def __init__(self, words: list[str], **_: object) -> None:
        task = json.loads(words[-1])
        with unwatched():
            config = copy_run(self.source, Path(task["out"])) / "config.yaml"
            config.write_text(config.read_text().replace("seed: 0", f"seed: {task['seed']}"))

    def poll(self) -> int:
        return self.returncode


class Plot:
    """Stands for a figure, which is drawn slowly, and not twice the same."""

    def __init__(self, results: Any) -> None:
        self.text = json.dumps(results)

    def savefig(self, file: Path, **_: object) -> None:
        file.write_text(self.text)


@pytest.fixture
def command(unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch) -> Ablate:
    monkeypatch.setattr(Finished, "source", unbroken.out)
    monkeypatch.setattr(subprocess, "Popen", Finished)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(tables, "draw_plot", Plot)
    monkeypatch.setattr(ablate, "probe", lambda _: None)
    monkeypatch.setattr(ablate, "inputs_read", lambda _: BOXES_ALONE)
    costs = {"parameters": 1, "trainable": 1, "macs": {"all": 1}}
    monkeypatch.setattr(ablate, "_counted", lambda rows, _: {row.name: costs for row in rows})
    times = {"seconds": 1.0, "ratio": 1.0}
    monkeypatch.setattr(ablate, "_timed", lambda rows, *_: {row.name: times for row in rows})

    def words(out: Path, seeds: int) -> list[str]:
        recipe = str(unbroken.data / "recipe.yaml")
        options = ["--data", str(unbroken.data), "--out", str(out), "--seeds", str(seeds)]
        return ["ablate", recipe, *options, "--workers", "0", "--device", "cpu"]

    return words


def written(folder: Path) -> dict[str, str]:
    """What a grid wrote of all its trainings, its place left out."""
    files = [path for path in folder.glob("[!.]*") if path.is_file()]
    return {path.name: re.sub(r"/\S*?/(grid|snapshots/\d+)/", "", path.read_text()) for path in files}


def test_a_death_at_any_write(command: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, copies = tmp_path / "grid", tmp_path / "snapshots"
    copies.mkdir()
    snapshots, states = Snapshots(out, copies), [dict[str, str]()]
    for seeds in (1, 2):
        with watching(out, snapshots):
            assert main(command(out, seeds)) == 0
        states.append(written(out))
    names = {"results.json", "table.md", "table.csv", "table.tex", "plot.svg"}
    assert all(state.keys() == names for state in states[1:])
    assert {path.name for path in out.glob(".*")} == {grid.MARK}
    seen, tried = list[int](), set[str]()
    for event, left in snapshots.taken:
        settle(left)  # as every reader does
        seen.append(states.index(written(left)))
        if left.exists():
            with working_in(left, "test"):
                pass
        key = repr(runs.content(left)) if left.exists() else ""
        if key in tried:  # the same as after another death
            continue
        tried.add(key)
        assert main(command(left, 2)) == 0, (event, capsys.readouterr().err)
        assert written(left) == states[2], event
        assert runs.content(left).keys() == runs.content(out).keys(), event
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2}
    assert len(seen) > 40
    assert len(tried) > 8


def test_a_full_disk(command: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole"
    tried = first_writes(command(whole, 1), whole)
    assert {"whole", ".lock", ".recipe.yaml.part", ".table.md.part"} <= {name for _, name in tried}
    for number, name in tried:
        out = tmp_path / str(number) / "grid"
        capsys.readouterr()
        with watching(out, FullDisk(number)):
            assert main(command(out, 1)) == 2, name
        said = one_line(capsys.readouterr().err)
        assert "No space left on device: free some space, " in said
        if (out / grid.MARK).exists():
            assert said.endswith("then run the same command again")
            assert not written(out)
        else:
            assert not out.parent.exists(), name
    assert main(command(out, 1)) == 0
    assert written(out).keys() == written(whole).keys()

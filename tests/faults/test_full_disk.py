"""A disk that is full from any write on: one line that says what to do, and the run as it was before."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from msefpn.cli import main
from msefpn.errors import UserError
from msefpn.training.recorder import Recorder
from tests.faults import runs
from tests.faults.conftest import Unbroken
from tests.faults.disk import NEEDS_ROOM, FullDisk, copy_run, watching

resource = pytest.importorskip("resource")


def one_line(text: str) -> str:
    lines = text.strip().split("\n")
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


def first_writes(arguments: list[str], out: Path) -> list[tuple[int, str]]:
    """How many times room is needed before each file or folder is first made, and its name."""
    seen = list[str]()

    def note(event: str, paths: list[str]) -> None:
        if event in NEEDS_ROOM:
            seen.append(Path(paths[0]).name)

    with watching(out, note):
        assert main(arguments) == 0
    return [(seen.index(name), name) for name in dict.fromkeys(seen)]


def test_a_new_run_on_a_full_disk_leaves_nothing(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = first_writes(
        [*runs.command(unbroken.data, tmp_path / "whole"), "--epochs", "1"], tmp_path / "whole"
    )
    begins = [(number, name) for number, name in tried if number < 8]
    assert [name for _, name in begins][:4] == ["whole", ".lock", ".config.yaml.part", ".data.yaml.part"]
    for number, name in begins:
        capsys.readouterr()
        with watching(tmp_path / "new" / "run", FullDisk(number)):
            assert main([*runs.command(unbroken.data, tmp_path / "new" / "run"), "--epochs", "1"]) == 2
        said = one_line(capsys.readouterr().err)
        assert "No space left on device: free some space, or name another" in said, said
        assert not (tmp_path / "new").exists(), name


def test_a_disk_that_fills_up_at_any_file_leaves_the_epoch_before(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = copy_run(unbroken.after[0], tmp_path / "whole")
    tried = first_writes(runs.resuming(whole), whole)
    assert {".resume.ckpt.part", ".metrics.csv.part", "log.jsonl", ".lock"} <= {name for _, name in tried}
    before = runs.content(unbroken.after[0])
    for number, name in tried:
        out = copy_run(unbroken.after[0], tmp_path / str(number))
        capsys.readouterr()
        with watching(out, FullDisk(number)):
            assert main(runs.resuming(out)) == 2, name
        said = one_line(capsys.readouterr().err)
        assert "No space left on device: free some space" in said, said
        assert runs.epochs_in(out, unbroken.epoch_of) == (1, 1)
        assert not list(out.glob(".*"))
        left = runs.content(out)
        assert {**left, **{log: before[log] for log in runs.LOGS}} == before, name
    assert main(runs.resuming(out)) == 0
    assert runs.content(out) == runs.content(unbroken.out)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file grow over a size, also of writers that are not Python's."""
    limits, byte_code = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would not notice that it is cut short
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = byte_code


@pytest.mark.parametrize("name", ["best.safetensors", "resume.ckpt"])
def test_a_write_that_is_cut_short(
    name: str, unbroken: Unbroken, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(unbroken.after[0], tmp_path / "run")
    with file_limit(os.path.getsize(out / name) // 2 + 2**16 * 8):
        assert main(runs.resuming(out)) == 2
    said = one_line(capfd.readouterr().err)
    assert f"{name}' cannot be written: File too large: free some space, then resume with --resume" in said
    assert runs.epochs_in(out, unbroken.epoch_of) == (1, 1)
    assert not list(out.glob(".*"))


def test_a_folder_that_is_removed_ends_the_run(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(unbroken.after[0], tmp_path / "run")

    def remove(event: str, paths: list[str]) -> None:
        if Path(paths[0]).name == ".best.safetensors.part" and out.exists():
            out.rename(tmp_path / "elsewhere")

    with watching(out, remove):
        assert main(runs.resuming(out)) == 2
    assert f"the folder '{out}' is gone" in one_line(capsys.readouterr().err)
    assert runs.epochs_in(tmp_path / "elsewhere", unbroken.epoch_of) == (1, 1)


def test_a_disk_that_fills_up_at_a_state_leaves_those_before(tmp_path: Path) -> None:
    values = {"detector": {"weight": torch.zeros(2**10)}, "within": {}}
    for number in range(20):
        out = tmp_path / str(number)
        out.mkdir()
        recorder = Recorder(out, states=3)
        for step in (3, 5, 7):
            recorder.state({**values, "step": step})
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert before.keys() == {"resume-3.ckpt", "resume-5.ckpt", "resume.ckpt"}
        with watching(out, FullDisk(number)), contextlib.suppress(UserError):
            recorder.state({**values, "step": 9})
        left = {path.name: path.read_bytes() for path in out.iterdir()}
        if recorder.step == 7:
            assert left == before, number
        else:
            assert left.keys() == {"resume-5.ckpt", "resume-7.ckpt", "resume.ckpt"}
            assert left["resume-7.ckpt"] == before["resume.ckpt"] != left["resume.ckpt"]
            assert number > 2
            return
    pytest.fail("a state needs room more than twenty times")

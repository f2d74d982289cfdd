"""A training that dies at any write is resumed to what an unbroken one gives, or from the epoch before."""

import os
import signal
from pathlib import Path

import pytest

from msefpn.cli import main
from msefpn.writing import JOURNAL, settle, working_in
from tests.faults import runs
from tests.faults.conftest import Unbroken
from tests.faults.disk import copy_run, watching


def test_an_unbroken_run_leaves_nothing_but_its_files(unbroken: Unbroken) -> None:
    assert runs.epochs_in(unbroken.out, unbroken.epoch_of) == (2, 3)
    assert not list(unbroken.out.glob(".*"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in unbroken.out.iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert set(modes.values()) == {0o666 & ~umask}, modes
    assert len(unbroken.snapshots) > 60


def test_files_fit_together_after_a_death_at_any_write(unbroken: Unbroken, tmp_path: Path) -> None:
    seen = []
    for number, (event, snapshot) in enumerate(unbroken.snapshots):
        if not (snapshot / "data.yaml").exists() and not (snapshot / JOURNAL).exists():
            continue
        left = copy_run(snapshot, tmp_path / str(number))
        settle(left)  # as every reader does
        best, last = runs.epochs_in(left, unbroken.epoch_of)
        assert best == min(last, 2), event
        seen.append(last)
        assert (left / "config.yaml").read_bytes() == (unbroken.out / "config.yaml").read_bytes(), event
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


def test_a_death_at_any_write_is_resumed_to_the_unbroken_run(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, states = runs.content(unbroken.out), dict[str, str]()
    for number, (event, snapshot) in enumerate(unbroken.snapshots):
        left = tmp_path / str(number)
        if snapshot.exists():
            copy_run(snapshot, left)
        for part in [] if (left / JOURNAL).exists() else left.glob(".*.part"):
            os.truncate(part, part.stat().st_size // 2)  # it may have died while it wrote
        begun = (left / "data.yaml").exists() or (left / JOURNAL).exists()
        if begun:
            with working_in(left, "test"):
                pass
            assert not list(left.glob(".*"))
        key = repr(runs.content(left)) if begun else repr(left.exists())
        if key in states:  # the same as after another death
            continue
        states[key] = event
        arguments = runs.resuming(left) if begun else runs.command(unbroken.data, left)
        done = len(list(left.glob("resume.ckpt"))) and runs.epochs_in(left, unbroken.epoch_of)[1]
        capsys.readouterr()
        if done == runs.EPOCHS:
            assert main(arguments) == 2
            assert "has all its 3 epochs" in capsys.readouterr().err
        else:
            assert main(arguments) == 0, (event, capsys.readouterr().err)
            said = f"resumed after epoch {done}" if done else "no epoch was finished: it starts anew"
            assert (said in capsys.readouterr().out) == begun
        assert runs.content(left) == whole, event
    assert len(states) >= 3 * runs.EPOCHS, states


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_process_that_is_killed_is_resumed(unbroken: Unbroken, tmp_path: Path, share: float) -> None:
    left, out = [int(share * len(unbroken.snapshots))], tmp_path / "run"

    def kill(event: str, paths: list[str]) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        with watching(out, kill):
            main(runs.command(unbroken.data, out))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert main(runs.resuming(out)) == 0
    assert runs.content(out) == runs.content(unbroken.out)

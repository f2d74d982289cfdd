"""A run folder at an address, when the process dies or the other side refuses at any change there."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from msefpn import remote
from msefpn.cli import main
from msefpn.runs.address import fetch_run
from tests.faults import runs
from tests.faults.conftest import Unbroken
from tests.faults.test_full_disk import one_line

ADDRESS = "memory://faults/run"
CHANGES = ("copy_to", "rename_at", "remove_at")
"""What changes a file at an address."""
Store = dict[str, bytes]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    _restore({})
    yield
    _restore({})


def _store() -> Store:
    return {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def _restore(store: Store) -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    for path, content in store.items():
        MemoryFileSystem().pipe_file(path, content)


def watch(patch: pytest.MonkeyPatch, saw: Callable[[str], None]) -> None:
    """Call `saw` before each change at an address."""

    def watched(change: Callable[..., None], name: str) -> Callable[..., None]:
        def changing(*arguments: Any) -> None:
            saw(name)
            change(*arguments)

        return changing

    for name in CHANGES:
        patch.setattr(remote, name, watched(getattr(remote, name), name))


def at_address(folder: Path) -> dict[str, str]:
    """What the run folder at the address holds."""
    shutil.rmtree(folder, ignore_errors=True)
    fetch_run(ADDRESS, folder)
    return runs.content(folder)


def test_a_death_at_any_upload_is_resumed_to_the_unbroken_run(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, snapshots = runs.content(unbroken.out), list[tuple[str, Store]]()
    command = runs.command(unbroken.data, Path("run"))
    command[-1] = ADDRESS
    with monkeypatch.context() as patch:
        watch(patch, lambda change: snapshots.append((change, _store())))
        assert main(command) == 0
    assert at_address(tmp_path / "copy") == whole
    assert not list(tmp_path.glob("runs/*")), "the copy is removed"
    assert not [path for path in _store() if "/." in path], "nothing half is left"
    said = capsys.readouterr().out
    assert f"run: {ADDRESS}" in said
    assert f"msefpn predict {ADDRESS} " in said
    assert str(tmp_path / "runs") not in said

    seen, states = list[int](), dict[str, str]()
    for change, snapshot in snapshots:
        _restore(snapshot)
        if not snapshot:  # nothing is there yet
            continue
        content = at_address(tmp_path / "copy")
        if "data.yaml" not in content:
            continue
        done = runs.epochs_in(tmp_path / "copy", unbroken.epoch_of)[1]
        seen.append(done)
        if repr(content) in states:  # the same as after another death
            continue
        states[repr(content)] = change
        if done < runs.EPOCHS:
            assert main(["train", "--resume", "--out", ADDRESS]) == 0, capsys.readouterr().err
            assert at_address(tmp_path / "copy") == whole, change
            assert not [path for path in _store() if "/." in path], "nothing half is left"
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}
    assert len(snapshots) > 40


def test_a_full_place_leaves_a_whole_run_there_and_here(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [14]  # in the second epoch

    def full(self: MemoryFileSystem, local: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            self.pipe_file(path, b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.pipe_file(path, Path(local).read_bytes())

    command = runs.command(unbroken.data, Path("run"))
    command[-1] = ADDRESS
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", full)
        assert main(command) == 2
    (copy,) = (tmp_path / "runs").iterdir()
    said = one_line(capsys.readouterr().err)
    assert re.search(r"/run/\.\S+\.part' cannot be written: No space left on device: free some space", said)
    assert said.endswith(f"; the run is whole in '{copy.relative_to(tmp_path)}': resume it there")
    at_address(tmp_path / "there")
    assert runs.epochs_in(tmp_path / "there", unbroken.epoch_of) == (1, 1)
    assert runs.epochs_in(copy, unbroken.epoch_of) == (2, 2)
    assert main(runs.resuming(copy)) == 0
    assert runs.content(copy) == runs.content(unbroken.out)


def test_what_cannot_be_begun_or_resumed_at_an_address(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, resuming = runs.command(unbroken.data, Path("run")), ["train", "--resume", "--out"]
    _restore({"/faults/run/notes.txt": b"mine"})
    for arguments, says in (
        ([*command[:-1], ADDRESS], f"out '{ADDRESS}' is not empty: name another folder"),
        ([*command[:-1], "s4://bucket/run"], "'s4://bucket/run' is of an unknown kind"),
        ([*resuming, "memory://faults/none"], "'memory://faults/none' cannot be read: it does not exist"),
        ([*resuming, ADDRESS], f"'{ADDRESS}' is not a run folder: it has no config.yaml"),
        (["predict", "memory://faults/none", "photo.jpg"], "'memory://faults/none' cannot be read"),
    ):
        assert main(arguments) == 2
        assert says in one_line(capsys.readouterr().err)
        assert not (tmp_path / "runs").exists()
    assert _store() == {"/faults/run/notes.txt": b"mine"}

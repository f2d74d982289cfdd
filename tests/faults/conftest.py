"""An unbroken training, and what a death at each of its writes would have left."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from msefpn.cli import main
from msefpn.writing import LOCK
from tests.faults import runs
from tests.faults.disk import Snapshots, copy_run, watching


@dataclass(frozen=True)
class Unbroken:
    data: Path
    out: Path
    epoch_of: dict[str, int]
    """Digest of weights -> epoch."""
    snapshots: list[tuple[str, Path]]
    """Each change of the run folder, and a copy from before it; the copy is missing where the folder was."""
    after: list[Path]
    """Copies after each epoch."""


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("faults")
    data, out = runs.draw_data(folder / "data"), folder / "run"
    snapshots, after = Snapshots(out, folder / "snapshots"), list[Path]()

    def copy() -> None:
        after.append(folder / f"after-{len(after) + 1}")
        (copy_run(out, after[-1]) / LOCK).unlink()

    (folder / "snapshots").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        runs.script_aps(patch)
        epoch_of = runs.noting_epochs(patch, out, copy)
        with watching(out, snapshots):
            assert main(runs.command(data, out)) == 0
    return Unbroken(data, out, epoch_of, snapshots.taken, after)


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    runs.script_aps(monkeypatch)

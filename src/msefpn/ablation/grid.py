"""A grid of trainings: rows, budgets and seeds, each cell a run of its own in a folder that says which."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msefpn.ablation.worker import command
from msefpn.config import Config, Published, to_yaml
from msefpn.errors import UserError
from msefpn.runs.folder import METRICS, RESUME, Sources, check_out, read_run, write_text

MARK = ".grid"
"""The file by which a grid knows its folder; locked while one works there."""
_FREE = ("device", "devices", "workers")
"""What cells of one row may have otherwise."""
STOPPED = 130
"""Exit code of a cell that was interrupted."""


@dataclass(frozen=True)
class Row:
    """Trainings that differ in their seeds only."""

    name: str
    """Of the neck or recipe."""
    config: Config
    """But for the seed."""
    published: Published | None
    folder: Path

    @property
    def recipe(self) -> Path:
        """The file of its configuration."""
        return self.folder / "recipe.yaml"

    def command(self, sources: Sources) -> str:
        """What trains its first cell by hand."""
        files = sources.read_by(self.config).given().items()
        words = [word for key, path in files for word in (f"--{key.replace('_', '-')}", str(path))]
        return shlex.join(["msefpn", "train", "--recipe", str(self.recipe), "--seed", "0", *words])


@dataclass(frozen=True)
class Cell:
    """One training."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.row.name}, {self.row.config.epochs} epochs, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.row.folder / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.row.folder / f"seed-{self.seed}.log"

    def numbers(self) -> dict[str, Any] | None:
        """What the evaluation after its last epoch gave; None: it is not finished."""
        path = self.folder / METRICS
        if not path.is_file():
            return None
        last: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["last"]
        return last if last["epoch"] == self.row.config.epochs else None


def rows_in(
    out: Path,
    configs: Mapping[str, Config],
    published: Mapping[str, Published | None],
    epochs: Sequence[int],
) -> list[Row]:
    """The rows of a grid: each configuration with each budget; no `epochs`: with its own."""
    rows = []
    for budget in epochs or (None,):
        for name, config in configs.items():
            own = dataclasses.replace(config, epochs=config.epochs if budget is None else budget)
            short = short_name(name)
            rows.append(Row(short, own, published[name], out / short / f"epochs-{own.epochs}"))
    return rows


def short_name(name: str) -> str:
    """A row's name in tables and folders: for a recipe's file, its name alone."""
    return Path(name).stem if Path(name).suffix in (".yaml", ".yml") else name


def check_twice(what: str, values: Sequence[object]) -> None:
    """Raise UserError where a value is given twice."""
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{what} '{value}' is there twice: each needs a folder of its own")


def check_cells(cells: Sequence[Cell], sources: Sources) -> None:
    """Raise UserError where a cell is there already, of another configuration or other data.

    One without a finished epoch does not count: it is begun anew.
    """
    for cell in cells:
        if not (cell.folder / RESUME).is_file():
            continue
        config, trained_on = read_run(cell.folder)
        wanted = dataclasses.asdict(dataclasses.replace(cell.row.config, seed=cell.seed))
        for key, value in dataclasses.asdict(config).items():
            if value != wanted[key] and key not in _FREE:
                raise UserError(
                    f"'{cell.folder}' was trained with {key} {value}, not {wanted[key]}: "
                    "name another --out, or delete that folder"
                )
        if trained_on.resolved() != sources.read_by(config).resolved():
            raise UserError(f"'{cell.folder}' was trained on other data: name another --out")


def check_grid_folder(out: Path) -> None:
    """Refuse a folder that holds something else than a grid, or cannot be made; writes nothing."""
    if not (out / MARK).exists():
        check_out(out)


@contextlib.contextmanager
def grid_folder(out: Path, sources: Sources) -> Iterator[None]:
    """Make a grid's folder, or take that of an earlier one on the same annotations, for this process alone.

    Raises UserError.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = (sources.train_json, sources.val_json, sources.train_proposals, sources.val_proposals)
    annotations = [zlib.crc32(file.read_bytes()) for file in files if file is not None]
    with (out / MARK).open("a+", encoding="utf-8") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"out '{out}': another msefpn ablate works there: wait, or name another folder"
            ) from None
        mark.seek(0)
        text = mark.read()
        if not text:
            mark.write(json.dumps(annotations))
            mark.flush()
        elif json.loads(text) != annotations:
            raise UserError(
                f"the annotations have changed since the grid '{out}' began: "
                "restore them, or name another --out"
            )
        yield


def run_cells(
    cells: Sequence[Cell],
    sources: Sources,
    *,
    jobs: int,
    gpus: int,
    finished: Callable[[Cell, float, str | None], None],
) -> dict[Path, str]:
    """Train cells, `jobs` at a time, each in a process of its own; on an interrupt all stop and can go on.

    Args:
        cells: those that are not finished.
        sources: the data.
        jobs: processes at a time.
        gpus: number of GPUs that they share out.
        finished: called with each cell as it ends, its seconds, and why it failed.

    Returns:
        Why each cell that failed did, by its folder.
    """
    waiting, failed = deque(cells), dict[Path, str]()
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            for slot in range(jobs):
                if waiting and slot not in running:
                    running[slot] = _Running(waiting.popleft(), sources, environment(slot, jobs, gpus))
            for slot, run in list(running.items()):
                if run.process.poll() is not None:
                    del running[slot]
                    why = run.failure()
                    if why is not None:
                        failed[run.cell.folder] = why
                    finished(run.cell, time.monotonic() - run.began, why)
            time.sleep(0.1)
    finally:
        for run in running.values():
            run.process.send_signal(signal.SIGTERM)
        for run in running.values():
            run.process.wait()
    return failed


def environment(slot: int, jobs: int, gpus: int) -> dict[str, str]:
    """The variables of a cell's process: its share of the cores, and its GPU where there are several."""
    changed = {}
    if jobs > 1:
        changed["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // jobs)))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        if gpus > 1:
            changed["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus]
    return os.environ | changed


def _cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


class _Running:
    """A cell whose process is running."""

    def __init__(self, cell: Cell, sources: Sources, variables: Mapping[str, str]) -> None:
        config = cell.row.config
        cell.row.folder.mkdir(parents=True, exist_ok=True)
        write_text(cell.row.recipe, to_yaml(config))
        changed: dict[str, str | int] = {"device": config.device, "workers": config.workers}
        files = sources.read_by(config).given()
        words = command(cell.row.recipe, cell.seed, cell.folder, files, changed)
        self.cell, self.began = cell, time.monotonic()
        with cell.log.open("ab") as log:
            self.log_begins = log.tell()
            # a session of its own: Ctrl-C reaches this process, which then stops the cells
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def failure(self) -> str | None:
        """Why it failed, if it did: the last line that it printed."""
        code = self.process.returncode
        if code == 0:
            return None
        text = self.cell.log.read_bytes()[self.log_begins :].decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else "it printed nothing"
        if code == STOPPED:
            last = "stopped from outside"
        elif code < 0:
            last = f"killed by signal {-code}, last line: {last}"
        return f"{last} ({self.cell.log})"

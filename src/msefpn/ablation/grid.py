"""A grid of trainings: variants, budgets and seeds; each trial is a run in a folder named after them."""

from __future__ import annotations

import contextlib
import dataclasses
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

from msefpn.ablation.worker import AGAIN, command
from msefpn.config import Config, Published, to_yaml
from msefpn.errors import UserError
from msefpn.reading import MAX_JSON, read_bytes, read_json, unreadable
from msefpn.runs.folder import METRICS, RESUME, DataFiles, check_out, read_run
from msefpn.runs.metrics import read_metrics
from msefpn.training.anchors import as_asked
from msefpn.writing import (
    FULL,
    cannot_write,
    missing_folders,
    remove_empty,
    settle,
    working_in,
    write_text,
)

MARK = ".grid"
"""The file by which a grid knows its folder."""
_FREE = ("device", "devices", "workers", "plugins", "logger", "callback")
"""Settings that may differ between trials of one variant."""
STOPPED = 130
"""Exit code of a trial that was interrupted."""


@dataclass(frozen=True)
class Variant:
    """Trainings that differ in their seeds only."""

    name: str
    """Of the neck or recipe."""
    config: Config
    """But for the seed."""
    published: Published | None
    folder: Path
    files: DataFiles

    @property
    def recipe(self) -> Path:
        """The file of its configuration."""
        return self.folder / "recipe.yaml"

    def command(self) -> str:
        """What trains its first trial by hand."""
        files = self.files.given().items()
        words = [word for key, path in files for word in (f"--{key.replace('_', '-')}", str(path))]
        words += ["--follow-links"] * self.files.follow_links
        return shlex.join(["msefpn", "train", "--recipe", str(self.recipe), "--seed", "0", *words])


@dataclass(frozen=True)
class Trial:
    """One training."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.variant.name}, {self.variant.config.epochs} epochs, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.variant.folder / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.variant.folder / f"seed-{self.seed}.log"

    def numbers(self) -> dict[str, Any] | None:
        """What the evaluation after its last epoch gave; None: it is not finished."""
        settle(self.folder)
        path = self.folder / METRICS
        if not path.exists():
            return None
        best, last = read_metrics(path)
        config = self.variant.config
        stopped = config.patience and last["epoch"] - best["epoch"] >= config.patience
        return last if last["epoch"] == config.epochs or stopped else None


def variants_in(
    out: Path,
    configs: Mapping[str, Config],
    published: Mapping[str, Published | None],
    files: Mapping[str, DataFiles],
    epochs: Sequence[int],
) -> list[Variant]:
    """The variants of a grid: each configuration with each budget; no `epochs`: with its own."""
    variants = []
    for budget in epochs or (None,):
        for name, config in configs.items():
            own = dataclasses.replace(config, epochs=config.epochs if budget is None else budget)
            short = short_name(name)
            folder = out / short / f"epochs-{own.epochs}"
            variants.append(Variant(short, own, published[name], folder, files[name]))
    return variants


def short_name(name: str) -> str:
    """A variant's name in tables and folders: for a recipe's file, its name alone."""
    return Path(name).stem if Path(name).suffix in (".yaml", ".yml") else name


def check_twice(what: str, values: Sequence[object]) -> None:
    """Raise UserError where a value is given twice."""
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{what} '{value}' is there twice: each needs a folder of its own")


def check_trials(trials: Sequence[Trial]) -> None:
    """Raise UserError where a trial is there already, of another configuration or other data.

    One without a finished epoch does not count: it is begun anew.
    """
    for trial in trials:
        settle(trial.folder)
        if not (trial.folder / RESUME).is_file():
            continue
        config, trained_on = read_run(trial.folder)
        wanted = dataclasses.asdict(dataclasses.replace(trial.variant.config, seed=trial.seed))
        config = as_asked(config, trial.variant.config)
        for key, value in dataclasses.asdict(config).items():
            if value != wanted[key] and key not in _FREE:
                raise UserError(
                    f"'{trial.folder}' was trained with {key} {value}, not {wanted[key]}: "
                    "name another --out, or delete that folder"
                )
        if trained_on.resolved() != trial.variant.files.resolved():
            raise UserError(f"'{trial.folder}' was trained on other data: name another --out")


def check_grid_folder(out: Path) -> None:
    """Refuse a folder that holds something else than a grid, or cannot be made; writes nothing."""
    if not (out / MARK).exists():
        check_out(out)


@contextlib.contextmanager
def grid_folder(out: Path, files: DataFiles) -> Iterator[None]:
    """Make a grid's folder, or take that of an earlier one on the same annotations, for this process alone.

    Raises UserError, and leaves no new folder where none can be begun.
    """
    missing = missing_folders(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with working_in(out, "msefpn ablate"):
            _check_mark(out, files)
            yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise cannot_write(Path(error.filename or out), error, AGAIN) from None
    finally:
        if not (out / MARK).exists():
            remove_empty(missing)


def _check_mark(out: Path, files: DataFiles) -> None:
    """Note what annotations a grid is of. Raises UserError where they have changed since it began."""
    given = (files.train_json, files.val_json, files.train_proposals, files.val_proposals)
    annotations = [zlib.crc32(_bytes(file)) for file in given if file is not None]
    mark = out / MARK
    if not mark.exists():
        write_text(mark, json.dumps(annotations), AGAIN)
    elif read_json(mark, "remove it if the annotations are still the same") != annotations:
        raise UserError(
            f"the annotations have changed since the grid '{out}' began: restore them, or name another --out"
        )


def _bytes(file: Path) -> bytes:
    try:
        return read_bytes(file, MAX_JSON)
    except OSError as error:
        raise unreadable(file, error, "give a json file") from None


def run_trials(
    trials: Sequence[Trial],
    *,
    jobs: int,
    gpus: int,
    finished: Callable[[Trial, float, str | None], None],
) -> dict[Path, str]:
    """Train trials, `jobs` at a time, each in a process of its own; on an interrupt all stop and can go on.

    Args:
        trials: those that are not finished.
        jobs: processes at a time.
        gpus: number of GPUs that they share out.
        finished: called with each trial as it ends, its seconds, and why it failed.

    Returns:
        Why each trial that failed did, by its folder.
    """
    waiting, failed = deque(trials), dict[Path, str]()
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            for slot in range(jobs):
                if waiting and slot not in running:
                    running[slot] = _Running(waiting.popleft(), environment(slot, jobs, gpus))
            for slot, run in list(running.items()):
                if run.process.poll() is not None:
                    del running[slot]
                    why = run.failure()
                    if why is not None:
                        failed[run.trial.folder] = why
                    finished(run.trial, time.monotonic() - run.began, why)
            time.sleep(0.1)
    finally:
        for run in running.values():
            run.process.send_signal(signal.SIGTERM)
        for run in running.values():
            run.process.wait()
    return failed


def environment(slot: int, jobs: int, gpus: int) -> dict[str, str]:
    """The variables of a trial's process: its share of the cores, and its GPU where there are several."""
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
    """A trial whose process is running."""

    def __init__(self, trial: Trial, variables: Mapping[str, str]) -> None:
        config = trial.variant.config
        trial.variant.folder.mkdir(parents=True, exist_ok=True)
        write_text(trial.variant.recipe, to_yaml(config), AGAIN)
        changed: dict[str, str | int] = {"device": config.device, "workers": config.workers}
        words = command(trial.variant.recipe, trial.seed, trial.folder, trial.variant.files, changed)
        self.trial, self.began = trial, time.monotonic()
        with trial.log.open("ab") as log:
            self.log_begins = log.tell()
            # a session of its own: Ctrl-C reaches this process, which then stops the trials
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def failure(self) -> str | None:
        """Why it failed, if it did: the last line that it printed."""
        code = self.process.returncode
        if code == 0:
            return None
        text = self.trial.log.read_bytes()[self.log_begins :].decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else "it printed nothing"
        if code == STOPPED:
            last = "stopped from outside"
        elif code < 0:
            last = f"killed by signal {-code}, last line: {last}"
        return f"{last} ({self.trial.log})"

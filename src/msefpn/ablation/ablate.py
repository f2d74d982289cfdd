"""Rows of detectors, trained with the same seeds and compared: a grid into results, tables and a plot."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from msefpn.ablation import tables as report
from msefpn.ablation.cost import Workload, counts, interleaved_times
from msefpn.ablation.grid import (
    Trial,
    Variant,
    check_trials,
    grid_folder,
    run_trials,
    variants_in,
)
from msefpn.ablation.rows import GridPlan
from msefpn.config import Config, Published, is_recipe, parse_size, published
from msefpn.data.coco import CocoData
from msefpn.errors import UserError
from msefpn.inference.detect import inputs_read
from msefpn.inference.device import check_devices, pick_device, telling_memory
from msefpn.metrics.paired import mean_and_spread, paired_differences
from msefpn.models import check_initial_weights, init_weights, probe, styled
from msefpn.names import DetectorInputs
from msefpn.runs.console import Bar, duration, percent, say, show_table
from msefpn.runs.folder import DataFiles
from msefpn.training.data import SplitData, check_proposals, read_splits


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A grid that was trained and compared."""

    rows: list[dict[str, Any]]
    """An entry per row and budget, as in results.json."""

    @property
    def exit_code(self) -> int:
        """Of the command: 1 where a training failed."""
        return int(any("failed" in trial for row in self.rows for trial in row["trials"]))


def run_grid(plan: GridPlan) -> Ablation:
    """Train and compare; see `msefpn.commands.compare.ablate`."""
    configs, out, seeds, rounds = plan.configs, plan.out, plan.seeds, plan.rounds
    for config in configs.values():
        check_devices(config)
    inputs = {name: inputs_read(probe(config)) for name, config in configs.items()}
    masks = any(one.masks for one in inputs.values())
    early = plan.early or plan.find_files()
    files = early.files if isinstance(early, SplitData) else early
    own = {name: _files_of(one, files) for name, one in inputs.items()}
    if (files.train_proposals or files.val_proposals) and files not in own.values():
        raise UserError("no row takes proposals: leave them out, or add a row of fast_rcnn")
    known = {name: _published(name, config) for name, config in configs.items()}
    rows = variants_in(out, configs, known, own, plan.epochs)
    trials = [Trial(row, seed) for row in rows for seed in range(seeds)]
    train, _ = (early if isinstance(early, SplitData) else read_splits(files, masks=masks)).train
    check_trials(trials)
    costs = _counted(rows, train)
    with grid_folder(out, files):
        failed = _train(trials, plan.jobs)
        timed = _timed(rows, train, rounds)
        entries = [_entry(row, trials, costs[row.name] | timed[row.name], failed) for row in rows]
        _compare(entries)
        results = {"setting": _setting(rows[0], seeds, rounds), "rows": entries}
        report.write_tables(out, results)
    show_table(*report.table_cells(results))
    say(f"{report.NOTE}.", f"{results['setting']}.")
    say(*(f"failed: {name}: {why}" for name, why in report.failures(results)))
    say(f"each row's command, and the table: {out / 'table.md'}, table.csv, table.tex, plot.svg")
    return Ablation(entries)


def _files_of(inputs: DetectorInputs, files: DataFiles) -> DataFiles:
    """What the trainings of a detector read. Raises UserError where it lacks proposals."""
    if not inputs.proposals:
        return files.without_proposals()
    check_proposals(files, inputs)
    return files


def _published(name: str, config: Config) -> Published | None:
    """What is published of a row: a recipe's own word, or for a neck that of its R50 1x recipe."""
    for recipe in (name, f"{config.detector}_r50_{name}_1x"):
        if is_recipe(recipe):
            return published(recipe)
    return None


def _workload(row: Variant, data: CocoData) -> Workload:
    config = row.config
    return Workload(len(data.classes), 1, parse_size(config.size), pick_device(config.device).type)


def _counted(rows: Sequence[Variant], data: CocoData) -> dict[str, dict[str, Any]]:
    """Count each row's detector at the first row's size; refuse initial weights that cannot be trained."""
    workload = _workload(rows[0], data)
    configs = {row.name: row.config for row in rows}
    found: dict[str, dict[str, Any]] = {}
    with Bar("count", len(configs), unit="rows") as bar, telling_memory(workload.batch, workload.size):
        for name, config in configs.items():
            inputs = workload.prepare(styled(config)[0])
            check_initial_weights(inputs[0].train(), init_weights(inputs[0], config.init))
            inputs[0].eval()
            found[name] = counts(inputs)
            del inputs
            bar.seen(1)
    torch.cuda.empty_cache()  # for the trainings
    return found


def _timed(rows: Sequence[Variant], data: CocoData, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a prediction of each row, and their ratio to the first's."""
    workload = _workload(rows[0], data)
    made = {row.name: workload.prepare(row.config) for row in rows}
    predictions = len(made) * (rounds + 1)
    with Bar("time", predictions, unit="predictions") as bar, telling_memory(workload.batch, workload.size):
        seconds = interleaved_times(made, rounds, bar)
    first = seconds[rows[0].name]
    return {name: {"seconds": value, "ratio": value / first} for name, value in seconds.items()}


def _train(trials: Sequence[Trial], jobs: int) -> dict[Path, str]:
    """Train what is not finished and tell of each trial; return the failures."""
    todo = [trial for trial in trials if trial.numbers() is None]
    say(f"{len(trials)} trainings, {len(trials) - len(todo)} of them finished before, {jobs} at a time")
    began, ended = time.monotonic(), 0

    def finished(trial: Trial, seconds: float, why: str | None) -> None:
        nonlocal ended
        ended += 1
        bar.seen(1)
        numbers = trial.numbers()
        told = f"failed: {why}" if numbers is None else f"AP {percent(numbers['AP'])}"
        left = (time.monotonic() - began) / ended * (len(todo) - ended)
        count = f"{len(trials) - len(todo) + ended}/{len(trials)}"
        say(f"{count}  {trial.name}: {told}  in {duration(seconds)}, left {duration(left)}")

    try:
        with Bar("train", len(todo), unit="trainings") as bar:
            gpus = torch.cuda.device_count()
            return run_trials(todo, jobs=jobs, gpus=gpus, finished=finished)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: the same command continues the grid") from None


def _entry(
    row: Variant,
    trials: Sequence[Trial],
    costs: Mapping[str, Any],
    failed: Mapping[Path, str],
) -> dict[str, Any]:
    """What is known of a row by itself."""
    known = None if row.published is None else _as_shares(row.published)
    entry: dict[str, Any] = {"row": row.name, "epochs": row.config.epochs, "published": known, **costs}
    entry["command"] = row.command()
    entry["trials"] = [_trial(trial, failed) for trial in trials if trial.variant is row]
    done = [trial for trial in entry["trials"] if "AP" in trial]
    if done:
        mean, spread = mean_and_spread([trial["AP"] for trial in done])
        mean50, _ = mean_and_spread([trial["AP50"] for trial in done])
        entry |= {"mean": mean, "spread": spread, "mean50": mean50}
    return entry


def _as_shares(known: Published) -> dict[str, Any]:
    """What is published, AP and gain from 0 to 1 as all other numbers of the file."""
    values = dataclasses.asdict(known)
    parts = {key: round(values[key] / 100, 6) for key in ("AP", "gain") if values[key] is not None}
    return values | parts


def _trial(trial: Trial, failed: Mapping[Path, str]) -> dict[str, Any]:
    numbers = trial.numbers()
    if numbers is None:
        return {"seed": trial.seed, "failed": failed.get(trial.folder, "it ended without numbers")}
    return {"seed": trial.seed, **{key: value for key, value in numbers.items() if key.startswith("A")}}


def _compare(entries: Sequence[dict[str, Any]]) -> None:
    """Add to each entry whether it is its budget's baseline, else the paired difference to that."""
    budgets: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        budgets.setdefault(entry["epochs"], []).append(entry)
    for base, *others in budgets.values():
        base["baseline"] = True
        compared, values = [], []
        for entry in others:
            entry["baseline"] = False
            pairs = [
                (trial["AP"], other["AP"])
                for trial, other in zip(entry["trials"], base["trials"], strict=True)
                if "AP" in trial and "AP" in other
            ]
            if pairs:
                compared.append(entry)
                values.append(([own for own, _ in pairs], [other for _, other in pairs]))
        for entry, difference in zip(compared, paired_differences(values), strict=True):
            entry["difference"] = dataclasses.asdict(difference)


def _setting(row: Variant, seeds: int, rounds: int) -> str:
    """The circumstances, as one sentence."""
    config: Config = row.config
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    width, height = (math.ceil(side / 32) * 32 for side in parse_size(config.size))
    return (
        f"The baseline is {config.detector}, {config.backbone}, {config.neck}, size {config.size}, "
        f"{config.batch} images a step; seeds 0 to {seeds - 1}, {row.files.train_json} and "
        f"{row.files.val_json}; counts and times of a prediction of 1 x {height} x {width}, "
        f"medians of {rounds}; {machine}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )

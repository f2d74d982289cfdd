"""Rows of detectors, trained with the same seeds and compared: a grid into results, tables and a plot."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from msefpn.ablation import tables as report
from msefpn.ablation.cost import Request, counts, interleaved_times, rows_of
from msefpn.ablation.grid import (
    Cell,
    Row,
    check_cells,
    check_grid_folder,
    check_twice,
    grid_folder,
    rows_in,
    run_cells,
    short_name,
)
from msefpn.config import Config, Published, is_recipe, parse_size, published
from msefpn.data.coco import CocoData
from msefpn.errors import UserError
from msefpn.inference.detect import pick_device, telling_memory
from msefpn.metrics.paired import mean_and_spread, paired_difference
from msefpn.models import init_weights
from msefpn.runs.console import Bar, duration, say, show_table
from msefpn.runs.folder import Sources, default_recipe, write_text
from msefpn.training.checks import check_config, check_initial_weights
from msefpn.training.plan import check_proposals, names_data, read_splits, sources_of


def ablate(
    names: Sequence[str],
    data: str | Path | None,
    files: Mapping[str, str | Path | None],
    *,
    recipe: str | None,
    seeds: int,
    epochs: Sequence[int],
    jobs: int,
    rounds: int,
    out: Path,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Train and compare; see `msefpn.commands.compare.ablate`."""
    for what, value in {"seeds": seeds, "jobs": jobs, "rounds": rounds}.items():
        if value < 1:
            raise UserError(f"{what} is {value}: it must be at least 1")
    check_twice("row", [short_name(name) for name in names])
    check_twice("epochs", epochs)
    check_grid_folder(out)
    given = {key: Path(path) for key, path in files.items() if path is not None}
    default = default_recipe(builtin=data is None and not names_data(given))
    configs = rows_of(names, recipe, default, **options)
    known = {name: _published(name, config) for name, config in configs.items()}
    rows = rows_in(out, configs, known, epochs)
    cells = [Cell(row, seed) for row in rows for seed in range(seeds)]
    sources = sources_of(None if data is None else Path(data), given, out.parent, rows[0].config)
    taking = [row.config for row in rows if row.config.takes_proposals]
    for config in taking:
        check_proposals(config, sources)
    if not taking and (sources.train_proposals or sources.val_proposals):
        raise UserError("no row looks at given regions: leave out the proposals, or add a row of fast_rcnn")
    (train, _), _ = read_splits(sources, masks=any(row.config.learns_masks for row in rows))
    check_cells(cells, sources)
    for row in rows:
        check_config(row.config)
        if row.config.devices > 1 and jobs > 1:
            raise UserError(
                f"row '{row.name}' takes {row.config.devices} devices itself: leave out --jobs {jobs}"
            )
    costs = _counted(rows, train)
    with grid_folder(out, sources):
        failed = _train(cells, sources, jobs)
        timed = _timed(rows, train, rounds)
        entries = [_entry(row, cells, sources, costs[row.name] | timed[row.name], failed) for row in rows]
        _compare(entries)
        results = {"setting": _setting(rows[0], sources, seeds, rounds), "rows": entries}
        write_text(out / report.RESULTS, json.dumps(results, indent=1))
        report.write_tables(out)
    show_table(*report.table_cells(results))
    say(f"{report.NOTE}.", f"{results['setting']}.")
    say(*(f"failed: {name}: {why}" for name, why in report.failures(results)))
    say(f"each row's command, and the table: {out / 'table.md'}, table.csv, table.tex, plot.svg")
    return entries


def _published(name: str, config: Config) -> Published | None:
    """What is published of a row: a recipe's own word, or for a neck that of its R50 1x recipe."""
    for recipe in (name, f"{config.detector}_r50_{name}_1x"):
        if is_recipe(recipe):
            return published(recipe)
    return None


def _request(row: Row, data: CocoData) -> Request:
    config = row.config
    return Request(len(data.classes), 1, parse_size(config.size), pick_device(config.device).type)


def _counted(rows: Sequence[Row], data: CocoData) -> dict[str, dict[str, Any]]:
    """Count each row's detector at the first row's size; refuse initial weights that cannot be trained."""
    request = _request(rows[0], data)
    configs = {row.name: row.config for row in rows}
    found: dict[str, dict[str, Any]] = {}
    with Bar("count", len(configs), unit="rows") as bar, telling_memory(request.batch, request.size):
        for name, config in configs.items():
            inputs = request.prepare(config)
            check_initial_weights(inputs[0].train(), init_weights(inputs[0], config.init))
            inputs[0].eval()
            found[name] = counts(inputs)
            del inputs
            bar.seen(1)
    torch.cuda.empty_cache()  # for the trainings
    return found


def _timed(rows: Sequence[Row], data: CocoData, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a prediction of each row, and their ratio to the first's."""
    request = _request(rows[0], data)
    made = {row.name: request.prepare(row.config) for row in rows}
    predictions = len(made) * (rounds + 1)
    with Bar("time", predictions, unit="predictions") as bar, telling_memory(request.batch, request.size):
        seconds = interleaved_times(made, rounds, bar)
    first = seconds[rows[0].name]
    return {name: {"seconds": value, "ratio": value / first} for name, value in seconds.items()}


def _train(cells: Sequence[Cell], sources: Sources, jobs: int) -> dict[Path, str]:
    """Train what is not finished and tell of each cell; return the failures."""
    todo = [cell for cell in cells if cell.numbers() is None]
    say(f"{len(cells)} trainings, {len(cells) - len(todo)} of them finished before, {jobs} at a time")
    began, ended = time.monotonic(), 0

    def finished(cell: Cell, seconds: float, why: str | None) -> None:
        nonlocal ended
        ended += 1
        bar.seen(1)
        numbers = cell.numbers()
        told = f"failed: {why}" if numbers is None else f"AP {numbers['AP']:.3f}"
        left = (time.monotonic() - began) / ended * (len(todo) - ended)
        count = f"{len(cells) - len(todo) + ended}/{len(cells)}"
        say(f"{count}  {cell.name}: {told}  in {duration(seconds)}, left {duration(left)}")

    try:
        with Bar("train", len(todo), unit="trainings") as bar:
            gpus = torch.cuda.device_count()
            return run_cells(todo, sources, jobs=jobs, gpus=gpus, finished=finished)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: go on with the same command") from None


def _entry(
    row: Row,
    cells: Sequence[Cell],
    sources: Sources,
    costs: Mapping[str, Any],
    failed: Mapping[Path, str],
) -> dict[str, Any]:
    """What is known of a row by itself."""
    known = None if row.published is None else dataclasses.asdict(row.published)
    entry: dict[str, Any] = {"row": row.name, "epochs": row.config.epochs, "published": known, **costs}
    entry["command"] = row.command(sources)
    entry["cells"] = [_cell(cell, failed) for cell in cells if cell.row is row]
    done = [cell for cell in entry["cells"] if "AP" in cell]
    if done:
        mean, spread = mean_and_spread([cell["AP"] for cell in done])
        mean50, _ = mean_and_spread([cell["AP50"] for cell in done])
        entry |= {"mean": mean, "spread": spread, "mean50": mean50}
    return entry


def _cell(cell: Cell, failed: Mapping[Path, str]) -> dict[str, Any]:
    numbers = cell.numbers()
    if numbers is None:
        return {"seed": cell.seed, "failed": failed.get(cell.folder, "it ended without numbers")}
    return {"seed": cell.seed, **{key: value for key, value in numbers.items() if key.startswith("A")}}


def _compare(entries: Sequence[dict[str, Any]]) -> None:
    """Add to each entry whether it is its budget's baseline, else the paired difference to that."""
    baselines: dict[int, dict[str, Any]] = {}
    for entry in entries:
        base = baselines.setdefault(entry["epochs"], entry)
        entry["baseline"] = base is entry
        pairs = [
            (cell["AP"], other["AP"])
            for cell, other in zip(entry["cells"], base["cells"], strict=True)
            if "AP" in cell and "AP" in other
        ]
        if base is not entry and pairs:
            difference = paired_difference(*map(list, zip(*pairs, strict=True)))
            entry["difference"] = dataclasses.asdict(difference)


def _setting(row: Row, sources: Sources, seeds: int, rounds: int) -> str:
    """The circumstances, as one sentence."""
    config: Config = row.config
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    width, height = (math.ceil(side / 32) * 32 for side in parse_size(config.size))
    return (
        f"The baseline is {config.detector}, {config.backbone}, {config.neck}, size {config.size}, "
        f"{config.batch} images a step; seeds 0 to {seeds - 1}, {sources.train_json} and {sources.val_json}; "
        f"counts and times of a prediction of 1 x {height} x {width}, medians of {rounds}; {machine}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )

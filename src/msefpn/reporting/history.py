"""What a training logged: values of each step and each epoch, from the files of a run folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msefpn.errors import UserError
from msefpn.reading import MAX_TEXT, parse_json, read_bytes, unreadable
from msefpn.runs.folder import LOG, STEPS


@dataclass(frozen=True)
class Curve:
    """Values over the steps of a training."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class History:
    """The logged values of a training."""

    steps: dict[str, Curve]
    """Losses and `lr` over the steps, by name."""
    epochs: list[dict[str, float]]
    """A row for each epoch: `epoch`, `step`, means of the losses, speed and COCO's numbers."""
    no_steps: str = ""
    """Why there are no values of steps, if these were not logged."""


def read_history(folder: Path) -> History:
    """Read log.jsonl, and metrics.csv for epochs that it lacks.

    Raises:
        UserError: there is neither file, or a line of one is damaged.
    """
    log, table = folder / STEPS, folder / LOG
    if log.is_file():
        steps, epochs = _read_log(log)
        return History(steps, epochs or (_read_table(table) if table.is_file() else []))
    if not table.is_file():
        raise UserError(f"there is no {log} and no {table}")
    reason = f"there is no {log}: train with --logger jsonl"
    if (folder / "tensorboard").is_dir():
        reason = "not available: they were logged for TensorBoard only, as by msefpn 0.1"
    return History({}, _read_table(table), reason)


def _read_log(path: Path) -> tuple[dict[str, Curve], list[dict[str, float]]]:
    """Values of steps and rows of epochs; where a resumed run logged a step again, the last value counts."""
    steps: dict[str, dict[int, float]] = {}
    rows: dict[int, dict[str, float]] = {}
    for number, event in _events(path):
        try:
            kind, step, values = event["event"], int(event["step"]), _numbers(event["values"])
            if kind == "step":
                for name, value in values.items():
                    steps.setdefault(name, {})[step] = value
            elif kind in ("epoch", "evaluation"):
                epoch = int(event["epoch"])
                rows.setdefault(epoch, {}).update({"epoch": epoch, "step": step} | values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise UserError(f"{path}: line {number} is not an event of a training") from None
    curves = {name: Curve(*zip(*sorted(of.items()), strict=True)) for name, of in steps.items()}
    return curves, [rows[epoch] for epoch in sorted(rows)]


def _events(path: Path) -> Iterator[tuple[int, Any]]:
    """Each event with the number of its line; a last line without its end, of a killed run, is ignored."""
    lines = _bytes(path).decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = parse_json(line)
        except ValueError:
            raise UserError(f"{path}: line {number} is not JSON") from None
        if isinstance(event, dict) and event.get("event") not in ("step", "epoch", "evaluation"):
            continue
        yield number, event


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _read_table(path: Path) -> list[dict[str, float]]:
    text = _bytes(path).decode("utf-8", errors="replace")
    try:
        rows = list(csv.DictReader(text.splitlines()))
        return [{key: float(value) if value else math.nan for key, value in row.items()} for row in rows]
    except (TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is damaged: it has a value that is not a number") from None


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_TEXT)
    except OSError as error:
        raise unreadable(path, error, "restore it") from None

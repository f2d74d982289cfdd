"""Loggers that write files into the run folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msefpn.errors import UserError
from msefpn.plain import CsvRows
from msefpn.plugins import register
from msefpn.reading import MAX_JSON, parse_json, read_text, unreadable
from msefpn.runs.folder import LOG, STEPS, TO_RESUME
from msefpn.training.callbacks import Callback, Run
from msefpn.writing import write_text

EVERY = 10
"""Steps between two that are written down."""


@register("logger", "csv")
class CSVLogger(Callback):
    """`metrics.csv` in the run folder: a row for each epoch."""

    def start(self, run: Run) -> None:
        """Keep the rows of the epochs that are done; later ones were not committed."""
        super().start(run)
        self.rows = _rows(run.out / LOG, run.epoch) if run.epoch else []
        self.row: dict[str, Any] = {}

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Begin a row."""
        self.row = {"epoch": epoch, "step": step} | {name: _rounded(x) for name, x in values.items()}

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """End it, and write the file."""
        self.rows.append(self.row | {name: round(value, 6) for name, value in values.items()})
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows[::-1] for name in row))
        writer = CsvRows(text, "\n")
        writer.add(names)
        for row in self.rows:
            writer.add(row.get(name) for name in names)
        write_text(self.run.out / LOG, text.getvalue(), TO_RESUME, durable=True)


def _rows(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The rows of the first epochs, empty if the file is missing. Raises UserError if it is damaged."""
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
        numbers = [int(row["epoch"]) for row in rows]
        for row in rows:
            [float(value) for value in row.values() if value != ""]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"'{path}' is damaged: restore it, or remove it") from None
    kept = [row for row, number in zip(rows, numbers, strict=True) if number <= epochs]
    first = min([epochs + 1, *numbers])
    if not rows or numbers[: len(kept)] != list(range(first, epochs + 1)):
        raise UserError(f"'{path}' does not hold the epochs up to {epochs}: restore it, or remove it")
    return kept


def _rounded(value: float) -> float:
    return round(value, 6) if abs(value) >= 1e-3 else value


@register("logger", "jsonl")
class JSONLogger(Callback):
    """`log.jsonl` in the run folder: an object for each tenth step, each epoch and each evaluation."""

    def start(self, run: Run) -> None:
        """Keep the lines of the steps that are done."""
        super().start(run)
        path = run.out / STEPS
        kept = _lines(path, run) if run.step else []
        write_text(path, "".join(f"{line}\n" for line in kept), TO_RESUME)
        self.file = path.open("a", encoding="utf-8")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write every tenth."""
        if step % EVERY == 0:
            self._write({"event": "step", "step": step, "values": dict(values)})

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Write the means."""
        self._write({"event": "epoch", "epoch": epoch, "step": step, "values": dict(values)})

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers, and have the disk hold them: the state of the epoch comes next."""
        self._write({"event": "evaluation", "epoch": epoch, "step": step, "values": dict(values)})
        self.flush()

    def flush(self) -> None:
        """Have the disk hold the lines."""
        os.fsync(self.file.fileno())

    def end(self, reason: str) -> None:
        """Close the file."""
        if hasattr(self, "file"):
            self.file.close()

    def _write(self, event: dict[str, Any]) -> None:
        self.file.write(json.dumps(event) + "\n")
        self.file.flush()


def _lines(path: Path, run: Run) -> list[str]:
    """The lines of what a resumed run has done, empty if the file is missing.

    A last line without its end, of a run that was killed, is left out. Raises UserError where another line is
    no event of a training.
    """
    if not path.exists():
        return []
    try:
        lines = read_text(path, MAX_JSON).split("\n")
    except OSError as error:
        raise unreadable(path, error, "restore it, or remove it") from None
    except ValueError as error:
        raise UserError(f"'{path}' {error}: restore it, or remove it") from None
    kept = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = parse_json(line)
            done = event["step"] < run.step if event["event"] == "step" else event["epoch"] <= run.epoch
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"'{path}' is damaged: line {number} is not an event: remove that line, or the file"
            ) from None
        kept += [line] * bool(done)
    return kept

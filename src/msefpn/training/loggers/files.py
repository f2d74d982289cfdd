"""Loggers that write files into the run folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from msefpn.plain import CsvRows
from msefpn.plugins import register
from msefpn.runs.folder import LOG, STEPS, write_text
from msefpn.training.callbacks import Callback, Run

EVERY = 10
"""Steps between two that are written down."""


@register("logger", "csv")
class CSVLogger(Callback):
    """`metrics.csv` in the run folder: a row for each epoch."""

    def start(self, run: Run) -> None:
        """Keep the rows of the epochs that are done; later ones were not committed."""
        super().start(run)
        path = run.out / LOG
        self.rows: list[dict[str, Any]] = []
        self.row: dict[str, Any] = {}
        if run.epoch and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= run.epoch]

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Begin a row."""
        self.row = {"epoch": epoch, "step": step} | {name: _rounded(x) for name, x in values.items()}

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """End it, and write the file."""
        self.rows.append(self.row | {name: round(value, 6) for name, value in values.items()})
        text = io.StringIO()
        heads, writer = list(self.rows[-1]), CsvRows(text, "\n")
        writer.add(heads)
        for row in self.rows:
            writer.add(row.get(head) for head in heads)
        write_text(self.run.out / LOG, text.getvalue())


def _rounded(value: float) -> float:
    return round(value, 6) if abs(value) >= 1e-3 else value


@register("logger", "jsonl")
class JSONLogger(Callback):
    """`log.jsonl` in the run folder: an object for each tenth step, each epoch and each evaluation."""

    def start(self, run: Run) -> None:
        """Keep the lines of the steps that are done."""
        super().start(run)
        path = run.out / STEPS
        kept = []
        if run.step and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _is_done(line, run)]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Write every tenth."""
        if step % EVERY == 0:
            self._write({"event": "step", "step": step, "values": dict(values)})

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Write the means."""
        self._write({"event": "epoch", "epoch": epoch, "step": step, "values": dict(values)})

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers."""
        self._write({"event": "evaluation", "epoch": epoch, "step": step, "values": dict(values)})

    def end(self, reason: str) -> None:
        """Close the file."""
        self.file.close()

    def _write(self, event: dict[str, Any]) -> None:
        self.file.write(json.dumps(event) + "\n")
        self.file.flush()


def _is_done(line: str, run: Run) -> bool:
    """Whether a line is of what a resumed run has done; one that was cut in half is not."""
    try:
        event = json.loads(line)
        return bool(event["step"] < run.step if event["event"] == "step" else event["epoch"] <= run.epoch)
    except (ValueError, KeyError, TypeError):
        return False

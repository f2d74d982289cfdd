"""What a training leaves in its run folder after each epoch."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from msefpn.errors import UserError
from msefpn.metrics.coco import CocoEvaluation
from msefpn.models import Detector, save
from msefpn.runs.folder import BEST, LAST, LOG, METRICS, PREDICTIONS, RESUME, replacing, write_text

_KEYS = {"epoch", "step", "best", "detector", "optimizer", "ema", "classes", "category_ids", "data"}


def read_resume(path: Path) -> dict[str, Any]:
    """Read the state that a run goes on from; it holds tensors and plain values only. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on broken bytes
        raise UserError(
            f"'{path}' is damaged or half-written: start a new run with --init {path.with_name(LAST)}"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise UserError(f"'{path}' is no state of a run: start a new run with --init {path.with_name(LAST)}")
    return state


class Recorder:
    """Writes weights, logs and numbers; the state to go on from comes last, and commits the epoch."""

    def __init__(self, out: Path, best: dict[str, Any] | None = None, epochs: int = 0, step: int = 0) -> None:
        """Go on after `epochs` whole epochs and `step` steps; `best`: the numbers of the best of them."""
        self.out = out
        self.best = best
        self.rows = self._read_rows(epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  slow to import

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step to TensorBoard."""
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, step)

    def epoch(
        self,
        row: dict[str, Any],
        numbers: dict[str, Any],
        results: list[dict[str, Any]],
        detector: Detector,
        weights: dict[str, Tensor],
        *,
        whole: bool,
    ) -> None:
        """Keep an epoch.

        Args:
            row: epoch, step and the losses and speeds, for the log.
            numbers: `CocoEvaluation.to_json`, and what else is known.
            results: the detections that they were made from.
            detector: whose configuration and classes go with the weights.
            weights: those that were evaluated.
            whole: it was not cut short. Else it replaces no best one: a run goes on from whole epochs, and
                would know of no other as the best.
        """
        entry = {"epoch": row["epoch"], "step": row["step"], **numbers}
        if self.best is None or (whole and numbers["AP"] > self.best["AP"]):
            self.best = entry
            self._save(detector, BEST, weights)
            write_text(self.out / PREDICTIONS, json.dumps(results))
        self._save(detector, LAST, weights)
        write_text(self.out / METRICS, json.dumps({"best": self.best, "last": entry}, indent=2))
        scores = CocoEvaluation.from_json(numbers).named()
        self.rows.append(row | {name: round(value, 6) for name, value in scores.items()})
        self._write_rows()
        for name, value in scores.items():
            self.board.add_scalar(f"val/{name}", value, row["step"])
        self.board.flush()

    def commit(self, state: dict[str, Any]) -> None:
        """Write the state that `read_resume` reads."""
        buffer = io.BytesIO()  # torch.save on a full disk raises no OSError
        torch.save(state, buffer)
        with replacing(self.out / RESUME) as part:
            part.write_bytes(buffer.getbuffer())

    def _save(self, detector: Detector, name: str, weights: dict[str, Tensor]) -> None:
        try:
            save(detector, self.out / name, weights)
        except (OSError, SafetensorError) as error:
            (self.out / f".{name}.part").unlink(missing_ok=True)
            raise UserError(
                f"'{self.out / name}' cannot be written: {error}: make room, then go on with --resume"
            ) from None

    def _read_rows(self, epochs: int) -> list[dict[str, Any]]:
        """The rows of the log up to `epochs`; those after it were not committed."""
        path = self.out / LOG
        if not epochs or not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["epoch"]) <= epochs]

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.out / LOG, text.getvalue())

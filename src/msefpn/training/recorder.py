"""What a training leaves in its run folder after each epoch: weights, predictions, numbers, and its state."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from msefpn.errors import UserError
from msefpn.models import Detector, save
from msefpn.runs.folder import BEST, LAST, METRICS, PREDICTIONS, RESUME, replacing, write_text

_KEYS = {"epoch", "step", "best", "detector", "optimizer", "ema", "classes", "category_ids", "data"}


def read_resume(path: Path) -> dict[str, Any]:
    """Read the state that a run is resumed from; it holds tensors and plain values only. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on broken bytes
        raise UserError(
            f"'{path}' is damaged or half-written: start a new run with --init {path.with_name(LAST)}"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise UserError(
            f"'{path}' is not the state of a run: start a new run with --init {path.with_name(LAST)}"
        )
    return state


class Recorder:
    """Writes weights and numbers; the state to resume from comes last, and commits the epoch.

    Args:
        out: the run folder.
        best: the numbers of the best epoch before.
    """

    def __init__(self, out: Path, best: dict[str, Any] | None = None) -> None:
        self.out = out
        self.best = best

    def epoch(
        self,
        epoch: int,
        step: int,
        numbers: dict[str, Any],
        results: list[dict[str, Any]],
        detector: Detector,
        weights: dict[str, Tensor],
        *,
        whole: bool,
    ) -> None:
        """Keep an epoch.

        Args:
            epoch: counted from 1.
            step: steps that are done.
            numbers: what the evaluation gave.
            results: the detections that they were made from.
            detector: whose configuration and classes go with the weights.
            weights: those that were evaluated.
            whole: the epoch was not cut short. Otherwise it replaces no best one: a run is resumed from whole
                epochs, and would know of no other as the best.
        """
        entry = {"epoch": epoch, "step": step, **numbers}
        if self.best is None or (whole and numbers["AP"] > self.best["AP"]):
            self.best = entry
            self._save(detector, BEST, weights)
            write_text(self.out / PREDICTIONS, json.dumps(results))
        self._save(detector, LAST, weights)
        write_text(self.out / METRICS, json.dumps({"best": self.best, "last": entry}, indent=2))

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
                f"'{self.out / name}' cannot be written: {error}: free some space, then resume with --resume"
            ) from None

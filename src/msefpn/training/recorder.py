"""What a training leaves in its run folder after each epoch: weights, predictions, numbers, and its state."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.models import Detector
from msefpn.models.weights import write_weights
from msefpn.runs.folder import BEST, LAST, METRICS, PREDICTIONS, RESUME, TO_RESUME
from msefpn.writing import replacing_together


class Recorder:
    """Writes the files of an epoch, which take their places together.

    Args:
        out: the run folder.
        best: the numbers of the best epoch before.
    """

    def __init__(self, out: Path, best: Mapping[str, Any] | None = None) -> None:
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
        state: dict[str, Any] | None,
    ) -> None:
        """Keep an epoch.

        Args:
            epoch: counted from 1.
            step: steps that are done.
            numbers: what the evaluation gave.
            results: the detections that they were made from.
            detector: whose configuration and classes go with the weights.
            weights: those that were evaluated.
            state: what `read_resume` reads, but for `best`; None for an epoch that was cut short. That one
                replaces no best one: a run is resumed from whole epochs, and would know of no other.

        Raises:
            UserError: the file system refuses; all files are as they were before.
        """
        entry = {"epoch": epoch, "step": step, **numbers}
        is_best = self.best is None or (state is not None and numbers["AP"] > self.best["AP"])
        best = entry if is_best else self.best
        with replacing_together(self.out, TO_RESUME) as parts:
            for name in [BEST] * is_best + [LAST]:
                with parts.write(name) as part:
                    write_weights(detector, part, weights)
            if is_best:
                parts.text(PREDICTIONS, json.dumps(results))
            parts.text(METRICS, json.dumps({"best": best, "last": entry}, indent=2))
            if state is not None:
                buffer = io.BytesIO()  # torch.save on a full disk raises no OSError
                torch.save({**state, "best": best}, buffer)
                with parts.write(RESUME) as part:
                    part.write_bytes(buffer.getbuffer())
        self.best = best

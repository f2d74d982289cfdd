"""What a training leaves in its run folder: weights, predictions and numbers of an epoch, and its states."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.models import Detector
from msefpn.models.weights import write_weights
from msefpn.runs.folder import BEST, LAST, METRICS, PREDICTIONS, RESUME, TO_RESUME
from msefpn.writing import Parts, replacing_together

_OLDER = re.compile(r"resume-(\d+)\.ckpt")
"""Names of the states before `RESUME`, by their steps."""


class Recorder:
    """Writes files that belong together, which take their places together.

    Args:
        out: the run folder.
        best: the numbers of the best epoch before.
        step: steps that the state in the folder is of; 0: there is none.
        states: how many states are kept.
    """

    def __init__(
        self, out: Path, best: Mapping[str, Any] | None = None, *, step: int = 0, states: int = 1
    ) -> None:
        self.out = out
        self.best = best
        self.step, self.states = step, states
        self.send: Callable[[], None] | None = None
        """Uploads the folder after each set of files. May raise UserError."""

    def epoch(
        self,
        epoch: int,
        step: int,
        numbers: dict[str, Any],
        results: list[dict[str, Any]],
        detector: Detector,
        weights: dict[str, Tensor],
        state: dict[str, Any],
    ) -> None:
        """Keep an epoch.

        Args:
            epoch: counted from 1.
            step: steps that are done.
            numbers: what the evaluation gave.
            results: the detections that they were made from.
            detector: whose configuration and classes go with the weights.
            weights: those that were evaluated.
            state: what `read_resume` reads, but for `best`.

        An epoch that was cut short does not become the best one where there is a whole one: a resumed run
        completes it and evaluates it again.

        Raises:
            UserError: the file system refuses; all files are as they were before.
        """
        entry, whole = {"epoch": epoch, "step": step, **numbers}, state["within"] is None
        is_best = self.best is None or (whole and numbers["AP"] > self.best["AP"])
        best = entry if is_best else self.best
        with replacing_together(self.out, TO_RESUME) as parts:
            for name in [BEST] * is_best + [LAST]:
                with parts.write(name) as part:
                    write_weights(detector, part, weights)
            if is_best:
                parts.text(PREDICTIONS, json.dumps(results))
            parts.text(METRICS, json.dumps({"best": best, "last": entry}, indent=2))
            self._add_state(parts, {**state, "best": best if whole else self.best or {}})
        self.best = best
        self._kept(state["step"])

    def state(self, state: dict[str, Any]) -> None:
        """Keep a state within an epoch, as `read_resume` reads it, but for `best`. Raises UserError."""
        with replacing_together(self.out, TO_RESUME) as parts:
            self._add_state(parts, {**state, "best": self.best or {}})
        self._kept(state["step"])

    def _add_state(self, parts: Parts, state: dict[str, Any]) -> None:
        before = self.out / RESUME
        if self.states > 1 and 0 < self.step < state["step"] and before.exists():
            with parts.write(f"resume-{self.step}.ckpt") as part:
                _link(before, part)
        buffer = io.BytesIO()  # torch.save on a full disk raises no OSError
        torch.save(state, buffer)
        with parts.write(RESUME) as part:
            part.write_bytes(buffer.getbuffer())

    def _kept(self, step: int) -> None:
        """Remove the states that are too many now that the one of `step` is kept, and upload the rest."""
        self.step = step
        with contextlib.suppress(OSError):  # they may as well stay
            names = [name for path in self.out.iterdir() if (name := _OLDER.fullmatch(path.name))]
            before = sorted((name for name in names if int(name[1]) < step), key=lambda name: int(name[1]))
            for name in before[: max(0, len(before) - (self.states - 1))]:
                (self.out / name[0]).unlink()
        if self.send is not None:
            self.send()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system knows none, copy it. Raises OSError."""
    target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

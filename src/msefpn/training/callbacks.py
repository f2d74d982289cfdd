"""Callbacks: what looks on while a detector is trained, and may stop the training.

A callback is any object with these five methods; deriving from `Callback` gives empty ones. Loggers are
callbacks that write values down. All are called in the first process of a run only.

    from msefpn.plugins import register
    from msefpn.training.callbacks import Callback

    @register("callback", "alarm")
    class Alarm(Callback):
        def evaluation(self, epoch, step, values):
            if values["AP"] < 0.01:
                self.run.stop("it learns nothing")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msefpn import plugins
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.runs.folder import TO_RESUME


@dataclass
class Run:
    """A training, as callbacks see it."""

    out: Path
    """The run folder."""
    config: Config
    classes: tuple[str, ...]
    epoch: int = 0
    """Whole epochs that were done before; more than 0 for a run that is resumed."""
    step: int = 0
    """Steps that were done before."""
    best: Mapping[str, Any] | None = None
    """`epoch`, `step` and the numbers of the best epoch that was done before."""
    stopped: str = ""
    """Why the training is to stop; empty: it goes on."""

    def stop(self, reason: str) -> None:
        """End the training after this epoch; the reason is printed."""
        self.stopped = reason


class Callback:
    """Looks on while a detector is trained. Values are floats by name."""

    run: Run

    def start(self, run: Run) -> None:
        """Before the first step; nothing may be written before.

        A resumed run starts again, with `run.step` steps that are done: later ones come once more.
        """
        self.run = run

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """After a step, counted from 0 over the whole run: its losses, their sum `loss`, and `lr`."""

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """After an epoch, counted from 1: the means of its losses, `lr` and `images_per_second`."""

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """After the evaluation of an epoch: COCO's numbers, such as `AP`, 0..1."""

    def end(self, reason: str) -> None:
        """At the end, also of a run that fails: why it ended early; empty where it did not."""

    def flush(self) -> None:
        """Before a state within an epoch is kept: have the disk hold what was written. May be missing."""


class Callbacks(Callback):
    """Several, called in turn."""

    def __init__(self, members: Iterable[Any]) -> None:
        self.members = list(members)
        self.started: list[Any] = []

    def start(self, run: Run) -> None:
        """Start all."""
        super().start(run)
        for member in self.members:
            with _telling(member):
                self.started.append(member)
                member.start(run)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell all."""
        for member in self.members:
            with _telling(member):
                member.step(step, values)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Tell all."""
        for member in self.members:
            with _telling(member):
                member.epoch(epoch, step, values)

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Tell all."""
        for member in self.members:
            with _telling(member):
                member.evaluation(epoch, step, values)

    def flush(self) -> None:
        """Tell all that have it."""
        for member in self.members:
            if hasattr(member, "flush"):
                with _telling(member):
                    member.flush()

    def end(self, reason: str) -> None:
        """End all that were started, also where one fails; one whose start failed may fail in silence."""
        failures: list[Exception] = []
        for member in self.started:
            try:
                with _telling(member):
                    member.end(reason)
            except Exception as error:  # the others must close their files
                failures.append(error)
        if failures and len(self.started) == len(self.members):
            raise failures[0]


@contextlib.contextmanager
def _telling(member: Any) -> Iterator[None]:
    """Tell in one line where a logger cannot write, such as on a full disk."""
    try:
        yield
    except OSError as error:
        place = f" '{error.filename}'" if error.filename else ""
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{type(member).__name__} cannot write{place}: {reason}: free some space or remove the cause, "
            f"{TO_RESUME}"
        ) from None


class EarlyStopping(Callback):
    """Stops a training whose AP has not grown for some epochs.

    Args:
        patience: epochs without a better AP.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def start(self, run: Run) -> None:
        """Go on from the best epoch of a resumed run."""
        super().start(run)
        self.best = -1.0 if run.best is None else float(run.best["AP"])
        self.best_epoch = 0 if run.best is None else int(run.best["epoch"])

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Compare."""
        if values["AP"] > self.best:
            self.best, self.best_epoch = values["AP"], epoch
        elif epoch - self.best_epoch >= self.patience:
            past = epoch - self.best_epoch
            self.run.stop(f"no better AP for {past} {'epoch' if past == 1 else 'epochs'}")


METHODS = ("start", "step", "epoch", "evaluation", "end")


def make_callbacks(config: Config, given: Iterable[Any]) -> Callbacks:
    """The callbacks and loggers of a configuration, and those that are given as objects.

    Raises:
        UserError: a package that a logger needs is missing, or an object lacks one of the five methods.
    """
    members = [plugins.find("logger", name)() for name in config.logger]
    members += [plugins.find("callback", name)() for name in config.callback]
    members += [one() if isinstance(one, type) else one for one in given]
    for member in members:
        missing = [name for name in METHODS if not callable(getattr(member, name, None))]
        if missing:
            raise UserError(
                f"callback {type(member).__name__} has no {', '.join(missing)}: derive it from "
                "msefpn.training.callbacks.Callback"
            )
    if config.patience:
        members.append(EarlyStopping(config.patience))
    return Callbacks(members)

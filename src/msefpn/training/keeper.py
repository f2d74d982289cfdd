"""The states that a training keeps: when one is due, when a signal asks for one, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import distributed

from msefpn.errors import UserError
from msefpn.runs.console import say
from msefpn.runs.folder import RESUME
from msefpn.runs.signals import Interruption
from msefpn.training.callbacks import Callbacks
from msefpn.training.group import Group
from msefpn.training.plan import Every
from msefpn.training.recorder import Recorder

State = dict[str, Any]


class Wishes(NamedTuple):
    """What a process asks for at the end of the current step."""

    fail: bool = False
    """One of its losses is not finite."""
    stop: bool = False
    """It was told to end."""
    keep: bool = False
    """A state is due, or was asked for."""
    asked: bool = False
    """SIGUSR1 has asked for it."""


class Timetable:
    """Tells when the next state is due; the state after an epoch counts too.

    Args:
        every: how often.
        step: steps that are done.
    """

    def __init__(self, every: Every, step: int) -> None:
        self.every = every
        self.kept(step)

    def kept(self, step: int) -> None:
        """Note that the state after this many steps is kept."""
        self.step, self.time = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the state after this many steps is to be kept."""
        return step - self.step >= self.every.steps or time.monotonic() - self.time >= self.every.seconds


class Keeper:
    """Keeps the state of a training between two steps.

    Signals are only noted while a detector trains (`Interruption.held`): what they ask for is done where all
    processes are between the same two steps.

    Args:
        every: how often.
        step: steps that are done.
        recorder: of the first process; None in the others.
        callbacks: of the first process; None in the others.
    """

    def __init__(
        self, every: Every, step: int, recorder: Recorder | None, callbacks: Callbacks | None
    ) -> None:
        self.timetable = Timetable(every, step)
        self.recorder, self.callbacks = recorder, callbacks
        self.stop = Interruption()
        self.group: Group | None = None
        """The processes that train together; None: this one trains alone."""
        self.wishes = Wishes()

    def agree(self, step: int, *, fail: bool = False) -> Wishes:
        """What the processes ask for at the end of the current step; called in all of them.

        Args:
            step: steps that will be done.
            fail: whether a loss of this process is not finite.
        """
        asked = self.stop.requested
        own = Wishes(fail, self.stop.at is not None, asked or self.timetable.is_due(step), asked)
        self.wishes = self._together(own)
        return self.wishes

    def _together(self, own: Wishes) -> Wishes:
        return own if self.group is None else Wishes(*self.group.any_of(own))

    def end_step(self, step: int, state: Callable[[], State]) -> None:
        """Do what was agreed on, after an optimizer step; called in all processes, which wait for the first.

        Args:
            step: steps that are done.
            state: collects the state; called in all processes.

        Raises:
            UserError: in the first process: the state cannot be written.
            DistError: in the others, then.
            KeyboardInterrupt: one of them is to end; the state is kept.
        """
        if self.group is None:  # what has come since the losses were computed
            self.agree(step)
        if not (self.wishes.stop or self.wishes.keep):
            return
        collected, failure = state(), None
        try:
            self.keep(collected)
        except UserError as error:
            failure = error
        if self.group is not None:
            self.group.wait(f"state {step}")
        if self._together(Wishes(fail=failure is not None)).fail:
            raise failure or distributed.DistError
        self.timetable.kept(step)
        self.stop.requested = False
        if self.wishes.asked and self.recorder is not None:
            say(f"kept the state after step {step}: {self.recorder.out / RESUME}")
        if self.wishes.stop:
            raise KeyboardInterrupt

    def keep(self, state: State) -> None:
        """Keep a state within an epoch, in the first process; in others nothing. Raises UserError."""
        if self.recorder is None or self.callbacks is None:
            return
        self.callbacks.flush()
        self.recorder.state(state)

    def check(self, state: Callable[[], State]) -> None:
        """Heed signals during an evaluation, each process on its own. Raises KeyboardInterrupt, UserError."""
        self.stop.check()
        if self.stop.requested and self.recorder is not None:
            self.keep(state())
            self.stop.requested = False

    def end_evaluation(self, step: int, stopped: str) -> bool:
        """Whether the training ends after an epoch that is kept; called in all processes.

        Args:
            step: steps that are done.
            stopped: why a callback of the first process ends it; empty: none does.

        Raises:
            KeyboardInterrupt: one of them was told to end.
        """
        self.timetable.kept(step)
        if self.recorder is not None:
            self.stop.requested = False
        wishes = self._together(Wishes(stop=self.stop.at is not None, keep=bool(stopped)))
        if wishes.stop:
            raise KeyboardInterrupt
        return wishes.keep

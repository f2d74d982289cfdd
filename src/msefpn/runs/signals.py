"""Ctrl-C and SIGTERM: both end what is running in the same way, at once and only once; SIGUSR1: a request."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

REQUEST: signal.Signals | None = getattr(signal, "SIGUSR1", None)
"""The signal that asks a training to keep its state; Windows has none."""
GRACE = 5.0
"""Seconds after the first signal in which more of them change nothing: launchers send several."""


class Interruption:
    """What the first SIGINT or SIGTERM does: it raises KeyboardInterrupt, or waits for the end of `held`."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.at: float | None = None
        """When the first signal came."""
        self.requested = False
        """Whether `REQUEST` has come; who does what it asks for sets it back."""
        self.holding = False
        self.active = False
        """Whether the signals come here."""
        self.heeding = False
        """Whether `REQUEST` comes here too, where the others do."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == REQUEST:
            self.requested = True
            return
        if os.getpid() != self.process:
            os._exit(0)  # a process that loads images: the one that started it tells
        now = time.monotonic()
        if self.at is not None and now - self.at < GRACE:
            return
        if self.at is None:
            self.at = now
            if self.holding:
                return
        raise KeyboardInterrupt

    def install(self) -> None:
        """Handle the signals, but for a SIGINT that the process was started to ignore."""
        self.active = True
        for number in (signal.SIGINT, signal.SIGTERM):
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)
        if self.heeding and REQUEST is not None:
            signal.signal(REQUEST, self)

    def check(self) -> None:
        """Raise KeyboardInterrupt where a signal has come: one that is raised in a finaliser is lost."""
        if self.at is not None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a first signal wait: until `check`, or until the outermost such body has ended."""
        self.check()
        before, self.holding = self.holding, True
        try:
            yield
        finally:
            self.holding = before
        if not before:
            self.check()

    @contextlib.contextmanager
    def heeding_requests(self) -> Iterator[None]:
        """Let `REQUEST` set `requested` instead of ending the process, where the other signals come here."""
        if not self.active or REQUEST is None or self.heeding:
            yield
            return
        before, self.heeding = signal.getsignal(REQUEST), True
        self.install()
        try:
            yield
        finally:
            self.heeding = False
            signal.signal(REQUEST, before)


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let SIGTERM interrupt the body as Ctrl-C does; within another such body, continue with that one.

    A program's own handler of SIGTERM is left alone, and so is everything outside the main thread.
    """
    before = signal.getsignal(signal.SIGTERM)
    if isinstance(before, Interruption) and before.process == os.getpid():
        yield before
        return
    stop = Interruption()
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.install()
    hook, sys.unraisablehook = sys.unraisablehook, _but_interrupts(sys.unraisablehook)
    try:
        yield stop
    finally:
        sys.unraisablehook = hook
        for number, handler in old.items():
            signal.signal(number, handler)


def _but_interrupts(hook: Any) -> Any:
    """A hook that is silent about interrupts in finalisers, which `Interruption.check` raises again."""

    def quiet(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)

    return quiet

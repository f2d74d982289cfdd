"""Ctrl-C and SIGTERM: both end what is running in the same way, at once and only once."""

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

GRACE = 5.0
"""Seconds after the first signal in which more of them change nothing: launchers send several."""


class Interruption:
    """What the first SIGINT or SIGTERM does: it raises KeyboardInterrupt, or waits for the end of `held`."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.at: float | None = None
        """When the first signal came."""
        self.holding = False
        self.active = False
        """Whether the signals come here."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
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

    def check(self) -> None:
        """Raise KeyboardInterrupt where a signal has come: one that is raised in a finaliser is lost."""
        if self.at is not None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a first signal wait until the body has ended."""
        self.check()
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        self.check()


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

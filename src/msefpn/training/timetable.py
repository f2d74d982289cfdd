"""When the state of a training is kept within an epoch; imports no torch."""

from __future__ import annotations

import math
import re
import time
from typing import NamedTuple

from msefpn.errors import UserError

_UNITS = {"s": 1, "min": 60, "h": 3600}


class Every(NamedTuple):
    """How often a state is kept: after so many steps, or so many seconds; the other is infinite."""

    steps: float
    seconds: float


def parse_every(text: str) -> Every:
    """Read '500' as steps, and '30s', '15min' or '2h' as a time. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)?", str(text).strip())
    number = float(found[1]) if found else 0.0
    if found is None or number <= 0 or (found[2] is None and number % 1):
        raise UserError(
            f"checkpoint_every is '{text}': give a number of steps such as 500, or a time such as 90s, 15min "
            "or 2h"
        )
    if found[2] is None:
        return Every(number, math.inf)
    return Every(math.inf, number * _UNITS[found[2]])


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

"""When states within an epoch are due."""

import math
import time

import pytest

from msefpn.errors import UserError
from msefpn.training.keeper import Timetable
from msefpn.training.plan import Every, parse_every


def test_steps_and_times_are_read() -> None:
    assert parse_every("500") == Every(500, math.inf)
    times = {"90s": 90, "15min": 900, "2h": 7200, "0.5 h": 1800}
    assert {text: parse_every(text).seconds for text in times} == times
    for text in ("0", "1.5", "-3", "15 minutes", "often", ""):
        with pytest.raises(UserError, match=f"^checkpoint_every is '{text}': give a number of steps"):
            parse_every(text)


def test_a_state_is_due_after_steps_or_time(monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = Timetable(parse_every("3"), step=10)
    assert [by_steps.is_due(step) for step in (11, 12, 13)] == [False, False, True]
    by_steps.kept(13)
    assert not by_steps.is_due(15)
    now = time.monotonic()
    by_time = Timetable(parse_every("15min"), step=0)
    for passed, due in ((890, False), (901, True)):
        monkeypatch.setattr(time, "monotonic", lambda passed=passed: now + passed)
        assert by_time.is_due(1) == due

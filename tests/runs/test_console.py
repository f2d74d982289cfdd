"""What is told of a training outside a terminal."""

import time

import pytest

from msefpn.metrics.coco import NUMBERS
from msefpn.runs.console import Bar, TrainingProgress, percent, show_numbers
from msefpn.training.counts import Clock


class Time:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Time:
    own = Time()
    monkeypatch.setattr(time, "monotonic", own.monotonic)
    return own


def test_a_bar_tells_each_minute_outside_a_terminal(moving: Time, capsys: pytest.CaptureFixture[str]) -> None:
    for total in (1000, None):
        with Bar("predict", total) as bar:
            for _ in range(13):
                moving.now += 10
                bar.seen(50)
    assert capsys.readouterr().out.splitlines() == [
        "predict 300/1000 images, 5.0 images/s, left 2:20",
        "predict 600/1000 images, 5.0 images/s, left 1:20",
        "predict 300 images, 5.0 images/s",
        "predict 600 images, 5.0 images/s",
    ]


def test_outside_a_terminal_a_line_is_told_each_minute(
    moving: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    progress, clock = TrainingProgress(2), Clock(2)
    progress.start("epoch 1/2", 100)
    for batch in range(100):
        moving.now += 2
        clock.seen(4, (batch + 1) / 100)
        progress.step({"loss": 0.5, "lr": 0.01}, clock)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 1/2  batch 30/100  loss 0.5  2.0 images/s  left 5:40",
        "epoch 1/2  batch 60/100  loss 0.5  2.0 images/s  left 4:40",
        "epoch 1/2  batch 90/100  loss 0.5  2.0 images/s  left 3:40",
    ]
    progress.start("epoch 1/2, evaluation", 50)
    for _ in range(50):
        moving.now += 2
        progress.evaluated(1)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2, evaluation  batch 20/50",
        "epoch 1/2, evaluation  batch 50/50",
    ]


def test_time_left_to_a_step_within_an_epoch(moving: Time) -> None:
    clock = Clock(0.5)
    moving.now = 10
    clock.seen(8, 0.25)
    assert clock.left == pytest.approx(10)


def test_people_read_percent(moving: Time, capsys: pytest.CaptureFixture[str]) -> None:
    assert [percent(value) for value in (0.6089, 0.0, 1.0, -1.0, None)] == ["60.9", "0.0", "100.0", "–", "–"]
    numbers = dict.fromkeys(NUMBERS, 0.5) | {"AP": 0.6089, "APl": -1.0}
    show_numbers({**numbers, "per_class": {"disc": 0.25}})
    printed = capsys.readouterr().out
    assert "60.9" in printed
    assert "25.0" in printed
    assert "0.6" not in printed
    progress, clock = TrainingProgress(2), Clock(2)
    progress.start("epoch 1/2", 1)
    clock.seen(4, 1.0)
    moving.now += 2
    progress.end_epoch(1, {"loss": 0.5, "lr": 0.01}, {"AP": 0.6089, "AP50": 0.9}, clock)
    assert "AP 60.9  AP50 90.0  " in capsys.readouterr().out

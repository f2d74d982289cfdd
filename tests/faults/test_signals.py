"""Ctrl-C and SIGTERM, once and twice, while a training steps, evaluates and keeps an epoch."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from msefpn.cli import main
from msefpn.runs import signals
from msefpn.training import lightning as lit
from msefpn.training import recorder as record
from tests.faults import runs
from tests.faults.conftest import Unbroken
from tests.faults.disk import copy_run

PLACES: dict[str, tuple[Any, str]] = {
    "step": (lit.Training, "optimizer_step"),
    "evaluation": (lit, "detect"),
    "checkpoint": (record, "write_weights"),
}


@pytest.fixture(autouse=True)
def _heeding_ctrl_c() -> Iterator[None]:
    """Whoever starts the tests in the background has them ignore it."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.mark.parametrize(
    ("number", "twice"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True)]
)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_training_in_one_line(
    place: str,
    number: signal.Signals,
    twice: bool,
    unbroken: Unbroken,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home, name = PLACES[place]
    whole: Callable[..., Any] = getattr(home, name)

    def interrupted(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        if twice:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args, **options)

    out = copy_run(unbroken.after[0], tmp_path / "run")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(home, name, interrupted)
        assert main(runs.resuming(out)) == 130
    assert capfd.readouterr().err == f"\ninterrupted: resume with msefpn train --resume --out {out}\n"
    if place == "checkpoint":
        assert runs.epochs_in(out, unbroken.epoch_of) == (2, 2)
    else:
        state = torch.load(out / "resume.ckpt", weights_only=True)
        done = {name: state["within"][name] for name in ("batches", "of")}
        total = state["within"]["of"]
        assert (state["epoch"], done) == (1, {"batches": 1 if place == "step" else total, "of": total})
        before, left = (runs.content(folder) for folder in (unbroken.after[0], out))
        for name in (*runs.LOGS, "resume.ckpt"):
            del before[name], left[name]
        assert before == left
    assert not list(out.glob(".*"))
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    if twice:
        assert main(runs.resuming(out)) == 0
        assert runs.content(out) == runs.content(unbroken.out)


def test_a_signal_that_comes_in_a_finaliser_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    class Closing:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.getpid()

    with pytest.raises(KeyboardInterrupt), signals.interruptible() as stop:  # noqa: PT012
        Closing()
        stop.check()
    assert capfd.readouterr().err == ""


def test_later_signals_end_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.0)
    with signals.interruptible() as stop, pytest.raises(KeyboardInterrupt), stop.held():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.at is not None
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal waited as well")


def test_a_programs_own_handler_stays() -> None:
    seen = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with signals.interruptible() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not stop.active
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]

"""Callbacks and loggers: what they are told, what they write, and how they stop a training."""

import csv
import importlib.util
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import msefpn
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.plugins import known
from msefpn.training import loggers
from msefpn.training.callbacks import Callback, Callbacks, EarlyStopping, Run, make_callbacks
from tests import TINY

QUICK: dict[str, Any] = {"recipe": TINY, "workers": 0, "device": "cpu"}


class Notebook(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def start(self, run: Run) -> None:
        super().start(run)
        self.events.append(("start", run.epoch, run.step))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self.events.append(("step", step, sorted(values)))

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self.events.append(("epoch", epoch, step))

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self.events.append(("evaluation", epoch, values["AP"]))

    def end(self, reason: str) -> None:
        self.events.append(("end", reason))


class Stopper(Notebook):
    """Stops after the first epoch."""

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        super().evaluation(epoch, step, values)
        self.run.stop("seen enough")


def test_a_callback_is_told_in_order_and_may_stop(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looking, stopping = Notebook(), Stopper()
    out = msefpn.train(tiny_set, **QUICK, epochs=3, callbacks=[looking, stopping], out=tmp_path / "run")
    kinds = [event[0] for event in looking.events]
    steps = kinds.count("step")
    assert kinds == ["start", *["step"] * steps, "epoch", "evaluation", "end"]
    assert [event[1] for event in looking.events if event[0] == "step"] == list(range(steps))
    assert {"loss", "lr", "rpn_object"} <= set(looking.events[1][2])
    assert looking.events[-1] == ("end", "seen enough")
    assert "stopped after epoch 1: seen enough" in capsys.readouterr().out
    again = Notebook()
    msefpn.train(resume=True, out=out, epochs=2, callbacks=[again], device="cpu", workers=0)
    assert again.events[0] == ("start", 1, steps)
    assert [event for event in again.events if event[0] == "epoch"] == [("epoch", 2, 2 * steps)]
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "evaluation"] == [1, 2]


def told(patience: int, aps: list[float], best: dict[str, Any] | None = None) -> str:
    """Why early stopping ends a run with these APs."""
    callback, run = EarlyStopping(patience), Run(Path(), Config(), ("a",), best=best)
    callback.start(run)
    for epoch, ap in enumerate(aps, 1 if best is None else best["epoch"] + 1):
        callback.evaluation(epoch, epoch, {"AP": ap})
    return run.stopped


def test_early_stopping_counts_epochs_without_a_better_ap() -> None:
    assert told(2, [0.1, 0.2, 0.1, 0.3, 0.3]) == ""
    assert told(2, [0.1, 0.2, 0.1, 0.2]) == "no better AP for 2 epochs"
    assert told(2, [0.2], best={"epoch": 3, "AP": 0.2}) == ""
    assert told(1, [0.2], best={"epoch": 3, "AP": 0.2}) == "no better AP for 1 epoch"


def test_patience_ends_a_training(tiny_set: Path, tmp_path: Path) -> None:
    nothing_found = "detector_options.roi.score=0.99"
    out = msefpn.train(tiny_set, **QUICK, epochs=4, patience=1, set=[nothing_found], out=tmp_path / "run")
    assert json.loads((out / "metrics.json").read_text())["last"]["epoch"] == 2


def test_what_is_no_callback_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="callback object has no start, step, epoch, evaluation, end"):
        msefpn.train(tiny_set, **QUICK, callbacks=[object()], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_logger_whose_package_is_missing(
    name: str, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package, *_: None)
    with pytest.raises(
        UserError, match=rf'the logger {name} needs the extra: pip install "msefpn\[{name}\]"'
    ):
        msefpn.train(tiny_set, **QUICK, logger=name, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def logged(logger: str, out: Path) -> None:
    """Log two epochs as a training does, the second after a resume."""
    config = Config(logger=(logger,))
    for epoch in (0, 1):
        callbacks = make_callbacks(config, [])
        callbacks.start(Run(out, config, ("a", "b"), epoch=epoch, step=20 * epoch))
        for step in range(20 * epoch, 20 * epoch + 20):
            callbacks.step(step, {"loss": 1 / (step + 1), "lr": 0.1})
        callbacks.flush()
        callbacks.epoch(epoch + 1, 20 * epoch + 20, {"loss": 0.5, "images_per_second": 3.0})
        callbacks.evaluation(epoch + 1, 20 * epoch + 20, {"AP": 0.25 * (epoch + 1)})
        callbacks.end("")


STEPS = [0, 10, 20, 30]


def test_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == STEPS
    assert [event.value for event in events.Scalars("val/AP")] == [0.25, 0.5]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logged("mlflow", tmp_path)
    client = tracking.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("msefpn").experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == STEPS
    assert [point.value for point in client.get_metric_history(run.info.run_id, "val/AP")] == [0.25, 0.5]
    assert run.data.params["neck"] == "mse_fpn"
    assert run.info.status == "FINISHED"


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    logged("wandb", tmp_path)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    ids = {file.stem for file in files}
    assert ids == {f"run-{(tmp_path / '.trackers' / 'wandb').read_text()}"}
    content = b"".join(file.read_bytes() for file in files)
    assert b"val/AP" in content
    assert content.count(b"train/loss") >= len(STEPS)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("needs trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before it is imported
    logged("trackio", tmp_path)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert [row["val/AP"] for row in rows if "val/AP" in row] == [0.25, 0.5]
    assert len([row for row in rows if "train/loss" in row]) == len(STEPS)


def test_jsonl_and_csv_drop_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    for logger in ("jsonl", "csv"):
        logged(logger, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 40, "values": {"lo')  # cut in half by a kill
    again = Callbacks([loggers.JSONLogger(), loggers.CSVLogger()])
    again.start(Run(tmp_path, Config(), ("a",), epoch=1, step=20))
    again.end("")
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [0, 10, 20, 20]


def test_all_loggers_are_known() -> None:
    assert set(known("logger")) >= {"csv", "jsonl", "tensorboard", "wandb", "mlflow", "trackio"}


def test_tensorboard_drops_what_a_resumed_run_does_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config, clock = Config(logger=("tensorboard",)), [2_000_000_000.0]
    for epoch in (0, 1, 1, 2):  # the second epoch is cut short, and done again after the clock was set back
        callbacks = make_callbacks(config, [])
        callbacks.start(Run(tmp_path, config, ("a",), epoch=epoch, step=20 * epoch))
        for step in range(20 * epoch, 20 * epoch + 20):
            callbacks.step(step, {"loss": float(epoch)})
        callbacks.epoch(epoch + 1, 20 * epoch + 20, {"loss": 0.5})
        callbacks.evaluation(epoch + 1, 20 * epoch + 20, {"AP": 0.25 * (epoch + 1)})
        callbacks.end("")
        for file in sorted((tmp_path / "tensorboard").iterdir()):  # as if all were written in the future
            parts = file.name.split(".")
            clock[0] += 1
            if float(parts[3]) < 1.9e9:
                file.rename(file.with_name(".".join([*parts[:3], f"{clock[0]:010.0f}", *parts[4:]])))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 10, 20, 30, 40, 50]
    assert [event.value for event in events.Scalars("val/AP")] == [0.25, 0.5, 0.75]


def test_a_tracker_that_keeps_all_steps_is_told_them_once(tmp_path: Path) -> None:
    class Kept(loggers.trackers._Tracker):
        keeps = "kept"

        def log(self, step: int, values: dict[str, float]) -> None:
            heard.append((step, *values))

    heard: list[tuple[Any, ...]] = []
    for epoch in (0, 0, 1):
        callbacks = Callbacks([Kept()])
        callbacks.start(Run(tmp_path, Config(), ("a",), epoch=epoch, step=20 * epoch))
        for step in range(20 * epoch, 20 * epoch + 20):
            callbacks.step(step, {"loss": 1.0})
        callbacks.epoch(epoch + 1, 20 * epoch + 20, {"loss": 0.5})
        callbacks.evaluation(epoch + 1, 20 * epoch + 20, {"AP": 0.5})
    assert [step for step, *_ in heard] == [0, 10, 19, 19, 20, 30, 39, 39]
    (tmp_path / ".trackers" / "kept.json").write_text("[1]")
    with pytest.raises(UserError, match=r"kept.json' is damaged"):
        Kept().start(Run(tmp_path, Config(), ("a",)))


def test_a_logger_that_cannot_write_is_one_line(tmp_path: Path) -> None:
    class Full(Notebook):
        def step(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError(28, "No space left on device")

    callbacks = Callbacks([Full()])
    callbacks.start(Run(tmp_path, Config(), ("a",)))
    with pytest.raises(UserError, match=r"Full cannot write: No space left on device: .*--resume"):
        callbacks.step(0, {})

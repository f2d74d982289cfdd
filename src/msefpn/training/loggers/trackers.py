"""Loggers that hand the values to a tracker; each needs an extra of its name."""

# ruff: noqa: PLC0415  (the trackers are of extras)
from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

from msefpn.errors import UserError, missing_extra
from msefpn.plugins import register
from msefpn.reading import parse_json, read_text
from msefpn.runs.folder import TO_RESUME
from msefpn.training.callbacks import Callback, Run
from msefpn.training.loggers.files import EVERY
from msefpn.writing import write_text

_IDS = ".trackers"
"""Folder in the run folder for the ids that trackers know the run by."""


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise missing_extra(f"the logger {extra}", extra)


class _Tracker(Callback):
    """A logger that gives all values to one function, under `train/`, `epoch/` and `val/`.

    Values of an epoch are those of its last step, so that a resumed run begins after them.
    """

    keeps = ""
    """Name of a tracker that keeps all steps: what it has is not logged again. Empty: it drops later ones."""

    def start(self, run: Run) -> None:
        """Read what the tracker has."""
        super().start(run)
        self.file = run.out / _IDS / f"{self.keeps}.json"
        self.logged: dict[str, int] = {}
        if self.keeps and self.file.exists():
            try:
                kept = parse_json(read_text(self.file))
                self.logged = {str(kind): int(number) for kind, number in kept.items()}
            except (OSError, ValueError, TypeError, AttributeError):
                raise UserError(f"'{self.file}' is damaged: remove it; steps may be logged twice") from None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write values of a step."""
        raise NotImplementedError

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Log every tenth."""
        if step % EVERY == 0:
            self._log_once("train", step, step, values)

    def epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Log the means."""
        self._log_once("epoch", epoch, step - 1, {**values, "number": epoch})

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers."""
        self._log_once("val", epoch, step - 1, values)

    def _log_once(self, kind: str, number: int, step: int, values: Mapping[str, float]) -> None:
        if self.keeps and number <= self.logged.get(kind, -1):
            return
        self.log(step, {f"{kind}/{name}": value for name, value in values.items()})
        if self.keeps:
            self.logged[kind] = number
            self.file.parent.mkdir(exist_ok=True)
            write_text(self.file, json.dumps(self.logged), TO_RESUME)


@register("logger", "tensorboard")
class TensorBoardLogger(_Tracker):
    """`tensorboard/` in the run folder; needs the extra `tensorboard`."""

    def __init__(self) -> None:
        _need("tensorboard", "tensorboard")

    def start(self, run: Run) -> None:
        """Open the writer; steps after those that are done are dropped."""
        super().start(run)
        folder = run.out / "tensorboard"
        _put_before_now(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder), purge_step=run.step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers, and write them to the disk."""
        super().evaluation(epoch, step, values)
        self.board.flush()

    def flush(self) -> None:
        """Write all to the disk."""
        self.board.flush()

    def end(self, reason: str) -> None:
        """Close the writer."""
        self.board.close()


def _put_before_now(folder: Path) -> None:
    """Rename event files that are not older than now, as after the clock was set back.

    TensorBoard reads them in the order of their names, which begin with the second; a later file says what is
    dropped of earlier ones.
    """
    files, now = sorted(folder.glob("events.out.tfevents.*")), int(time.time())
    for index, file in enumerate(files):
        *head, second, rest = file.name.split(".", 4)
        if second.isdigit() and int(second) >= now:
            earlier = f"{now - len(files) + index:010d}"
            file.rename(file.with_name(".".join([*head, earlier, rest])))


@register("logger", "wandb")
class WandbLogger(_Tracker):
    """Weights & Biases; needs the extra `wandb`. `WANDB_MODE=offline` keeps everything in the run folder.

    A run that is resumed goes on under the same id.
    """

    keeps = "wandb"

    def __init__(self) -> None:
        _need("wandb", "wandb")

    def start(self, run: Run) -> None:
        """Begin the tracker's run, in the project `msefpn` unless WANDB_PROJECT names another."""
        super().start(run)
        import wandb

        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        self.tracked = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "msefpn"),
            name=run.out.name,
            id=_id_of(run, "wandb"),
            resume="allow",
            dir=str(run.out),
            config=dataclasses.asdict(run.config),
            settings=quiet,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars."""
        self.tracked.log(values, step=step)

    def end(self, reason: str) -> None:
        """Finish; a run that failed is marked so."""
        self.tracked.finish(exit_code=int(reason in ("failed", "interrupted")))


@register("logger", "mlflow")
class MLflowLogger(_Tracker):
    """MLflow; needs the extra `mlflow`. Without MLFLOW_TRACKING_URI it writes `mlruns/` in the run folder."""

    keeps = "mlflow"

    def __init__(self) -> None:
        _need("mlflow", "mlflow")

    def start(self, run: Run) -> None:
        """Begin the tracker's run, in the experiment `msefpn` unless MLFLOW_EXPERIMENT_NAME names another."""
        super().start(run)
        local = "MLFLOW_TRACKING_URI" not in os.environ
        if local:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=(run.out / "mlruns").absolute().as_uri() if local else None)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "msefpn")
        known = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if known is None else known.experiment_id
        file = run.out / _IDS / "mlflow"
        if file.is_file():
            self.id = read_text(file)
            self.client.set_terminated(self.id, "RUNNING")
        else:
            self.id = self.client.create_run(experiment, run_name=run.out.name).info.run_id
            file.parent.mkdir(exist_ok=True)
            write_text(file, self.id, TO_RESUME)
            for key, value in dataclasses.asdict(run.config).items():
                self.client.log_param(self.id, key, value)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars."""
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def end(self, reason: str) -> None:
        """Finish."""
        status = {"failed": "FAILED", "interrupted": "KILLED"}.get(reason, "FINISHED")
        self.client.set_terminated(self.id, status)


@register("logger", "trackio")
class TrackioLogger(_Tracker):
    """trackio; needs the extra `trackio`.

    Without TRACKIO_DIR it writes `trackio/` in the run folder; trackio reads that variable once in a process.
    """

    keeps = "trackio"

    def __init__(self) -> None:
        _need("trackio", "trackio")

    def start(self, run: Run) -> None:
        """Begin the tracker's run, in the project `msefpn`."""
        super().start(run)
        os.environ.setdefault("TRACKIO_DIR", str(run.out / "trackio"))  # read when it is imported
        import trackio

        config = {key: str(value) for key, value in dataclasses.asdict(run.config).items()}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to open its dashboard
            self.tracked = trackio.init(
                project="msefpn", name=run.out.name, config=config, resume="allow", embed=False
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars."""
        self.tracked.log(values, step=step)

    def end(self, reason: str) -> None:
        """Finish."""
        self.tracked.finish()


def _id_of(run: Run, tracker: str) -> str:
    """An id of the run for a tracker, kept in the run folder."""
    file = run.out / _IDS / tracker
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        write_text(file, uuid.uuid4().hex, TO_RESUME)
    return read_text(file)

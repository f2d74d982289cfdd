"""A run as its report shows it: what the files of its folder hold."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msefpn.config import Config
from msefpn.data.coco import CocoData
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.metrics.curves import size_edges
from msefpn.metrics.matching import BoxPredictions, GroundTruth
from msefpn.reading import real_path
from msefpn.reporting.analysis import Analysis, analyse, checksum, ground_truth_of, read_predictions
from msefpn.reporting.cost import DetectorCost
from msefpn.reporting.history import History, read_history
from msefpn.runs.folder import CONFIG, METRICS, PREDICTIONS, read_run
from msefpn.runs.metrics import read_metrics


@dataclass
class ReportedRun:
    """A run, as far as its folder can be read. What is None or empty has a reason in `missing`."""

    name: str
    """Differs from the names of the other runs of the page."""
    folder: Path
    config: Config
    files: dict[str, Path]
    """The annotations and images of both splits, see data.yaml."""
    history: History = field(default_factory=lambda: History({}, []))
    numbers: dict[str, Any] = field(default_factory=dict)
    """COCO's numbers of the best epoch, as in metrics.json."""
    data: CocoData | None = None
    """The validation set."""
    truth: GroundTruth | None = None
    predictions: BoxPredictions | None = None
    same_data: bool = True
    """Whether the validation set is that of the first run of the page."""
    analysis: Analysis | None = None
    cost: DetectorCost | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Part -> why it is missing: 'history', 'steps', 'numbers', 'analysis', 'cost'."""

    @classmethod
    def read(cls, folder: Path, name: str) -> ReportedRun:
        """Read a run folder. Raises UserError where it is not one."""
        config, files = read_run(folder)
        run = cls(name, folder, config, files.given())
        with run._noting("history"):
            run.history = read_history(folder)
            if run.history.no_steps:
                run.missing["steps"] = run.history.no_steps
        with run._noting("numbers"):
            run.numbers = read_metrics(folder / METRICS).best
        with run._noting("analysis"):
            files.check_links()
            run.data, _ = read_coco(files.val_json, files.val_images)
            run.truth = ground_truth_of(run.data)
            run.predictions = read_predictions(folder / PREDICTIONS, run.data)
        return run

    def analyse(self, first: ReportedRun) -> None:
        """Measure the detections, in size bins of the first run of the page where both have the same data."""
        if self.data is None or first.data is None:
            self.same_data = real_path(self.files["val_json"]) == real_path(first.files["val_json"])
        else:
            self.same_data = checksum(self.data) == checksum(first.data)
        if not self.same_data:
            self.name += " (other data)"
        if self.data is None or self.truth is None or self.predictions is None:
            return
        base = first.truth if self.same_data and first.truth is not None else self.truth
        with self._noting("analysis"):
            self.analysis = analyse(self.data, self.truth, self.predictions, size_edges(base))

    @property
    def summary(self) -> str:
        """The detector in a few words."""
        config = self.config
        return f"{config.detector}, {config.backbone}, {config.neck}, {config.size} px"

    @property
    def data_summary(self) -> str:
        """The validation set in a few words."""
        if self.data is None:
            return str(self.files["val_json"])
        objects = int((~self.data.crowd).sum())
        return (
            f"{len(self.data)} images, {objects} objects, {len(self.data.classes)} classes ({self.data.file})"
        )

    @property
    def command(self) -> str:
        """The command that trains the same again."""
        words = [
            word for key, path in self.files.items() for word in (f"--{key.replace('_', '-')}", str(path))
        ]
        return shlex.join(["msefpn", "train", "--recipe", str(self.folder / CONFIG), *words])

    @contextlib.contextmanager
    def _noting(self, part: str) -> Iterator[None]:
        """Note why a part cannot be shown, instead of failing."""
        try:
            yield
        except (UserError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            self.missing[part] = " ".join(str(error).split()) or type(error).__name__

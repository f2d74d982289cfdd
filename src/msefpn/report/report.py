"""The report of runs: what their folders hold, gathered and drawn into one page."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import shlex
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msefpn.config import Config, to_yaml
from msefpn.data.coco import CocoData, read_coco
from msefpn.data.proposals import with_proposals
from msefpn.errors import UserError
from msefpn.html.page import COLORS
from msefpn.metrics.confusion import match_outcomes
from msefpn.metrics.curves import ap_over_sizes, best_f1, precision_curves, size_edges
from msefpn.metrics.errors import analyse_errors
from msefpn.metrics.matching import BoxPredictions, GroundTruth
from msefpn.report.cost import prices_of
from msefpn.report.images import Seen, pictures_of
from msefpn.report.page import run_page
from msefpn.report.view import Analysis, Curve, Price, RunView
from msefpn.runs.console import say
from msefpn.runs.folder import CONFIG, LOG, METRICS, PREDICTIONS, Sources, free_file, read_run, write_text

PAGE = "report.html"


def report(runs: Sequence[Path], out: Path | None) -> Path:
    """Write the page; see `msefpn.commands.inspect.report`."""
    if not runs:
        raise UserError("no run is given: name the folders that 'msefpn train' wrote")
    if len(runs) > COLORS:
        raise UserError(f"{len(runs)} runs are too many for one page: give at most {COLORS}")
    if twice := sorted({str(run) for run in runs if runs.count(run) > 1}):
        raise UserError(f"run '{twice[0]}' is given twice: name each run once")
    if out is not None and out.exists():
        raise UserError(f"out '{out}' is there already: name another file")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"out '{out}' cannot be written: there is no folder '{out.absolute().parent}'")
    read = [read_run(run) for run in runs]
    file = out or (runs[0] / PAGE if len(runs) == 1 else free_file(Path("report.html")))
    opened = [_Opened.of(run, *parts) for run, parts in zip(runs, read, strict=True)]
    names = _names(runs)
    prices = prices_of([(one.folder, one.config, one.data) for one in opened])
    views = [
        _view(one, name, opened[0], price) for one, name, price in zip(opened, names, prices, strict=True)
    ]
    seen = [
        Seen(name, one.data, one.truth, one.predicted, view.analysis.score)
        for name, one, view in zip(names, opened, views, strict=True)
        if one.data is not None and one.truth is not None and one.predicted is not None
        if view.analysis is not None and view.same_data
    ]
    page = run_page(views, pictures_of(seen))
    write_text(file, page)
    say(f"report: {file} ({len(page.encode()) / 2**20:.1f} MB)")
    return file


def report_training(run: Path) -> None:
    """Write the page of a run that has just ended; where that fails, say so in a line."""
    try:
        report([run], None)
    except Exception as error:  # nothing about a page may fail a training
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"no report of this run: {reason}; try msefpn report {run}")


@dataclass(frozen=True)
class _Opened:
    """A run's folder, with the data and the detections that can be read."""

    folder: Path
    config: Config
    sources: Sources
    data: CocoData | None
    truth: GroundTruth | None
    predicted: BoxPredictions | None
    mark: int
    """Changes with the validation data."""
    missing: dict[str, str]

    @classmethod
    def of(cls, folder: Path, config: Config, sources: Sources) -> _Opened:
        missing: dict[str, str] = {}
        data = truth = predicted = None
        with _noting(missing, "analysis"):
            data, _ = read_coco(sources.val_json, sources.val_images)
            if config.takes_proposals and sources.val_proposals is not None:
                data = with_proposals(data, sources.val_proposals)
            truth = _truth(data)
            predicted = _predicted(folder / PREDICTIONS, data)
        mark = 0
        if data is not None:
            mark = zlib.crc32(repr((data.classes, data.names, data.ids.tolist())).encode())
            mark = zlib.crc32(data.labels.tobytes(), zlib.crc32(data.boxes.tobytes(), mark))
        return cls(folder, config, sources, data, truth, predicted, mark, missing)

    def is_on_the_data_of(self, other: _Opened) -> bool:
        if self.data is None or other.data is None:
            return self.sources.val_json.resolve() == other.sources.val_json.resolve()
        return self.mark == other.mark


@contextlib.contextmanager
def _noting(missing: dict[str, str], key: str) -> Iterator[None]:
    """Note why a part cannot be shown, instead of failing."""
    try:
        yield
    except (UserError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        missing[key] = " ".join(str(error).split()) or type(error).__name__


def _view(opened: _Opened, name: str, first: _Opened, price: Price | str) -> RunView:
    folder, config = opened.folder, opened.config
    same_data = opened.is_on_the_data_of(first)
    missing = dict(opened.missing)
    rows: list[dict[str, float]] = []
    steps: dict[str, Curve] = {}
    numbers: dict[str, Any] = {}
    analysis = None
    if isinstance(price, str):
        missing["price"] = price
    with _noting(missing, "log"):
        rows = _log(folder / LOG)
    with _noting(missing, "steps"):
        steps = _steps(folder / "tensorboard")
    with _noting(missing, "numbers"):
        numbers = _numbers(folder / METRICS)
    if opened.truth is not None and opened.predicted is not None and opened.data is not None:
        with _noting(missing, "analysis"):
            base = first.truth if same_data and first.truth is not None else opened.truth
            analysis = _analysis(opened.data, opened.truth, opened.predicted, base)
    return RunView(
        name=name if same_data else f"{name} (other data)",
        folder=str(folder),
        summary=f"{config.detector}, {config.backbone}, {config.neck}, {config.size} px",
        config=to_yaml(config),
        command=_command(folder, config, opened.sources),
        data=_about(opened),
        same_data=same_data,
        rows=rows,
        steps=steps,
        numbers=numbers,
        epochs=config.epochs,
        analysis=analysis,
        price=None if isinstance(price, str) else price,
        missing=missing,
    )


def _about(opened: _Opened) -> str:
    if opened.data is None:
        return str(opened.sources.val_json)
    data = opened.data
    return (
        f"{len(data)} images, {int((~data.crowd).sum())} objects, {len(data.classes)} classes ({data.file})"
    )


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest parts of the paths that tell the runs apart."""
    parts = [list(run.resolve().parts) for run in runs]
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _command(folder: Path, config: Config, sources: Sources) -> str:
    files = sources.read_by(config).given().items()
    words = [word for key, path in files for word in (f"--{key.replace('_', '-')}", str(path))]
    return shlex.join(["msefpn", "train", "--recipe", str(folder / CONFIG), *words])


def _log(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        raise UserError(f"there is no {path}")
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _numbers(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}")
    best: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("best")
    if not best:
        raise UserError(f"{path} tells of no best epoch")
    return best


def _steps(folder: Path) -> dict[str, Curve]:
    if not folder.is_dir():
        raise UserError(f"there is no {folder}")
    from tensorboard.backend.event_processing import event_accumulator  # noqa: PLC0415  slow to import

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.SCALARS: 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/")]
    read = {tag.removeprefix("train/"): events.Scalars(tag) for tag in tags}
    if not read:
        raise UserError(f"{folder} holds no training step")
    return {name: Curve([e.step for e in found], [e.value for e in found]) for name, found in read.items()}


def _truth(data: CocoData) -> GroundTruth:
    image = np.repeat(_places(data), np.diff(data.offsets))
    boxes = np.concatenate([data.boxes[:, :2], data.boxes[:, 2:] - data.boxes[:, :2]], 1).astype(np.float64)
    return GroundTruth(image, data.labels, boxes, data.areas, data.crowd)


def _places(data: CocoData) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The number of each image in the order of the ids, in which COCO's protocol takes them."""
    places = np.empty(len(data), dtype=np.int64)
    places[np.argsort(data.ids)] = np.arange(len(data))
    return places


def _predicted(path: Path, data: CocoData) -> BoxPredictions:
    if not path.is_file():
        raise UserError(f"there is no {path}")
    results = json.loads(path.read_text(encoding="utf-8"))
    image_of = dict(zip(data.ids.tolist(), _places(data).tolist(), strict=True))
    label_of = {id: label for label, id in enumerate(data.category_ids)}
    known = [r for r in results if r["image_id"] in image_of and r["category_id"] in label_of]
    found = BoxPredictions(
        np.array([image_of[item["image_id"]] for item in known], dtype=np.int64),
        np.array([label_of[item["category_id"]] for item in known], dtype=np.int64),
        np.array([item["bbox"] for item in known], dtype=np.float64).reshape(-1, 4),
        np.array([item["score"] for item in known], dtype=np.float64),
    )
    return found.where(np.argsort(found.image, kind="stable"))


def _analysis(data: CocoData, truth: GroundTruth, predicted: BoxPredictions, base: GroundTruth) -> Analysis:
    """`base`: the truth whose sizes the bins are made from."""
    classes = len(data.classes)
    curves = precision_curves(truth, predicted, classes)
    score, f1, precision, recall = best_f1(truth, predicted, curves)
    return Analysis(
        classes=data.classes,
        images=len(data),
        objects=np.bincount(truth.label[~truth.crowd], minlength=classes).tolist(),
        precision=curves.precision,
        sizes=ap_over_sizes(truth, predicted, classes, size_edges(base)),
        errors=analyse_errors(truth, predicted, classes),
        matrix=match_outcomes(truth, predicted, classes, len(data), score=score).matrix,
        score=score,
        f1=f1,
        found=precision,
        recall=recall,
    )

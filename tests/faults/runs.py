"""A training of three epochs in half a second, whose second epoch is the best."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from msefpn.config import Config
from msefpn.data import synthetic
from msefpn.metrics import coco
from msefpn.metrics.coco import CocoEvaluation
from msefpn.models import Detector, probe
from msefpn.training import lightning as lit
from msefpn.training import train
from msefpn.training.recorder import Recorder

EPOCHS = 3
LOGS = ("metrics.csv", "log.jsonl")
"""Files that may be ahead of the state: a resumed run drops what was not kept."""
APS = (0.1, 0.3, 0.2)
RECIPE = {
    "backbone": "test_resnet",
    "backbone_options": {"frozen_stages": -1, "train_norm": True},
    "neck": "fpn",
    "neck_options": {"out_channels": 8},
    "detector": "retinanet",
    "init": "none",
    "size": 64,
    "epochs": EPOCHS,
    "batch": 2,
    "lr": 0.02,
    "warmup": 0,
    "workers": 0,
    "device": "cpu",
    "ema": 0.9,
}


def draw_data(folder: Path) -> Path:
    """Two images to learn from and one to evaluate on, and a recipe beside them."""
    synthetic.draw_builtin_set(folder, train=2, val=1, seed=0, size=64)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def command(data: Path, out: Path) -> list[str]:
    return ["train", "--data", str(data), "--recipe", str(data / "recipe.yaml"), "--out", str(out)]


def resuming(out: Path) -> list[str]:
    return ["train", "--resume", "--out", str(out)]


def script_aps(patch: pytest.MonkeyPatch) -> None:
    """Give the epochs the APs of `APS`, leave out the report at the end, and look at each detector once."""
    evaluate, start, now = coco.evaluate_coco, lit.Training.on_train_epoch_start, [0]

    def started(training: Any) -> None:
        now[0] = training.epoch
        start(training)

    def evaluated(*args: Any, **options: Any) -> CocoEvaluation:
        found = evaluate(*args, **options)
        box = dataclasses.replace(found.box, numbers={**found.box.numbers, "AP": APS[now[0]]})
        return dataclasses.replace(found, box=box)

    patch.setattr(lit.Training, "on_train_epoch_start", started)
    patch.setattr(lit, "evaluate_coco", evaluated)
    patch.setattr(coco, "hotcoco", None)  # its threads do not survive a fork
    patch.setattr("msefpn.reporting.report.report_training", lambda _: None)
    patch.setattr(train, "probe", _probed)


_detectors: dict[str, Detector] = {}


def _probed(config: Config) -> Detector:
    """As `probe`, which takes a third of the time of a training that is refused."""
    if repr(config) not in _detectors:
        _detectors[repr(config)] = probe(config)
    return _detectors[repr(config)]


_digests: dict[tuple[int, int], str] = {}
"""Of large files, by number and time."""


def digest(file: Path) -> str:
    """Of a file's bytes; of tensors and plain values, those: their files' order and sharing say nothing."""
    if file.suffix not in (".safetensors", ".ckpt"):
        return hashlib.sha256(file.read_bytes()).hexdigest()
    key = file.stat().st_ino, file.stat().st_mtime_ns
    if not zipfile.is_zipfile(file) and file.suffix == ".ckpt":  # damaged
        return hashlib.sha256(file.read_bytes()).hexdigest()
    if key not in _digests:
        values = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        _digests[key] = _digest_of(values)
    return _digests[key]


def _digest_of(values: Any) -> str:
    mark = hashlib.sha256()
    if isinstance(values, dict):
        for name, value in sorted(values.items(), key=lambda item: str(item[0])):
            mark.update(f"{name} {_digest_of(value)}".encode())
    elif isinstance(values, torch.Tensor):
        mark.update(values.numpy().tobytes())
    else:
        mark.update(repr(values).encode())
    return mark.hexdigest()


def content(folder: Path) -> dict[str, str]:
    """What a run folder holds, speed left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = _without_speed(path)
    return found


def _without_speed(path: Path) -> str:
    if path.name == "metrics.csv":
        rows = csv.DictReader(path.read_text().splitlines())
        return repr([{**row, "images_per_second": ""} for row in rows])
    if path.name == "log.jsonl":
        return re.sub(r'"images_per_second": [^,}]*', "", path.read_text())
    return digest(path)


def epochs_in(folder: Path, epoch_of: dict[str, int]) -> tuple[int, int]:
    """Best and last epoch of a run folder, after a check that all files agree; (0, 0): none is kept.

    Args:
        folder: the run folder.
        epoch_of: digest of weights -> their epoch.
    """
    names = ("best.safetensors", "last.safetensors", "metrics.json", "predictions.json", "resume.ckpt")
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return 0, 0
    assert there == list(names), f"{folder} has {there} alone"
    numbers = json.loads((folder / "metrics.json").read_text())
    best, last = numbers["best"]["epoch"], numbers["last"]["epoch"]
    assert epoch_of[digest(folder / "best.safetensors")] == best
    assert epoch_of[digest(folder / "last.safetensors")] == last
    assert epoch_of[digest(folder / "resume.ckpt")] == last
    return best, last


def noting_epochs(patch: pytest.MonkeyPatch, out: Path, also: Callable[[], None]) -> dict[str, int]:
    """Fill a table digest of weights -> epoch while a training runs; `also` is called after each epoch."""
    keep, epoch_of = Recorder.epoch, {}

    def kept(recorder: Any, epoch: int, *args: Any) -> None:
        keep(recorder, epoch, *args)
        for name in ("last.safetensors", "resume.ckpt"):
            epoch_of[digest(out / name)] = epoch
        also()

    patch.setattr(Recorder, "epoch", kept)
    return epoch_of

"""The state that a run is resumed from: reading it, and whether it fits the run as it is now."""

from __future__ import annotations

import json
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.data.coco import CocoData
from msefpn.errors import UserError
from msefpn.models import Detector
from msefpn.reading import MAX_DEPTH, open_file
from msefpn.runs.folder import CONFIG, LAST, METRICS, RESUME
from msefpn.runs.metrics import read_metrics
from msefpn.training.fingerprint import DataMarks, settings_of
from msefpn.training.plan import CHANGEABLE, Plan
from msefpn.training.position import Position, fault_of, fits
from msefpn.training.schedule import make_optimizer

_KINDS: dict[str, type] = {
    "epoch": int,
    "step": int,
    "best": dict,
    "detector": dict,
    "optimizer": dict,
    "classes": list,
    "category_ids": list,
    "config": dict,
    "data": dict,
}
"""What a state holds besides `ema`, which may be None. A state within an epoch also holds `within`, see
`Position`; with fp16 also the `scaler` of the gradients."""


def read_resume(path: Path) -> dict[str, Any]:
    """Read a state; it holds tensors and plain values only.

    Raises:
        UserError: it is damaged, was edited, or was written by another version.
    """
    again = f"restore it, or start a new run with --init {path.with_name(LAST)}"
    try:
        with open_file(path) as file, warnings.catch_warnings(action="ignore"):  # of what is refused below
            _check_archive(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on broken bytes
        raise UserError(f"'{path}' is damaged or half-written: {again}") from error
    if not isinstance(state, dict) or not state.keys() >= {*_KINDS, "ema"}:
        raise UserError(f"'{path}' is not the state of a run of this version: {again}")
    if fault := _fault(state):
        raise UserError(f"'{path}' is damaged or was edited: {fault}: {again}")
    return state


def _check_archive(file: BinaryIO) -> None:
    """Raise ValueError where torch would unpack more than the file has: it writes without compression."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("compressed")
    if sum(part.file_size for part in parts) > file.seek(0, os.SEEK_END):
        raise ValueError("larger than the file")
    file.seek(0)


def _fault(state: dict[str, Any]) -> str:
    """What is wrong with the values of a state; empty: nothing."""
    for place, value in _leaves(state, "", 0):
        if fault := _leaf_fault(value):
            return f"{place} {fault}"
    for key, kind in _KINDS.items():
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            return f"{key} is not of type {kind.__name__}"
    if not isinstance(state["ema"], (dict, type(None))):
        return "ema is not of type dict"
    epoch, step, best = state["epoch"], state["step"], state["best"]
    within = state.get("within") is not None
    if not (0 if within else 1) <= epoch <= step or step < 1:
        return f"epoch {epoch} and step {step} do not go together"
    if epoch == 0:
        best = {"epoch": 0, "step": 0, "AP": 0.0} if best == {} else {}
    elif not (_is_count(best.get("epoch"), epoch) and _is_count(best.get("step"), step)):
        return "best names no epoch and step"
    if not isinstance(best.get("AP"), (int, float)):
        return "best has no AP"
    if not all(isinstance(name, str) for name in state["classes"]):
        return "classes are not texts"
    if not all(type(number) is int for number in state["category_ids"]):
        return "category_ids are not whole numbers"
    if len(state["classes"]) != len(state["category_ids"]):
        return "classes and category_ids do not go together"
    for key in ("detector", "ema"):
        for name, value in (state[key] or {}).items():
            if not isinstance(value, Tensor):
                return f"{key} has no tensor {name}"
    for key in ("best", "config"):
        if any(isinstance(value, Tensor) for _, value in _leaves(state[key], key, 0)):
            return f"{key} has a tensor"
    if not isinstance(state.get("scaler", {}), dict):
        return "scaler is not of type dict"
    if not isinstance(state["data"].get("pictures", {}), dict):
        return "data.pictures is not of type dict"
    return fault_of(state.get("within"), state["config"].get("accumulate"))


def _leaves(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Each single value inside dicts, lists and tuples, and its place; what is too deep, as it is."""
    if depth > MAX_DEPTH or not isinstance(value, (dict, list, tuple)):
        yield place, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{place}.{key}" if place else str(key), depth + 1)


def _leaf_fault(value: Any) -> str:
    """What is wrong with a single value; empty: nothing."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else "is not finite"
    if not isinstance(value, Tensor):
        plain = isinstance(value, (str, int, type(None)))
        return "" if plain else f"is a {type(value).__name__}, or nested too deeply"
    size = value.numel() * value.element_size()
    whole = type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu"
    if not whole or value.is_quantized or value.is_complex() or size > value.untyped_storage().nbytes():
        return "is not a plain tensor"
    finite = not value.is_floating_point() or bool(value.isfinite().all())
    return "" if finite else "has values that are not finite"


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and 1 <= value <= most


def state_to_resume(
    plan: Plan, detector: Detector, train: CocoData, val: CocoData, marks: DataMarks
) -> dict[str, Any] | None:
    """The state to resume a run from, which fits its configuration and data; None: no epoch was finished.

    Raises:
        UserError: the state is damaged, or the configuration, the data or the numbers are others now, or
            there is nothing left to do.
    """
    path = plan.out / RESUME
    if not path.exists():
        return None
    state = read_resume(path)
    _check_classes(plan, state, train)
    _check_data(plan, state, marks, train, val)
    _check_settings(plan, state["config"])
    _check_fit(plan, state, detector)
    if state["best"]:
        _check_numbers(plan, state["best"])
    if plan.steps is not None and state["step"] >= plan.steps:
        raise UserError(f"the run '{plan.out}' has done {state['step']} steps: give more with --steps")
    if state["epoch"] >= plan.config.epochs:
        raise UserError(f"the run '{plan.out}' has all its {state['epoch']} epochs: give more with --epochs")
    return state


def _check_classes(plan: Plan, state: dict[str, Any], data: CocoData) -> None:
    kept = tuple(state["classes"]), tuple(state["category_ids"])
    if kept != (data.classes, data.category_ids):
        same = set(kept[0]) == set(data.classes)
        what = "the classes in another order or under other ids" if same else "other classes"
        raise UserError(
            f"the run '{plan.out}' has {what} than {data.file}: restore the data, or start a new run"
        )


def _check_data(plan: Plan, state: dict[str, Any], marks: DataMarks, train: CocoData, val: CocoData) -> None:
    kept, own = state["data"], marks.to_state()
    since = f"since the run '{plan.out}' began: restore it, or start a new run"
    for split, data in (("train", train), ("val", val)):
        if kept.get(split) != own[split]:
            raise UserError(f"{data.file} has changed {since}")
    for split, data in (("train", train), ("val", val)):
        before, now = kept.get("pictures", {}).get(split), marks.pictures.get(split)
        if now is None:
            continue
        if not isinstance(before, Tensor) or before.shape != now.shape:
            raise UserError(f"'{plan.out / RESUME}' is damaged: it has no marks of the {split} pictures")
        changed = (before != now).nonzero().flatten().tolist()
        if changed:
            more = f", and {len(changed) - 1} more" * (len(changed) > 1)
            raise UserError(f"picture {data.path_of(changed[0])}{more} has changed {since}")


def _check_settings(plan: Plan, kept: dict[str, Any]) -> None:
    own = settings_of(plan.config)
    for key in own.keys() & kept.keys():
        if own[key] != kept[key] and key not in CHANGEABLE:
            raise UserError(
                f"'{plan.out / CONFIG}' has {key} {own[key]}, but the run was trained with {kept[key]}: "
                f"restore it, or start a new run with --init {plan.out / LAST}"
            )


def _check_fit(plan: Plan, state: dict[str, Any], detector: Detector) -> None:
    """Raise UserError where tensors are not those of the detector and its optimizer."""
    own = {name: (value.shape, value.dtype) for name, value in detector.state_dict().items()}
    averages = state["ema"] if plan.config.ema else {}
    fit = fits(Position.of_state(state), detector.state_dict(), bool(plan.config.ema)) and all(
        isinstance(kept, dict) and {name: (value.shape, value.dtype) for name, value in kept.items()} == own
        for kept in ([state["detector"], averages] if plan.config.ema else [state["detector"]])
    )
    if not fit or not _optimizer_fits(plan.config, state["optimizer"], detector):
        raise UserError(
            f"'{plan.out / RESUME}' does not fit the detector of '{plan.out / CONFIG}': restore both, or "
            f"start a new run with --init {plan.out / LAST}"
        )


def _optimizer_fits(config: Config, kept: dict[str, Any], detector: Detector) -> bool:
    optimizer = make_optimizer(detector, config)
    fresh = [{**group, "lr": 0, "params": 0} for group in optimizer.param_groups]
    try:
        types = {weight.dtype for weight in detector.parameters()}
        if any(
            x.dim() and x.dtype not in types
            for _, x in _leaves(kept["state"], "", 0)
            if isinstance(x, Tensor)
        ):
            return False  # torch would convert it
        optimizer.load_state_dict(kept)
        loaded = [{**group, "lr": 0, "params": 0} for group in optimizer.param_groups]
        return loaded == fresh and all(
            value.dim() == 0 or value.shape == weight.shape
            for weight, values in optimizer.state.items()
            for value in values.values()
            if isinstance(value, Tensor)
        )
    except Exception:  # torch checks little, and raises what it stumbles over
        return False


def change_of_processes(state: dict[str, Any], config: Config) -> str:
    """What another number of processes than before changes in a resumed run; empty: it is the same number."""
    kept = int(state["config"].get("devices", 1)) * int(state["config"].get("nodes", 1))
    if kept == config.processes:
        return ""
    text = f"{kept} {'process' if kept == 1 else 'processes'} before, {config.processes} from now on: "
    if state.get("within") is not None:
        text += f"in the rest of epoch {state['epoch'] + 1} some images come twice and others not at all; "
    return f"{text}the images of a step are others than in an unbroken run, and so are the final weights"


def _check_numbers(plan: Plan, best: dict[str, Any]) -> None:
    """Raise UserError where metrics.json, if it is there, is not the state's."""
    path = plan.out / METRICS
    if path.exists() and read_metrics(path).best != json.loads(json.dumps(best)):
        raise UserError(
            f"'{path}' has another best epoch than '{plan.out / RESUME}': restore both, or remove '{path}'"
        )

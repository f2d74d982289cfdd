"""Whether all processes of a training were given the same: version, configuration, data and state."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.errors import UserError
from msefpn.runs.peers import Peers
from msefpn.training.fingerprint import DataMarks, settings_of
from msefpn.training.plan import Plan
from msefpn.version import __version__

_OF_THE_FIRST = ("logger", "callback", "plugins", "workers")
"""Settings that may differ: only the first process uses them, or they change nothing of the result."""
_SAME_VERSION = "install the same versions on all nodes"
_SAME_DATA = "give all nodes the same files"
_SAME_OPTIONS = "give the same options on all nodes"
_SAME_FOLDER = "the run folder must lie on a file system that all nodes share"


def check_alike(
    peers: Peers, plan: Plan, marks: DataMarks, state: dict[str, Any] | None, device: torch.device
) -> None:
    """Raise UserError in all processes where one was given something else than the first."""
    every = peers.exchange("fingerprint", [peers.host, fingerprint(plan, marks, state, device)])
    for rank, (host, theirs) in enumerate(every):
        if fault := difference(every[0][1], theirs):
            raise UserError(f"process {rank} ({host}) and process 0 ({every[0][0]}) differ: {fault}")


def fingerprint(
    plan: Plan, marks: DataMarks, state: dict[str, Any] | None, device: torch.device
) -> dict[str, dict[str, Any]]:
    """What has to be the same in all processes, as plain values: what to do about a difference -> values."""
    options = {key: value for key, value in settings_of(plan.config).items() if key not in _OF_THE_FIRST}
    pictures = {f"{split} pictures": _mark([value]) for split, value in marks.pictures.items()}
    resumed = None if state is None else f"step {state['step']}, {_mark(state['detector'].values()):08x}"
    return {
        _SAME_VERSION: {"msefpn": _own_version(), "torch": torch.__version__},
        _SAME_OPTIONS: {**options, "steps": plan.steps, "resume": plan.resume, "device": device.type},
        _SAME_DATA: {
            "train annotations": marks.train,
            "val annotations": marks.val,
            **pictures,
        },
        _SAME_FOLDER: {"state to resume": resumed},
    }


def difference(first: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> str:
    """How a fingerprint differs from the first process's, and what to do; empty: it does not."""
    for fix, values in first.items():
        theirs = other.get(fix, {})
        for key, value in values.items():
            if fix == _SAME_DATA and key not in theirs:  # pictures: of the first process of each node
                continue
            if theirs.get(key) != value:
                if fix == _SAME_DATA:
                    return f"the {key} are not the same: {fix}"
                return f"{key} is {theirs.get(key)} and {value}: {fix}"
    return ""


def _own_version() -> str:
    """Version and a mark of the code, which people change without another version."""
    package = Path(__file__).parents[1]
    value = 0
    for file in sorted(package.rglob("*.py")):
        value = zlib.crc32(file.read_bytes(), value)
    return f"{__version__} (code {value:08x})"


def _mark(tensors: Any) -> int:
    value = 0
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(), value)
    return value

"""Files of checkpoints: torch's formats, wrappers, other types of numbers, and what is broken."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from msefpn.errors import UserError
from msefpn.models.importers.files import read_checkpoint

STATE = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "half": torch.ones(2, dtype=torch.float16),
    "brain": torch.ones(2, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "view": torch.arange(12).view(3, 4)[:, 1:3],
    "empty": torch.zeros(0),
}


def same(read: dict[str, torch.Tensor]) -> bool:
    return read.keys() == STATE.keys() and all(torch.equal(read[name], x) for name, x in STATE.items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_formats_of_torch(legacy: bool, wrapper: str, tmp_path: Path) -> None:
    state: Any = STATE
    if wrapper == "model":
        state = {f"module.{name}": x for name, x in STATE.items()}
    content = {wrapper: state, "epoch": 3} if wrapper else state
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(tmp_path / "a.pth")
    assert same(read.state)
    assert read.meta == ({"epoch": 3} if wrapper else {})
    assert read.skipped == ()


def test_state_dict_of_a_module(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(2)
    torch.save(module.state_dict(), tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth").state
    assert list(read) == list(module.state_dict())
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").state["a"].tolist() == [1, 1]


class HistoryBuffer:
    """As mmengine's: arrays, and methods by getattr."""

    def __init__(self) -> None:
        self._log_history = np.array([1.0, 2.0])
        self.statistics_methods = {"mean": HistoryBuffer.mean}

    def mean(self) -> float:
        """A method."""
        return float(self._log_history.mean())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(2)


@pytest.mark.parametrize("legacy", [False, True])
def test_raw_files_of_a_runner(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("mmengine_like")
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine_like", module)
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine_like")
    content = {
        "state_dict": STATE,
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "best": np.float64(0.5)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "a.pth", weights_only=True)
    monkeypatch.delitem(sys.modules, "mmengine_like")
    read = read_checkpoint(tmp_path / "a.pth")
    assert same(read.state)
    assert "mmengine_like.HistoryBuffer" in read.skipped
    assert read.meta["message_hub"]["best"] == 0.5
    assert "mmengine_like" not in sys.modules


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_parts_of_a_file_are_refused(legacy: bool, share: float, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"state_dict": {"w": torch.zeros(500)}}, file, _use_new_zipfile_serialization=not legacy)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"a\.pth cannot be read .* take another copy") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state_dict": {"a": 3}}, "a state dict with 'a', which is not a tensor"),
        ({3: torch.zeros(1)}, "holds no state dict"),
        ({"a\x1b[2J": torch.zeros(1)}, "names are not plain text"),
    ],
)
def test_other_contents_are_refused(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=says):
        read_checkpoint(tmp_path / "a.pth")


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "nothing.pth").write_bytes(b"")
    for name in ("text.pth", "nothing.pth"):
        with pytest.raises(UserError, match="cannot be read"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "b.pth")

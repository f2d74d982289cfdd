"""Hostile and broken pickles: nothing of them runs, and nothing large is reserved."""

import collections
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msefpn.errors import UserError
from msefpn.models.importers.files import read_checkpoint
from msefpn.models.importers.unpickle import Inert

MARK = "hostile"
"""File that the attacks try to make in the current folder."""


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.call


def named(module: str, name: str, *args: Any) -> bytes:
    """A pickle that calls a function by name with texts."""
    body = b"".join(pickle.BINUNICODE + struct.pack("<I", len(x)) + x.encode() for x in args)
    return pickle.GLOBAL + f"{module}\n{name}\n".encode() + pickle.MARK + body + pickle.TUPLE + pickle.REDUCE


def in_state(value: bytes) -> bytes:
    """A checkpoint whose state dict holds a tensor and, beside it, what these bytes make."""
    array = pickle.dumps(np.zeros(2, np.float32), protocol=2)[2:-1]
    head = b"\x80\x04" + pickle.EMPTY_DICT
    model = pickle.BINUNICODE + struct.pack("<I", 5) + b"model"
    weight = pickle.EMPTY_DICT + pickle.BINUNICODE + struct.pack("<I", 1) + b"w" + array + pickle.SETITEM
    extra = pickle.BINUNICODE + struct.pack("<I", 5) + b"extra" + value + pickle.SETITEM
    return head + model + weight + pickle.SETITEM + extra + pickle.STOP


SHELL = f"touch {MARK}"
CODE = f"open('{MARK}', 'w')"
REFUSED = {
    "os.system": named("os", "system", SHELL),
    "posix.system": named("posix", "system", SHELL),
    "subprocess.getoutput": named("subprocess", "getoutput", SHELL),
    "builtins.eval": named("builtins", "eval", CODE),
    "__builtin__.eval": named("__builtin__", "eval", CODE),
    "builtins.exec": named("builtins", "exec", CODE),
    "builtins.__import__": named("builtins", "__import__", "os"),
    "builtins.open": named("builtins", "open", MARK, "w"),
    "importlib.import_module": named("importlib", "import_module", "this"),
    "pickle.loads": named("pickle", "loads", "x"),
    "extension 1": pickle.EXT1 + b"\x01",
    "os.path.join": b"\x8c\x02os\x8c\x09path.join\x93",
    "runpy.run_path": pickle.MARK + b"S'x'\nirunpy\nrun_path\n",
}
"""What is refused by name, and a pickle of it."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_checkpoint_needs_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pkl"
    file.write_bytes(in_state(REFUSED[name]))
    with pytest.raises(UserError, match="may be hostile") as caught:
        read_checkpoint(file)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_the_attacks_would_work() -> None:
    loaded = pickle.loads(named("builtins", "eval", "1 + 1") + pickle.STOP)
    assert loaded == 2


def chain() -> bytes:
    """getattr(getattr(mmengine's class, "__init__"), "__globals__")["os"].system(...), as far as it goes."""
    get = pickle.GLOBAL + b"builtins\ngetattr\n"
    cls = pickle.GLOBAL + b"mmengine.logging.history_buffer\nHistoryBuffer\n"

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()

    inner = get + cls + text("__init__") + pickle.TUPLE2 + pickle.REDUCE
    scope = get + inner + text("__globals__") + pickle.TUPLE2 + pickle.REDUCE
    return get + scope + text("system") + pickle.TUPLE2 + pickle.REDUCE


INERT: dict[str, bytes] = {
    "an object of mmengine": named("mmengine.logging", "HistoryBuffer"),
    "a chain of getattr": chain(),
    "a function of an unknown package": named("evil", "run", SHELL),
    "a class that is built": pickle.GLOBAL
    + b"evil\nThing\n"
    + pickle.EMPTY_TUPLE
    + pickle.NEWOBJ
    + pickle.EMPTY_DICT
    + pickle.BINUNICODE
    + struct.pack("<I", 9)
    + b"__class__"
    + pickle.NONE
    + pickle.SETITEM
    + pickle.BUILD,
    "a list that is not one": pickle.GLOBAL
    + b"evil\nL\n"
    + pickle.EMPTY_TUPLE
    + pickle.REDUCE
    + pickle.MARK
    + pickle.NONE
    + pickle.APPENDS,
}


@pytest.mark.parametrize("name", INERT)
def test_other_objects_are_skipped_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pkl"
    file.write_bytes(in_state(INERT[name]))
    checkpoint = read_checkpoint(file)
    assert checkpoint.state.keys() == {"w"}
    assert checkpoint.skipped
    assert isinstance(checkpoint.meta["extra"], Inert)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def storage(count: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """A tensor as torch pickles it, with other numbers."""

    def number(value: int) -> bytes:
        return pickle.LONG1 + bytes([9]) + value.to_bytes(9, "little", signed=True)

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()

    def several(values: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE

    kind = pickle.GLOBAL + b"torch\nFloatStorage\n"
    place = pickle.MARK + text("storage") + kind + text(key) + text("cpu") + number(count) + pickle.TUPLE
    rebuild = pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"
    rest = number(0) + several(size) + several(stride) + pickle.NEWFALSE + pickle.EMPTY_DICT
    return rebuild + pickle.MARK + place + pickle.BINPERSID + rest + pickle.TUPLE + pickle.REDUCE


def array(shape: tuple[int, ...], raw: bytes, code: str = "f4") -> bytes:
    """numpy's _reconstruct with other numbers, called and built as numpy does it."""
    state = (1, shape, np.dtype(code), False, raw)
    made = pickle.dumps(Call(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b", state=state), protocol=2)
    return made[2:-1]


def huge_bytes() -> bytes:
    return pickle.BINBYTES8 + struct.pack("<Q", 1 << 40)


BROKEN: dict[str, Callable[[], bytes]] = {
    "bytes of a terabyte": huge_bytes,
    "a bytearray of a terabyte": lambda: pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40),
    "a text of a terabyte": lambda: pickle.BINUNICODE8 + struct.pack("<Q", 1 << 40),
    "a frame of a terabyte": lambda: pickle.FRAME + struct.pack("<Q", 1 << 40),
    "a memo that is not there": lambda: pickle.LONG_BINGET + struct.pack("<I", (1 << 32) - 1),
    "a tensor of a storage that is not there": lambda: storage(4, (4,), (1,)),
    "a tensor that is larger than its storage": lambda: storage(4, (1 << 40,), (0,)),
    "a tensor past the end of its storage": lambda: storage(4, (2, 2), (4, 1)),
    "a tensor of negative size": lambda: storage(4, (-1,), (1,)),
    "a storage that is no storage": lambda: pickle.NONE + pickle.BINPERSID,
    "an array of a terabyte": lambda: array((1 << 40,), b"1234"),
    "an array of objects": lambda: array((1,), b"12345678", "O"),
    "an array without bytes": lambda: array((), b""),
    "a stack that is empty": lambda: pickle.REDUCE,
    "attributes of a text": lambda: b"S'x'\n" + pickle.EMPTY_DICT + pickle.BUILD,
}
"""Values of a state dict that cannot be read."""


@pytest.mark.parametrize("name", BROKEN)
def test_wrong_numbers_are_refused_without_memory(name: str, tmp_path: Path) -> None:
    content = (
        pickle.EMPTY_DICT + pickle.BINUNICODE + struct.pack("<I", 1) + b"w" + BROKEN[name]() + pickle.SETITEM
    )
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x04" + content + pickle.STOP)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"cannot be read|is not a tensor") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_memo_of_a_large_index_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(in_state(pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", (1 << 32) - 1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_checkpoint(file).state.keys() == {"w"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_stand_ins_cannot_be_changed_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pkl"
    change = pickle.EMPTY_DICT + pickle.BINUNICODE + struct.pack("<I", 8) + b"__call__" + pickle.NONE
    value = pickle.GLOBAL + b"torch._utils\n_rebuild_parameter\n" + change + pickle.SETITEM + pickle.BUILD
    file.write_bytes(in_state(value))
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(file)
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "b.pth")
    assert read_checkpoint(tmp_path / "b.pth").state["w"].tolist() == [1, 1]


def test_tensors_that_share_numbers_are_bounded(tmp_path: Path) -> None:
    numbers = torch.arange(64.0).view(8, 8)
    few = {"a": numbers, "b": numbers.t()}
    torch.save(few, tmp_path / "few.pth")
    read = read_checkpoint(tmp_path / "few.pth").state
    assert torch.equal(read["b"], numbers.t())
    large = torch.zeros(512, 512)
    torch.save({str(i): large.t() for i in range(40)}, tmp_path / "many.pth")
    with pytest.raises(UserError, match="larger than the file"):
        read_checkpoint(tmp_path / "many.pth")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match="an archive that torch does not write"):
        read_checkpoint(tmp_path / "b.pth")


def test_hostile_state_of_a_torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for legacy in (False, True):
        content = {"state_dict": {"w": torch.zeros(2)}, "hook": Call(os.system, SHELL)}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"system, which no checkpoint needs"):
            read_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / MARK).exists()


def test_plain_values_stay(tmp_path: Path) -> None:
    meta = {"a": (1, [2.5, None], {"x": True}), "b": {1, 2}, "c": collections.OrderedDict(k=b"raw")}
    for protocol in (2, 4, 5):
        content = {"model": {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3))}, "meta": meta}
        content["scalar"] = np.float32(1.5)
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        read = read_checkpoint(tmp_path / "a.pkl")
        assert read.state["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert read.meta["meta"] == meta
        assert read.meta["scalar"] == 1.5
        assert read.skipped == ()

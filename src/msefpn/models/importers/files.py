"""Files of checkpoints: torch's two formats, bare pickles and safetensors, as tensors and plain values."""

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from msefpn.checkpoint import check_there
from msefpn.errors import UserError
from msefpn.models.importers.unpickle import Array, HostileError, InertUnpickler, Storage, StoredTensor

_MAGIC = 0x1950A86A20F9469CFC6C
"""First value of torch's format before 1.6, which mmdetection 2.x still publishes in."""
_LONGEST = 256
"""Characters of a tensor's name."""
_MOST = 8
"""Tensors that share a storage are copied: at most so many times the file's size."""
_WRAPPERS = ("state_dict", "model", "model_state_dict", "state")
"""Keys under which checkpoints hold their state dict."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, as far as it is tensors and plain values."""

    path: Path
    state: dict[str, Tensor]
    """By the names of the file."""
    meta: Mapping[Any, Any]
    """What is beside the state dict."""
    skipped: tuple[str, ...]
    """Names of classes and functions in it whose objects were not made."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file; nothing in it is executed.

    Args:
        path: a safetensors file, a file of torch.save, or a pickle of numpy arrays.

    Raises:
        UserError: the file is missing, broken or hostile, or does not hold a state dict.
    """
    path = Path(path)
    check_there(path)
    if path.suffix == ".safetensors":
        return Checkpoint(path, read_safetensors(path), {}, ())
    try:
        with path.open("rb") as file, _opened(file, path.stat().st_size) as (content, skipped, load):
            meta, found = _state_dict(content)
            state = {name: _tensor(value, load) for name, value in found.items()}
            if sum(x.nbytes for x in state.values() if x is not None) > _MOST * path.stat().st_size:
                raise EOFError("its tensors are larger than the file")
    except HostileError as error:
        raise UserError(
            f"{path} names {error}, which no checkpoint needs: it may be hostile. Nothing of it was run; "
            "do not open it with other programs"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a broken file raises whatever its first wrong byte leads to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as tensors alone ({reason}): it is broken, half-written or not a "
            "checkpoint; take another copy of it"
        ) from None
    if any(not name.isprintable() or len(name) > _LONGEST for name in state):
        raise UserError(f"{path} has tensors whose names are not plain text: it is not a checkpoint")
    wrong = next((name for name, tensor in state.items() if tensor is None), None)
    if not state or wrong is not None:
        what = "no state dict" if wrong is None else f"a state dict with '{wrong}', which is not a tensor"
        raise UserError(f"{path} holds {what}: save model.state_dict() alone")
    named = tuple(name for name in skipped if name.isprintable() and len(name) <= _LONGEST)
    return Checkpoint(path, {name: x for name, x in state.items() if x is not None}, meta, named)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError for a broken one."""
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is broken or half-written ({reason}): take another copy of it") from None


def _state_dict(content: Any) -> tuple[dict[Any, Any], dict[str, Any]]:
    """What is beside the state dict, and the state dict itself."""
    meta: dict[Any, Any] = {}
    for _ in range(3):
        if not isinstance(content, dict):
            break
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        meta |= {key: value for key, value in content.items() if key != inner}
        content = content[inner]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        return meta, {}
    if content and all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return meta, content


class _Loader:
    """Reads the numbers of storages, each once."""

    def __init__(self) -> None:
        self.read: dict[str, Tensor] = {}

    def bytes_of(self, storage: Storage) -> bytes:
        """The storage's bytes."""
        raise KeyError(storage.key)

    def __call__(self, storage: Storage) -> Tensor:
        """The storage's numbers."""
        if storage.key not in self.read:
            raw = bytearray(self.bytes_of(storage))
            if len(raw) < storage.count * storage.dtype.itemsize:
                raise EOFError("a tensor is cut off")
            count = storage.count
            empty = torch.empty(0, dtype=storage.dtype)
            self.read[storage.key] = (
                torch.frombuffer(raw, dtype=storage.dtype, count=count) if count else empty
            )
        return self.read[storage.key]


class _ZipLoader(_Loader):
    """Storages of torch's format of today: a file of each in an archive, not compressed."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        super().__init__()
        self.archive, self.size = archive, size
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        self.folder = pickles[0].removesuffix("data.pkl") if pickles else ""

    def entry(self, name: str) -> bytes:
        """The bytes of a file in the archive."""
        info = self.archive.getinfo(self.folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self.size:
            raise EOFError("an archive that torch does not write")
        return self.archive.read(info)

    def bytes_of(self, storage: Storage) -> bytes:
        return self.entry(f"data/{storage.key}")


class _StreamLoader(_Loader):
    """Storages of torch's format before 1.6: one after the other behind the pickles."""

    def __init__(self, file: BinaryIO, size: int, storages: Mapping[str, Storage], keys: Any) -> None:
        super().__init__()
        self.file, self.places = file, dict[str, int]()
        if not isinstance(keys, list):
            raise EOFError("no list of storages")
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            self.places[key] = file.tell()
            end = file.tell() + count * storages[key].dtype.itemsize
            if count < storages[key].count or end > size:
                raise EOFError("a tensor is cut off")
            file.seek(end)

    def bytes_of(self, storage: Storage) -> bytes:
        self.file.seek(self.places[storage.key])
        return self.file.read(storage.count * storage.dtype.itemsize)


@contextmanager
def _opened(file: BinaryIO, size: int) -> Iterator[tuple[Any, list[str], _Loader]]:
    """The content of a file, names in it that were skipped, and what reads its storages."""
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            zipped = _ZipLoader(archive, size)
            if f"{zipped.folder}byteorder" in archive.namelist() and zipped.entry("byteorder") != b"little":
                raise EOFError("numbers in big-endian order")
            data = zipped.entry("data.pkl")
            reader = InertUnpickler(io.BytesIO(data), len(data))
            yield reader.load(), list(reader.skipped), zipped
        return
    file.seek(0)
    reader = InertUnpickler(file, size)
    content = reader.load()
    if content != _MAGIC:
        yield content, list(reader.skipped), _Loader()
        return
    for _ in range(2):  # version of the format, and what is known of the machine
        InertUnpickler(file, size).load()
    reader = InertUnpickler(file, size)
    content = reader.load()
    keys = InertUnpickler(file, size).load()
    yield content, list(reader.skipped), _StreamLoader(file, size, reader.storages, keys)


def _tensor(value: Any, load: _Loader) -> Tensor | None:
    """A tensor of the state dict; None for what is not one."""
    if isinstance(value, Array):
        return value.tensor()
    if not isinstance(value, StoredTensor):
        return None
    flat = load(value.storage)
    return torch.as_strided(flat, value.shape, value.strides, value.offset).contiguous()

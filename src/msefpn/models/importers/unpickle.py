"""Reads pickled checkpoints without running what is in them.

A pickle is a program: it names functions and classes, and calls them. Here every name stands for a class of
this file. The few that make up tensors, arrays and plain values build descriptions of them; every other one
is inert: it takes whatever the file does to it and does nothing. Nothing is imported because a file names it,
and no object of a foreign class is ever made. Python's own modules that no checkpoint needs, such as `os`,
are refused by name.
"""

import math
import pickle
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""torch's names of storages."""
_CODES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}
"""numpy's codes of types."""
_HARMLESS = {"_codecs", "argparse", "collections", "copy_reg", "copyreg", "datetime", "decimal", "enum"}
_HARMLESS |= {"fractions", "functools", "pathlib", "types", "typing", "uuid"}
"""Modules of Python whose names settings and logs hold; they are inert here all the same."""
_HARMLESS_BUILTINS = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"}
_HARMLESS_BUILTINS |= {"list", "long", "object", "range", "set", "slice", "str", "tuple", "type", "unicode"}


class HostileError(Exception):
    """A pickle names what no checkpoint needs; the message is that name."""


class Inert:
    """Stands for an object of a class that is not read."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        """Keep nothing of them."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing of what the file says of it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep nothing."""

    def append(self, value: Any) -> None:
        """Keep nothing."""

    add = extend = append


class _Dictionary(dict[Any, Any]):
    """Stands for dictionaries of other classes, without their attributes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(args[0] if len(args) == 1 and isinstance(args[0], (dict, list)) else ())

    def __setstate__(self, state: Any) -> None:
        """Keep the items alone."""


class _Set(set[Any]):
    """Stands for sets."""

    def __init__(self, *args: Any) -> None:
        super().__init__(args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else ())

    def __setstate__(self, state: Any) -> None:
        """Keep the items alone."""


class _Size(Inert):
    """torch.Size: a tuple."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (list, tuple)) else Inert()


class _Encoded(Inert):
    """_codecs.encode, by which older pickles hold bytes."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        return args[0].encode("latin-1") if args and isinstance(args[0], str) else Inert()


class _StorageType(Inert):
    """A type of torch's storages."""

    dtype = torch.uint8


_STORAGE_TYPES = {
    f"torch.{name}": type(name, (_StorageType,), {"dtype": dtype}) for name, dtype in _TYPES.items()
}


class Storage(Inert):
    """Numbers that lie elsewhere in the file.

    Attributes:
        key: their name there.
        dtype: their type.
        count: how many the pickle says that there are.
    """

    key: str
    dtype: torch.dtype
    count: int


class StoredTensor(Inert):
    """A tensor: a view of a storage.

    Attributes:
        storage: holds its numbers.
        offset, shape, strides: of the view, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __new__(cls, *args: Any, **_: Any) -> Any:
        """Check what torch's `_rebuild_tensor` and `_rebuild_tensor_v2` are given."""
        made: StoredTensor = object.__new__(cls)
        if len(args) < 4 or not isinstance(args[0], Storage):
            return Inert()
        made.storage, made.offset, made.shape, made.strides = args[:4]
        numbers = (made.offset, *made.shape, *made.strides)
        if not all(type(x) is int and x >= 0 for x in numbers) or len(made.shape) != len(made.strides):
            raise pickle.UnpicklingError("a tensor without a valid shape")
        last = made.offset + sum((n - 1) * s for n, s in zip(made.shape, made.strides, strict=True))
        count = math.prod(made.shape)
        if count > made.storage.count or (count and last >= made.storage.count):
            raise pickle.UnpicklingError("a tensor that is larger than its storage")
        return made


class _Parameter(Inert):
    """A parameter is its tensor."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        return args[0] if args and isinstance(args[0], StoredTensor) else Inert()


class _TensorOfType(Inert):
    """torch's `_rebuild_from_type_v2`: a tensor of a class, or with attributes, is its tensor."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        known = len(args) >= 3 and isinstance(args[0], type) and isinstance(args[2], tuple)
        return args[0](*args[2]) if known and issubclass(args[0], (StoredTensor, _Parameter)) else Inert()


class _NumberType(Inert):
    """numpy's dtype."""

    code, order = "", "<"

    def __init__(self, *args: Any, **_: Any) -> None:
        self.code = args[0] if args and isinstance(args[0], str) else ""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.order = state[1]


class Array(Inert):
    """A numpy array.

    Attributes:
        shape: of the array.
        kind: its type.
        columns: whether the first axis runs fastest (Fortran's order).
        raw: its numbers' bytes.
    """

    shape: Any = None
    kind: Any = None
    columns: Any = False
    raw: Any = b""

    def __setstate__(self, state: Any) -> None:
        """Take what numpy keeps of an array: maybe a version, then shape, type, order and bytes."""
        if isinstance(state, tuple) and len(state) >= 4:
            self.shape, self.kind, self.columns, self.raw = state[-4:]

    def tensor(self) -> Tensor | None:
        """The numbers; None for a type or a size that is not one of numbers."""
        kind, raw, shape = self.kind, self.raw, self.shape
        if isinstance(raw, str):
            raw = raw.encode("latin-1")
        dtype = _CODES.get(kind.code) if isinstance(kind, _NumberType) and kind.order in "<=|" else None
        if dtype is None or not isinstance(raw, (bytes, bytearray)) or not isinstance(shape, tuple):
            return None
        if not all(type(x) is int and x >= 0 for x in shape):
            return None
        if math.prod(shape) * dtype.itemsize != len(raw):
            return None
        flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        if self.columns:
            return flat.view(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return flat.view(shape)


class _ArrayFromBuffer(Array):
    """numpy's `_frombuffer`: bytes, type, shape and order."""

    def __init__(self, *args: Any, **_: Any) -> None:
        if len(args) == 4:
            self.raw, self.kind, self.shape, order = args
            self.columns = order == "F"


class _Scalar(Inert):
    """numpy's scalar: a number."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        array = Array()
        if len(args) == 2:
            array.shape, array.kind, array.raw = (), *args
        number = array.tensor()
        return Inert() if number is None else number.item()


_NUMPY = {
    "_reconstruct": Array,
    "ndarray": Array,
    "scalar": _Scalar,
    "dtype": _NumberType,
    "_frombuffer": _ArrayFromBuffer,
}
_KNOWN: dict[str, type] = {
    "collections.OrderedDict": _Dictionary,
    "collections.defaultdict": _Dictionary,
    "collections.Counter": _Dictionary,
    "builtins.set": _Set,
    "builtins.frozenset": _Set,
    "__builtin__.set": _Set,
    "_codecs.encode": _Encoded,
    "torch.Size": _Size,
    "torch._utils._rebuild_tensor": StoredTensor,
    "torch._utils._rebuild_tensor_v2": StoredTensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch._utils._rebuild_parameter_with_state": _Parameter,
    "torch._tensor._rebuild_from_type_v2": _TensorOfType,
    **_STORAGE_TYPES,
}
"""What a pickle may name and what stands for it here."""


def _stand_in(module: str, name: str) -> type | None:
    """What stands for a name; None: it is skipped."""
    if re.fullmatch(r"numpy(\.(core|_core)\.(multiarray|numeric))?", module):
        return _NUMPY.get(name)
    return _KNOWN.get(f"{module}.{name}")


class _Bounded:
    """A file of which no more is asked for than is there: claimed sizes reserve no memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        """Read. Raises EOFError where there is less."""
        if not 0 <= count <= self.size - self.file.tell():
            raise EOFError("cut off")
        return self.file.read(count)

    def readline(self) -> bytes:
        """Read to the end of the line."""
        return self.file.readline()


class InertUnpickler(pickle._Unpickler):
    """Reads one pickle; a file of several is read by several, one after the other.

    It is Python's own unpickler, not that in C, whose table of memos takes the size that the file names.

    Args:
        file: where the pickle begins.
        size: of the whole file, bytes.

    Attributes:
        skipped: names of classes and functions that were not read, in order.
        storages: what the tensors' numbers are read from, by key.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(_Bounded(file, size), encoding="latin1")
        self.skipped: dict[str, None] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> type:
        """Return what stands for a name. Raises HostileError."""
        full = f"{module}.{name}"
        found = _stand_in(module, name)
        if found is not None:
            return found
        top = module.partition(".")[0]
        if top in ("builtins", "__builtin__"):
            harmless = name.partition(".")[0] in _HARMLESS_BUILTINS
        else:
            harmless = top in _HARMLESS or top not in sys.stdlib_module_names
        if not harmless:
            raise HostileError(full)
        self.skipped[full] = None
        return type("Skipped", (Inert,), {})

    def persistent_load(self, pid: Any) -> Storage:
        """Return what a tensor's storage is known by. Raises UnpicklingError."""
        kind = pid[1] if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" else None
        if not (isinstance(kind, type) and issubclass(kind, _StorageType)):
            raise pickle.UnpicklingError("a storage of an unknown type")
        if type(pid[4]) is not int or not isinstance(pid[2], str) or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a storage without a valid size")
        made = Storage()
        made.key, made.dtype, made.count = pid[2], kind.dtype, pid[4]
        known = self.storages.setdefault(made.key, made)
        if (known.dtype, known.count) != (made.dtype, made.count):
            raise pickle.UnpicklingError("a storage of two types or sizes")
        return known

    def get_extension(self, code: int) -> None:
        """Refuse objects of the process's own registry."""
        raise HostileError(f"extension {code}")

    def load_bytearray8(self) -> None:
        """Read bytes before memory is reserved for them."""
        own: Any = self  # whose `read` and `append` are there while it loads
        (count,) = struct.unpack("<Q", own.read(8))
        own.append(bytearray(own.read(count)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

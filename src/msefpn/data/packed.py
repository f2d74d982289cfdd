"""Texts in one array: a list holds a Python object for each, which each process that reads it copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class PackedNames(Sequence[str]):
    """N texts, such as the file names of images; to be read like a list.

    Args:
        text: (T,) uint8, all of them in UTF-8, one after the other.
        offsets: (N + 1,) text i is text[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def pack(cls, names: Iterable[str]) -> PackedNames:
        """Put texts together; file names may hold what is not Unicode."""
        parts = [name.encode("utf-8", "surrogatepass") for name in names]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.concatenate([[0], lengths.cumsum()]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        """One text, or a list of them. Raises IndexError."""
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        index = range(len(self))[at]
        part = self.text[self.offsets[index] : self.offsets[index + 1]]
        return part.tobytes().decode("utf-8", "surrogatepass")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, (PackedNames, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(list(self))

    def take(self, indices: NDArray[np.int64]) -> PackedNames:
        """The texts at `indices`, in that order."""
        return PackedNames.pack(self[index] for index in indices.tolist())

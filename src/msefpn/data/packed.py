"""Texts in one array: a list has a Python object for each, and each process that reads them copies these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


def pack(parts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Put N byte strings together: all bytes, one string after the other, and offsets (N + 1,).

    String i is bytes[offsets[i]:offsets[i + 1]].
    """
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.frombuffer(b"".join(parts), np.uint8), np.concatenate([[0], lengths.cumsum()])


class PackedNames(Sequence[str]):
    """N texts, such as the file names of images; read them like a list.

    Args:
        text: (T,) all of them in UTF-8, see `pack`.
        offsets: (N + 1,) likewise.
    """

    def __init__(self, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def pack(cls, names: Iterable[str]) -> PackedNames:
        """Put texts together; file names may hold what is not Unicode."""
        return cls(*pack([name.encode("utf-8", "surrogatepass") for name in names]))

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
        return self._bytes(range(len(self))[at]).decode("utf-8", "surrogatepass")

    def _bytes(self, index: int) -> bytes:
        return self.text[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, (PackedNames, list)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(list(self))

    def take(self, indices: NDArray[np.int64]) -> PackedNames:
        """The texts at `indices`, in that order."""
        return PackedNames(*pack([self._bytes(index) for index in indices.tolist()]))

"""A dictionary of a configuration whose keys are taken one by one, so that those left over can be named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msefpn.errors import UserError
from msefpn.static import Computed


class ConfigSection:
    """Values under a path, and what could not be carried over of them.

    Args:
        values: plain values, not trusted.
        path: their name in messages, such as model.rpn_head; empty: those of the whole file.
        notes: what could not be carried over, one line each; shared by all sections of a file.
    """

    def __init__(self, values: Any, path: str, notes: list[str]) -> None:
        if isinstance(values, Computed):
            raise computed(values, path)
        if not isinstance(values, Mapping):
            raise UserError(f"{path} is {values!r}, but must be a dictionary: this is not mmdetection's")
        self._values = dict(values)
        self._left = dict(values)
        self.path, self.notes = path, notes

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def name(self, key: str) -> str:
        """The name of a key in messages."""
        return f"{self.path}.{key}" if self.path else key

    def take(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of these keys that is there. Raises UserError where it is computed."""
        found = default
        for key in reversed(keys):
            value = self._left.pop(key, None)
            if value is not None:
                found = value
                if (inner := _first_computed(value)) is not None:
                    raise computed(inner, self.name(key))
        return found

    def number(self, *keys: str, default: Any = None) -> Any:
        """A value that is a number. Raises UserError for another one."""
        given = next((key for key in keys if key in self), keys[0])
        value = self.take(*keys, default=default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{self.name(given)} is {value!r}, but must be a number")
        return value

    def numbers(self, *keys: str) -> list[Any] | None:
        """A value that is a list of numbers. Raises UserError for another one."""
        value = self.take(*keys)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(type(one) in (int, float) for one in value):
            raise UserError(f"{self.name(keys[0])} is {value!r}, but must be numbers")
        return list(value)

    def section(self, *keys: str) -> ConfigSection:
        """The dictionary of the first of these keys that is there; else an empty one."""
        for key in keys:
            if self._left.get(key) is not None:
                return ConfigSection(self._left.pop(key), self.name(key), self.notes)
        return ConfigSection({}, self.name(keys[0]), self.notes)

    def sections(self, key: str) -> list[ConfigSection]:
        """The dictionaries of a list, or the one that stands for a list of one."""
        value = self._left.pop(key, None)
        if isinstance(value, Computed):
            raise computed(value, self.name(key))
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            return [ConfigSection(value, self.name(key), self.notes)]
        return [
            ConfigSection(item, f"{self.name(key)}[{index}]", self.notes) for index, item in enumerate(value)
        ]

    def expect(self, key: str, *allowed: Any, why: str) -> None:
        """Note a key whose value is not one of those that are the same here."""
        value = self._left.pop(key, None)
        if value is not None and not any(_same(value, one) for one in allowed):
            self.note(key, value, why)

    def note(self, key: str, value: Any, why: str) -> None:
        """Note what cannot be carried over."""
        self.notes.append(f"{self.name(key)} = {_short(value)}: {why}")

    def ignore(self, *keys: str) -> None:
        """Drop keys that mean nothing for a recipe."""
        for key in keys:
            self._left.pop(key, None)

    def close(self) -> None:
        """Note the keys that nothing has asked for."""
        for key, value in self._left.items():
            if value is not None:
                self.note(key, value, "there is no such option here")
        self._left.clear()

    def left(self) -> Iterator[str]:
        """Keys that nothing has asked for yet."""
        yield from self._left


def computed(value: Computed, name: str) -> UserError:
    """Build the error for a value that is needed and computed."""
    return UserError(
        f"{value.file}, line {value.line}: {name} is computed ({value.text}), and nothing is run here: give "
        "the resolved file that mmdetection writes into its work directory, or write the value out"
    )


def _first_computed(value: Any) -> Computed | None:
    if isinstance(value, Computed):
        return value
    inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else ()
    inner = value if isinstance(value, (list, tuple)) else inner
    return next((found for one in inner if (found := _first_computed(one)) is not None), None)


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, float) and isinstance(other, (int, float)):
        return abs(value - other) <= 1e-6 * max(1.0, abs(other))
    return bool(value == other)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."

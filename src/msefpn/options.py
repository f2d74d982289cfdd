"""Options: what a field of a dataclass says of its flag, help and bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from msefpn.errors import UserError, unknown_name
from msefpn.reading import shown


def option(
    default: Any,
    text: str,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: Sequence[str] = (),
    plugin: str = "",
    flag: bool = True,
    words: Mapping[str, int] | None = None,
) -> Any:
    """Describe an option once: its flag, its help and its bounds follow from this.

    Args:
        default: its value where nothing else is said.
        text: one noun phrase, for the help and the reference.
        low: smallest value.
        above: the value must be above this.
        below: the value must be below this.
        choices: the values that there are, of few.
        plugin: the kind of plug-in that the value names; Python may pass the object itself.
        flag: whether the command line has a flag for it; `--set` reaches it in any case.
        words: texts that stand for a number, such as auto; they are allowed whatever the bounds.
    """
    about = {"text": text, "low": low, "above": above, "below": below, "choices": tuple(choices)}
    about |= {"plugin": plugin, "flag": flag, "words": dict(words or {})}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def check_bounds(values: Any) -> None:
    """Check the fields of a dataclass against what `option` says of them. Raises UserError."""
    for item in dataclasses.fields(values):
        value, about = getattr(values, item.name), item.metadata
        if "text" not in about or value is None:
            continue
        if about["choices"] and value not in about["choices"]:
            raise unknown_name(item.name, value, about["choices"])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if value in about["words"].values():
            continue
        if not (about["low"] <= value < about["below"] and about["above"] < value < math.inf):
            bounds = {"at least": about["low"], "above": about["above"], "below": about["below"]}
            words = [f"{word} {limit}" for word, limit in bounds.items() if math.isfinite(limit)]
            raise UserError(f"{item.name} is {shown(value)}: it must be finite and {' and '.join(words)}")

"""Values of annotation files, read by what they say and not by their type."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

_FLAGS = {"0": False, "false": False, "0.0": False, "1": True, "true": True, "1.0": True}


def flag_of(value: Any) -> bool | None:
    """A yes or no: true, 1, 1.0, "1" and "true" are one, likewise false and 0; null is no; else None."""
    if value is None:
        return False
    if isinstance(value, (bool, int, float)):
        return bool(value) if value in (0, 1) else None
    return _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of a json is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # json's integers have no bound
        return False


def is_box(value: Any) -> bool:
    """Whether a value of a json is a list of 4 finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def common_factor(stated: tuple[int, int], real: tuple[int, int]) -> bool:
    """Whether a picture of one size is the other resized with its ratio kept, up to rounding to whole pixels.

    Args:
        stated: height and width, pixels.
        real: of the other.
    """
    lowest = max((there - 1) / said for said, there in zip(stated, real, strict=True))
    highest = min((there + 1) / said for said, there in zip(stated, real, strict=True))
    return lowest <= highest


def is_rounding(stated: tuple[int, int], real: tuple[int, int]) -> bool:
    """Whether two sizes differ by a pixel at most."""
    return all(abs(said - there) <= 1 for said, there in zip(stated, real, strict=True))

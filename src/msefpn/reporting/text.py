"""Numbers of runs as text, with the difference to the first run."""

from __future__ import annotations

from collections.abc import Callable

from msefpn.html.page import TableCell, joined, tag

_ERROR_NAMES = {
    "class": "wrong class",
    "location": "wrong location",
    "both": "class and location",
    "duplicate": "duplicate",
    "background": "background",
    "missed": "missed",
}


def error_name(kind: str) -> str:
    """The name of one of `ERROR_KINDS` on the page."""
    return _ERROR_NAMES[kind]


def with_difference(
    value: float | None,
    first: float | None,
    text: Callable[[float], str],
    factor: float,
    number: int,
    comparable: bool = True,
    *,
    less: bool = False,
    digits: str = "",
) -> TableCell:
    """A value and, for all but the first run, its difference to the first run's.

    Args:
        value: None or -1 where it is missing.
        first: the value of the first run.
        text: formats a value.
        factor: unit of the difference: what `text` multiplies a value by.
        number: place of the run, from 0.
        comparable: whether the two values may be compared.
        less: whether less is better.
        digits: decimals of the difference; one, or two where less is better, if not given.
    """
    if value is None or value < 0:
        return TableCell("–", "quiet")
    if number == 0 or first is None or first < 0 or not comparable:
        return TableCell(text(value))
    step = factor * (value - first)
    written = f"{step:+.{digits or ('2' if less else '1')}f}"
    if not float(written):
        return TableCell(joined([text(value), " ", tag("small", "±0", class_="quiet")]))
    better = (step < 0) == less
    return TableCell(joined([text(value), " ", tag("small", written, class_="good" if better else "bad")]))

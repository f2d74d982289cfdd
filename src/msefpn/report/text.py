"""Numbers of runs as text, with their difference to the first run."""

from __future__ import annotations

from collections.abc import Callable

from msefpn.html.page import Cell, escaped, joined, tag

_TOLD = {
    "class": "wrong class",
    "place": "badly placed",
    "both": "class and place",
    "duplicate": "duplicate",
    "background": "background",
    "missed": "missed",
}


def told(kind: str) -> str:
    """The name of a kind of error, one of `metrics.errors.ERROR_KINDS`."""
    return _TOLD[kind]


def percent(value: float | None) -> str:
    """A share 0..1 in percent; a dash for None and for -1, nothing to find."""
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"


def changed(
    value: float | None,
    first: float | None,
    text: Callable[[float], str],
    factor: float,
    number: int,
    comparable: bool = True,
    *,
    less: bool = False,
    digits: str = "",
) -> Cell:
    """A value, and for another run than the first how far it is from the first's.

    Args:
        value: None, or -1: not there.
        first: of the first run.
        text: writes a value.
        factor: what `text` multiplies it by.
        number: of the run.
        comparable: whether the two may be compared.
        less: whether less is better.
        digits: after the point, of the difference; one or two if not given.
    """
    if value is None or value < 0:
        return Cell("–", "quiet")
    if number == 0 or first is None or first < 0 or not comparable:
        return Cell(text(value))
    step = factor * (value - first)
    written = f"{step:+.{digits or ('2' if less else '1')}f}"
    if not float(written):
        return Cell(joined([text(value), " ", tag("small", "±0", class_="quiet")]))
    better = (step < 0) == less
    return Cell(
        joined([escaped(text(value)), " ", tag("small", written, class_="good" if better else "bad")])
    )

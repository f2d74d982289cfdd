"""The one exception that a user's mistake raises."""

import difflib
from collections.abc import Iterable

from msefpn.plain import one_line


class UserError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong, where, how to fix it.

    Args:
        message: line breaks in it become spaces, and control characters are written out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


_LONGEST = 100
"""Characters of an unknown name that a message repeats; the closest one is looked for by these."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """Say that `name` is not a known `kind`, with the closest and all known names, and a hint."""
    names, name = sorted(known), str(name)[:_LONGEST]
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"unknown {kind} '{name}': {guess}known: {', '.join(names)}{hint}")


def unknown_backbone(name: str, known: Iterable[str]) -> UserError:
    """Say that a backbone is not known, with the closest known names."""
    name = name[:_LONGEST]
    close = difflib.get_close_matches(name.split(".")[0], known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has all names"
    return UserError(f"unknown backbone '{name}': {hint}")


def missing_extra(what: str, extra: str) -> UserError:
    """Say that `what` needs packages that an extra of this package installs."""
    return UserError(f'{what} needs the extra: pip install "msefpn[{extra}]"')

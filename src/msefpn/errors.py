"""The one exception that a user's mistake raises."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what, where, how to mend it."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Say that `name` is no known `kind`, with the closest and all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(f"unknown {kind} '{name}': {hint}known: {', '.join(names)}")


def missing_extra(what: str, extra: str) -> UserError:
    """Say that `what` needs packages that an extra of this package installs."""
    return UserError(f'{what} needs the extra: pip install "msefpn[{extra}]"')

"""Calls to constructors with a user's options: what they do not take or refuse is a UserError."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from msefpn.errors import UserError, unknown_name

T = TypeVar("T")
Options = Mapping[str, Any]
"""Arguments by name, as a configuration holds them."""


def construct(make: Callable[..., T], what: str, *args: Any, **options: Any) -> T:
    """Call a class or factory with a user's options.

    Args:
        make: the class or factory.
        what: the key that holds the options, for messages.
        args: positional arguments.
        options: the user's.

    Raises:
        UserError: an option that it does not take, or a value that it refuses by TypeError or ValueError.
    """
    check_options(make, what, options, taken=len(args))
    try:
        return make(*args, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from error


def check_options(
    make: Callable[..., Any], what: str, options: Iterable[str], *, taken: int = 0, more: Iterable[str] = ()
) -> None:
    """Raise UserError for an option that a class or factory does not take.

    Args:
        make: the class or factory.
        what: the key that holds the options, for the message.
        options: their names.
        taken: how many of its positional arguments are given already.
        more: names that are options too.
    """
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    by_keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    known = [*by_keyword, *positional[taken:], *more]
    for name in options:
        if name not in known:
            raise unknown_name(f"key in {what}", name, known)


def of_preset(name: str, presets: Mapping[str, Mapping[str, Options]]) -> Mapping[str, Options]:
    """The arguments that a detector's preset sets, by part. Raises UserError for an unknown preset."""
    if name not in presets:
        raise unknown_name("preset", name, presets)
    return presets[name]

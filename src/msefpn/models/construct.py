"""Calls to constructors with a user's options: what they do not take or refuse is a UserError."""

import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from msefpn.errors import UserError, unknown_name
from msefpn.reading import shown

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
        UserError: an option that it does not take, a value of another type than its annotation says, or one
            that it refuses by TypeError or ValueError.
    """
    check_options(make, what, options, taken=len(args))
    check_types(make, what, options)
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


def check_types(make: Callable[..., Any], what: str, options: Options) -> None:
    """Raise UserError for an option whose value is not of the type that a class or factory states.

    Else it would fail in the middle of a training. Only numbers, texts, booleans and sequences of these are
    judged; a type that is something else takes any value.
    """
    try:
        hints = typing.get_type_hints(_called(make))
    except (NameError, TypeError, AttributeError):  # names that only a type checker knows
        return
    for name, value in options.items():
        if name in hints and not _is_of(value, hints[name]):
            stated = (
                getattr(hints[name], "__name__", "") if isinstance(hints[name], type) else str(hints[name])
            )
            stated = stated.replace("collections.abc.", "")
            raise UserError(f"{what}: {name} is {shown(value)}, but must be of type {stated}")


def _called(make: Callable[..., Any]) -> Callable[..., Any]:
    """What has the annotations of a call: of a class, the `__init__` that it has or inherits."""
    if not isinstance(make, type):
        return make
    made: Callable[..., Any] = next(vars(one)["__init__"] for one in make.__mro__ if "__init__" in vars(one))
    return made


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, numbers finite; True where that cannot be judged."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, one) for one in inner)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return (
            isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) < 1 << 63
        )
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str)
    if hint is type(None):
        return value is None
    if origin in (tuple, list, Sequence):
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            return False
        if origin is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(map(_is_of, value, inner))
        return all(_is_of(item, inner[0]) for item in value)
    return True


def of_preset(name: str, presets: Mapping[str, Mapping[str, Options]]) -> Mapping[str, Options]:
    """The arguments that a detector's preset sets, by part. Raises UserError for an unknown preset."""
    if name not in presets:
        raise unknown_name("preset", name, presets)
    return presets[name]

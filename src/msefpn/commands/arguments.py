"""Arguments of the public functions that are fields of dataclasses: one field, one place.

A function that is decorated with `takes` has, as keyword arguments, the fields that dataclasses describe
with `msefpn.options.option`. Its signature, its help and the flags of its command follow from them.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msefpn import plugins
from msefpn.config import Config, parse_settings
from msefpn.errors import UserError, unknown_name
from msefpn.options import option
from msefpn.places import as_address

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """The files of a data set, named one by one; those of `msefpn.runs.folder.DataFiles`."""

    train_json: Path | None = option(None, "COCO json of the training images, instead of a data folder")
    train_images: Path | None = option(
        None, "folder of the training images (default: the folder named like the json)"
    )
    val_json: Path | None = option(None, "COCO json of the validation images")
    val_images: Path | None = option(
        None, "folder of the validation images (default: the folder named like the json)"
    )
    train_proposals: Path | None = option(
        None, "proposals for fast_rcnn: a json in COCO's result format, such as evaluate's predictions.json"
    )
    val_proposals: Path | None = option(None, "proposals for the validation images")


def takes(*records: type[Any], without: Collection[str] = (), only: Collection[str] = ()) -> Callable[[F], F]:
    """Give a function's `**options` the fields of dataclasses, None where not given.

    Args:
        records: the dataclasses.
        without: fields that the function does not take.
        only: the fields that it takes; empty: all that have a flag, and from Python the others too.
    """

    def describe(function: F) -> F:
        hints = {name: hint for record in records for name, hint in typing.get_type_hints(record).items()}
        chosen = [
            item
            for record in records
            for item in dataclasses.fields(record)
            if "text" in item.metadata and item.name not in without and (not only or item.name in only)
        ]
        own = inspect.signature(function)
        first = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[item.name] | None
            )
            for item in chosen
        ]
        function.__signature__ = own.replace(parameters=[*first, *more])  # type: ignore[attr-defined]  # a function takes any
        function.__options__ = {item.name: item for item in chosen}  # type: ignore[attr-defined]  # a function takes any
        lines = "".join(f"    {item.name}: {item.metadata['text']}\n" for item in chosen)
        text = inspect.getdoc(function) or ""
        function.__doc__ = (
            text.replace("\n\nReturns:", f"\n{lines.rstrip()}\n\nReturns:", 1) if lines else text
        )
        return function

    return describe


def options_of(function: Callable[..., Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that `takes` gave a function, by name."""
    fields: dict[str, dataclasses.Field[Any]] = getattr(function, "__options__", {})
    return fields


def files_of(options: dict[str, Any]) -> dict[str, Path]:
    """Take the fields of `SplitFiles` that are given out of what a function was given."""
    taken = {item.name: options.pop(item.name, None) for item in dataclasses.fields(SplitFiles)}
    return {name: Path(path) for name, path in taken.items() if path is not None}


def configured(options: Mapping[str, Any], settings: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    """Turn what a function was given into values of a `Config`.

    Args:
        options: fields of `Config`, None where not given; for one that names a plug-in, also the object.
        settings: `key=value` texts.

    Returns:
        The values, and the loggers and callbacks that were given as objects.

    Raises:
        UserError: a field that does not exist, or one that is set to two values.
    """
    fields = {item.name: item for item in dataclasses.fields(Config)}
    values, objects = parse_settings(settings), list[Any]()
    for name, given in options.items():
        if name not in fields:
            raise unknown_name("option", name, fields)
        if given is None:
            continue
        kind = fields[name].metadata["plugin"]
        value = given
        if kind in ("logger", "callback"):
            several = list(given) if isinstance(given, (list, tuple)) else [given]
            objects += [one for one in several if not isinstance(one, str)]
            value = tuple(one for one in several if isinstance(one, str))
        elif kind and not isinstance(given, dict):
            value = "+".join(plugins.name_of(kind, one) for one in as_list(given))
        elif isinstance(given, Path) or (name == "size" and isinstance(given, int)):
            value = str(given)
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            value = value | values[name]
        elif name in values and values[name] != value:
            raise UserError(
                f"{name} is given twice, as {value} and with --set as {values[name]}: leave one out"
            )
        values[name] = value
    return values, objects


def as_path(value: str | Path | None) -> Path | None:
    """Turn what a user gave into a path; None stays None."""
    return None if value is None else Path(value)


def as_text(value: str | Path | int | None) -> str | None:
    """Turn what a user gave into a text; None stays None."""
    return None if value is None else str(value)


def as_list(value: Any) -> list[Any]:
    """Turn one value into a list of one, and None into an empty list; a list stays one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def at_hand(run: Any, *, whole: bool = False) -> Any:
    """A copy on this machine of a run, or of its weights, that is named by an address; all else as it is.

    Args:
        run: what a user names.
        whole: copy all but the states, as a report needs it; otherwise what detecting needs.

    Raises:
        UserError: it cannot be read.
    """
    address = as_address(run)
    if address is None:
        return run
    from msefpn.runs.address import local_run  # noqa: PLC0415  slow to import, and seldom needed

    return local_run(address, whole=whole)

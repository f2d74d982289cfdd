"""Names in a request, looked up before what they stand for is imported: torch takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from msefpn import plugins
from msefpn.config import Config, is_recipe, recipe_names
from msefpn.errors import unknown_backbone, unknown_name

_OWN_FILE = "; your own: --plugin FILE"


def check_names(config: Config) -> None:
    """Raise UserError for a neck, backbone, detector, augmentation, logger or callback that is unknown."""
    for kind, name in config.uses("neck", "detector", "augmentation", "logger", "callback"):
        if name not in plugins.OUR_NAMES[kind]:
            _known(kind, name)
    for _, name in config.uses("backbone"):
        base = name.split(".")[0]
        if base not in _timm_names() and not plugins.are_there_others() and _timm_names():
            raise unknown_backbone(name, _timm_names())


def check_rows(rows: Iterable[str]) -> None:
    """Raise UserError for a row of a comparison that is neither a neck, or a stack of necks, nor a recipe."""
    for row in rows:
        unknown = not is_recipe(row) and not set(row.split("+")) <= set(plugins.OUR_NAMES["neck"])
        if unknown and not set(row.split("+")) <= (necks := _all_names("neck")):
            raise unknown_name("neck or recipe", row, [*necks, *recipe_names()], _OWN_FILE)


def _known(kind: str, name: str) -> None:
    if name not in (names := _all_names(kind)):
        raise unknown_name(kind, name, names, hint=_OWN_FILE)


def _all_names(kind: str) -> set[str]:
    """The package's own names and those of plug-ins, which are imported only where there are any."""
    return set(plugins.known(kind) if plugins.are_there_others() else plugins.OUR_NAMES[kind])


@functools.cache
def _timm_names() -> frozenset[str]:
    """Names of timm's models, as its source registers them; none where it is not there as files."""
    spec = importlib.util.find_spec("timm")
    names: set[str] = set()
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in Path(folder, "models").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            names.update(re.findall(r"@register_model\s+def (\w+)", text))
            names.update(re.findall(r"^ {4}'(\w+)': '", text, re.MULTILINE))  # those of older versions
    return frozenset(names)

"""Names in a request, looked up before what they stand for is imported: torch takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from msefpn import plugins
from msefpn.config import Config, is_recipe, recipe_names
from msefpn.errors import UserError, unknown_backbone, unknown_name


def check_names(config: Config) -> None:
    """Raise UserError for a neck, backbone, detector, augmentation, logger or callback that is unknown."""
    for kind, name in config.uses("neck", "detector", "augmentation", "logger", "callback"):
        check_name(kind, name)
    known = _timm_names()
    for _, name in config.uses("backbone"):
        if known and name.split(".")[0] not in known and not plugins.are_there_others():
            raise unknown_backbone(name, known)


def check_name(kind: str, name: str) -> None:
    """Raise UserError for a name that is unknown; `kind` is a key of `plugins.OUR_NAMES`."""
    if not _is_known(kind, name):
        raise unknown_name(kind, name, _all_names(kind), hint=plugins.YOUR_OWN)


class DetectorInputs(NamedTuple):
    """What a detector reads beside images and boxes."""

    detector: str
    """Its name."""
    masks: bool
    proposals: bool


def known_inputs(detector: str) -> DetectorInputs | None:
    """What a detector of the package reads; None for that of a plug-in, which must be asked."""
    if detector not in plugins.OUR_NAMES["detector"]:
        return None
    inputs = plugins.OUR_INPUTS.get(detector)
    return DetectorInputs(detector, masks=inputs == "masks", proposals=inputs == "proposals")


def check_proposals_given(inputs: DetectorInputs, given: bool, run: str | Path) -> None:
    """Raise UserError where a run's detector lacks required proposals, or is given unused ones."""
    if inputs.proposals and not given:
        raise UserError(f"the run {run} is a {inputs.detector}: name the regions to look at with --proposals")
    if given and not inputs.proposals:
        raise UserError(
            f"the run {run} is a {inputs.detector}, which finds its own proposals: leave out --proposals"
        )


def check_rows(rows: Iterable[str]) -> None:
    """Raise UserError for a row of a comparison that is neither a neck, or a stack of necks, nor a recipe."""
    for row in rows:
        if not is_recipe(row) and not all(_is_known("neck", name) for name in row.split("+")):
            known = [*_all_names("neck"), *recipe_names()]
            raise unknown_name("neck or recipe", row, known, hint=plugins.YOUR_OWN)


def _is_known(kind: str, name: str) -> bool:
    return name in plugins.OUR_NAMES[kind] or name in _all_names(kind)


def _all_names(kind: str) -> Iterable[str]:
    """The package's own names and those of plug-ins, which are imported only where there are any."""
    return plugins.known(kind) if plugins.are_there_others() else plugins.OUR_NAMES[kind]


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

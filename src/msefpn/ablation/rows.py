"""What a comparison is of: its rows, and the request for a grid of trainings; imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msefpn import plugins
from msefpn.ablation.grid import check_grid_folder, check_twice, short_name
from msefpn.config import AUTO_BATCH, Config, is_recipe, load_recipe, load_row
from msefpn.errors import UserError
from msefpn.names import check_names, check_rows, known_inputs
from msefpn.runs.folder import DataFiles, default_recipe
from msefpn.training.anchors import settle_anchors
from msefpn.training.data import Early, find_files, is_in_place, read_if_quick
from msefpn.training.plan import takes_builtin


def row_configs(names: Sequence[str], recipe: str | None, default: str, **options: Any) -> dict[str, Config]:
    """The configuration of each row of a comparison.

    Args:
        names: necks, each in `recipe`, or recipes by name or file, whose own lines are put over `recipe`.
        recipe: what the rows have in common; None: rows that are recipes stand alone, necks go into
            `default`.
        default: a recipe.
        options: values that are put over all, where not None.

    Raises:
        UserError: there is none, or a neck that does not exist, or one neck is given for rows that are necks.
    """
    if not names:
        raise UserError("rows is empty: name necks or recipes")
    rows = {}
    for name in names:
        if is_recipe(name):
            rows[name] = load_row(name, recipe, **options)
        else:
            if (neck := options.get("neck")) is not None:
                raise UserError(f"neck {neck} for all rows, and row '{name}' is a neck: leave one out")
            check_rows([name])
            rows[name] = load_recipe(recipe or default, **options, neck=name)
    return {
        name: dataclasses.replace(settle_anchors(config, options), plugins=plugins.origins(config.uses()))
        for name, config in rows.items()
    }


def check_counts(**counts: int) -> None:
    """Raise UserError for a number below 1."""
    for what, value in counts.items():
        if value < 1:
            raise UserError(f"{what} is {value}: it must be at least 1")


@dataclasses.dataclass(frozen=True)
class GridPlan:
    """A grid of trainings that has been asked for."""

    configs: dict[str, Config]
    """By the names of the rows."""
    data: Path | None
    given: Mapping[str, Path]
    """Files that are named, by the fields of `DataFiles`."""
    seeds: int
    epochs: Sequence[int]
    jobs: int
    rounds: int
    out: Path
    fix_names: bool = False
    """Whether pictures of similar names are taken where one is missing."""
    follow_links: bool = False
    """Whether links that lead out of the data are followed."""
    early: Early = None
    """The data, or its files, where they were read or found already."""

    def find_files(self) -> DataFiles:
        """The files of both splits. Raises UserError."""
        return find_files(
            self.data,
            self.given,
            self.out.parent,
            builtin=self.builtin,
            fix_names=self.fix_names,
            follow_links=self.follow_links,
        )

    @property
    def builtin(self) -> bool:
        """Whether the built-in set is trained on."""
        return takes_builtin(self.data, self.given)


def plan_grid(
    names: Sequence[str],
    data: Path | None,
    given: Mapping[str, Path],
    *,
    recipe: str | None,
    seeds: int,
    epochs: Sequence[int],
    jobs: int,
    rounds: int,
    out: Path,
    options: Mapping[str, Any],
    fix_names: bool = False,
    follow_links: bool = False,
) -> GridPlan:
    """Check a request; see `msefpn.commands.compare.ablate`. Raises UserError."""
    check_counts(seeds=seeds, jobs=jobs, rounds=rounds)
    if options.get("seed") is not None:
        raise UserError(f"seed {options['seed']} for all trainings: leave it out, --seeds is their number")
    check_twice("row", [short_name(name) for name in names])
    check_twice("epochs", epochs)
    check_grid_folder(out)
    builtin = takes_builtin(data, given)
    configs = row_configs(names, recipe, default_recipe(builtin=builtin), **options)
    for name, config in configs.items():
        check_names(config)
        if config.batch == AUTO_BATCH:
            raise UserError(
                f"row '{short_name(name)}' has batch auto: rows are compared at one batch: give a number"
            )
        if config.devices > 1 and jobs > 1:
            raise UserError(
                f"row '{short_name(name)}' takes {config.devices} devices itself: leave out --jobs {jobs}"
            )
    plan = GridPlan(configs, data, given, seeds, epochs, jobs, rounds, out, fix_names, follow_links)
    inputs = [known_inputs(config.detector) for config in configs.values()]
    if builtin or fix_names or None in inputs or not is_in_place(data):
        return plan
    masks = any(one.masks for one in inputs if one is not None)
    return dataclasses.replace(plan, early=read_if_quick(plan.find_files(), masks=masks))

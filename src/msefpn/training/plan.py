"""What a training is to do: configuration, files and run folder; nothing is written here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from msefpn import plugins
from msefpn.checkpoint import check_initial_name
from msefpn.config import Config, from_dict, load_recipe
from msefpn.data.locate import missing_folder, refuse_unread
from msefpn.errors import UserError
from msefpn.names import check_names
from msefpn.runs.folder import (
    LAST,
    METRICS,
    RESUME,
    DataFiles,
    check_out,
    default_recipe,
    free_folder,
    read_run,
)
from msefpn.runs.metrics import read_metrics

CHANGEABLE = (
    *("epochs", "patience", "device", "devices", "nodes", "timeout", "bucket_view", "grad_checkpoint"),
    *("workers", "logger", "callback", "plugins"),
    *("checkpoint_every", "keep"),
)
"""What a resumed run may do differently."""
_UNITS = {"s": 1, "min": 60, "h": 3600}


class Every(NamedTuple):
    """How often a state is kept: after so many steps, or so many seconds; the other is infinite."""

    steps: float
    seconds: float


def parse_every(text: str) -> Every:
    """Read '500' as steps, and '30s', '15min' or '2h' as a time. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)?", str(text).strip())
    number = float(found[1]) if found else 0.0
    if found is None or number <= 0 or (found[2] is None and number % 1):
        raise UserError(
            f"checkpoint_every is '{text}': give a number of steps such as 500, or a time such as 90s, 15min "
            "or 2h"
        )
    if found[2] is None:
        return Every(number, math.inf)
    return Every(math.inf, number * _UNITS[found[2]])


@dataclass(frozen=True)
class Plan:
    """A training that has been asked for."""

    config: Config
    data: Any
    """A data folder or file, or a data set object; None: only `given`, or the built-in set."""
    given: dict[str, Path]
    """Files that are named, by the fields of `DataFiles`."""
    out: Path
    run_files: DataFiles | None
    """The files of the run that is resumed; None: a new run."""
    steps: int | None
    """Stop after that many; None: at the end."""
    fix_names: bool = False
    """Take the picture of a similar name where one is missing."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the data folder."""

    @property
    def resume(self) -> bool:
        """Whether a run is continued."""
        return self.run_files is not None

    @property
    def builtin(self) -> bool:
        """Whether the built-in set is trained on."""
        return takes_builtin(self.data, self.given) and not self.resume


def plan_training(
    data: Any,
    given: Mapping[str, Path],
    *,
    recipe: str | None,
    out: Path | None,
    resume: bool,
    steps: int | None,
    options: Mapping[str, Any],
    fix_names: bool = False,
    follow_links: bool = False,
    first: bool = True,
) -> Plan:
    """Resolve recipe, options and run folder.

    Args:
        data: see `Plan`.
        given: see `Plan`.
        recipe: name or file; None: `default_recipe`.
        out: the run folder; None: the first free one under `runs`.
        resume: continue the run in `out`.
        steps: see `Plan`.
        options: fields of `Config`, None where not given.
        fix_names: see `Plan`.
        follow_links: see `Plan`.
        first: whether this process makes the run folder; another one is told it in `out`.

    Raises:
        UserError: it contradicts itself, the run or the folder.
    """
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}: it must be at least 1")
    files = None
    if resume:
        config, files, folder = _resumed(recipe, out, options)
    else:
        config = load_recipe(recipe or default_recipe(builtin=takes_builtin(data, given)), **options)
        folder = out or free_folder(Path("runs/train"))
        if first:
            check_out(folder)
    plan = Plan(config, data, dict(given), folder, files, steps, fix_names, follow_links)
    check_names(plan.config)
    parse_every(plan.config.checkpoint_every)
    _check_files(plan)
    if not resume:
        from msefpn.training.anchors import settle_anchors  # noqa: PLC0415  imports numpy: names come first

        config = settle_anchors(config, options)
    return replace(plan, config=replace(config, plugins=plugins.origins(config.uses())))


def _check_files(plan: Plan) -> None:
    """Raise UserError for a file or folder of the request that does not exist."""
    refuse_unread(plan.data, plan.given.get("train_json"), plan.given.get("val_json"))
    if isinstance(plan.data, (str, Path)) and not Path(plan.data).exists():
        raise missing_folder(Path(plan.data))
    for name, path in plan.given.items():
        if not path.exists():
            raise UserError(f"{name} '{path}' does not exist: give the path of the file or folder")
    if not plan.resume:
        check_initial_name(plan.config.init)


def names_data(given: Mapping[str, Path]) -> bool:
    """Whether these files, fields of `DataFiles`, are images or annotations."""
    return any(not key.endswith("_proposals") for key in given)


def takes_builtin(data: Any, given: Mapping[str, Path]) -> bool:
    """Whether a request without data stands for the built-in set."""
    return data is None and not names_data(given)


def _resumed(
    recipe: str | None, out: Path | None, options: Mapping[str, Any]
) -> tuple[Config, DataFiles, Path]:
    """Configuration, files and folder of the run to continue."""
    if out is None:
        raise UserError("resume needs the run to continue: add --out RUN")
    config, files = read_run(out)
    if not (out / RESUME).exists() and (kept := _epochs_kept(out)):
        raise UserError(
            f"'{out}' has the numbers of epoch {kept} but no {RESUME}: restore it, or start a new run "
            f"with --init {out / LAST}"
        )
    if recipe is not None:
        raise UserError(
            "recipe cannot be given with resume: a resumed run keeps its configuration; leave it out"
        )
    plugins.require(config.plugins, plugins.KINDS, f"the run '{out}'")
    asked = {key: value for key, value in options.items() if value is not None}
    wished = from_dict({**vars(config), **asked}, source="options")
    for key in asked:
        old, new = getattr(config, key), getattr(wished, key)
        if old != new and key not in CHANGEABLE:
            raise UserError(
                f"{key} {new or asked[key]} contradicts the run's {key} {old}: a resumed run keeps its "
                f"configuration; leave it out, or start a new run with --init {out / LAST}"
            )
    return wished, files, out


def _epochs_kept(out: Path) -> int:
    """Epochs that the numbers in a run folder are of. Raises UserError where they are damaged."""
    path = out / METRICS
    return int(read_metrics(path).last["epoch"]) if path.exists() else 0

"""`msefpn cost` and `msefpn ablate`: detectors side by side."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.commands.arguments import SplitFiles, as_list, as_path, as_text, configured, files_of, takes
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.names import check_names, check_rows

if TYPE_CHECKING:
    from msefpn.ablation.ablate import Ablation


@takes(Config, only=("detector", "backbone", "size", "device"))
def cost(
    rows: Sequence[str],
    *,
    recipe: str | Path | None = None,
    set: Sequence[str] = (),
    classes: int = 80,
    batch: int = 1,
    rounds: int = 5,
    out: str | Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure what detectors cost: parameters, multiply-accumulates, time and memory, as one table.

    Args:
        rows: necks (fpn, fpn+bfp, ...) or recipes by name or file
        recipe: what the rows have in common; a row recipe's own keys override it (default: recipes stand
            alone, necks go into faster_rcnn_r50_mse_fpn_1x)
        set: further settings of all rows as key=value or key.path=value
        classes: number of classes
        batch: number of images at a time
        rounds: number of timed predictions of each row
        out: json file for the table

    Returns:
        One entry per row: counts by part, seconds, ratio to the first row, peak memory in bytes.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    values, _ = configured(options, set)
    check_rows(as_list(rows))

    from msefpn.ablation.rows import check_counts, row_configs
    from msefpn.runs.folder import check_file, default_recipe

    check_counts(classes=classes, batch=batch, rounds=rounds)
    if out is not None:
        check_file(Path(out))
    device = values.pop("device", "auto")
    configs = row_configs(as_list(rows), as_text(recipe), default_recipe(builtin=False), **values)
    for config in configs.values():
        check_names(config)

    from msefpn.ablation.cost import measure_costs

    return measure_costs(
        configs, classes=classes, batch=batch, rounds=rounds, device=device, out=as_path(out)
    )


@takes(SplitFiles, Config, without=("epochs", "seed", "neck", "plugins"))
def ablate(
    rows: Sequence[str],
    *,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    set: Sequence[str] = (),
    seeds: int = 3,
    epochs: Sequence[int] | int | None = None,
    jobs: int = 1,
    rounds: int = 5,
    out: str | Path = "runs/ablate",
    fix_names: bool = False,
    follow_links: bool = False,
    **options: Any,
) -> Ablation:
    """Train rows of detectors with the same seeds and compare them: accuracy, cost, difference to the first.

    A grid that was stopped is continued by the same command; what is finished is not trained again. Rows,
    seeds and budgets may be added: the table holds those that the command names.

    Args:
        rows: necks (fpn, fpn+bfp, ...) or recipes by name or file; the first of each budget is its baseline
        data: folder with train.json + train/ and val.json + val/, or in any layout that train takes
            (default: a built-in set)
        recipe: what the rows have in common; a row recipe's own keys override it (default: recipes stand
            alone, necks go into faster_rcnn_r50_mse_fpn_1x, or quickstart for the built-in set)
        set: further settings of all rows as key=value or key.path=value
        seeds: number of trainings of each row, with seeds 0, 1, ...: the same data order, augmentation and,
            where shapes agree, initial weights in all rows
        epochs: passes over the training data, one budget or several (default: the recipe's)
        jobs: number of trainings at a time
        rounds: number of timed predictions of each row
        out: folder of the grid
        fix_names: where a picture is missing, take the one of a similar name (other case, slashes, folders)
        follow_links: follow symbolic links that lead out of the data folder

    Returns:
        `rows`: an entry per row and budget, as in results.json: costs, mean and spread of AP, the paired
        difference to the baseline with its 95 % interval, and the numbers, or the failure, of each training.

    Raises:
        UserError: the request cannot be met; the message says what to change.
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    files = files_of(options)
    values, objects = configured(options, set)
    check_rows(as_list(rows))
    if objects:
        raise UserError("ablate trains in other processes: give loggers and callbacks by name, with --plugin")

    from msefpn.ablation.rows import plan_grid

    plan = plan_grid(
        as_list(rows),
        as_path(data),
        files,
        recipe=as_text(recipe),
        seeds=seeds,
        epochs=as_list(epochs),
        jobs=jobs,
        rounds=rounds,
        out=Path(out),
        options=values,
        fix_names=fix_names,
        follow_links=follow_links,
    )

    from msefpn.ablation.ablate import run_grid

    return run_grid(plan)

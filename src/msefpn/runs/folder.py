"""The run folder: its files, and folders for results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from msefpn.checkpoint import upgrade_config
from msefpn.config import Config, from_dict, to_yaml
from msefpn.errors import UserError
from msefpn.links import check_links, roots_of
from msefpn.reading import Record, read_yaml, real_path
from msefpn.writing import (
    cannot_write,
    is_leftover,
    missing_folders,
    remove_empty,
    replacing_together,
    settle,
    working_in,
)

CONFIG = "config.yaml"
"""The resolved configuration; also a recipe that another run may take."""
DATA = "data.yaml"
"""Where the annotations and images of the run are."""
BEST = "best.safetensors"
LAST = "last.safetensors"
RESUME = "resume.ckpt"
"""All that going on needs, as it was after the last step whose state was kept."""
LOG = "metrics.csv"
STEPS = "log.jsonl"
"""What the logger `jsonl` writes."""
METRICS = "metrics.json"
PREDICTIONS = "predictions.json"
TRAINING = "msefpn train"
"""What works in a run folder alone."""
TO_RESUME = "then resume with --resume"
"""What the user can do after a training could not write to its folder."""


@dataclass(frozen=True)
class DataFiles:
    """The files that a run reads."""

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    train_proposals: Path | None = None
    """Given regions, in COCO's result format."""
    val_proposals: Path | None = None
    follow_links: bool = False
    """Whether links that lead out of the folders of the images are followed."""

    def given(self) -> dict[str, Path]:
        """Those that there are, by name."""
        return {key: path for key, path in vars(self).items() if isinstance(path, Path)}

    def check_links(self, *, follow: bool = False) -> None:
        """Raise UserError where a link leads out of the images' folders, unless that is allowed."""
        places = (self.train_json, self.train_images), (self.val_json, self.val_images)
        roots = (root for place in places for root in roots_of(*place))
        check_links(*roots, follow=follow or self.follow_links)

    def resolved(self) -> dict[str, Path]:
        """Those that there are, without links and relative parts."""
        return {key: real_path(path) for key, path in self.given().items()}

    def without_proposals(self) -> DataFiles:
        """What a detector that finds its own proposals reads."""
        return dataclasses.replace(self, train_proposals=None, val_proposals=None)


def default_recipe(builtin: bool) -> str:
    """Name the recipe of a run that names none, on the built-in set or on other data."""
    return "quickstart" if builtin else "faster_rcnn_r50_mse_fpn_1x"


def free_folder(stem: Path) -> Path:
    """Return the first of STEM-1, STEM-2, ... that is not there."""
    number = 1
    while Path(f"{stem}-{number}").exists():
        number += 1
    return Path(f"{stem}-{number}")


def free_file(file: Path) -> Path:
    """Return the first of STEM-1.EXT, STEM-2.EXT, ... that is not there."""
    number = 1
    while (path := file.with_name(f"{file.stem}-{number}{file.suffix}")).exists():
        number += 1
    return path


def check_out(out: Path, *, room: int = 0) -> None:
    """Refuse an output folder that holds something, cannot be made or has no room; writes nothing.

    Args:
        out: the folder.
        room: bytes that will be written at least.
    """
    if out.is_dir():
        if _holds_something(out):
            raise UserError(f"out '{out}' is not empty: name another folder")
        base = out
    elif out.exists() or out.is_symlink():
        raise UserError(f"out '{out}' is a file: name a folder")
    else:
        base = _lowest_folder(out)
    _check_base(out, base, room)


def check_file(out: Path, *, room: int = 0) -> None:
    """Refuse an output file that is there already, cannot be made or has no room; writes nothing."""
    if out.exists() or out.is_symlink():
        raise UserError(f"out '{out}' is there already: remove it, or name another file")
    _check_base(out, _lowest_folder(out), room)


def check_page(*files: Path) -> None:
    """Refuse files of a page that are there already, or whose folder is missing or closed; writes nothing."""
    for out in files:
        if out.exists() or out.is_symlink():
            raise UserError(f"out '{out}' already exists: name another file")
        folder = out.absolute().parent
        if not folder.is_dir():
            raise UserError(
                f"out '{out}' cannot be written: the folder '{out.parent}' does not exist: create it"
            )
        if not os.access(folder, os.W_OK):
            raise UserError(f"out '{out}' cannot be written: no permission to write in '{folder}'")


def _lowest_folder(out: Path) -> Path:
    """The lowest part of a path's folders that is there."""
    return next(folder for folder in out.absolute().parents if folder.exists())


def _check_base(out: Path, base: Path, room: int) -> None:
    if not base.is_dir():
        raise UserError(f"out '{out}' cannot be made: '{base}' is a file")
    if not os.access(base, os.W_OK):
        raise UserError(f"out '{out}' cannot be made: no permission to write in '{base}'")
    free = shutil.disk_usage(base).free
    if free < room:
        raise UserError(
            f"out '{out}' has no space: about {room / 2**20:.0f} MB are needed, {free / 2**20:.0f} MB are "
            "free: make room, or name a folder on another disk"
        )


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Make an output folder, empty until now; where the body does not end well, leave it as it was.

    Raises UserError where the folder is not empty, or the file system refuses.
    """
    missing = missing_folders(out)
    if not missing and _holds_something(out):
        raise UserError(f"out '{out}' is not empty: name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            for item in out.iterdir():
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        remove_empty(missing)
        if isinstance(error, OSError):
            raise cannot_write(out, error, "or name another folder") from None
        raise


def _holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what a process that died before its first file has left."""
    return not all(map(is_leftover, folder.iterdir()))


@contextlib.contextmanager
def new_run(out: Path, config: Config, files: DataFiles) -> Iterator[None]:
    """Make the folder of a new run, and work in it alone. Raises UserError, and leaves no new folder then."""
    missing = missing_folders(out)
    begun = False
    try:
        out.mkdir(parents=True, exist_ok=True)
        with working_in(out, TRAINING):
            if _holds_something(out):
                raise UserError(f"out '{out}' is not empty: name another folder")
            write_run(out, config, files)
            begun = True
            yield
    except OSError as error:
        if begun:
            raise
        raise cannot_write(out, error, "or name another folder") from None
    finally:
        if not begun:
            remove_empty(missing)


def write_run(out: Path, config: Config, files: DataFiles) -> None:
    """Write down what decides a run. Raises UserError."""
    paths: dict[str, Any] = {key: str(path.absolute()) for key, path in files.given().items()}
    paths |= {"follow_links": True} if files.follow_links else {}
    with replacing_together(out) as parts:
        parts.text(CONFIG, to_yaml(config))
        parts.text(DATA, yaml.safe_dump(paths, sort_keys=False, allow_unicode=True))


def read_run(out: Path) -> tuple[Config, DataFiles]:
    """Read what `write_run` wrote. Raises UserError where it is not a run folder."""
    settle(out)
    for name in (CONFIG, DATA):
        if not (out / name).is_file():
            raise UserError(
                f"'{out}' is not a run folder: it has no {name}; name the folder that 'msefpn train' wrote"
            )
    fix = "restore it, or start a new run"
    paths = Record(read_yaml(out / DATA, fix), f"'{out / DATA}'", fix)
    if unknown := sorted(paths.values.keys() - DataFiles.__dataclass_fields__.keys(), key=str):
        raise paths.fault(f"has an unknown key '{unknown[0]}'")
    needed = ("train_json", "train_images", "val_json", "val_images")
    follow = paths.values.pop("follow_links", False) is True
    named = {key: Path(paths.text(key)) for key in (*needed, *paths.values)}
    files = DataFiles(**named, follow_links=follow)
    values = Record(read_yaml(out / CONFIG, fix), f"'{out / CONFIG}'", fix).values
    return from_dict(upgrade_config(values), source=f"'{out / CONFIG}'"), files

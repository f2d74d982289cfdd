"""Where the files of a data set are."""

import stat
from collections.abc import Iterable
from pathlib import Path

from msefpn.errors import UserError

_NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev", "test"), "test": ("test",)}
_YEARS = ("", "2017", "2014")
_FILES = ("{}.json", "annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json")
_FOLDERS = ("{}", "images/{}")


def find_split(data: Path, split: str) -> tuple[Path, Path]:
    """Find the json and the image folder of a split ('train' or 'val') in a data folder by convention.

    `train.json` beside `train/`; COCO's `annotations/instances_train2017.json` beside `train2017/`;
    `annotations/train.json`; `train/_annotations.coco.json`; images also under `images/`. For 'val' the first
    of val, valid, validation, dev and test. Raises UserError that says what was looked for.
    """
    if data.is_file():
        raise UserError(
            f"'{data}' is one file without a {split} split: 'msefpn split {data} --out NEW' makes a folder "
            "with both"
        )
    if not _is_folder(data):
        raise missing_folder(data)
    for name in (name + year for name in _NAMES[split] for year in _YEARS):
        for file in (data / pattern.format(name) for pattern in _FILES):
            if not file.is_file():
                continue
            for folder in (data / pattern.format(name) for pattern in _FOLDERS):
                if folder.is_dir():
                    return file, folder
            raise UserError(
                f"{file} has no image folder: put the images into {data / name}, or give the folder"
            )
    looked = ", ".join(
        pattern.format(_NAMES[split][0]) for pattern in (*_FILES[:1], "annotations/instances_{}2017.json")
    )
    names = " or ".join(_NAMES[split])
    raise UserError(
        f"no {split} split in '{data}': looked for {looked} and the like ({names}): add it, give its files, "
        "or divide the data with 'msefpn split'"
    )


def locate_split(
    data: str | Path | None, split: str, file: str | Path | None, folder: str | Path | None
) -> tuple[Path, Path] | None:
    """Find json and image folder of a split ('train' or 'val'): those given, else by convention.

    Returns None where nothing is given. Raises UserError as `find_split`.
    """
    if file is not None:
        file = Path(file)
        return file, Path(folder) if folder is not None else file.parent / file.stem
    if folder is not None:
        raise UserError(f"image folder '{folder}' has no {split} json: give it too")
    return None if data is None else find_split(Path(data), split)


def refuse_unread(data: str | Path | None, *jsons: str | Path | None) -> None:
    """Raise UserError where a data folder is given, and the jsons of all splits that it would be read for."""
    if data is not None and None not in jsons:
        named = " and ".join(map(str, jsons))
        raise UserError(f"data '{data}' would not be used beside {named}: leave out one of them")


def has_splits(data: Path, splits: Iterable[str]) -> bool:
    """Whether a data folder has these splits in a layout of COCO's."""
    try:
        return all(find_split(data, split) for split in splits)
    except UserError:
        return False


def missing_folder(data: Path) -> UserError:
    """Build the error for a data folder that does not exist."""
    return UserError(f"data folder '{data}' does not exist: give a folder with train.json and train/")


def _is_folder(path: Path) -> bool:
    """Like `Path.is_dir`, but from Python 3.14 on too an OSError tells why a path cannot be looked up."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False

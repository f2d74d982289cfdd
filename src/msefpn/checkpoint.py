"""What a file of weights, or an exported one, says of its detector, read without torch."""

import dataclasses
import importlib.metadata
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import safetensors

from msefpn.config import Config, from_dict
from msefpn.errors import UserError, missing_extra

KEY = "msefpn"
"""Key of our entry in a file's metadata."""

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
"""What a detector is exported to, and the suffix that tells such a file."""

VERSION = 1
"""Of what a file says of itself; a higher one may mean what this program does not know."""


def find_weights(path: str | Path) -> Path:
    """The weights of a run's folder, best first, or of a file itself. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} holds no best.safetensors or last.safetensors: is it the folder of a run?")
    if not path.is_file():
        raise UserError(f"no weights at {path}: give a run's folder or a .safetensors file")
    return path


class About(NamedTuple):
    """What a detector was built from."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_about(path: str | Path) -> About:
    """Read it from a run's folder, a file of weights, or an exported one.

    Raises:
        UserError: there are no weights, or they are broken, or not ours.
    """
    file = find_weights(path)
    if is_exported(file):
        return _read_exported(file)
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        about = json.loads(metadata[KEY]) if KEY in metadata else None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} is broken or half-written ({reason}): take another copy of it") from None
    if about is None:
        raise UserError(
            f"{file} holds tensors but no detector: it was not written by msefpn; "
            "use it as initial weights with --init"
        )
    return _parse(about, file, "take another copy of it")


def write_about(config: Config, classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """What a file of weights says of its detector, as plain values."""
    init = Path(config.init).name  # a file's folder is nobody else's concern
    return {
        "version": VERSION,
        "made_with": {"msefpn": importlib.metadata.version("msefpn")},
        "config": vars(config) | {"init": init},
        "classes": classes,
        "category_ids": category_ids,
    }


def _parse(about: Any, file: Path, mend: str) -> About:
    """Read what `write_about` gave, or files from before there was a version. Raises UserError."""
    try:
        settings, names, ids = dict(about["config"]), tuple(about["classes"]), tuple(about["category_ids"])
        version = int(about.get("version", VERSION))
        made = about["made_with"]["msefpn"] if "made_with" in about else "an early one"
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{file} is damaged: what it says of its detector is cut: {mend}") from None
    unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(Config)})
    if version > VERSION or unknown:
        what = f", with a setting '{unknown[0]}' that is unknown here" if unknown else ""
        by = "a newer" if version > VERSION else "another"
        own = importlib.metadata.version("msefpn")
        raise UserError(
            f"{file} was written by {by} version of msefpn ({made}, this is {own}){what}: "
            "take that version, or update this one with pip install --upgrade msefpn"
        )
    return About(from_dict(settings, source=str(file)), names, ids)


def is_exported(path: str | Path) -> bool:
    """Whether a path is named like a file that `msefpn export` writes."""
    return Path(path).suffix in FORMATS.values() and not Path(path).is_dir()


def _read_exported(file: Path) -> About:
    read = {".onnx": _in_onnx, ".xml": _in_openvino, ".pt2": _in_pt2}[file.suffix]
    try:
        text = read(file)
    except ImportError:
        raise missing_extra(f"reading {file}", "export") from None
    except Exception as error:  # each parser refuses broken bytes in its own way
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} is broken or half-written ({reason}): export it again") from None
    if text is None:
        raise UserError(f"{file} was not written by msefpn export: it does not say what its classes are")
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    return _parse(about, file, "export it again")


def _in_onnx(file: Path) -> str | None:
    import onnx  # noqa: PLC0415  (of an extra)

    found = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
    return found.get(KEY)


def _in_openvino(file: Path) -> str | None:
    entry = ElementTree.parse(file).getroot().find(f"rt_info/{KEY}")
    return None if entry is None else entry.get("value")


def _in_pt2(file: Path) -> str | None:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
        return archive.read(names[0]).decode() if names else None

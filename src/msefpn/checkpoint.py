"""What a file of weights says of its detector, read without torch; exported files say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from msefpn.config import Config, from_dict
from msefpn.errors import UserError
from msefpn.places import is_named, is_pretrained, on_hub
from msefpn.pretrained import (
    HUB_FILE,
    PRETRAINED,
    check_hub_name,
    fetch_from_hub,
    fetch_pretrained,
    published_weights,
    similar_name,
)
from msefpn.reading import Record, parse_json
from msefpn.version import __version__
from msefpn.writing import settle

CHECKPOINTS = (".pth", ".pt", ".pkl", ".pickle", ".ckpt")
"""Suffixes of files that others write their weights to, beside .safetensors."""
KEY = "msefpn"
"""Key of our entry in a file's metadata."""
VERSION = 2
"""Of what a file says of its detector; 1 was written by msefpn 0.1."""

_RENAMED = {"drops": "milestones", "clip": "grad_clip"}
_RENAMED_OPTIONS = {"candidates": "pre_nms_top_k", "detections": "max_per_image"}
"""Names in configurations of msefpn 0.1 and today's, of keys and of a detector's options."""

_LATER = "antialias"
"""A key that configurations have since FCOS's defaults are mmdetection's."""
_OLD_FCOS = {"inclusive": False, "scales": False, "weighted": False, "preselect": "product", "root": True}
"""Arguments of FCOS's head as they were before."""


class DetectorInfo(NamedTuple):
    """What a detector is built from."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def find_weights(path: str | Path) -> Path:
    """Return the weights of a run folder, best first, or the file itself; those of a name are downloaded.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    if is_pretrained(path):
        return fetch_pretrained(str(path))
    if on_hub(path):
        return fetch_from_hub(path)
    path = Path(path)
    if path.is_dir():
        settle(path)
        for name in ("best.safetensors", "last.safetensors", HUB_FILE):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} has no best.safetensors or last.safetensors: give a run folder")
    if not path.is_file():
        raise UserError(
            f"no weights at {path}: {similar_name(path)}give a run folder, a .safetensors file, or a name of "
            "'msefpn models'"
        )
    return path


def place_beside(run: Path) -> Path:
    """Return the folder for what is made of a run: its own, or the current one where it only has a name."""
    return Path() if is_named(run) else run if run.is_dir() else run.parent


def missing_weights(path: str | Path) -> UserError:
    """Build the error for initial weights that do not exist."""
    return UserError(
        f"initial weights {path} do not exist: {similar_name(path)}give a file, 'imagenet', 'none', or a "
        "name of 'msefpn models'"
    )


def check_initial_name(init: str) -> None:
    """Check that initial weights are known by name or exist as a file; nothing is downloaded.

    Raises:
        UserError: they are not.
    """
    if on_hub(init):
        check_hub_name(init)
    elif init not in ("imagenet", "none") and not is_pretrained(init) and not Path(init).is_file():
        raise missing_weights(init)


def check_there(path: Path) -> None:
    """Raise UserError for a checkpoint of others that does not exist."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: give a file")


def is_foreign(path: str | Path) -> bool:
    """Whether a file holds weights that others wrote: tensors without a description of ours."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return path.suffix in CHECKPOINTS and path.is_file()
    metadata = _metadata(path)
    return metadata is not None and KEY not in metadata


def check_run(path: str | Path) -> DetectorInfo | None:
    """Check that weights exist and describe a detector; of an exported file, that it exists.

    Those of `PRETRAINED` are not looked for here, and those of others not read: that takes torch.

    Returns:
        What they describe; None where it was not read.

    Raises:
        UserError: they do not.
    """
    if is_pretrained(path):
        return None
    file = find_weights(path)
    return read_info(path) if file.suffix == ".safetensors" and not is_foreign(file) else None


def is_ours(file: str | Path) -> bool:
    """Whether a .safetensors file describes a detector, as `msefpn.models.save` writes it."""
    return KEY in (_metadata(file) or {})


def _metadata(file: str | Path) -> dict[str, str] | None:
    """Metadata of a .safetensors file; None: it is not one, or broken."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            return opened.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return None


def read_info(path: str | Path) -> DetectorInfo:
    """Read the description of a detector from a run folder or a file of weights; no plug-in is imported.

    Raises:
        UserError: there are no weights, or the file is broken or was not written by msefpn.
    """
    if is_pretrained(path):
        return _pretrained_info(str(path))
    file = find_weights(path)
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(KEY)
        values = None if text is None else parse_json(text)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        if file.suffix != ".safetensors":
            raise UserError(
                f"{file} is not a .safetensors file: give the run folder "
                "(an exported file works with predict, evaluate and demo only)"
            ) from None
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} is broken or half-written ({reason}): take another copy of it") from None
    if values is None:
        raise UserError(
            f"{file} holds tensors but no detector: it was not written by msefpn; "
            "use it as initial weights with --init"
        )
    return parse_info(values, file, fix="take another copy of it")


def _pretrained_info(name: str) -> DetectorInfo:
    """The description of one of torchvision's detectors, which detects as torchvision does."""
    about = PRETRAINED[name]
    config = Config(
        detector=about.detector,
        detector_options={"preset": "torchvision", **about.options},
        backbone="resnet50",
        backbone_options={"norm_eps": about.norm_eps},
        neck="fpn",
        neck_options=dict(about.neck_options),
        init=name,
        batch=2,  # as on each of torchvision's GPUs; 16 images of this size take gigabytes
    )
    classes = published_weights(name).classes
    return DetectorInfo(config, tuple(classes.values()), tuple(classes))


def write_info(config: Config, classes: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """Return the description of a detector as plain values."""
    init = config.init if is_named(config.init) else Path(config.init).name  # the file's folder is private
    return {
        "version": VERSION,
        "made_with": {"msefpn": __version__},
        "config": vars(config) | {"init": init},
        "classes": classes,
        "category_ids": category_ids,
    }


def parse_info(values: Any, file: Path, *, fix: str, oldest: int = 1) -> DetectorInfo:
    """Read what `write_info` returned.

    Args:
        values: plain values, not trusted.
        file: where they are from, for the message.
        fix: what the user can do about a damaged file.
        oldest: lowest version that is read.

    Raises:
        UserError: the values are damaged, or of a version that cannot be read.
    """
    about = Record(values, f"{file} is damaged: the description of its detector", fix)
    settings = about.record("config").values
    names, ids = about.texts("classes"), about.wholes("category_ids")
    version = about.whole("version") if "version" in about.values else 1
    made = about.record("made_with").text("msefpn") if "made_with" in about.values else "0.1"
    if len(names) != len(ids) or not names:
        raise about.fault(f"has {len(names)} classes and {len(ids)} category ids")
    if version < oldest:
        raise UserError(f"{file} was exported by msefpn {made}: export it again with this version")
    if version == 1 or _LATER not in settings:
        settings = upgrade_config(settings)
    unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(Config)})
    if version > VERSION or unknown:
        what = f", with a setting '{unknown[0]}' that is unknown here" if unknown else ""
        by = "a newer" if version > VERSION else "another"
        raise UserError(
            f"{file} was written by {by} version of msefpn ({made}, this is {__version__}){what}: "
            "install that version, or update this one with pip install --upgrade msefpn"
        )
    return DetectorInfo(from_dict(settings, source=str(file)), names, ids)


def upgrade_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's whole configuration as today's: old names are replaced, old defaults written out."""
    upgraded = {_RENAMED.get(key, key): value for key, value in values.items()}
    if isinstance(options := upgraded.get("detector_options"), Mapping):
        upgraded["detector_options"] = options = _upgrade_options(options)
        if upgraded.get("detector") == "fcos" and _LATER not in upgraded:
            upgraded["detector_options"] = options | {"head": _OLD_FCOS | dict(options.get("head") or {})}
    return upgraded


def _upgrade_options(options: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = {
        _RENAMED_OPTIONS.get(key, key): _upgrade_options(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }
    if upgraded.pop("balanced_loss", False):
        upgraded["box_loss"] = "balanced_l1"
    return upgraded

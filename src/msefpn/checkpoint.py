"""What a file of weights says of its detector, read without torch."""

import json
from pathlib import Path
from typing import NamedTuple

import safetensors

from msefpn.config import Config, from_dict
from msefpn.errors import UserError

KEY = "msefpn"
"""Key of our entry in a safetensors file's metadata."""


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
    """Read it from a run's folder or a file of weights.

    Raises:
        UserError: there are no weights, or they are broken, or not ours.
    """
    file = find_weights(path)
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
    config = from_dict(about["config"], source=str(file))
    return About(config, tuple(about["classes"]), tuple(about["category_ids"]))

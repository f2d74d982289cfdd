"""How initial weights need images normalised, where their strides are, and whether a configuration agrees."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msefpn.checkpoint import find_weights, is_ours, read_info
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.importers import read_foreign
from msefpn.places import is_pretrained, on_hub

_DEFAULTS: Mapping[str, Any] = {"stride_in_1x1": False, "mean": None, "std": None}
"""Keys of `backbone_options` that weights decide, and what they are where nothing is said."""


def style_of_weights(source: str) -> dict[str, Any] | None:
    """The keys of `_DEFAULTS` that initial weights need; None where nothing is known of them.

    Raises UserError for a file that cannot be read.
    """
    if source in ("imagenet", "none") or is_pretrained(source):
        return None
    path = find_weights(source) if on_hub(source) else Path(source)
    if not path.is_file():
        return None
    return style_in(read_info(path).config) if is_ours(path) else read_foreign(path).needed_style


def style_in(config: Config) -> dict[str, Any]:
    """The keys of `_DEFAULTS` that a configuration sets."""
    return {key: config.backbone_options[key] for key in _DEFAULTS if key in config.backbone_options}


def check_style(config: Config, needed: Mapping[str, Any] | None, source: str) -> None:
    """Raise UserError where a configuration's backbone is not as initial weights need it."""
    if needed is None:
        return
    for key, default in _DEFAULTS.items():
        have, want = config.backbone_options.get(key, default), needed.get(key, default)
        if have != want:
            value = "null" if want is None else str(want).lower().replace(" ", "")
            raise UserError(
                f"the weights of {source} need backbone_options.{key}={value}, but the configuration has "
                f"{str(have).lower()}: change it, or give --set backbone_options.{key}={value}"
            )


def styled(config: Config) -> tuple[Config, list[str]]:
    """The configuration with the backbone options that its initial weights need, and lines that say so.

    Raises:
        UserError: it sets them to something else, or the weights cannot be read.
    """
    needed = style_of_weights(config.init)
    missing = {key: value for key, value in (needed or {}).items() if key not in config.backbone_options}
    changed = replace(config, backbone_options=config.backbone_options | missing)
    check_style(changed, needed, config.init)
    told = ", ".join(f"{key} {str(value).lower()}" for key, value in missing.items())
    return changed, [f"backbone options of {config.init}: {told}"] if missing else []

"""What a user's text names: a path of this machine, an address, or weights by name; none is opened."""

from __future__ import annotations

import re
from pathlib import Path

from msefpn.pretrained import PRETRAINED

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""How an address begins."""
_OTHERS = frozenset(("http", "https", "hf", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp"))
"""Protocols of what `msefpn.remote` does not read."""


def is_address(value: object) -> bool:
    """Whether a value is a text PROTOCOL://... of a file system, even an unknown one."""
    found = ADDRESS.match(value) if isinstance(value, str) else None
    return found is not None and found[1].lower() not in _OTHERS


def as_address(value: object) -> str | None:
    """The address in a text, or in a path, which has lost a slash; None: the value is not an address."""
    if isinstance(value, Path):
        found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", value.as_posix())
        local = found is not None and found[1].lower() in ("file", "local")
        value = value.as_posix().replace(":/", ":///" if local else "://", 1) if found else None
    return str(value) if is_address(value) else None


def is_pretrained(source: str | Path) -> bool:
    """Whether this names one of `PRETRAINED`; a file or folder of that name is meant first."""
    return str(source) in PRETRAINED and not Path(source).exists()


def is_named(source: str | Path) -> bool:
    """Whether these weights have a name instead of a path."""
    return is_pretrained(source) or on_hub(source)


def on_hub(source: str | Path) -> bool:
    """Whether this is of the Hugging Face hub; a Path has lost a slash."""
    return str(source).startswith("hf:/")

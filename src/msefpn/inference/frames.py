"""What is detected on: where it comes from, one image or frame of it, and what could not be read."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv"}
VIDEO_SUFFIXES |= {".flv", ".3gp"}
"""Suffixes of the files that are read as videos; any other file is read as an image."""
MAX_NAME = 100
"""Longest file or folder name that is derived from other names."""


class InputSource(NamedTuple):
    """A file, an address or a camera."""

    kind: str
    """image or video (files), url (an image or a video), remote (an image, by fsspec) or camera."""
    name: str
    """As the user knows it."""

    @property
    def stem(self) -> str:
        """File name without suffix for its results."""
        if self.kind == "camera":
            return f"camera-{self.name.rpartition(':')[2]}"
        if self.kind != "url":
            return Path(self.name).stem
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.name).path)
        return safe_name(Path(path).stem) or "download"

    @property
    def is_video(self) -> bool:
        """Whether it is known to have frames; of an address this may show only when it is downloaded."""
        if self.kind != "url":
            return self.kind in ("video", "camera")
        return Path(urllib.parse.urlsplit(self.name).path).suffix.lower() in VIDEO_SUFFIXES


class Frame(NamedTuple):
    """An image, or a frame of a video or camera."""

    source: int
    """Index of its source."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    number: int | None = None
    """Number of the frame from 0, counting those that `stride` skips; None: an image."""
    rate: float | None = None
    """Frames per second of a video, without those that `stride` skips."""
    time: float | None = None
    """When a frame of a video is shown, seconds; None: an image, or not known."""
    told: str = ""
    """What of the file was not taken as it stands."""


class ReadFailure(NamedTuple):
    """A source that cannot be read, or not to its end."""

    source: int
    """Index of the source."""
    text: str
    """What, and why."""
    partly: bool = False
    """Whether some frames were read."""
    passing: bool = False
    """Whether its file system is at fault, which refused or did not answer, and not the image."""


def safe_name(text: str) -> str:
    """Return what of a text can name a file or folder on any system; may be empty."""
    kept = re.sub(r"[^\w.+-]+", "_", text).strip("._ ")
    return kept.encode()[:MAX_NAME].decode(errors="ignore")

"""The quick look at JPEG files says what Pillow says, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msefpn.data import images
from msefpn.data.images import ImageFault, read_header
from msefpn.data.jpeg import quick_size


def by_pillow(file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(images, "quick_size", lambda _: None)
        try:
            return read_header(file)
        except ImageFault:
            return None


def saved(file: Path, mode: str = "RGB", **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (37, 61, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file


EXIF = Image.Exif()
EXIF[0x0112] = 6
QUICK: dict[str, dict[str, Any]] = {
    "plain": {},
    "grey": {"mode": "L"},
    "full colour": {"subsampling": "4:4:4"},
    "best": {"quality": 100, "optimize": True},
    "profile": {"icc_profile": b"x" * 600},
    "comment": {"comment": b"a comment"},
}
SLOW: dict[str, dict[str, Any]] = {
    "EXIF": {"exif": EXIF},
    "progressive": {"progressive": True},
    "CMYK": {"mode": "CMYK"},
    "large profile": {"icc_profile": b"x" * 70_000},
}


def test_ordinary_files_are_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, options in enumerate((*QUICK.values(), *SLOW.values())):
        file = saved(tmp_path / "a.jpg", **options)
        found = quick_size(file)
        assert (found is not None) == (place < len(QUICK))
        assert found is None or found[:3] == (37, 61, file.stat().st_size)
        assert read_header(file) == by_pillow(file, monkeypatch)


def test_damaged_files_are_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    whole = saved(tmp_path / "a.jpg").read_bytes()
    header = whole.index(b"\xff\xda") + 14
    file, quick = tmp_path / "b.jpg", 0
    for _ in range(300):
        spoilt = bytearray(whole)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            spoilt[place] = (0, 1, 8, 255, rng.integers(256))[rng.integers(5)]
        file.write_bytes(spoilt)
        if quick_size(file) is not None:
            quick += 1
            assert read_header(file) == by_pillow(file, monkeypatch), bytes(spoilt[:header])
    assert quick > 25
    for cut in (len(whole) - 2, len(whole) // 2, header, 10, 0):
        file.write_bytes(whole[:cut])
        assert quick_size(file) is None

"""What was read is kept for the next start, and is never believed where anything has changed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msefpn.data import cache, reader
from msefpn.data.coco import CocoData, scan_coco
from msefpn.data.images import read_header
from msefpn.errors import UserError
from tests.data.sets import assert_same, picture


class Kept:
    """A set whose reading is kept, and how often its json and images are read."""

    def __init__(self, folder: Path) -> None:
        self.file, self.images = folder / "a.json", folder / "a"
        for name in ("a.png", "b.png", "c.png"):
            picture(self.images / name)
        self.write([1, 2, 30, 30])
        self.parsed = 0
        self.looked: list[str] = []

    def write(self, box: list[int], name: str = "c.png") -> None:
        images = [
            {"id": id, "file_name": file, "width": 100, "height": 80}
            for id, file in enumerate(("a.png", "b.png", name), 1)
        ]
        notes = [{"id": id, "image_id": id % 2 + 1, "category_id": 5, "bbox": box} for id in (1, 2, 3)]
        classes = [{"id": 5, "name": "cat"}]
        content = {"images": images, "annotations": notes, "categories": classes}
        self.file.write_text(json.dumps(content))

    def read(self, *, masks: bool = False) -> CocoData:
        """Read, and check that it is what is there."""
        self.parsed, self.looked = 0, []
        data, report = reader.read_coco(self.file, self.images, masks=masks)
        parsed, looked = self.parsed, list(self.looked)
        expected = scan_coco(self.file, self.images, masks=masks)
        assert_same(data, expected.data)
        assert report.faults == expected.report.faults
        self.parsed, self.looked = parsed, looked
        return data

    @property
    def entry(self) -> Path:
        (path,) = cache_files()
        return path


def cache_files() -> list[Path]:
    folder = cache.cache_folder()
    assert folder is not None
    return sorted(folder.iterdir())


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setenv("MSEFPN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "MANY", 1)
    monkeypatch.setattr(cache, "SETTLED", 0)
    one = Kept(tmp_path / "set")
    scan = reader._scan

    def counted(*args: Any, **options: Any) -> Any:
        one.parsed += 1
        return scan(*args, **options)

    def noted(path: Path, *args: Any, **options: Any) -> Any:
        one.looked.append(path.name)
        return read_header(path, *args, **options)

    monkeypatch.setattr(reader, "_scan", counted)
    monkeypatch.setattr("msefpn.data.looking.read_header", noted)
    return one


def test_the_second_start_reads_neither_json_nor_images(kept: Kept) -> None:
    first = kept.read()
    assert (kept.parsed, sorted(kept.looked)) == (1, ["a.png", "b.png", "c.png"])
    second = kept.read()
    assert (kept.parsed, kept.looked) == (0, [])
    assert_same(first, second)
    assert kept.entry.stat().st_mode & 0o077 == 0
    with np.load(kept.entry, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def same_times(path: Path, change: Any) -> None:
    """Change a file and give it the old times."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_every_change_is_noticed(kept: Kept, tmp_path: Path) -> None:
    kept.read()
    same_times(kept.file, lambda: kept.write([1, 2, 40, 40]))
    kept.read()
    assert (kept.parsed, kept.looked) == (1, [])
    image = kept.images / "b.png"
    pixels = image.read_bytes()
    same_times(image, lambda: image.write_bytes(pixels[:-20] + b"x" * 20))  # its end is broken
    kept.read()
    assert kept.looked == ["b.png"]
    kept.read()
    assert kept.looked == ["b.png"], "what cannot be read is always looked at"
    image.write_bytes(pixels)
    kept.read()
    assert kept.looked == ["b.png"]
    picture(tmp_path / "other.png", (50, 40))
    shutil.copy(tmp_path / "other.png", kept.images / "c.png")
    assert kept.read().sizes[2].tolist() == [40, 50]
    (kept.images / "c.png").unlink()
    with pytest.raises(UserError, match=r"c\.png .* is missing"):
        reader.read_coco(kept.file, kept.images)
    picture(kept.images / "c.png")
    kept.read()
    assert "c.png" in kept.looked
    assert kept.looked.count("a.png") == 0


def test_files_that_changed_just_now_are_not_believed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SETTLED", 10**12)
    kept.read()
    kept.read()
    assert len(kept.looked) == 3


def test_a_damaged_entry_is_never_believed(kept: Kept) -> None:
    kept.read()
    whole, rng = kept.entry.read_bytes(), np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 40), *range(len(whole) - 60, len(whole), 6)]:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << rng.integers(8)
        kept.entry.write_bytes(spoilt)
        kept.read()
    for content in (whole[:100], whole[: len(whole) // 2], b"", b"PK", b"\x80\x04."):
        kept.entry.write_bytes(content)
        kept.read()
        assert kept.parsed == 1


def test_an_entry_of_another_file_or_version_is_not_believed(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.read()
    other = Kept(tmp_path / "other")
    other.write([5, 5, 9, 9])
    place = cache.EntryKey(other.file, other.images, decode=False, masks=False).path()
    assert place is not None
    shutil.copy(kept.entry, place)
    other.read()
    monkeypatch.setattr(cache, "FORM", cache.FORM + 1)
    kept.read()
    assert kept.parsed == 1


def test_a_cache_that_cannot_be_is_none(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for value in (str(tmp_path / "file"), str(tmp_path / "file/below"), "/proc/none", "off", ""):
        monkeypatch.setenv("MSEFPN_CACHE", value)
        kept.read()
        assert kept.parsed == 1
    monkeypatch.delenv("MSEFPN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    kept.read()
    assert list((tmp_path / "home/msefpn").iterdir()) == cache_files() != []
    assert {path.name for path in kept.file.parent.iterdir()} == {"a", "a.json"}, "nothing is beside the data"


def test_writers_at_once_and_old_entries(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.read()
    place = cache.EntryKey(kept.file, kept.images, decode=False, masks=False)
    entry = cache.load(place)
    assert entry is not None
    writers = [threading.Thread(target=cache.store, args=(place, entry)) for _ in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert cache.load(place) is not None
    assert len(cache_files()) == 1
    newest = kept.entry
    old, part = newest.with_name(f"data-{'0' * 32}.npz"), newest.with_name("data-a0_b1c2d.part")
    users = newest.with_name("data-mine.npz"), newest.with_name("data-mine.part")
    for path in (old, part, *users):
        path.write_bytes(newest.read_bytes())
        os.utime(path, (0, 0))
    monkeypatch.setattr(cache, "MAX_CACHE", newest.stat().st_size)
    cache.store(place, entry)
    assert not old.exists()
    assert not part.exists()
    assert all(path.exists() for path in users), "only the cache's own files are removed"
    for path in users:
        path.unlink()
    kept.read()
    assert kept.parsed == 0


def test_masks_are_kept(kept: Kept) -> None:
    content = json.loads(kept.file.read_text())
    for note in content["annotations"]:
        note["segmentation"] = [[1, 1, 20, 1, 20, 20]]
    kept.file.write_text(json.dumps(content))
    for parsed in (1, 0):
        data = kept.read(masks=True)
        assert kept.parsed == parsed
        assert data.masks is not None

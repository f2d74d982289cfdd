"""Images that lists name, and at addresses; a list that is none is one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msefpn import remote
from msefpn.errors import UserError
from msefpn.inference.frames import Frame, InputSource, ReadFailure
from msefpn.inference.sources import find_sources, read_frames


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    """A file system in memory with a folder `in`, whose a.png is 30 x 20."""
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    system = fsspec.filesystem("memory")
    picture = (tmp_path / "a.png").read_bytes()
    system.pipe({"/in/a.png": picture, "/in/deep/b.heic": b"-", "/in/deep/c.txt": b"d.jpg\n/in/e.jpg"})
    yield system
    system.rm("/in", recursive=True)


def write_column(path: Path, name: str, values: list[Any]) -> Path:
    pq.write_table(pa.table({"n": list(range(len(values))), name: values}), path)
    return path


def test_lists_name_files_and_addresses(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        " /abs/b.png\r",
        "",
        "http://host/c.jpg?size=1",
        "s3://bucket/d.jpg",
        "clip.mp4",
        "a.jpg",
    ]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(names).encode())
    expected = [
        InputSource("image", str(tmp_path / "a.jpg")),
        InputSource("image", "/abs/b.png"),
        InputSource("url", "http://host/c.jpg?size=1"),
        InputSource("remote", "s3://bucket/d.jpg"),
        InputSource("video", str(tmp_path / "clip.mp4")),
    ]
    assert find_sources(tmp_path / "list.txt") == expected
    assert find_sources(str(tmp_path / "*.txt")) == expected
    for column in ("image", "path", "file_name", "url"):
        list_ = write_column(tmp_path / "list.parquet", column, ["a.jpg", "/abs/b.png"])
        assert find_sources(list_) == expected[:2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no images"),
        (b"\n \n", "lists no images"),
        (b"a.jpg\n\xff\xfe", "line 2 is not UTF-8"),
        (b"a\0b", "line 1 has a null character"),
        (b"a" * 9000, "line 1 has more than 8192 bytes"),
        (b"http://[::1", "is not an address"),
        (b"github://user:repo@/a.jpg", "cannot be used"),
        (b"s3://bucket/a::http://host/b", "has '::' in it"),
    ],
)
def test_a_text_that_is_no_list_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"[^\n]+") as caught:
        find_sources(tmp_path / "list.txt")
    assert message in str(caught.value)


def test_a_parquet_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    whole = write_column(tmp_path / "a.parquet", "image", ["a.jpg", None])
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "folder.parquet").mkdir()
    for place, message in (
        (whole, "names no image in row 2 of 'image'"),
        (cut, "is not a whole Parquet file"),
        (write_column(tmp_path / "b.parquet", "name", ["a.jpg"]), "no column of texts named image, path"),
        (write_column(tmp_path / "c.parquet", "image", [1]), "no column of texts named image, path"),
        (write_column(tmp_path / "d.parquet", "image", ["a\0"]), "row 1 has a null character"),
        (tmp_path / "none.parquet", "no image found at"),
    ):
        with pytest.raises(UserError) as caught:
            find_sources(place)
        assert message in str(caught.value)


def test_addresses_are_read(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = find_sources("memory://in")
    assert (first.kind, second.name) == ("remote", "memory:///in/deep/b.heic")
    assert find_sources("memory://in/*.png") == [first]
    assert find_sources("memory://in/deep/c.txt") == [
        InputSource("remote", "memory://in/deep/d.jpg"),
        InputSource("image", "/in/e.jpg"),
    ]
    for place, message in (
        ("memory://none", "check the address"),
        ("memory://in/*.gif", "check the pattern"),
        ("memory://in/deep", "no file with the suffix .jpg"),
        ("webdav://host/x.jpg", "cannot be used"),
    ):
        with pytest.raises(UserError, match=message):
            find_sources(place)

    gone = InputSource("remote", "memory://in/gone.png")
    items = list(read_frames([first, second, gone], stride=1, limit=None))
    frame, *failures = items
    assert isinstance(frame, Frame)
    assert frame.pixels.shape == (20, 30, 3)
    texts = [
        (item.text.partition(": ")[0], item.passing) for item in failures if isinstance(item, ReadFailure)
    ]
    assert texts == [(second.name, False), (gone.name, False)]

    def refuse(*_: object) -> None:
        raise UserError("the network is down")

    monkeypatch.setattr(remote, "_system", refuse)
    (failure,) = read_frames([first], stride=1, limit=None)
    assert isinstance(failure, ReadFailure)
    assert failure.passing


def test_a_list_of_a_file_system_whose_files_have_no_bounded_readline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remote(fsspec.spec.AbstractBufferedFile):  # type: ignore[misc]  # untyped
        def _fetch_range(self, start: int, end: int) -> bytes:
            return content[start:end]

    @contextlib.contextmanager
    def opened(address: str) -> Iterator[Any]:
        with Remote(None, address, size=len(content)) as file:
            yield file

    monkeypatch.setattr(remote, "open_address", opened)
    content = b"a.jpg\nhttp://host/b.jpg\n"
    names = ["s3://bucket/in/a.jpg", "http://host/b.jpg"]
    assert [source.name for source in find_sources("s3://bucket/in/list.txt")] == names
    content = write_column(tmp_path / "list.parquet", "image", ["a.jpg", "http://host/b.jpg"]).read_bytes()
    assert [source.name for source in find_sources("s3://bucket/in/list.parquet")] == names

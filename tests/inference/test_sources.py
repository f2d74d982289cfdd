"""Pictures out of files, videos, addresses and a camera, and what is said of those that cannot be read."""

import http.server
import threading
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from msefpn.prediction import download as fetch
from msefpn.prediction.request import Source
from msefpn.prediction.sources import Fault, Picture, count_pictures, read_pictures

FRAMES = 80


def write_video(path: Path, frames: int = FRAMES, options: dict[str, str] | None = None) -> None:
    """Frames become brighter by 2 each."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0)  # so that a part of the file is as large a part of the frames
        for k in range(frames):
            pixels = (noise.integers(0, 40, (48, 64, 3)) + 2 * k).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def read(*given: Source, stride: int = 1, most: int | None = None) -> tuple[list[Picture], list[Fault]]:
    """Pictures and faults."""
    items = list(read_pictures(given, stride=stride, most=most))
    return [x for x in items if isinstance(x, Picture)], [x for x in items if isinstance(x, Fault)]


def test_frames_of_a_video_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    video = Source("video", str(tmp_path / "a.mp4"))
    pictures, faults = read(video, stride=7)
    assert faults == []
    assert [picture.frame for picture in pictures] == list(range(0, FRAMES, 7))
    assert {picture.rate for picture in pictures} == {10 / 7}
    assert {picture.pixels.shape for picture in pictures} == {(48, 64, 3)}
    means = [picture.pixels.mean() for picture in pictures]
    np.testing.assert_allclose(np.diff(means)[:4], 14, atol=2)
    assert len(read(video, stride=7, most=2)[0]) == 2
    assert count_pictures([video, Source("image", "x")], stride=7, most=None) == 13
    assert count_pictures([video], stride=7, most=2) == 2
    assert count_pictures([video, Source("camera", "camera:0")], stride=7, most=None) is None


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_that_ends_in_the_middle(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_video(path, options={"movflags": "faststart"} if name == "a.mp4" else None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    pictures, faults = read(Source("video", str(path)))
    assert 5 < len(pictures) < FRAMES - 5
    assert [picture.frame for picture in pictures] == list(range(len(pictures)))
    (fault,) = faults
    assert fault.partly
    assert f"{name} breaks off after {len(pictures)}" in fault.text


def test_what_is_no_picture_is_told_in_a_line(tmp_path: Path) -> None:
    names = {"zero.jpg": b"", "text.jpg": b"no image", "zero.mp4": b"", "text.mp4": b"no video" * 99}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    Image.new("L", (20, 10)).save(tmp_path / "good.png")
    given = [tmp_path / name for name in (*names, "sound.mp4", "good.png", "gone.png")]
    pictures, faults = read(*(Source("video" if p.suffix == ".mp4" else "image", str(p)) for p in given))
    assert [(picture.source, picture.pixels.shape) for picture in pictures] == [(5, (10, 20, 3))]
    assert [fault.source for fault in faults] == [0, 1, 2, 3, 4, 6]
    says = [
        "no image format",
        "no image format",
        "no video that can",
        "no video that can",
        "holds no pictures",
    ]
    for fault, text, path in zip(faults, [*says, "No such file"], [*given[:5], given[6]], strict=True):
        assert str(path) in fault.text
        assert text in fault.text
        assert "\n" not in fault.text
        assert not fault.partly


def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    side = (30_000).to_bytes(4, "big")
    head = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    _, (fault,) = read(Source("image", str(path)))
    assert "it has 900 million pixels, the limit is 179 million: cut it into parts" in fault.text


class Answers(http.server.BaseHTTPRequestHandler):
    """A server of one picture, one video and several mistakes."""

    files: dict[str, tuple[str, bytes]] = {}  # noqa: RUF012  (filled by the fixture)

    def do_GET(self) -> None:
        kind, content = self.files.get(self.path, ("", b""))
        if not kind:
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) * (2 if "half" in self.path else 1)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    write_video(tmp_path / "clip.mp4", frames=12)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    Answers.files = {
        "/red.png?x=1": ("image/png", (tmp_path / "red.png").read_bytes()),
        "/half.png": ("image/png", (tmp_path / "red.png").read_bytes()),
        "/clip": ("video/mp4", (tmp_path / "clip.mp4").read_bytes()),
        "/page.jpg": ("text/html", b"<html>"),
        "/large.png": ("image/png", bytes(3000)),
    }
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_files_from_the_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MOST_BYTES", 2999)
    names = ["/red.png?x=1", "/none.png", "/page.jpg", "/large.png", "/half.png"]
    pictures, faults = read(
        *(Source("url", server + name) for name in names), Source("url", "http://127.0.0.1:9/x.jpg")
    )
    assert [picture.pixels.shape for picture in pictures] == [(20, 30, 3)]
    says = [
        "answers 404 Not Found",
        "no image, the server says it is text/html",
        "the limit is 0 MB",
        "broke off after",
        "cannot be reached",
    ]
    for fault, text in zip(faults, says, strict=True):
        assert text in fault.text, fault
        assert fault.text.startswith("http://127.0.0.1")
    monkeypatch.setattr(fetch, "MOST_BYTES", 1 << 20)
    pictures, faults = read(Source("url", f"{server}/clip"), stride=5)
    assert [picture.frame for picture in pictures] == [0, 5, 10]
    assert faults == []


def test_a_camera_is_read_until_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no camera here: a video stands in its place."""
    write_video(tmp_path / "a.mp4")
    opened = []

    def stand_in(place: str, **options: Any) -> Any:
        opened.append((place, options))
        return real(str(tmp_path / "a.mp4"))

    real = av.open
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(av, "open", stand_in)
    pictures, faults = read(Source("camera", "camera:2"), stride=2, most=3)
    assert [picture.frame for picture in pictures] == [0, 2, 4]
    assert faults == []
    assert opened == [("/dev/video2", {"format": "v4l2"})]
    monkeypatch.undo()
    _, (fault,) = read(Source("camera", "camera:97"))
    assert "camera:97: no camera that can be read" in fault.text


def test_a_reader_that_is_left_early_stops(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    before = threading.active_count()
    reading = read_pictures([Source("video", str(tmp_path / "a.mp4"))], stride=1, most=None)
    next(reading)
    reading.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before

"""Pictures out of files, videos, addresses and a camera, and what is said of those that cannot be read."""

import http.server
import sys
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

from msefpn.errors import UserError
from msefpn.inference import download
from msefpn.inference.frames import Frame, InputSource, ReadFailure, safe_name
from msefpn.inference.sources import check_video, count_frames, find_images, find_sources, read_frames

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


def read(
    *given: InputSource, stride: int = 1, limit: int | None = None
) -> tuple[list[Frame], list[ReadFailure]]:
    items = list(read_frames(given, stride=stride, limit=limit))
    return [x for x in items if isinstance(x, Frame)], [x for x in items if isinstance(x, ReadFailure)]


def test_find_sources(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.PNG", "deep/notes.txt", "deep/c.mp4", "videos/d.MOV", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b = (
        InputSource("image", str(tmp_path / "a.jpg")),
        InputSource("image", str(tmp_path / "deep" / "b.PNG")),
    )
    c = InputSource("video", str(tmp_path / "deep" / "c.mp4"))
    url = InputSource("url", "http://host/x.jpg?size=3")
    assert find_sources([tmp_path]) == [a, b], "videos under a folder are not meant"
    assert find_sources([a.name, str(tmp_path / "*.jpg"), str(tmp_path / "**" / "*.PNG")]) == [a, b]
    assert find_sources([c.name, url.name]) == [c, url]
    assert find_images([tmp_path, a.name]) == [Path(a.name), Path(b.name)]
    with pytest.raises(UserError, match=r"c\.mp4' is not an image file"):
        find_images([tmp_path, c.name])
    cameras = [InputSource("camera", "camera:1"), InputSource("camera", "camera:0")]
    assert find_sources(["camera:1", "0"]) == cameras
    wrong: list[tuple[str | Path, str]] = [
        (tmp_path / "*.gif", r"no image found at .*\.gif"),
        (tmp_path / "videos", r"name its videos themselves, such as .*d\.MOV"),
        (tmp_path / "empty", r"no image found at .*empty': it has no file with the suffix \.bmp"),
        ("ftp://host/x.jpg", "begins with http"),
    ]
    for given, says in wrong:
        with pytest.raises(UserError, match=says):
            find_sources([given])
    with pytest.raises(UserError, match="no images given"):
        find_sources([])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<b>cat</b>", "b_cat_b"),
        ("../../etc/passwd", "etc_passwd"),
        ("猫 a.b", "猫_a.b"),
        ("...", ""),
        ("C:\\x\0y", "C_x_y"),
        ("ж" * 90, "ж" * 50),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_frames_of_a_video_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    video = InputSource("video", str(tmp_path / "a.mp4"))
    frames, failures = read(video, stride=7)
    assert failures == []
    assert [frame.number for frame in frames] == list(range(0, FRAMES, 7))
    assert {frame.rate for frame in frames} == {10 / 7}
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    means = [frame.pixels.mean() for frame in frames]
    np.testing.assert_allclose(np.diff(means)[:4], 14, atol=2)
    assert len(read(video, stride=7, limit=2)[0]) == 2
    assert count_frames([video, InputSource("image", "x")], stride=7, limit=None) == 13
    assert count_frames([video], stride=7, limit=2) == 2
    assert count_frames([video, InputSource("camera", "camera:0")], stride=7, limit=None) is None


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_that_ends_in_the_middle(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_video(path, options={"movflags": "faststart"} if name == "a.mp4" else None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    frames, failures = read(InputSource("video", str(path)))
    assert 5 < len(frames) < FRAMES - 5
    assert [frame.number for frame in frames] == list(range(len(frames)))
    (failure,) = failures
    assert failure.partly
    assert f"{name} breaks off after {len(frames)}" in failure.text


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
    frames, failures = read(*(InputSource("video" if p.suffix == ".mp4" else "image", str(p)) for p in given))
    assert [(frame.source, frame.pixels.shape) for frame in frames] == [(5, (10, 20, 3))]
    assert [failure.source for failure in failures] == [0, 1, 2, 3, 4, 6]
    says = [
        "no image format",
        "no image format",
        "not a video that can",
        "not a video that can",
        "has no video stream",
    ]
    for failure, text, path in zip(failures, [*says, "No such file"], [*given[:5], given[6]], strict=True):
        assert str(path) in failure.text
        assert text in failure.text
        assert "\n" not in failure.text
        assert not failure.partly


def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    side = (30_000).to_bytes(4, "big")
    head = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    _, (failure,) = read(InputSource("image", str(path)))
    assert "it has 900 million pixels, the limit is 100 million: cut it into parts" in failure.text


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
    monkeypatch.setattr(download, "MAX_BYTES", 2999)
    names = ["/red.png?x=1", "/none.png", "/page.jpg", "/large.png", "/half.png"]
    frames, failures = read(
        *(InputSource("url", server + name) for name in names), InputSource("url", "http://127.0.0.1:9/x.jpg")
    )
    assert [frame.pixels.shape for frame in frames] == [(20, 30, 3)]
    says = [
        "answers 404 Not Found",
        "not an image, the server says it is text/html",
        "the limit is 0 MB",
        "broke off after",
        "cannot be reached",
    ]
    for failure, text in zip(failures, says, strict=True):
        assert text in failure.text, failure
        assert failure.text.startswith("http://127.0.0.1")
    monkeypatch.setattr(download, "MAX_BYTES", 1 << 20)
    frames, failures = read(InputSource("url", f"{server}/clip"), stride=5)
    assert [frame.number for frame in frames] == [0, 5, 10]
    assert failures == []


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
    frames, failures = read(InputSource("camera", "camera:2"), stride=2, limit=3)
    assert [frame.number for frame in frames] == [0, 2, 4]
    assert failures == []
    assert opened == [("/dev/video2", {"format": "v4l2", "options": {}, "metadata_errors": "replace"})]
    monkeypatch.undo()
    _, (failure,) = read(InputSource("camera", "camera:97"))
    assert "camera:97: not a camera that can be read" in failure.text


def test_a_reader_that_is_left_early_stops(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    before = threading.active_count()
    reading = read_frames([InputSource("video", str(tmp_path / "a.mp4"))], stride=1, limit=None)
    next(reading)
    reading.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before


def test_without_the_extra_a_video_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "msefpn.inference.video", raising=False)
    check_video([InputSource("image", "a.jpg"), InputSource("url", "http://host/a.jpg")])
    for source in (InputSource("video", "a.mp4"), InputSource("camera", "camera:0")):
        with pytest.raises(UserError, match=r'reading .* needs the extra: pip install "msefpn\[video\]"'):
            check_video([source])
    with pytest.raises(UserError, match=r"a\.mp4\S* needs the extra"):
        check_video([InputSource("url", "http://host/a.mp4?x=1")])
    _, (failure,) = read(InputSource("video", "a.mp4"))
    assert 'a.mp4: reading a video needs the extra: pip install "msefpn[video]"' in failure.text

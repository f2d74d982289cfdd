"""What the page takes and refuses, without a browser."""

import asyncio
import base64
import importlib.util
import os
import shutil
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msefpn
from msefpn.config import load_recipe
from msefpn.data.masks import decode_masks, encode_mask, run_lengths
from msefpn.errors import UserError
from msefpn.inference.detect import Predictions
from msefpn.models import build, save
from msefpn.web.demo import newest_run, open_runs
from msefpn.web.results import result_panels
from msefpn.web.server import Guard, is_local, listen
from msefpn.web.session import ServedRun, detect_all
from msefpn.web.upload import UploadLimits, read_upload
from tests import TINY

LIMITS = UploadLimits(megabytes=0.1, megapixels=0.2)


def sent(data: bytes, name: object = "x.png") -> dict[str, Any]:
    return {"name": name, "data": base64.b64encode(data).decode()}


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """Only the header of an image that would fill the memory."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_upload_is_read(kind: str) -> None:
    upload = read_upload(sent(encoded(kind), "C:\\my\\folder/photo.x"), LIMITS)
    assert upload.name == "photo.x"
    assert upload.pixels.shape == (30, 40, 3)
    assert abs(upload.pixels.mean((0, 1)) - [255, 0, 0]).max() < 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no file arrived"),
        (sent(b"x", 7), "no file arrived"),
        ({"name": "x.png", "data": "%%%"}, "did not arrive completely"),
        (sent(b""), "x.png is empty"),
        (sent(b"GIF89a"), "not a readable image: give a JPEG, PNG"),
        (sent(encoded("GIF")), "not a readable image"),
        (sent(encoded()[:60]), "x.png"),
        (sent(bytes(200_000)), "too large: 0.2 MB, the page accepts 0.1"),
        (sent(png_of(500, 401)), "500 x 401, the page accepts 0.2 million"),
        (sent(png_of(30_000, 30_000)), "too many pixels: the page accepts 0.2 million"),
    ],
)
def test_upload_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_upload(given, LIMITS)
    assert "\n" not in str(caught.value)
    assert "/" not in str(caught.value)


class Fixed:
    """Finds two boxes with masks in every picture."""

    classes = ("b", "a")
    category_ids = (5, 2)

    def __call__(self, images: list[np.ndarray[Any, Any]], *, score: float = 0.0) -> list[Predictions]:
        height, width = images[0].shape[:2]
        masks = np.empty(2, dtype=object)
        for place in range(2):
            mask = np.zeros((height, width), bool)
            mask[: height // 2] = True
            masks[place] = run_lengths(encode_mask(mask), (height, width))
        boxes = np.array([[0, 0, width / 2, height], [0, 0, width, height / 2]], np.float32)
        return [
            Predictions(
                np.zeros(2, np.int64), boxes, np.array([0.4, 0.9], np.float32), np.array([0, 1]), masks
            )
        ]


@pytest.mark.parametrize("size", [(2000, 1500), (100, 60)])
def test_what_is_shown_is_scaled_and_labels_are_those_of_both_runs(size: tuple[int, int]) -> None:
    other = Fixed()
    other.classes = ("a", "c")
    runs: list[Any] = [ServedRun("one", Fixed()), ServedRun("two", other)]  # type: ignore[arg-type]
    upload = read_upload(sent(encoded(size=size)), UploadLimits(10, 10))
    seen = detect_all(runs, upload)
    height, width = seen.pixels.shape[:2]
    assert max(height, width) == (1280 if size[0] > 1280 else 960)
    for look, names in zip(seen.detections, (["a", "b"], ["c", "a"]), strict=True):
        np.testing.assert_allclose(look.small.boxes[0], [0, 0, width, height / 2], rtol=1e-3)
        np.testing.assert_allclose(look.full.boxes[0], [0, 0, size[0], size[1] / 2], rtol=1e-3)
        assert [["b", "a", "c"][label] for label in look.small.labels] == names
        assert look.small.masks is not None
        mask = decode_masks([look.small.masks[0]["counts"].encode()], (height, width))[0]
        assert abs(mask.mean() - 0.5) < 0.02
    html = result_panels(seen, runs, 0.5, [])
    assert html.count("<tr><td>") == 2
    assert html.count("–</td>") == 2, "no level is told"
    assert "No box at this score" in result_panels(seen, runs, 0.95, [])
    assert result_panels(seen, runs, 0.0, ["a"]).count("<tr><td>") == 2


def test_port_and_host() -> None:
    with listen("127.0.0.1", 0) as taken:
        assert is_local(taken)
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {number} is in use: give another with --port"):
            listen("127.0.0.1", number)
    with listen("0.0.0.0", 0) as taken:
        assert not is_local(taken)
    with pytest.raises(UserError, match="port is 70000"):
        listen("127.0.0.1", 70000)
    with pytest.raises(UserError, match=r"host '300\.1\.1\.1'"):
        listen("300.1.1.1", 0)
    with pytest.raises(UserError, match=r"host '192\.0\.2\.1'"):  # an address of no machine
        listen("192.0.2.1", 0)


def test_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name one, or make one with 'msefpn train'"):
        newest_run(tmp_path)
    for name in ("old", "young", "without"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("last" if name == "without" else "best.safetensors")).touch()
    os.utime(tmp_path / "old" / "best.safetensors", (1, 1))
    assert newest_run(tmp_path) == tmp_path / "young"


def test_runs_are_named_without_their_path(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    save(build(load_recipe(str(TINY)), ["a"]), run / "best.safetensors")
    shutil.copy(run / "best.safetensors", run / "last.safetensors")
    opened = open_runs([run, run / "best.safetensors", run / "last.safetensors"], size="64", device="cpu")
    assert [shown.name for shown in opened] == ["mine", "mine", "mine last.safetensors"]
    given = replace(load_recipe(str(TINY)), detector="fast_rcnn", detector_options={})
    save(build(given, ["a"]), run / "best.safetensors")
    with pytest.raises(UserError, match="is a fast_rcnn, which needs proposals"):
        open_runs([run], size=None, device="cpu")


def test_demo_tells_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="3 runs are given"):
        msefpn.demo(["a", "b", "c"], port=0)
    with pytest.raises(UserError, match="limits of images must be above 0"):
        msefpn.demo(port=0, max_megapixels=0)
    with pytest.raises(UserError, match="'runs' holds none"):
        msefpn.demo(port=0)
    with pytest.raises(UserError, match="no weights at nowhere"):
        msefpn.demo("nowhere", port=0)
    Path("run.onnx").touch()
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="is in use"):
        msefpn.demo("run.onnx", port=taken.getsockname()[1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "msefpn\[demo\]"'):
        msefpn.demo("nowhere", port=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("method", "path", "length", "status"),
    [
        ("GET", "/", None, 200),
        ("GET", "/assets/index.js", None, 200),
        ("POST", "/gradio_api/queue/join", b"200000", 200),
        ("POST", "/gradio_api/queue/join", b"300000", 413),
        ("POST", "/gradio_api/queue/join", None, 411),
        ("POST", "/gradio_api/upload", b"10", 404),
        ("GET", "/gradio_api/file=/etc/hostname", None, 404),
        ("GET", "/assets/../../gradio_api/file=x", None, 404),
        ("GET", "/gradio_api/proxy=http://example.org", None, 404),
    ],
)
def test_guard(method: str, path: str, length: bytes | None, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [] if length is None else [(b"content-length", length)]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Guard(app, LIMITS)(scope, receive, send))
    assert answers[0]["status"] == status
    if status == 200:
        assert b"default-src 'self'" in dict(answers[0]["headers"])[b"content-security-policy"]

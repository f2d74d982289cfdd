"""What the tests of the page share: images, a detector that always finds the same, a running server."""

import contextlib
import ctypes
import json
import os
import socket
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.masks import encode_mask, run_lengths
from msefpn.inference.detect import Predictions
from msefpn.inference.predictor import Predictor
from msefpn.web.access import Doorkeeper
from msefpn.web.app import SECURITY_HEADERS, App
from msefpn.web.detections import ServedRun
from msefpn.web.limits import Limits
from msefpn.web.server import listen, make_server

LIMITS = Limits(megabytes=0.3, megapixels=0.4)
EVIL = "<img src=x onerror=\"document.title='broken in'\">${1 + 1}{{value}}"


class Fixed:
    """Finds two boxes with masks in every image: the upper half, and the left half."""

    classes: tuple[str, ...] = ("circle", EVIL)
    category_ids = (3, 7)

    def __init__(self) -> None:
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, images: Sequence[NDArray[np.uint8]], *, score: float = 0.0) -> list[Predictions]:
        self.calls += 1
        assert self.gate.wait(30)
        height, width = images[0].shape[:2]
        halves = np.zeros((2, height, width), bool)
        halves[0, : height // 2], halves[1, :, : width // 2] = True, True
        masks = np.empty(2, dtype=object)
        for place, half in enumerate(halves):
            masks[place] = run_lengths(encode_mask(half), (height, width))
        boxes = np.array([[0, 0, width, height // 2], [0, 0, width // 2, height]], np.float32)
        scores, labels = np.array([0.4, 0.9], np.float32), np.array([0, 1])
        return [Predictions(np.zeros(2, np.int64), boxes, scores, labels, masks, 0, np.array([4, 32]))]


def fixed_run(name: str, found: Fixed | None = None) -> ServedRun:
    return ServedRun(name, cast(Predictor, found or Fixed()))


@contextlib.contextmanager
def serving(runs: Sequence[ServedRun], limits: Limits = LIMITS) -> Iterator[tuple[App, int]]:
    """Serve the page on a free port of this machine; give the application and the port."""
    with listen("127.0.0.1", 0) as taken:
        app = App(runs, limits, Doorkeeper(taken))
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        try:
            yield app, taken.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


class Reply:
    """An HTTP response as it came, up to the end of the connection."""

    def __init__(self, text: bytes) -> None:
        self.head, _, self.body = text.partition(b"\r\n\r\n")
        self.status = int(self.head.split()[1]) if self.head else 0

    @property
    def headers(self) -> dict[str, str]:
        """The last of each name, in lower case."""
        lines = (line.partition(": ") for line in self.head.decode().split("\r\n")[1:])
        return {name.lower(): value for name, _, value in lines}

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str = "POST", path: str = "/detect", body: bytes = b"", *lines: str, host: str = "localhost"
) -> bytes:
    """The bytes of a request that ends its connection; `lines` are headers."""
    length = [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    kind = ["Content-Type: image/png"] if method == "POST" else []
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *length, *kind, *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def check_headers(reply: Reply) -> None:
    for name, value in SECURITY_HEADERS:
        assert reply.headers[name.decode()] == value.decode()
    told = reply.head.decode().lower()
    assert "access-control" not in told
    assert "uvicorn" not in told
    assert "python" not in told


def client_of(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def exchange(port: int, *parts: bytes) -> Reply:
    """Send bytes and read until the server closes."""
    with client_of(port) as client:
        with contextlib.suppress(ConnectionError):  # the server has closed before all was sent
            for part in parts:
                client.sendall(part)
        return Reply(read_all(client))


def read_all(client: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            got += part
    return got


def resident(process: int | None = None) -> float:
    """Memory of a process, MB; of this one, without what its allocator keeps for later."""
    if process is None:
        with contextlib.suppress(AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)
    statm = Path(f"/proc/{process or 'self'}/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30), color: str = "red", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """Only the header of an image that would fill the memory."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of(tile: int, *more: tuple[int, int]) -> bytes:
    """A TIFF of 16 x 16 pixels whose only tile has another size; `more` are tags and values."""
    data = zlib.compress(bytes(16))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    tags = sorted([*tags, *more, (324, 0), (325, len(data))])
    after = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, after if tag == 324 else value) for tag, value in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


def jpeg_of(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    usual = encoded("JPEG", progressive=True)
    last = usual[usual.rindex(b"\xff\xda") : -2]
    return usual[:-2] + last * (scans - usual.count(b"\xff\xda")) + usual[-2:]


def split_jpeg_of(scans: int) -> bytes:
    """A JPEG that is not progressive, with scans of one of its three components."""
    usual = encoded("JPEG")
    head, _, _ = usual.partition(b"\xff\xda")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00"
    comment = b"\xff\xfe\x00\x04\x03\x03"
    return head + (scan + comment) * scans + b"\xff\xd9"

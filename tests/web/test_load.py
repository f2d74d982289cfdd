"""Twenty visitors at once, between slow connections and bombs: right answers, and memory that stays level."""

import contextlib
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from msefpn.config import load_recipe
from msefpn.data.images import read_image
from msefpn.inference.predictor import Predictor
from msefpn.models import Detector, build, save
from msefpn.web.detections import ServedRun, detect_all
from msefpn.web.limits import Limits
from tests import TINY
from tests.web.serving import (
    Reply,
    client_of,
    encoded,
    exchange,
    jpeg_of,
    png_of,
    read_all,
    request,
    resident,
    serving,
    tiff_of,
)

USERS = 20
SLOW = 50
LIMITS = Limits(waiting=12, header_seconds=1, body_seconds=1)
BOMBS = [
    request(body=png_of(30_000, 30_000)),
    request(body=tiff_of(46_000)),
    request(body=jpeg_of(2000)),
    request(body=bytes(2_000_000)),
    request(body=encoded()[:50]),
    request("POST", "/detect", b"5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    request(body=encoded(), host="evil.example"),
]
"""Requests that are refused."""


@pytest.fixture(scope="module")
def run() -> ServedRun:
    torch.manual_seed(0)
    detector = build(replace(load_recipe(str(TINY)), backbone="test_resnet"), ["a", "b"]).eval()
    return ServedRun("tiny", Predictor(detector, (96, 96), torch.device("cpu")))


class Visitors:
    """Threads that send images one after the other, and check each answer."""

    def __init__(self, port: int, images: list[tuple[bytes, object]]) -> None:
        self.port, self.images = port, images
        self.left: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.answered, self.refused, self.wrong = 0, 0, list[str]()
        self._lock = threading.Lock()

    def send(self, count: int) -> None:
        """Send images until `count` are answered."""
        for number in range(count):
            self.left.put(number)
        threads = [threading.Thread(target=self._visit) for _ in range(USERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _visit(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number = self.left.get_nowait()
                if number % 7 == 0:
                    bomb = BOMBS[number // 7 % len(BOMBS)]
                    self._note(self._ask(bomb).status in (400, 413, 421, 422), f"bomb {number}")
                self._detect(number)

    def _detect(self, number: int) -> None:
        data, wanted = self.images[number % len(self.images)]
        reply = self._ask(request(body=data))
        self._note(reply.status == 200 and found(reply.body) == wanted, f"image {number}: {reply.status}")
        with self._lock:
            self.answered += 1

    def _ask(self, sent: bytes) -> Reply:
        """Send a request, again while the queue is full."""
        while (reply := exchange(self.port, sent)).status == 503:
            self._note(int(reply.headers["retry-after"]) > 0, "no time to come again")
            with self._lock:
                self.refused += 1
            time.sleep(0.2)
        return reply

    def _note(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)


def found(answer: bytes) -> object:
    """The detections of an answer, without the time that they took."""
    content = json.loads(answer)
    return content["width"], content["height"], [run["found"] for run in content["runs"]]


@contextlib.contextmanager
def slow_connections(port: int) -> Iterator[None]:
    """Keep connections open that send nothing, part of a head or part of an image."""
    parts = [b"", b"GET / HTTP/1.1\r\nHost: loc", request(body=bytes(9000))[:-1]]
    ended, closed = threading.Event(), list[bytes]()

    def hold(part: bytes) -> None:
        while not ended.is_set():
            with client_of(port) as client:
                client.sendall(part)
                closed.append(read_all(client))

    threads = [threading.Thread(target=hold, args=(parts[number % 3],)) for number in range(SLOW)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert len(closed) >= SLOW
    assert {answer[:12] for answer in closed} <= {b"", b"HTTP/1.1 408", b"HTTP/1.1 503"}


@contextlib.contextmanager
def command(run: ServedRun, folder: Path) -> Iterator[tuple[int, int]]:
    """Serve a run by `msefpn demo`; give the port and the id of the process."""
    detector = run.predictor.detector
    assert isinstance(detector, Detector)
    save(detector, folder / "best.safetensors")
    words = [sys.executable, "-m", "msefpn", "demo", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
            assert address is not None
            yield int(address[1]), process.pid
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    assert process.returncode == 0


def test_twenty_visitors(run: ServedRun, tiny_set: Path) -> None:
    files = sorted((tiny_set / "val").glob("*.jpg"))
    images = [(file.read_bytes(), found(detect_all([run], read_image(file)))) for file in files]
    memory = []
    with serving([run], LIMITS) as (app, port), slow_connections(port):
        visitors = Visitors(port, images)
        for count in 20, 40:
            visitors.send(count)
            memory.append(resident())
        assert (visitors.wrong, visitors.answered) == ([], 60)
        assert visitors.refused > 0, "the queue was never full"
    assert app.waiting == app.held == 0
    assert memory[1] - memory[0] < 30, memory


def test_five_hundred_images(
    run: ServedRun,
    tiny_set: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not pytestconfig.getoption("--whole-grid"):
        pytest.skip("takes two minutes: --whole-grid")
    files = sorted((tiny_set / "val").glob("*.jpg"))
    images = [(file.read_bytes(), found(detect_all([run], read_image(file)))) for file in files] * 10
    large = np.zeros((7000, 7000, 3), np.uint8)  # nearly the largest that is accepted
    images.append((encoded(size=(7000, 7000), color="black"), found(detect_all([run], large))))
    with command(run, tmp_path) as (port, process), slow_connections(port):
        visitors = Visitors(port, images)
        memory = [resident(process)]
        for count in 100, 400:
            visitors.send(count)
            memory.append(resident(process))
    assert (visitors.wrong, visitors.answered) == ([], 500)
    told = f"{' MB, '.join(f'{megabytes:.0f}' for megabytes in memory)} MB"
    with capsys.disabled():
        print(f"\nmemory of the server at the start, after 100 and after 500 images: {told}")
    assert memory[2] - memory[1] < 30, told

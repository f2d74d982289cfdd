"""The page over sockets: what it answers, and what it does with requests that no browser sends."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from msefpn.data.masks import decode_masks
from msefpn.web.app import FILES, SECURITY_HEADERS
from msefpn.web.detections import detect_all
from msefpn.web.limits import Limits
from tests.web.serving import (
    EVIL,
    LIMITS,
    Fixed,
    Reply,
    client_of,
    encoded,
    exchange,
    fixed_run,
    png_of,
    read_all,
    request,
    resident,
    serving,
)

HASTY = replace(LIMITS, header_seconds=0.3, body_seconds=0.3, idle_seconds=0, answer_seconds=0.3)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving([fixed_run("first"), fixed_run("second")]) as (_, port):
        yield port


@pytest.fixture(scope="module")
def hasty() -> Iterator[int]:
    with serving([fixed_run("first")], HASTY) as (_, port):
        yield port


def until(reached: Callable[[], bool]) -> None:
    """Wait until something is so, 20 s at most."""
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def check_headers(reply: Reply) -> None:
    for name, value in SECURITY_HEADERS:
        assert reply.headers[name.decode()] == value.decode()
    told = reply.head.decode().lower()
    assert "access-control" not in told
    assert "uvicorn" not in told
    assert "python" not in told


# ---- what a browser asks


@pytest.mark.parametrize("path", [*FILES, "/about", "/?a=b", "/page%2ejs"])
def test_file(port: int, path: str) -> None:
    got = exchange(port, request("GET", path))
    assert got.status == 200
    check_headers(got)
    assert len(got.body) == int(got.headers["content-length"]) > 100
    head = exchange(port, request("HEAD", path))
    assert head.body == b""
    assert head.headers.keys() == got.headers.keys()
    assert head.headers["content-length"] == got.headers["content-length"]


def test_page_has_no_script_or_style_of_its_own(port: int) -> None:
    text = exchange(port, request("GET", "/")).body.decode()
    assert "style=" not in text
    assert not re.search(r"\son\w+\s*=", text)
    assert text.count("<script") == text.count("<script src=") == 2
    assert "//" not in text.replace("</", "")


def test_description_and_detections(port: int) -> None:
    about = exchange(port, request("GET", "/about")).json()
    assert about["runs"] == ["first", "second"]
    assert [item["name"] for item in about["classes"]] == ["circle", EVIL]
    assert about["bytes"] == LIMITS.bytes
    reply = exchange(port, request(body=encoded(size=(80, 60))))
    assert reply.status == 200
    check_headers(reply)
    answer = reply.json()
    assert (answer["height"], answer["width"]) == (60, 80)
    assert answer["picture"].startswith("data:image/jpeg;base64,")
    assert [run["name"] for run in answer["runs"]] == ["first", "second"]
    best = answer["runs"][0]["found"][0]
    assert (best["label"], best["category"], best["stride"]) == (1, EVIL, 32)
    assert best["result"]["category_id"] == 7
    assert best["result"]["bbox"] == [0, 0, 40, 60]
    mask = decode_masks([best["mask"].encode()], (720, 960))[0]
    assert mask[:, :480].all()
    assert not mask[:, 480:].any()


@pytest.mark.parametrize("size", [(2000, 1500), (100, 60)])
def test_shown_image_is_scaled_and_labels_are_those_of_both_runs(size: tuple[int, int]) -> None:
    other = Fixed()
    other.classes = ("a", "circle")
    image = np.zeros((size[1], size[0], 3), np.uint8)
    answer = json.loads(detect_all([fixed_run("one"), fixed_run("two", other)], image))
    for run, names in zip(answer["runs"], ([1, 0], [0, 2]), strict=True):
        assert [item["label"] for item in run["found"]] == names
        assert run["found"][1]["result"]["bbox"] == [0, 0, size[0], size[1] // 2]
        height = round(size[1] / size[0] * (1280 if size[0] > 1280 else 960))
        width = 1280 if size[0] > 1280 else 960
        mask = decode_masks([run["found"][1]["mask"].encode()], (height, width))[0]
        assert abs(mask.mean() - 0.5) < 0.01


# ---- what no browser asks


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("POST", "/about", 405),
        ("GET", "/detect", 405),
        ("HEAD", "/detect", 405),
        ("OPTIONS", "/detect", 405),
        ("OPTIONS", "/", 405),
        ("OPTIONS", "*", 400),
        ("TRACE", "/", 405),
        ("DELETE", "/page.js", 405),
        ("CONNECT", "localhost:80", 400),
        ("GET", "http://evil.example/", 400),
        ("GET", "/index.html", 404),
        ("GET", "/page/index.html", 404),
        ("GET", "/../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "//evil.example/<script>", 404),
        ("GET", "/about/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/config", 404),
        ("GET", "/%00", 404),
    ],
)
def test_no_other_route(port: int, method: str, path: str, status: int) -> None:
    reply = exchange(port, request(method, path))
    assert reply.status == status
    check_headers(reply)
    assert ("allow" in reply.headers) == (status == 405)
    assert b"evil" not in reply.head + reply.body
    assert "location" not in reply.headers


IMAGE = encoded()
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
KIND = "Content-Type: image/png"


def raw(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(body=b"no image"), 422),
        (request(body=png_of(30_000, 30_000)), 422),
        (request(body=b""), 422),
        (request(body=bytes(300_001)), 413),
        (raw("POST /detect HTTP/1.1", "Host: localhost", KIND, "Content-Length: 99999999999"), 413),
        (raw("POST /detect HTTP/1.1", "Host: localhost", KIND), 411),
        (raw("POST /detect HTTP/1.0", "Host: localhost", KIND), 411),
        (raw("POST /detect HTTP/1.1", "Host: localhost", KIND, "Transfer-Encoding: chunked") + CHUNKED, 411),
        (request("POST", "/detect", CHUNKED, "Transfer-Encoding: chunked"), 400),
        (request("GET", "/", CHUNKED, "Transfer-Encoding: chunked"), 400),
        (request("POST", "/detect", IMAGE, "Transfer-Encoding: gzip"), 501),
        (request("POST", "/detect", IMAGE, "Transfer-Encoding: chunked", "Transfer-Encoding: x"), 501),
        (request("POST", "/detect", IMAGE, "Content-Length: 7"), 400),
        (raw("POST /detect HTTP/1.1", "Host: localhost", KIND, "Content-Length: +5") + b"12345", 400),
        (raw("POST /detect HTTP/1.1", "Host: localhost", KIND, "Content-Length: -1"), 400),
        (raw("POST /detect HTTP/1.1", "Host: localhost", KIND, "Content-Length: " + "9" * 30), 400),
        (request("POST", "/detect", IMAGE, "Content-Type: image/png"), 415),
        (request("POST", "/detect", IMAGE).replace(b"image/png", b"multipart/form-data; boundary=x"), 415),
        (request("POST", "/detect", IMAGE).replace(b"image/png", b"text/plain"), 415),
        (request(body=IMAGE, host="evil.example"), 421),
        (request("POST", "/detect", IMAGE, "Origin: http://evil.example"), 403),
        (request("POST", "/detect", IMAGE, "Sec-Fetch-Site: cross-site"), 403),
        (request("POST", "/detect", IMAGE, "Host: localhost"), 400),
        (raw("GET / HTTP/1.1"), 400),
        (raw("GET / HTTP/1.0"), 400),
        (raw("GET / HTTP/1.1", "Host: localhost", "A : b"), 400),
        (raw("GET / HTTP/1.1", "Host: localhost", "A: \x00"), 400),
        (raw("GET /", "Host: localhost"), 400),
        (raw("GET /\xe4 HTTP/1.1", "Host: localhost"), 400),
        (raw("GET / HTTP/1.1", "Host: localhost", "A: " + "b" * 300_000), 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, 400),
        (b"\r\n\r\n\r\n", 400),
    ],
)
def test_refused(port: int, sent: bytes, status: int) -> None:
    reply = exchange(port, sent)
    assert reply.status == status
    check_headers(reply)
    assert "error" in reply.json()
    assert reply.headers["connection"] == "close"
    assert exchange(port, request(body=IMAGE)).status == 200


def test_old_and_new_clients_are_served(port: int) -> None:
    assert exchange(port, raw("GET / HTTP/1.0", "Host: localhost")).status == 200
    upgrade = "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"
    end = raw("GET / HTTP/1.1", "Host: localhost", "Connection: close")
    reply = exchange(port, raw("GET / HTTP/1.1", "Host: localhost", *upgrade), end)
    assert reply.status == 200, "a web socket is not opened"
    two = exchange(port, request("GET", "/about").replace(b"Connection: close\r\n", b""), end)
    assert two.body.count(b"HTTP/1.1 200 OK") == 1, "the second answer follows the first"


def test_a_large_body_is_not_asked_for(port: int) -> None:
    lines = "Content-Type: image/png", "Expect: 100-continue", "Connection: close"
    for length, first in (400_000, b"HTTP/1.1 413"), (len(IMAGE), b"HTTP/1.1 100"):
        with client_of(port) as client:
            head = raw("POST /detect HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *lines)
            client.sendall(head)
            assert client.recv(12) == first
            client.sendall(IMAGE)
            assert b"413" in first or b"HTTP/1.1 200 OK" in read_all(client)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 300000000",),
        ("Content-Length: 1000", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked",),
    ],
)
@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n" * 20_000, b"1e848\r\n" + bytes(125_000) + b"\r\n"])
def test_an_endless_body_takes_no_memory(port: int, lines: tuple[str, ...], chunk: bytes) -> None:
    head = raw("POST /detect HTTP/1.1", "Host: localhost", KIND, *lines)
    exchange(port, request(body=IMAGE))
    before = resident()
    reply = exchange(port, head, *[chunk] * 160)
    assert reply.status in (400, 411, 413)
    assert resident() - before < 10


# ---- slow clients


def closed(client: socket.socket, drip: bytes = b"") -> bytes:
    """Send a byte now and then until the server closes, 20 s at most; what it answered."""
    client.settimeout(0.05)
    got, end = b"", time.monotonic() + 20
    while time.monotonic() < end:
        try:
            part = client.recv(65536)
            got += part
            if not part:
                return got
        except TimeoutError:
            if drip and not got:
                client.sendall(drip)
        except ConnectionError:
            return got
    raise AssertionError("the connection is still open")


@pytest.mark.parametrize(
    ("first", "drip", "status"),
    [
        (b"", b"", None),
        (b"GET / HT", b"", b"408"),
        (b"GET / HTTP/1.1\r\n", b"A", b"408"),
        (b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", b"200"),
        (b"GET /about HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n", b"A", b"200"),
        (b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n", b"", b"408"),
        (request(body=bytes(9999))[:-9000], b"", b"408"),
        (request(body=bytes(9999))[:-9000], b"A", b"408"),
    ],
)
def test_slow_client_is_closed(hasty: int, first: bytes, drip: bytes, status: bytes | None) -> None:
    with client_of(hasty) as client:
        client.sendall(first)
        got = closed(client, drip)
    assert got.startswith(b"HTTP/1.1 " + status) if status else got == b""


def test_a_steady_upload_has_more_time() -> None:
    limits = replace(HASTY, bytes_per_second=1000)
    with serving([fixed_run("first")], limits) as (_, port), client_of(port) as client:
        sent = request(body=encoded("BMP"))
        client.sendall(sent[:-100])
        time.sleep(2 * HASTY.body_seconds)
        client.sendall(sent[-100:])
        assert read_all(client).startswith(b"HTTP/1.1 200")


def flood(client: socket.socket) -> None:
    """Ask without end and take no answer."""
    asked = request("GET", "/page.css").replace(b"Connection: close\r\n", b"")
    while True:
        client.sendall(asked * 100)


def test_client_that_takes_no_answer_is_closed(hasty: int) -> None:
    with client_of(hasty) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            flood(client)


# ---- many clients


def test_connections_are_bounded() -> None:
    limits = replace(LIMITS, connections=5)
    with serving([fixed_run("first")], limits) as (_, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(port)) for _ in range(5)]
        until(lambda: exchange(port, request("GET", "/")).status == 503)
        reply = exchange(port, request("GET", "/"))
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) > 0
        check_headers(reply)
        more = [stack.enter_context(client_of(port)) for _ in range(20)]
        until(lambda: any(read_all(client) == b"" for client in more))
        for client in clients:
            client.close()
        until(lambda: exchange(port, request("GET", "/")).status == 200)


def test_queue_is_bounded_and_those_who_leave_lose_their_turn() -> None:
    found = Fixed()
    found.gate.clear()
    limits = replace(LIMITS, waiting=3)
    with serving([fixed_run("first", found)], limits) as (app, port), contextlib.ExitStack() as stack:
        clients = []
        for count in range(1, 4):
            clients.append(stack.enter_context(client_of(port)))
            clients[-1].sendall(request(body=IMAGE))
            until(lambda count=count: app.waiting == count)  # type: ignore[misc]  # a default binds it
        reply = exchange(port, request(body=IMAGE))
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) > 0
        assert "try again in" in reply.json()["error"]
        assert exchange(port, request("GET", "/")).status == 200, "the page itself has no queue"
        clients[1].close()
        until(lambda: app.waiting == 2)
        found.gate.set()
        for client in clients[::2]:
            assert read_all(client).startswith(b"HTTP/1.1 200")
        assert found.calls == 2
        until(lambda: app.held == 0)


def test_memory_of_waiting_uploads_is_bounded() -> None:
    limits = replace(LIMITS, files=1, body_seconds=30)
    half = request(body=bytes(200_000))[:-1]
    with serving([fixed_run("first")], limits) as (app, port), contextlib.ExitStack() as stack:
        first = stack.enter_context(client_of(port))
        first.sendall(half)
        until(lambda: app.held > 190_000)
        assert exchange(port, half).status == 503
        first.close()
        until(lambda: app.held == 0)
        assert exchange(port, request(body=IMAGE)).status == 200


def test_a_failing_detector_is_told_to_its_owner_only(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Fixed):
        def __call__(self, images: Any, *, score: float = 0.0) -> Any:
            raise RuntimeError("/home/me/secret\n is missing")

    with serving([fixed_run("first", Broken())], Limits()) as (_, port):
        reply = exchange(port, request(body=IMAGE))
    assert reply.status == 500
    assert reply.json() == {"error": "the detector failed on this image"}
    assert capsys.readouterr().out == "error: RuntimeError: /home/me/secret is missing\n"

"""The page over sockets: what it answers, and what it does with requests that no browser sends."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from msefpn.data.masks import decode_masks
from msefpn.web.access import Doorkeeper
from msefpn.web.app import FILES, App
from msefpn.web.detections import detect_all
from msefpn.web.server import listen
from tests.web.serving import (
    EVIL,
    LIMITS,
    Fixed,
    check_headers,
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


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving([fixed_run("first"), fixed_run("second")]) as (_, port):
        yield port


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


def test_the_application_bounds_a_body_itself() -> None:
    """Behind a server that lets a body be longer than it says."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(65_536), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    with listen("127.0.0.1", 0) as taken:
        app = App([fixed_run("first")], LIMITS, Doorkeeper(taken))
    headers = [(b"host", b"localhost"), (b"content-type", b"image/png"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": "/detect", "raw_path": b"/detect", "headers": headers}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert app.held == 0
    asyncio.run(app({"type": "websocket"}, receive, send))
    assert len(sent) == 2, "a web socket gets no answer"

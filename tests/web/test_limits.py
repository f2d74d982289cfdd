"""Slow clients, and many: each state of a connection has a bounded time, and each kind a bounded number."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from msefpn.web.limits import Limits
from tests.web.serving import (
    LIMITS,
    Fixed,
    check_headers,
    client_of,
    encoded,
    exchange,
    fixed_run,
    read_all,
    request,
    serving,
)

HASTY = replace(LIMITS, header_seconds=0.3, body_seconds=0.3, idle_seconds=0, answer_seconds=0.3)
IMAGE = encoded()


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

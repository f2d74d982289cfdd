"""The server of the demo page: uvicorn, with the bounds on slow clients and connections that it lacks."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import socket
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from msefpn.errors import UserError
from msefpn.web.app import JSON, SECURITY_HEADERS, App
from msefpn.web.limits import Limits

HEAD_BYTES = 16_384
"""Largest head of a request."""
LINGER_SECONDS = 2.0
"""For a client to read a refusal while it still sends: closed at once, the system would drop the answer."""


class Strict(h11.Connection):
    """HTTP/1.1 without what no browser sends here and what hides the length of a body.

    Attributes:
        status: HTTP status for the last request that was not accepted.
    """

    status = 400

    def next_event(self) -> Any:
        """As h11's. Raises h11.RemoteProtocolError."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.status = error.error_status_hint
            raise
        names = {name for name, _ in event.headers} if isinstance(event, h11.Request) else ()
        if b"transfer-encoding" in names:  # RFC 9112, 6.1: a server may refuse it, with a length or without
            self.status = 400 if b"content-length" in names else 411
            raise h11.RemoteProtocolError("Transfer-Encoding")
        return event


class Connection(H11Protocol):
    """A connection with a bounded time for each of its states.

    Args:
        limits: times, and the number of connections.
        options: those of uvicorn's protocol.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self.limits = limits
        self.conn = self._strict = Strict(h11.SERVER, HEAD_BYTES)
        self._head, self._taking = _Timer(self.loop), _Timer(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for a request; refuse it where too many connections are open."""
        super().connection_made(_Lingering(transport, self.loop, self.limits))  # type: ignore[arg-type]  # it acts as one
        if len(self.connections) > 2 * self.limits.connections:  # refusals are connections, too
            self.transport.abort()
        elif len(self.connections) > self.limits.connections:
            self._refuse(503, "the page has too many visitors just now: try again in 10 s")
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Pass data to h11, unless the connection is at its end."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._expect_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._expect_head()

    def pause_writing(self) -> None:
        """Bound the time in which the client takes its answer."""
        super().pause_writing()
        self._taking.start(self.limits.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._taking.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        super().connection_lost(exc)
        self._head.stop()
        self._taking.stop()

    def shutdown(self) -> None:
        """The server ends: wait for an answer in the making, and for nothing else."""
        super().shutdown()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or not accepted here."""
        self._refuse(self._strict.status, HTTPStatus(self._strict.status).phrase)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer and close, without the application."""
        if self.cycle is not None:  # what it answers goes nowhere
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": reason}).encode()
            more = [(b"retry-after", b"10")] if status == 503 else []
            headers = [
                (b"content-type", JSON.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *more,
                *SECURITY_HEADERS,
            ]
            phrase = HTTPStatus(status).phrase.encode()
            response = h11.Response(status_code=status, headers=headers, reason=phrase)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        """Bound the time of a request's head; its bytes do not extend it."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._head.stop()
        elif self.timeout_keep_alive_task is None:
            self._head.start(self.limits.header_seconds, self._late)

    def _late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, "the request arrives too slowly")
        else:
            self.transport.close()


class _Lingering:
    """A transport that, once closed, sends what it holds and drops what still arrives, for a bounded time.

    A socket that is closed with unread data resets the connection, and the client loses the answer.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._inner, self._loop, self._limits = inner, loop, limits
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def is_closing(self) -> bool:
        """Whether it takes no more data."""
        return self._closed or self._inner.is_closing()

    def write(self, data: bytes) -> None:
        """Send data, unless it is closed."""
        if not self.is_closing():
            self._inner.write(data)

    def close(self) -> None:
        """Send no more after what it holds; then wait for the client to close, not for long."""
        if not self.is_closing():
            self._closed = True
            self._inner.write_eof()
            self._inner.resume_reading()
            self._end(self._loop.time())

    def _end(self, began: float) -> None:
        passed = self._loop.time() - began
        most = self._limits.answer_seconds if self._inner.get_write_buffer_size() else LINGER_SECONDS
        if passed >= most:
            self._inner.abort()
        elif not self._inner.is_closing():
            self._loop.call_later(min(0.5, most), self._end, began)


class _Timer:
    """Calls a function later, unless it is stopped; started again, it goes on as it was started first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, function: Callable[[], None]) -> None:
        """Call the function after some seconds."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, function)

    def stop(self) -> None:
        """Do not call it."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port. Raises UserError.

    Args:
        host: name or address of this machine.
        port: 0 for any free one.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}: it must be 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"host '{host}' is not a name or address: give 127.0.0.1 or 0.0.0.0") from None
    except PermissionError:
        raise UserError(f"port {port} is not allowed for this user: give --port 1024 or above") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} is in use: give another with --port, or 0 for any free one"
            ) from None
        raise UserError(f"host '{host}': {error.strerror or error}: give 127.0.0.1 or 0.0.0.0") from None


def is_local(taken: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(taken.getsockname()[0].partition("%")[0]).is_loopback


def make_server(app: App) -> uvicorn.Server:
    """The server of a page; `run(sockets=[...])` serves it until `should_exit` or Ctrl-C."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=partial(Connection, app.limits),  # type: ignore[arg-type]  # it calls it, as it does a class
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what clients send is not worth a line
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=app.limits.idle_seconds,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)

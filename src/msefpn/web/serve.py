"""The page on a port: gradio's server, closed but for what the page itself asks of it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from msefpn.errors import UserError
from msefpn.web.page import asset, theme
from msefpn.web.picture import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""For the browser: load nothing from another host, send nothing to one. Gradio evaluates its templates."""
OPEN = (
    "/config",
    "/favicon.ico",
    "/theme.css",
    "/assets/",
    "/static/",
    "/gradio_api/queue/",
    "/gradio_api/heartbeat/",
)
"""What the page asks for, beside itself; of gradio's rest, uploads, files and proxy, nothing is open."""
OVERHEAD = 100_000
"""Bytes of a request around the picture in it."""


class Guard:
    """Lets through what the page needs, in requests of a bounded size.

    Args:
        app: the ASGI application behind.
        limits: of the pictures in the requests.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], limits: Limits) -> None:
        self.app = app
        self.most = limits.bytes * 4 // 3 + OVERHEAD  # base64

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, see the ASGI specification."""
        if scope["type"] == "http":
            status = self._refusal(scope)
            if status:
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body"})
                return
        elif scope["type"] != "lifespan":
            return  # the page opens no web socket

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)

    def _refusal(self, scope: Message) -> int:
        """HTTP's status for a request that is not let through; 0 for one that is."""
        path: str = scope["path"]
        if ".." in path or not (path == "/" or path.startswith(OPEN)):
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return 0
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411
        return 413 if int(length) > self.most else 0


def listen(host: str, port: int) -> socket.socket:
    """Take a port. Raises UserError where that cannot be done.

    Args:
        host: name or address of this machine.
        port: 0 for any that is free.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}: it must be 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror:
        raise UserError(f"host '{host}' is no name or address: give 127.0.0.1 or 0.0.0.0") from None
    except PermissionError:
        raise UserError(f"port {port} may not be taken by this user: give --port 1024 or above") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} is in use: give another with --port, or 0 for any free one"
            ) from None
        raise UserError(f"host '{host}': {error.strerror or error}: give 127.0.0.1 or 0.0.0.0") from None


def is_local(taken: socket.socket) -> bool:
    """Whether this machine alone reaches a socket."""
    return ipaddress.ip_address(taken.getsockname()[0]).is_loopback


def server_of(page: gr.Blocks, limits: Limits) -> uvicorn.Server:
    """Make the server of a page; `run(sockets=[...])` serves it until `should_exit`, or Ctrl-C."""
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        head=asset("head.html") + f"<style>{asset('page.css')}</style>",  # gradio's `css` drops @container
    )
    config = uvicorn.Config(
        Guard(app, limits), log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)

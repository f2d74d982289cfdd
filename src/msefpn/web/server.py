"""The server of the demo page: gradio's, reduced to the requests that the page makes."""

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
from msefpn.web.upload import UploadLimits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""For the browser: no request to another host. Gradio evaluates its templates, hence unsafe-eval."""
OPEN_PATHS = (
    "/config",
    "/favicon.ico",
    "/theme.css",
    "/assets/",
    "/static/",
    "/gradio_api/queue/",
    "/gradio_api/heartbeat/",
)
"""Paths that the page requests; gradio's uploads, files and proxy are closed."""
REQUEST_OVERHEAD = 100_000
"""Bytes of a request in addition to the image."""


class Guard:
    """Passes only the requests that the page needs, up to a bounded size.

    Args:
        app: the ASGI application behind.
        limits: of the images in the requests.
    """

    def __init__(
        self, app: Callable[[Message, Receive, Send], Awaitable[None]], limits: UploadLimits
    ) -> None:
        self.app = app
        self.most = limits.bytes * 4 // 3 + REQUEST_OVERHEAD  # base64

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, see the ASGI specification."""
        if scope["type"] == "http":
            status = self._refusal(scope)
            if status:
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body"})
                return
        elif scope["type"] != "lifespan":
            return  # the page uses no web socket

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", CONTENT_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)

    def _refusal(self, scope: Message) -> int:
        """HTTP status for a refused request; 0 for a passed one."""
        path: str = scope["path"]
        if ".." in path or not (path == "/" or path.startswith(OPEN_PATHS)):
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return 0
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411
        return 413 if int(length) > self.most else 0


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
    except socket.gaierror:
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
    return ipaddress.ip_address(taken.getsockname()[0]).is_loopback


def make_server(page: gr.Blocks, limits: UploadLimits) -> uvicorn.Server:
    """The server of a page; `run(sockets=[...])` serves it until `should_exit` or Ctrl-C."""
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

"""The demo page as an ASGI application: five files, a description, and detection on one image.

Whoever can reach the page can send anything: each request is bounded in bytes, time and number, its words
are not repeated, and nothing of it outlives its answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from msefpn.runs.console import say
from msefpn.web.access import Denied, Doorkeeper
from msefpn.web.detections import ServedRun, describe_runs, detect_all
from msefpn.web.limits import Limits
from msefpn.web.upload import BadUpload, read_upload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path of each file, its name in the folder `page`, and its content type."""
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""For the browser: no request to another host, no script but the page's files, no HTML made from text."""
SECURITY_HEADERS: Headers = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
)
"""Of every answer."""
JSON = "application/json"


class Gone(Exception):  # noqa: N818  (nothing failed here)
    """The client has left."""


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    body: bytes
    kind: str = JSON
    status: int = 200
    headers: Headers = ()


def refuse(status: int, reason: str, *headers: tuple[bytes, bytes]) -> Answer:
    """An answer without what was asked for; the page shows the reason."""
    return Answer(json.dumps({"error": reason}).encode(), status=status, headers=headers)


class App:
    """Serves the page and detects on the images that it sends, one after the other.

    Args:
        runs: one, or two to be compared.
        limits: of requests.
        doorkeeper: refuses requests by Host and Origin.
    """

    def __init__(self, runs: Sequence[ServedRun], limits: Limits, doorkeeper: Doorkeeper) -> None:
        self.runs, self.limits, self.doorkeeper = runs, limits, doorkeeper
        folder = files("msefpn.web") / "page"
        self.fixed = {
            path: Answer((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()
        }
        self.fixed["/about"] = Answer(json.dumps(describe_runs(runs, limits)).encode())
        self.waiting = 0
        """Images that wait for the detector or are being detected on."""
        self.held = 0
        """Bytes of uploads in memory."""
        self._seconds = 1.0
        self._thread = ThreadPoolExecutor(1, "detect")  # one image at a time: memory has a bound, too

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, see the ASGI specification."""
        if scope["type"] != "http":
            return
        body = _Body(receive, scope["headers"])
        try:
            self.doorkeeper.check(scope)
            answer = await self._answer(scope, body)
        except Denied as denied:
            answer = refuse(denied.status, str(denied))
        except Gone:
            return
        headers = [
            (b"content-type", answer.kind.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            *SECURITY_HEADERS,
            *answer.headers,
        ]
        if answer.status >= 400 or not body.complete:
            headers.append((b"connection", b"close"))  # what still comes is not read
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Message, body: _Body) -> Answer:
        path, method = scope["path"], scope["method"]
        if path in self.fixed:
            if method in ("GET", "HEAD"):
                return self.fixed[path]
            return refuse(405, "use GET", (b"allow", b"GET, HEAD"))
        if path == "/detect":
            if method == "POST":
                return await self._detect(scope, body)
            return refuse(405, "use POST", (b"allow", b"POST"))
        return refuse(404, "no such page")

    async def _detect(self, scope: Message, body: _Body) -> Answer:
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if len(kinds) != 1 or not kinds[0].lower().startswith((b"application/octet-stream", b"image/")):
            return refuse(415, "send the bytes of an image file as application/octet-stream")
        if body.length is None:
            return refuse(411, "give the Content-Length")
        if body.length > self.limits.bytes:
            return self._too_large(body.length)
        if self.waiting >= self.limits.waiting:
            return self._busy()
        try:
            read = await self._read(body)
            return read if isinstance(read, Answer) else await self._in_turn(body, read)
        finally:
            self.held -= body.size

    async def _read(self, body: _Body) -> bytes | Answer:
        """Read a body; an answer where it is refused. Raises Gone."""
        parts: list[bytes] = []
        began = asyncio.get_running_loop().time()
        while not body.complete:
            end = began + self.limits.body_seconds + body.size / self.limits.bytes_per_second
            try:
                async with asyncio.timeout_at(end):
                    part = await body.read()
            except TimeoutError:
                return refuse(408, "the image arrives too slowly")
            self.held += len(part)
            if self.held > self.limits.held_bytes:
                return self._busy()
            if body.size > self.limits.bytes:  # whatever its headers said
                return self._too_large(body.size)
            parts.append(part)
        return b"".join(parts) if self.waiting < self.limits.waiting else self._busy()

    async def _in_turn(self, body: _Body, data: bytes) -> Answer:
        """Detect when the images before have had their turn; an image whose sender has left loses its own."""
        self.waiting += 1
        work = asyncio.wrap_future(self._thread.submit(self._work, data))
        left = asyncio.ensure_future(body.left())
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Gone
            return work.result()
        finally:
            self.waiting -= 1
            left.cancel()
            work.cancel()

    def _work(self, data: bytes) -> Answer:
        """Runs in the thread; raises nothing, because an error would keep the image alive."""
        began = time.monotonic()
        try:
            return Answer(detect_all(self.runs, read_upload(data, self.limits)))
        except BadUpload as bad:
            return refuse(422, str(bad))
        except Exception as error:  # for example of a GPU's memory: the page goes on
            say(f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return refuse(500, "the detector failed on this image")
        finally:
            self._seconds = time.monotonic() - began

    def _too_large(self, size: int) -> Answer:
        return refuse(413, f"too large: {size / 1e6:.1f} MB, the page accepts {self.limits.megabytes:g} MB")

    def _busy(self) -> Answer:
        seconds = min(60, max(1, math.ceil(self.waiting * self._seconds)))
        reason = f"the page has too many visitors just now: try again in {seconds} s"
        return refuse(503, reason, (b"retry-after", str(seconds).encode()))


class _Body:
    """The body of a request, part by part.

    Attributes:
        length: what Content-Length states, bytes; None where it is missing.
        complete: whether all of it has been read.
        size: bytes that have been read.
    """

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        stated: Mapping[bytes, bytes] = dict(headers)
        text = stated.get(b"content-length", b"")
        self.length = int(text) if text.isdigit() else None
        self.complete = not self.length and b"transfer-encoding" not in stated
        self.size = 0

    async def read(self) -> bytes:
        """The next part. Raises Gone."""
        message = await self._receive()
        if message["type"] != "http.request":
            raise Gone
        self.complete = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        self.size += len(part)
        return part

    async def left(self) -> None:
        """Wait until the client has left."""
        while (await self._receive())["type"] == "http.request":
            pass

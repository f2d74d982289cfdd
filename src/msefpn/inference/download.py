"""Download of a file by http or https."""

from __future__ import annotations

import http.client
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from msefpn.data.images import ImageFault

MAX_BYTES = 1 << 30
"""Largest file."""
TIMEOUT = 20.0
"""Seconds to wait for the next bytes."""
MAX_SECONDS = 600.0
"""Time for the whole file, its address and headers included."""
_CHUNK = 1 << 18


class Download(NamedTuple):
    """A downloaded file."""

    path: Path
    kind: str
    """Its media type as the server says it, such as image/jpeg; may be empty."""


def download(url: str, folder: Path) -> Download:
    """Download the file of an http or https address into a folder.

    Raises:
        ImageFault: it cannot be downloaded, is too large or takes too long; the message says why.
    """
    try:
        path = folder / f"download{_suffix(url)}"
        return _in_time(lambda: _fetch(url, path))
    except urllib.error.HTTPError as error:
        raise ImageFault(f"the server answers {error.code} {error.reason}") from None
    except TimeoutError:
        raise ImageFault(f"the server does not answer for {TIMEOUT:.0f} seconds") from None
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise ImageFault(f"the server cannot be reached ({reason})") from None
    except OSError as error:
        raise ImageFault(f"the connection broke ({error.strerror or error})") from None
    except (http.client.HTTPException, ValueError, UnicodeError) as error:
        raise ImageFault(f"the answer cannot be read ({type(error).__name__}: {error})") from None


def _suffix(url: str) -> str:
    found = re.search(r"\.\w{1,7}$", urlsplit(url).path, re.ASCII)
    return "" if found is None else found[0]


def _in_time(task: Callable[[], Download]) -> Download:
    """Run a task in a thread, and leave it there after `MAX_SECONDS`.

    A server that sends a byte now and then, while names are looked up, in its headers or its body, never
    meets `TIMEOUT`.
    """
    results: queue.SimpleQueue[Download | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(task())
        except BaseException as error:  # raised below, in the thread that waits
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = results.get(timeout=MAX_SECONDS)
    except queue.Empty:
        raise ImageFault(f"the server has not sent the whole file in {MAX_SECONDS:.0f} seconds") from None
    if isinstance(found, BaseException):
        raise found
    return found


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, to http and https alone."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Refuse other schemes."""
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise ValueError(f"it leads to {newurl[:100]}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, path: Path) -> Download:
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    )
    for handler in handlers:
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "msefpn"})
    with opener.open(request, timeout=TIMEOUT) as answer:
        _copy(answer, path)
        kind = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
        return Download(path, kind)


def _copy(answer: http.client.HTTPResponse, path: Path) -> None:
    said = answer.headers.get("Content-Length") or "0"
    stated = int(said) if said.isascii() and said.isdigit() else 0
    end = time.monotonic() + MAX_SECONDS
    size = 0
    if stated > MAX_BYTES:
        raise ImageFault(_too_large(stated))
    with path.open("wb") as file:
        while part := answer.read1(_CHUNK):
            size += file.write(part)
            if size > MAX_BYTES:
                raise ImageFault(_too_large(size))
            if time.monotonic() > end:
                raise ImageFault(f"after {MAX_SECONDS:.0f} seconds only {size / 2**20:.0f} MB were received")
    if size < stated:
        raise ImageFault(f"the download broke off after {size} of {stated} bytes")


def _too_large(size: int) -> str:
    return f"the file has {size / 2**20:.0f} MB or more, the limit is {MAX_BYTES / 2**20:.0f} MB"

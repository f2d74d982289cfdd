"""Download of a file by http or https."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from msefpn.data.images import ImageFault

MAX_BYTES = 1 << 30
"""Largest file."""
TIMEOUT = 20.0
"""Seconds to wait for the next bytes."""
MAX_SECONDS = 600.0
"""Time for the whole file."""
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
        request = urllib.request.Request(url, headers={"User-Agent": "msefpn"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            path = folder / f"download{Path(urlsplit(url).path).suffix[:8]}"
            _copy(answer, path)
            return Download(
                path, answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
            )
    except urllib.error.HTTPError as error:
        raise ImageFault(f"the server answers {error.code} {error.reason}") from None
    except TimeoutError:
        raise ImageFault(f"the server does not answer for {TIMEOUT:.0f} seconds") from None
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise ImageFault(f"the server cannot be reached ({reason})") from None
    except (http.client.HTTPException, ValueError, UnicodeError) as error:
        raise ImageFault(f"the answer cannot be read ({type(error).__name__}: {error})") from None


def _copy(answer: http.client.HTTPResponse, path: Path) -> None:
    stated = int(answer.headers.get("Content-Length") or 0)
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

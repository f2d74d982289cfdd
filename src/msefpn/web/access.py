"""Who may ask the page: checks of Host and Origin against DNS rebinding and requests of other pages.

A page of another site can make a browser send requests here, and by a DNS name that first points to its own
server and then to this one it could read the answers. Its name is then in Host: only names of this machine
are served, and no answer has a CORS header. https://fetch.spec.whatwg.org/#origin-header
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msefpn.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Served always: nobody else's DNS decides where they point."""
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
"""RFC 3986: host and port, in lower case."""


class Denied(Exception):  # noqa: N818  (an answer, not a fault of the program)
    """A request that is not served: the HTTP status and the reason, which repeats nothing of the request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Doorkeeper:
    """Passes requests to names of this machine that no other page made.

    Args:
        taken: the socket that listens; its address is served, and where it is that of every interface, the
            address that a request came to and the machine's own name.
        names: further names, for example those of a proxy in front.

    Attributes:
        address: of the page, for the user.

    Raises:
        UserError: a name is not the name or the address of a machine.
    """

    def __init__(self, taken: socket.socket, names: Iterable[str] = ()) -> None:
        address, port = taken.getsockname()[:2]
        own = _plain(address) or address
        self.everywhere = ipaddress.ip_address(own).is_unspecified
        if self.everywhere:
            own = socket.gethostname().lower()
        self.names = {*LOOPBACK, own, *(_given(name) for name in names)}
        self.address = f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}"

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raise Denied for an HTTP request that is not served; `scope` is that of ASGI."""
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if not scope["raw_path"].startswith(b"/"):
            raise Denied(400, "give a path")  # the address of a proxied request has a host of its own
        authority = _only(headers, b"host")
        host = host_of(authority)
        if host is None:
            raise Denied(400, "give one Host")
        local = scope.get("server")
        here = self.everywhere and local is not None and host == _plain(local[0])
        if host not in self.names and not here:
            raise Denied(421, "not served under this host name: start the page with --allowed-host NAME")
        if any(name == b"origin" for name, _ in headers):
            origin = _only(headers, b"origin").lower()
            if origin not in (f"http://{authority}", f"https://{authority}"):
                raise Denied(403, "requests of other pages are not served")
        if scope["method"] not in ("GET", "HEAD"):
            sites = {value for name, value in headers if name == b"sec-fetch-site"}
            if sites - {b"same-origin", b"none"}:
                raise Denied(403, "requests of other pages are not served")


def host_of(authority: str) -> str | None:
    """The host of a Host header in lower case, addresses in their short form; None where it is malformed."""
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None or int(parts["port"] or 0) > 65535:
        return None
    host = parts["host"]
    return host if not host.startswith("[") else _plain(host[1:-1], version=6)


def _plain(address: str, version: int | None = None) -> str | None:
    """An address in its short form, an IPv4 one in an IPv6 one as the former; None where it is not one."""
    try:
        read = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if version is not None and read.version != version:
        return None
    return str(getattr(read, "ipv4_mapped", None) or read)


def _only(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    """The value of a header, in lower case; empty where it is missing, repeated or not ASCII."""
    values = [value for key, value in headers if key == name]
    return values[0].decode("ascii", "replace").lower() if len(values) == 1 else ""


def _given(name: str) -> str:
    """A name that the user allows, as `host_of` gives it. Raises UserError."""
    text = name.lower()
    host = _plain(text) if ":" in text else host_of(text)
    if host is None:
        raise UserError(f"allowed host '{name}' is not a host name: give it without http:// and port")
    return host

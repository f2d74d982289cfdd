"""Lines of JSON over a connection that notices when the other end is gone."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

SILENT = 30
"""Seconds after which a machine that does not answer counts as gone. The systems ask each other, not the
programs: a process that computes for minutes answers all the same."""
_IDLE, _INTERVAL = 10, 5
_LONGEST = 2**26
"""Bytes of a message."""


class Link:
    """One end of a connection; any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._sending = threading.Lock()
        connection.settimeout(None)
        options = {
            "TCP_NODELAY": 1,
            "TCP_KEEPIDLE": _IDLE,
            "TCP_KEEPALIVE": _IDLE,  # what macOS calls it
            "TCP_KEEPINTVL": _INTERVAL,
            "TCP_KEEPCNT": (SILENT - _IDLE) // _INTERVAL,
            "TCP_USER_TIMEOUT": SILENT * 1000,
        }
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if (option := getattr(socket, name, None)) is not None:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, **message: Any) -> None:
        """Send, unless the other end is gone: whoever receives learns of it."""
        line = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError), self._sending:
            self.connection.sendall(line)

    def received(self) -> Iterator[dict[str, Any]]:
        """Messages, until the other end is gone or sends something else."""
        with contextlib.suppress(OSError, ValueError), self.connection.makefile("rb") as lines:
            while (line := lines.readline(_LONGEST)).endswith(b"\n"):
                message = json.loads(line)
                if not isinstance(message, dict):
                    return
                yield message

    def close(self) -> None:
        """End the connection, after what was sent."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def listen(address: str, port: int) -> socket.socket:
    """Listen at a port of this machine; 0: any. Raises OSError where it is taken."""
    if address == "127.0.0.1":  # for processes of this machine alone
        return socket.create_server((address, port), backlog=1024)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a system may have it switched off
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
    return socket.create_server(("", port), backlog=1024)


def connect(address: str, port: int, patience: float) -> Link:
    """Connect to a port that may not be open yet.

    Raises:
        OSError: it cannot be reached within `patience` seconds.
    """
    until = time.monotonic() + patience
    while True:
        left = until - time.monotonic()
        try:
            return Link(socket.create_connection((address, port), timeout=max(0.1, min(left, 10.0))))
        except OSError:
            if left < 0:
                raise
            time.sleep(min(0.2, max(0.0, left)))


def interface_to(address: str) -> str:
    """Name of the network interface by which a host is reached; empty: not known on this system."""
    try:
        import fcntl  # noqa: PLC0415  not on Windows

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    asked = name.encode()[:15].ljust(256, b"\0")
                    if fcntl.ioctl(probe.fileno(), 0x8915, asked)[20:24] == own:  # SIOCGIFADDR of Linux
                        return name
    except (ImportError, OSError, AttributeError):
        pass
    return ""

"""Lines of JSON over a connection that notices when the other end is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from msefpn.errors import UserError
from msefpn.reading import parse_json

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
                message = parse_json(line)
                if not isinstance(message, dict):
                    return
                yield message

    def close(self) -> None:
        """End the connection, after what was sent."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def open_port(address: str, port: int) -> socket.socket:
    """Listen at a port of this machine; 0: any. Raises OSError where it is taken."""
    if address == "127.0.0.1":  # for processes of this machine alone
        return socket.create_server((address, port), backlog=1024)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a system may have it switched off
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
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


def is_lost_connection(error: BaseException) -> bool:
    """Whether an operation of all processes failed because another one is gone or too late."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and isinstance(error, distributed.DistError):
        return True
    # gloo has no type for it
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in lost)


def share_port(address: str, agent: int, timeout: float, port: int | None = None) -> int:
    """Tell where the first process listens, or ask for it, by the store of torchrun's agent.

    Args:
        address: host of the agent.
        agent: its port.
        timeout: seconds that are waited.
        port: where the first process listens; None: it is asked for.

    Raises:
        UserError: the store cannot be reached, or nothing was told in time.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch import distributed  # noqa: PLC0415  slow to import

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"msefpn/{os.environ.get('TORCHELASTIC_RUN_ID')}/{attempt}/port"
    make: Any = vars(distributed)["TCPStore"]  # untyped
    try:
        store = make(address, agent, is_master=False, timeout=timedelta(seconds=timeout))
        if port is not None:
            store.set(key, str(port))
            return port
        return int(store.get(key))
    except (RuntimeError, ValueError):
        raise UserError(
            f"torchrun's store at {address}:{agent} did not tell the first process's port within "
            f"{timeout:g} s: look at the lines of the first node, or raise --timeout"
        ) from None

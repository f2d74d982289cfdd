"""What the page accepts: sizes, numbers and times, each bounded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of the server."""

    megabytes: float = 20.0
    """Of an uploaded file; 10^6 bytes."""
    megapixels: float = 50.0
    """Width times height of an image; 10^6 pixels."""
    connections: int = 256
    """Open at the same time."""
    waiting: int = 32
    """Images that wait for the detector or are being detected on."""
    files: int = 8
    """Largest files whose bytes fit into memory together; smaller ones fit more often."""
    header_seconds: float = 10.0
    """For the head of a request, from the opening of the connection or from its first byte."""
    body_seconds: float = 10.0
    """For a body, plus the time that it takes at `bytes_per_second`."""
    bytes_per_second: int = 50_000
    """Slowest upload of a large file."""
    idle_seconds: int = 5
    """Between two requests of a connection."""
    answer_seconds: float = 60.0
    """For a client to take its answer."""

    @property
    def bytes(self) -> int:
        """Largest file, bytes."""
        return int(self.megabytes * 1e6)

    @property
    def held_bytes(self) -> int:
        """Most bytes of uploads in memory, of all visitors together."""
        return self.files * self.bytes

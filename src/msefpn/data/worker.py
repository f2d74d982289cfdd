"""What a process that loads images does first, and after each batch."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Parameters of mallopt(3)."""


def begin_worker(_: int) -> None:
    """Let the main process decide what Ctrl-C and SIGUSR1 mean; end silently on SIGTERM; save memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # The collector writes to each object that the main process has made, which copies its memory.
    gc.freeze()
    _return_freed_memory()


def trim_memory() -> None:
    """Return free memory between buffers too, which glibc keeps; takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _return_freed_memory() -> None:
    """Have glibc return large buffers, also where the main process keeps them (`msefpn.runs.memory`).

    A picture of COCO's is smaller than the threshold: with half of it, a worker holds 8 MB less and takes a
    third more time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 1 << 16)
        mallopt(_MMAP_THRESHOLD, 1 << 20)
        mallopt(_TRIM_THRESHOLD, 1 << 19)
        mallopt(_TOP_PAD, 1 << 17)

"""How this process holds memory."""

import ctypes
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next allocation; with another C library, do nothing.

    By default it maps every large tensor afresh and the kernel clears each page again, which on a CPU costs
    more than most of a detector's elementwise operations. The process then holds its peak until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not tell.

    Not getrusage's: a child begins with its parent's peak there.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])

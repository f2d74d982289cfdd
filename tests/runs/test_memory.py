"""The allocator's settings."""

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from msefpn.runs.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(16):  # glibc sets a few freed pieces aside before it uses them again
    torch.ones(2**24)  # 64 MiB: glibc maps such by default
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROBE, word], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    assert page_faults("keep") < 100 < page_faults("leave")

"""The allocator's settings."""

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, torch
from msefpn.runs.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB: glibc maps such by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = page_faults()
keep_freed_memory()
for _ in range(4):  # glibc sets a few freed pieces aside before it uses them again
    page_faults()
print(left, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    left, kept = map(int, done.stdout.split())
    assert kept < 100 < left

"""The memory of a server process."""

import platform
import subprocess
import sys

import pytest

# Freeing 30 MB makes glibc keep up to 60 MB. The many smaller blocks then come from the heap.
SCRIPT = """
import resource, sys
from pathlib import Path
from quart_upsun.server.memory import return_free_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

if sys.argv[1] == "yes":
    return_free_memory()
large = bytes(30_000_000)
del large
before = resident()
blocks = [bytes([1]) * 200_000 for _ in range(200)]
del blocks
print(resident() - before)
"""


def kept(setting: str) -> float:
    """Return the megabytes that a process keeps of 40 MB that it has freed."""
    command = [sys.executable, "-c", SCRIPT, setting]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_free_memory_is_returned() -> None:
    assert kept("yes") < 5
    assert kept("no") > 20  # otherwise the setting is not needed any more

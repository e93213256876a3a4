"""A truncated memory file in Python: an exception, while other bus errors still end the process (decision 0001)."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import faulthandler, mmap, os, sys
when, foreign = sys.argv[1:]
if when == "before":
    faulthandler.enable()
import ring
fd = os.memfd_create("guest")
os.ftruncate(fd, 1 << 20)
memory = ring.GuestMemory()
memory.add_region(fd, gpa=0, size=1 << 20)
if when == "after":
    faulthandler.enable()
    memory.add_region(fd, gpa=1 << 30, size=4096)   # a new guard takes the signal back
os.ftruncate(fd, 4096)
try:
    memory.read(8192, 4)
except ring.RingError as error:
    print(error)
print("faulted", memory.faulted, flush=True)
if foreign == "foreign":
    other = os.memfd_create("other")
    os.ftruncate(other, 4096)
    view = mmap.mmap(other, 4096)
    os.ftruncate(other, 0)
    view[0]
    print("survived")
"""


@pytest.mark.parametrize("foreign", ["own", "foreign"])
@pytest.mark.parametrize("when", ["never", "before", "after"])
def test_truncated_memory(when: str, foreign: str) -> None:
    """Whether faulthandler is enabled before us, after us or not at all."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, when, foreign], capture_output=True, text=True, timeout=60)
    assert "truncated" in done.stdout
    assert "faulted True" in done.stdout
    if foreign == "own":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == -signal.SIGBUS
    assert "survived" not in done.stdout
    assert ("Fatal Python error: Bus error" in done.stderr) == (when != "never")

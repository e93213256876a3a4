"""Nothing that a pytest or a benchmark starts outlives it, however that ends.

What is started inherits a mark in its environment. A process beside it waits for its end, which closes a pipe even
where it is killed, and then kills all that has the mark. (PR_SET_PDEATHSIG would be about the thread that starts a
process, and trio's end before their processes do.)
"""

from __future__ import annotations

import os
import subprocess
import sys

_NAME = "VHOSTKIT_TESTS"
_GUARD = """
import os, signal, sys
sys.stdin.buffer.read()
mark = sys.argv[1].encode()
for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\\0"):
                os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""


class Guard:
    """From now on what is started has the mark."""

    def __init__(self) -> None:
        mark = f"{os.getpid()}-{os.urandom(8).hex()}"
        # a session of its own: what ends ours does not end it
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, f"{_NAME}={mark}"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.environ[_NAME] = mark

    def close(self) -> None:
        """End it, and what may be left."""
        os.environ.pop(_NAME, None)
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:  # somebody was forked off, and has the pipe
            self._process.kill()
            self._process.communicate()

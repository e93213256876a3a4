"""C programs of tests/c and tests/fuzz: what is compiled once serves all tests, and the next run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from guestlib.debian import CACHE, locked

HERE = Path(__file__).parent
#: where they are built; VHOSTKIT_C_OUT names another folder
OUT = Path(os.environ.get("VHOSTKIT_C_OUT") or CACHE / "tests-c").resolve()


def make(folder: str, *arguments: str) -> str:
    """``make`` in a folder of tests; what it printed."""
    command = ["make", "--no-print-directory", "-s", "-C", str(HERE / folder), f"OUT={OUT}", *arguments]
    with locked("tests-c"):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MAKEFLAGS": ""})
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def program(name: str) -> Path:
    """The program ``name`` of tests/c; with -asan or -tsan at its end, under that sanitizer."""
    make("c", str(OUT / name))
    return OUT / name

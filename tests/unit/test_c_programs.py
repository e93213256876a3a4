"""The C tests: each program of tests/c as it is built with -O2, and again under ASan and UBSan.

The Makefile there names the programs, so that ``make -C tests/c check`` and this suite run the same.
"""

from __future__ import annotations

import os
import subprocess

import cbuild
import pytest

#: the allocator is replaced in it, as the sanitizers would
NOT_SANITIZED = {"noalloc"}

PROGRAMS = cbuild.make("c", "list").split()
CASES = PROGRAMS + [f"{name}-asan" for name in PROGRAMS if name not in NOT_SANITIZED]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", CASES)
def test_program(program: str) -> None:
    """Builds without a warning and finds nothing wrong."""
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [cbuild.program(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, f"{program} exited with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"


@pytest.mark.timeout(300)
def test_stress_under_tsan() -> None:
    """Driver and device agree on every release and acquire, as ThreadSanitizer sees it."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    command = [str(cbuild.program("stress-tsan")), "3000", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-8000:]}"

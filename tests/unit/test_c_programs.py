"""The C tests: each program of tests/c as it is built with -O2, and again under ASan and UBSan.

The Makefile there names the programs, so that ``make -C tests/c check`` and this suite run the same.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "c"

#: the allocator is replaced in it, as the sanitizers would
NOT_SANITIZED = {"noalloc"}


def _make(*arguments: str) -> str:
    environment = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(
        ["make", "--no-print-directory", "-s", "-C", str(FOLDER), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise AssertionError(f"make {' '.join(arguments)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


PROGRAMS = _make("list").split()
CASES = PROGRAMS + [f"{name}-asan" for name in PROGRAMS if name not in NOT_SANITIZED]


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are built; VHOSTKIT_C_OUT keeps them between runs."""
    kept = os.environ.get("VHOSTKIT_C_OUT")
    return Path(kept) if kept else tmp_path_factory.mktemp("c")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", CASES)
def test_program(program: str, build_folder: Path) -> None:
    """Builds without a warning and finds nothing wrong."""
    target = build_folder / program
    _make(f"OUT={build_folder}", str(target))
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([target], capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, f"{program} exited with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"


@pytest.mark.timeout(300)
def test_stress_under_tsan(build_folder: Path) -> None:
    """Driver and device agree on every release and acquire, as ThreadSanitizer sees it."""
    target = build_folder / "stress-tsan"
    _make(f"OUT={build_folder}", str(target))
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    arguments = [str(target), "3000", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-8000:]}"

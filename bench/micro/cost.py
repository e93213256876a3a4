"""Build and run the micro-benchmarks: nanoseconds by the clock, instructions by callgrind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(__file__).resolve().parent
PROGRAMS = ("ring", "blk")
#: callgrind's machine and any other take the same memcpy with these
TUNABLES = "glibc.cpu.hwcaps=-AVX512F,-AVX2,-ERMS"

_NAME = re.compile(r"^desc: Trigger: Client Request: (\w+) ([\w-]+) (\d+) (device|driver) = (\d+)$", re.MULTILINE)
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class CannotMeasure(Exception):
    """Something is missing on this machine; the text says which package brings it."""


class Broken(Exception):
    """The programs do not build, or fail."""


@dataclass(frozen=True, order=True)
class Cell:
    """What was measured: a ring's end or the disk's whole path, and how many requests come at once."""

    program: str
    case: str
    batch: int
    end: str

    @property
    def key(self) -> str:
        """As ratchet.json names it."""
        return f"{self.program} {self.case} {self.batch} {self.end}"


def compiler() -> str:
    """The compiler's own words for its version and target."""
    command = os.environ.get("CC", "gcc")
    try:
        done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise CannotMeasure(f"the compiler {command} does not run; install the Debian package gcc") from None
    return f"{done.stdout.splitlines()[0]}, {os.uname().machine}"


def build(out: Path) -> None:
    """Both programs into `out`; only what changed is compiled."""
    command = [
        "make",
        "--no-print-directory",
        "-s",
        "-C",
        str(FOLDER),
        f"OUT={out}",
        f"CC={os.environ.get('CC', 'gcc')}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MAKEFLAGS": ""})
    if done.returncode:
        raise Broken(f"the micro-benchmarks do not build:\n{done.stderr[-3000:]}")


def instructions(out: Path) -> dict[Cell, float]:
    """Instructions per request of every cell. Repeats to the last one."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotMeasure(
            "valgrind counts the instructions and is not installed; install the Debian package valgrind"
        )
    found: dict[Cell, float] = {}
    with tempfile.TemporaryDirectory(prefix="vhk-micro-") as name:
        for program in PROGRAMS:
            command = [
                valgrind, "-q", "--tool=callgrind", "--collect-atstart=no",
                f"--callgrind-out-file={name}/{program}", str(out / f"{program}-cost"), "count",
            ]  # fmt: skip
            environment = {**os.environ, "GLIBC_TUNABLES": TUNABLES}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise Broken(f"{program}-cost under callgrind: {done.stderr.strip()[-2000:]}")
        for file in Path(name).iterdir():
            text = file.read_text()
            if (named := _NAME.search(text)) and (total := _TOTAL.search(text)):
                cell = Cell(named[1], named[2], int(named[3]), named[4])
                found[cell] = int(total[1]) / int(named[5])
    if not found:
        raise Broken("callgrind wrote no counts; is this valgrind complete?")
    return dict(sorted(found.items()))


def nanoseconds(out: Path, seconds: float, *, two: bool = False) -> dict[tuple[str, str, int], float]:
    """Time per request, all of it: both ends of the ring, and for the disk the driver too.

    Args:
        seconds: per cell.
        two: the ring's ends on a processor each, the first two, instead of on one thread.
    """
    commands: list[list[str | Path]] = [[out / "ring-cost", "time", "two" if two else "one", str(seconds)]]
    if not two:
        commands.append([out / "blk-cost", "time", str(seconds)])
    found = {}
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            program, case, batch, value = line.split()
            found[program, case, int(batch)] = float(value)
    return found

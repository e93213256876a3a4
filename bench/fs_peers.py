"""Shared folders under test: ours, virtiofsd in C and in Rust; and the system calls that they come to."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from bench.borrowed import borrow
from bench.contend import Driven, Figures, baseline, compiled, figures_of, per_cpu_second
from bench.peers import ALWAYS_US, MIB, Peer, Program, vhost_program
from bench.stage import Live, Stage
from devices.fs.load import Workload, measure

C_PROGRAM = Path("/usr/lib/qemu/virtiofsd")
C, RUST = "virtiofsd in C", "virtiofsd in Rust"
NATIVE = "system calls, native"
WHERE = {C: "Debian 12's package qemu-system-common", RUST: "Debian's package virtiofsd, from trixie on"}

FOLDER = "vhost-bench"
FILES = 10_000
SIZE = 64 * MIB


def ours_name(*, packed: bool = False, polling: bool = True, more: str = "") -> str:
    """What tables call one of ours."""
    parts = ("vhost fs", "packed" if packed else "split", "polling" if polling else "", more)
    return ", ".join(filter(None, parts))


def ours(
    share: Path, *, packed: bool = False, polling: bool = True, options: tuple[str, ...] = (), more: str = ""
) -> Peer:
    """`vhost fs`."""
    command = [vhost_program(), "fs", "--socket-path", "{folder}/s", "--shared-dir", str(share), "--tag", "bench"]
    command += ["--log-level", "warning", *options, *(["--poll-us", str(ALWAYS_US)] if polling else [])]
    return Peer(
        ours_name(packed=packed, polling=polling, more=more), Program(tuple(command), spins=polling), packed=packed
    )


def virtiofsd(share: Path) -> Iterator[Peer]:
    """Those that are there, with default settings; each ends with its first connection."""
    if C_PROGRAM.exists():
        command = (str(C_PROGRAM), "-f", "--socket-path={folder}/s", "-o", f"source={share}", "-o", "sandbox=chroot")
        # as many as the machine lets it have, or it does not start
        yield Peer(C, Program((*command, "--rlimit-nofile=0"), once=True))
    if (words := _rust()) is not None:
        more = (
            "--socket-path",
            "{folder}/s",
            "--shared-dir",
            str(share),
            "--sandbox",
            "chroot",
            "--log-level",
            "error",
        )
        yield Peer(RUST, Program((*words, *more), once=True))


@cache
def _rust() -> tuple[str, ...] | None:
    borrow()  # programs of another release are fetched as the tests' are
    from guestlib.debian import AssetError
    from guestlib.trixie import virtiofsd as fetched

    try:
        return fetched()
    except AssetError:
        return None


def missing() -> Iterator[tuple[str, str]]:
    """Peers that are not there, and who brings them."""
    if not C_PROGRAM.exists():
        yield C, WHERE[C]
    if _rust() is None:
        yield RUST, WHERE[RUST]


@contextmanager
def shared(place: Path) -> Iterator[Path]:
    """A folder to share, with all files that the loads want."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # what is started here has to keep one open per inode
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory(prefix="vhb-share-", dir=place) as name:
            folder = Path(name) / FOLDER
            folder.mkdir()
            for number in range(FILES):
                (folder / f"f{number:06}").touch()
            piece = os.urandom(MIB)
            for number in range(4):
                with (folder / f"d{number:06}-{SIZE}").open("wb") as file:
                    for _ in range(SIZE // MIB):
                        file.write(piece)
            yield Path(name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class FsBackend(Driven):
    """A shared folder, driven by our load generator."""

    def _once(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        with self.blamed(self._again(stage, live, together=together)):
            result = self._measured(measure, stage.sockets(self.peer)[0], workload, "operations")
        found = figures_of(result)
        found |= per_cpu_second(found)
        if workload.op != "list":
            del found["entries_per_second"]
        # the rate of an undisturbed moment, as time per operation
        found["busy_us"] = found["latency"]["p50_us"] / workload.depth
        return {**found, "share": self._share(result, result.operations, together=together)}


@dataclass(frozen=True)
class Native:
    """The same system calls on the same files by programs of the host, the first on the back-end's processor.

    Where both ends share one, a second process stands for the front-end, and they wake each other.
    """

    share: Path
    processes: int = 1

    @property
    def name(self) -> str:
        return NATIVE if self.processes == 1 else f"{NATIVE}, {self.processes} processes"

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        stage.awake(None)
        cpus = [stage.places.front] if together else [stage.places.back, stage.places.front][: self.processes]
        other = "asleep" if together else "idle"
        files = 1 if workload.has_data else workload.files or 1000
        block, piece, nanoseconds = workload.block_bytes, workload.piece_bytes, int(workload.runtime * 1e9)
        numbers = (files, SIZE, block, piece, workload.depth, nanoseconds)
        with tempfile.TemporaryDirectory(prefix="vhb-") as folder:
            program = str(compiled("fs_native", Path(folder)))
            words = [program, workload.op, str(self.share / FOLDER), *map(str, numbers)]
            found = [_figures(process) for process in [_started([*words, str(cpu), other]) for cpu in cpus]]
        rate = sum(operations / seconds for operations, _, seconds, _ in found)
        listed = sum(entries / seconds for _, entries, seconds, _ in found)
        operations, seconds, each_us = sum(each[0] for each in found), found[0][2], found[0][3]
        more: dict[str, Any] = {"entries_per_second": listed} if listed else {}
        more |= {"latency": {"p50_us": each_us}, "busy_us": each_us}
        return baseline(workload, rate, operations, seconds, **more)


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _figures(process: subprocess.Popen[str]) -> tuple[int, int, float, float]:
    """Operations, entries, seconds, microseconds of one. Raises: ClickException: it failed."""
    out, error = process.communicate()
    if process.returncode:
        raise click.ClickException(f"bench/fs_native.c failed: {error.strip()}")
    operations, entries, nanoseconds, each_ps = map(int, out.split())
    return operations, entries, nanoseconds / 1e9, each_ps / 1e6

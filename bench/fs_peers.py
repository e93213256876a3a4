"""Shared folders under test: ours, virtiofsd in C and in Rust; and the system calls that they come to."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from bench.contend import Driven, Figures, baseline, compiled, figures_of, per_cpu_second
from bench.peers import ALWAYS_US, MIB, Peer, Program, vhost_program
from bench.stage import Live, Stage
from devices.fs.load import Workload, measure

TESTS = Path(__file__).resolve().parent.parent / "tests"

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
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))  # programs of another release are fetched as the tests' are
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
    """The same system calls on the same files by a program of the host, on the back-end's processor."""

    share: Path
    name: str = NATIVE

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        stage.awake(None)
        cpu = stage.places.front if together else stage.places.back
        with tempfile.TemporaryDirectory(prefix="vhb-") as folder:
            program = compiled("fs_native", Path(folder))
            files = 1 if workload.has_data else workload.files or 1000
            block, piece, nanoseconds = workload.block_bytes, workload.piece_bytes, int(workload.runtime * 1e9)
            numbers = (files, SIZE, block, piece, workload.depth, nanoseconds, cpu)
            command: list[str | Path] = [program, workload.op, self.share / FOLDER, *map(str, numbers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"bench/fs_native.c failed: {done.stderr.strip()}")
        operations, entries, nanoseconds, each_ps = map(int, done.stdout.split())
        seconds = nanoseconds / 1e9
        more: dict[str, Any] = {"entries_per_second": entries / seconds} if entries else {}
        more |= {"latency": {"p50_us": each_ps / 1e6}, "busy_us": each_ps / 1e6}
        return baseline(workload, operations / seconds, operations, seconds, **more)

"""What knowing a file costs a shared folder's back-end: ``python -m bench.fs_memory``.

A folder of many files on tmpfs is listed with READDIRPLUS, by which the guest comes to know each of them. Then the
back-end's own memory is looked at, what the kernel keeps on its behalf (slabs: descriptors), and how many
descriptors it has open.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import trio

from bench.borrowed import guard
from bench.contend import Awake, Figures
from bench.fs_peers import FOLDER, RUST, missing, ours, virtiofsd
from bench.fs_suite import place
from bench.peers import Peer
from bench.stage import Live, Stage
from devices.fs.load import Workload, measure

#: entries of a listing that the slowest back-end is thought to make in a second
SLOWEST = 100_000
FIGURES = ("bytes", "kernel_bytes", "descriptors")


@dataclass(frozen=True)
class Held:
    """What a back-end holds: bytes of its own, bytes of all slabs of the kernel, descriptors."""

    bytes: int
    kernel_bytes: int
    descriptors: int

    @classmethod
    def of(cls, live: Live) -> Held:
        """The program with its children."""
        pids = [live.pid]
        for pid in pids:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return cls(
            sum(_kib(Path(f"/proc/{pid}/status"), "RssAnon") for pid in pids) << 10,
            _kib(Path("/proc/meminfo"), "Slab") << 10,
            sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        )


def _kib(path: Path, name: str) -> int:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


@dataclass(frozen=True)
class Knowing(Awake):
    """A back-end whose guest comes to know all files."""

    files: int

    def look(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        (socket,) = stage.sockets(self.peer)
        before, after = Held.of(live), []
        result = trio.run(lambda: measure(socket, workload, look=lambda: after.append(Held.of(live))))
        if result.errors:
            raise click.ClickException(f"{self.name}: {result.first_error}")
        if result.entries_per_second * result.seconds < self.files:
            raise click.ClickException(f"{self.name}: {self.files} files are not listed in {result.seconds:.0f} s")
        (held,) = after
        return {name: getattr(held, name) - getattr(before, name) for name in FIGURES}


@contextmanager
def many(files: int) -> Iterator[Path]:
    """A folder to share with one in it that holds so many files; as many descriptors as there can be."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (PermissionError, ValueError):
        click.echo(f"no more than {before[1]} descriptors, for which root or a higher limit is needed", err=True)
    try:
        with tempfile.TemporaryDirectory(prefix="vhb-share-", dir=place()) as name:
            folder = Path(name) / FOLDER
            folder.mkdir()
            for number in range(files):
                os.close(os.open(folder / f"f{number:06}", os.O_CREAT | os.O_WRONLY, 0o644))
            yield Path(name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def peers(share: Path) -> Iterator[Peer]:
    """Ours by handles and without, virtiofsd likewise."""
    for handles in ("prefer", "never"):
        yield ours(share, polling=False, options=("--inode-file-handles", handles), more=f"handles: {handles}")
    for peer in virtiofsd(share):
        yield peer
        if peer.name == RUST:
            program = replace(peer.program, command=(*peer.program.command, "--inode-file-handles=prefer"))
            yield replace(peer, name=f"{RUST}, handles: prefer", program=program)


@click.command()
@click.option("--files", type=click.IntRange(100, 1_000_000), default=200_000, show_default=True)
@click.option("--peer", "wanted", multiple=True, metavar="TEXT", help="Only what has TEXT in its name; repeatable.")
def main(files: int, wanted: tuple[str, ...]) -> None:
    """What a file that the guest knows costs ours and virtiofsd."""
    guard()
    for name, where in missing():
        click.echo(f"not compared: {name} ({where})", err=True)
    runtime = 0.5 + files / SLOWEST
    workload = Workload(op="list", block_bytes=1 << 16, depth=1, folder=FOLDER, runtime=runtime, warmup=0, poll=False)
    click.echo(f"{files:,} files; a file costs            process    kernel   descriptors")
    with many(files) as share, Stage() as stage:
        for peer in peers(share):
            if wanted and not any(part in peer.name for part in wanted):
                continue
            try:
                held = Knowing(peer, files).run(stage, workload, together=False)
            except click.ClickException as error:
                click.echo(f"{peer.name:<34} {error.format_message().splitlines()[0]}")
                continue
            each, kernel = held["bytes"] / files, held["kernel_bytes"] / files
            click.echo(f"{peer.name:<34} {each:6.0f} B  {kernel:6.0f} B  {held['descriptors']:10,}")


if __name__ == "__main__":
    main()

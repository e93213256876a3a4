"""fio and walks through a tree in a guest, on our shared folder and on virtiofsd's in turns: a real driver's way.

    python -m bench.guest_fs [fio] [walk] [--guest qemu|uml] [--cache auto|never|always] [--rounds N] …

One guest has the same folder from all back-ends at once, with the same cache policy; programs run on one after the
other, A B A B, so that what disturbs the machine disturbs all. fio is this machine's, on a read-only disk of its
own; find and ls are the guest's busybox. QEMU emulates the guest's processor here, User-mode Linux lets it run. See
bench/README.md.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from bench.borrowed import borrow, guard
from bench.fs_peers import C_PROGRAM, RUST, WHERE, C
from bench.guest_fio import cpu_ns, fio_disk
from bench.guest_uml import relayed, tree_cpu_ns
from bench.rounds import ratios, spread
from vhost.bench import machine

borrow()  # the guests are those of the tests

from guestlib import (  # noqa: E402
    AssetError,
    GuestError,
    QemuConfig,
    QemuGuest,
    UmlDevice,
    UmlGuest,
    VhostFs,
    boot_qemu,
    boot_uml,
    started,
)
from guestlib.fs import FS, mount  # noqa: E402
from guestlib.process import Proc, listening, until  # noqa: E402
from guestlib.trixie import virtiofsd  # noqa: E402

OURS, ASLEEP, HELD = "vhost fs", "vhost fs, never polling", "vhost fs, coalescing"
MINE = (OURS, ASLEEP, HELD)
#: of virtiofsd's rate, whichever is installed
BAR = 1.3
#: interrupts are held back for so long at most, where they are
HOLD_US = "2000"
MEMORY_MIB = 512
MIB = 1 << 20
FILE = 64 * MIB
#: our name of a cache policy -> virtiofsd's in C
_OF_C = {"never": "none", "auto": "auto", "always": "always"}

#: what fio is asked to do; --direct=1: past the guest's cache, as none of the back-ends passes it on to the host's
FIO = {
    "read 4 KiB, depth 1": "--rw=randread --bs=4k --ioengine=psync",
    "read 4 KiB, depth 16": "--rw=randread --bs=4k --ioengine=libaio --iodepth=16",
    "write 4 KiB, depth 1": "--rw=randwrite --bs=4k --ioengine=psync",
    "read 1 MiB, depth 1": "--rw=read --bs=1m --ioengine=psync",
}
#: times that a walk is repeated, within the second that names are trusted where the tree is small
AGAIN = 6
#: what goes through the tree at {}; cold: as it is after a mount
WALK = {
    "find, cold": "find {} | wc -l",
    "find, warm": "find {} | wc -l",
    "ls -lR, cold": "ls -lR {} | grep -c ^[-d]",
    "ls -lR, warm": "ls -lR {} | grep -c ^[-d]",
    "find, repeated": f"for i in $(seq {AGAIN}); do find {{}} | wc -l; done",
    "ls -lR, repeated": f"for i in $(seq {AGAIN}); do ls -lR {{}} | grep -c ^[-d]; done",
}
PARTS = {"fio": FIO, "walk": WALK}


@dataclass(frozen=True)
class Peer:
    """A back-end: what tables call it, its command with {socket} and {tag} in it."""

    name: str
    tag: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """What was run, and where."""

    part: str
    name: str
    guest: str
    cache: str
    files: int
    runtime: float


@dataclass(frozen=True)
class Result:
    """One run. An operation is a request of fio's, or a file or folder that was walked past."""

    workload: Workload
    operations: int
    rate: float
    """Operations per second, as the guest sees it."""
    backend_cpu_us: float
    """CPU time of all of the back-end's threads per operation."""
    guest_cpu_us: float
    """Likewise of the guest: its processors, and the program that they are made of."""
    backend_percent: float
    guest_percent: float
    """Of one of this machine's processors."""


@dataclass
class Cell:
    """All rounds of one workload, per back-end."""

    part: str
    name: str
    results: dict[str, list[Result]] = field(default_factory=dict)


# --- back-ends


def ours(share: Path, cache: str, name: str = OURS) -> Peer:
    program = str(Path(sys.executable).with_name("vhost"))
    command = [program, "fs", "--socket-path", "{socket}", "--tag", "{tag}", "--shared-dir", str(share)]
    command += ["--cache", cache, "--num-request-queues", "1", "--log-level", "warning"]
    more: dict[str, tuple[str, ...]] = {ASLEEP: ("asleep", "--poll-us", "0"), HELD: ("held", "--coalesce-us", HOLD_US)}
    tag, *options = more.get(name, ("ours",))
    return Peer(name, tag, (*command, *options))


def rust(share: Path, cache: str) -> Peer:
    """Raises: AssetError: there is none."""
    command = (*virtiofsd(), "--socket-path", "{socket}", "--tag", "{tag}", "--shared-dir", str(share))
    return Peer(RUST, "rust", (*command, "--cache", cache, "--sandbox", "chroot", "--log-level", "error"))


def in_c(share: Path, cache: str) -> Peer:
    """Raises: AssetError: there is none."""
    if not C_PROGRAM.exists():
        raise AssetError(f"it is in {WHERE[C]}")
    command = (str(C_PROGRAM), "-f", "--socket-path={socket}", "-o", f"source={share}", "-o", f"cache={_OF_C[cache]}")
    return Peer(C, "c", (*command, "-o", "sandbox=chroot", "--rlimit-nofile=0"))


def peers_for(share: Path, cache: str, more: Sequence[str], say: Callable[[str], None]) -> list[Peer]:
    found = [ours(share, cache, name) for name in (OURS, *more)]
    for name, make in ((RUST, rust), (C, in_c)):
        try:
            found.append(make(share, cache))
        except AssetError as error:
            say(f"missing: {name}: {error}")
    return found


@contextlib.asynccontextmanager
async def running(peer: Peer, folder: Path) -> AsyncIterator[tuple[Proc, Path]]:
    socket = folder / f"{peer.tag}.sock"
    command = [part.replace("{socket}", str(socket)).replace("{tag}", peer.tag) for part in peer.command]
    async with started(peer.name, command, folder / f"{peer.tag}.log") as proc:
        await until(lambda: listening(socket), proc, "listening")
        yield proc, socket


# --- the folder


def fill(share: Path, files: int) -> int:
    """A tree of `files` files, 20 in a folder, and one for fio for each back-end; how many names the tree has."""
    names = 1
    for number in range(files):
        folder = share / "tree" / f"d{number // 400:03}" / f"e{number // 20 % 20:02}"
        if number % 20 == 0:
            names += 1 + (number % 400 == 0)
            folder.mkdir(parents=True)
        (folder / f"file-{number:06}").write_bytes(b"x" * (number % 4096))
        names += 1
    piece = os.urandom(MIB)
    for tag in ("ours", "asleep", "held", "rust", "c"):
        with (share / f"fio-{tag}").open("wb") as out:
            for _ in range(FILE // MIB):
                out.write(piece)
    return names


# --- the guest


@contextlib.asynccontextmanager
async def booted(kind: str, folder: Path, sockets: Sequence[tuple[Peer, Path]]) -> AsyncIterator[QemuGuest | UmlGuest]:
    """A guest with all folders, fio's disk on /mnt."""
    tools = fio_disk()
    if kind == "uml":
        async with contextlib.AsyncExitStack() as stack:
            devices = []
            for peer, socket in sockets:
                # ours needs none
                way = socket if peer.name in MINE else await stack.enter_async_context(relayed(socket, peer.tag))
                devices.append(UmlDevice(way, FS))
            uml = await stack.enter_async_context(
                boot_uml(folder, *devices, memory_mib=MEMORY_MIB, append=f"ubd0r={tools}")
            )
            await uml.run("mount -t ext4 -o ro /dev/ubda /mnt")
            yield uml
        return
    drive = f"file={tools},if=none,id=tools,format=raw,readonly=on"
    config = QemuConfig(
        devices=tuple(VhostFs(socket, peer.tag) for peer, socket in sockets),
        memory_mib=MEMORY_MIB,
        smp=1,
        extra=("-drive", drive, "-device", "virtio-blk-pci,drive=tools"),
    )
    async with boot_qemu(config, folder) as guest:
        await guest.run("mount -t ext4 -o ro /dev/vda /mnt")
        yield guest


@dataclass(frozen=True)
class Live:
    """A guest that runs, and the back-ends' processes."""

    guest: QemuGuest | UmlGuest
    backends: dict[str, Proc]


@dataclass(frozen=True)
class Spent:
    """Nanoseconds: of the clock, and of processors so far."""

    wall: int
    backend: int
    guest: int

    @classmethod
    def now(cls, live: Live, peer: Peer) -> Spent:
        return cls(time.monotonic_ns(), cpu_ns(live.backends[peer.name].pid), tree_cpu_ns(live.guest.proc.pid))

    def since(self, before: Spent) -> Spent:
        return Spent(self.wall - before.wall, self.backend - before.backend, self.guest - before.guest)


# --- one run


async def fio(live: Live, peer: Peer, workload: Workload) -> tuple[int, float, Spent]:
    """Operations, seconds, what was spent: on fio's start, too."""
    command = (
        f"/mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/fio --name=job --filename=/{peer.tag}/fio-{peer.tag}"
        f" --direct=1 --time_based --runtime={workload.runtime:g} --thread --norandommap --randrepeat=0"
        f" --size={FILE} --output-format=json {FIO[workload.name]}"
    )
    before = Spent.now(live, peer)
    # packed and encoded: a serial line is slow, and passes text only
    said = await live.guest.output(
        f"{command} >/tmp/fio.json 2>/tmp/fio.err || {{ cat /tmp/fio.err /tmp/fio.json; exit 1; }}\n"
        "gzip -c /tmp/fio.json | base64",
        timeout=workload.runtime + 120,
    )
    spent = Spent.now(live, peer).since(before)
    text = gzip.decompress(base64.b64decode(said)).decode()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    parts = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    if not parts or job.get("total_err"):
        raise GuestError(f"{peer.name}: fio moved nothing, or saw errors: {job.get('error')}")
    return sum(part["total_ios"] for part in parts), sum(part["runtime"] for part in parts) / 1e3, spent


async def walk(live: Live, peer: Peer, workload: Workload, names: int) -> tuple[int, float, Spent]:
    """Likewise."""
    if workload.name.endswith("cold"):
        await live.guest.run(f"umount /{peer.tag}; echo 3 >/proc/sys/vm/drop_caches")
        await mount(live.guest, peer.tag)
    script = WALK[workload.name].format(f"/{peer.tag}/tree")
    before = Spent.now(live, peer)
    said = await live.guest.output(script, timeout=300)
    spent = Spent.now(live, peer).since(before)
    counts = [int(count) for count in said.split()]
    if min(counts) < names - 1:  # ls does not list the folder that it was given
        raise GuestError(f"{peer.name}: {min(counts)} names were seen of {names}")
    return names * len(counts), spent.wall / 1e9, spent


def result_of(workload: Workload, operations: int, seconds: float, spent: Spent) -> Result:
    return Result(
        workload=workload,
        operations=operations,
        rate=operations / seconds,
        backend_cpu_us=spent.backend / operations / 1e3,
        guest_cpu_us=spent.guest / operations / 1e3,
        backend_percent=100 * spent.backend / spent.wall,
        guest_percent=100 * spent.guest / spent.wall,
    )


async def measure(
    cells: Sequence[Cell], rounds: int, more: Sequence[str], template: dict[str, Any], say: Callable[[str], None]
) -> list[Peer]:
    """Fill `cells`: rounds of all peers in turn in one guest. Returns the peers."""
    with tempfile.TemporaryDirectory(prefix="vhb-") as name:
        folder, share = Path(name), Path(name) / "share"
        share.mkdir()
        names = fill(share, template["files"])
        peers = peers_for(share, template["cache"], more, say)
        async with contextlib.AsyncExitStack() as stack:
            served = {peer: await stack.enter_async_context(running(peer, folder)) for peer in peers}
            sockets = [(peer, socket) for peer, (_, socket) in served.items()]
            guest = await stack.enter_async_context(booted(template["guest"], folder, sockets))
            live = Live(guest, {peer.name: proc for peer, (proc, _) in served.items()})
            for peer in peers:
                await mount(guest, peer.tag)
            for cell in cells:
                workload = Workload(part=cell.part, name=cell.name, **template)
                for _ in range(rounds):
                    for peer in peers:
                        run = fio(live, peer, workload) if cell.part == "fio" else walk(live, peer, workload, names)
                        cell.results.setdefault(peer.name, []).append(result_of(workload, *await run))
    return peers


# --- report


def table_of(cells: Sequence[Cell], title: str) -> Table:
    table = Table(title=title)
    for name in ("workload", "back-end"):
        table.add_column(name, no_wrap=True)
    columns = (
        "k op/s (least-most)",
        "ours is",
        "back-end CPU µs/op",
        "of ours",
        "back-end %",
        "guest µs/op",
        "guest %",
    )
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        for number, name in enumerate(cell.results):
            table.add_row("" if number else cell.name, name, *_figures(cell, name))
        table.add_section()
    return table


def _figures(cell: Cell, name: str) -> Iterator[str]:
    runs = cell.results[name]
    yield spread([run.rate / 1e3 for run in runs], "{:,.2f}")
    yield "" if name == OURS else spread(ratios(cell.results, OURS, name, "rate"))
    yield f"{statistics.median(run.backend_cpu_us for run in runs):.2f}"
    yield "" if name == OURS else spread(ratios(cell.results, name, OURS, "backend_cpu_us"))
    yield f"{statistics.median(run.backend_percent for run in runs):.0f}"
    yield f"{statistics.median(run.guest_cpu_us for run in runs):.1f}"
    yield f"{statistics.median(run.guest_percent for run in runs):.0f}"


def targets_of(cells: Sequence[Cell]) -> Iterator[str]:
    """A line for each: met, or by how much it is missed."""
    for cell in cells:
        for mine, base in itertools.product((OURS, HELD), (name for name in cell.results if name not in MINE)):
            if mine not in cell.results:
                continue
            middle = statistics.median(ratios(cell.results, mine, base, "rate"))
            missed = (BAR - middle) / BAR
            words = f"missed by {max(missed, 0.01):.0%}" if missed > 0 else "met"
            whose = "" if mine == OURS else f"{mine}, "
            yield f"{cell.name}: {whose}at least {BAR:g} x {base}, measured {middle:.2f}: {words}"


def as_json(cells: Sequence[Cell], rounds: int) -> dict[str, Any]:
    """As `make bench` writes it: `vhost bench compare` reads it."""
    kept = [{"results": {name: [asdict(run) for run in runs] for name, runs in cell.results.items()}} for cell in cells]
    return {"machine": machine(), "device": "fs", "rounds": rounds, "cells": kept}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(tuple(PARTS)), metavar="[fio] [walk]")
@click.option("--guest", type=click.Choice(("qemu", "uml")), default="qemu", show_default=True)
@click.option("--cache", type=click.Choice(tuple(_OF_C)), default="auto", show_default=True, help="Of all back-ends.")
@click.option("--only", default="", metavar="TEXT", help="Those workloads whose names have it.")
@click.option("--asleep", is_flag=True, help="Ours that never polls, too.")
@click.option("--coalesce", is_flag=True, help="Ours that holds interrupts back, too.")
@click.option("--files", type=click.IntRange(20), default=2000, show_default=True, help="In the tree.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--runtime", type=float, default=2, show_default=True, help="Seconds per run of fio.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write all results to this file.")
def main(
    parts: tuple[str, ...], only: str, asleep: bool, coalesce: bool, rounds: int, json_path: str | None, **load: Any
) -> None:
    """Compare our shared folder with virtiofsd's in a guest: fio, and walks through a tree."""
    guard()
    console = Console()
    console.width = max(console.width, 175)  # a log is wide enough

    def say(line: str) -> None:
        console.print(line, style="yellow", soft_wrap=True, markup=False)

    cells = [Cell(part, name) for part in parts or tuple(PARTS) for name in PARTS[part] if only in name]
    try:
        trio.run(measure, cells, rounds, [ASLEEP] * asleep + [HELD] * coalesce, load, say)
    except (AssetError, GuestError) as error:
        raise click.ClickException(str(error)) from error
    where = f"{load['guest']} guest, cache {load['cache']}, a tree of {load['files']} files, {rounds} rounds"
    title = f"a shared folder in a {where}"
    console.print(table_of(cells, title))
    for line in targets_of(cells):
        console.print(line, soft_wrap=True, markup=False)
    if json_path is not None:
        Path(json_path).write_text(json.dumps(as_json(cells, rounds), indent=1) + "\n")


if __name__ == "__main__":
    main()

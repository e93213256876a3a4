"""fio inside a guest, on our disk and on qemu-storage-daemon's in turns: the chain with a real driver in it.

    python -m bench.guest_fio [--guest uml|qemu] [--store null|memory|file] [--iodepth LIST] [--rounds N] …

One guest has all back-ends' disks at once; fio runs on one after the other, A B A B, so that what disturbs the machine
disturbs all. fio and its libraries are this machine's, on a read-only disk of their own. See bench/README.md.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click
import trio
from rich.console import Console
from rich.table import Table

from bench.borrowed import borrow, guard
from bench.rounds import ratios
from vhost.bench import machine

borrow()  # the guests are those of the tests

from guestlib import (  # noqa: E402
    AssetError,
    GuestError,
    QemuConfig,
    UmlDevice,
    VhostUser,
    boot_qemu,
    boot_uml,
    started,
)
from guestlib.assets import GUEST  # noqa: E402
from guestlib.debian import locked  # noqa: E402
from guestlib.process import Proc, listening, until  # noqa: E402

DISK = 64 << 20
BLK = 2
PATTERNS = ("randread", "randwrite", "read", "write", "randrw", "rw")
#: fio's own buffers, its many libraries and a guest kernel
MEMORY_MIB = 320


class Guest(Protocol):
    """What both kinds of guest can do."""

    async def output(self, script: str, *, timeout: float = 60) -> str:
        """What a shell script in the guest prints."""


@dataclass(frozen=True)
class Peer:
    """A back-end: what tables call it, its command with {socket} in it, whether its disk has packed rings."""

    name: str
    command: tuple[str, ...]
    packed: bool = False


@dataclass(frozen=True)
class Workload:
    """What fio is asked to do; names as in `vhost bench blk`."""

    rw: str
    block_bytes: int
    depth: int
    store: str
    guest: str
    engine: str
    packed: bool
    runtime: float


@dataclass(frozen=True)
class Latency:
    """Microseconds, completion latency as fio counts it."""

    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


@dataclass(frozen=True)
class Result:
    """One run of fio."""

    workload: Workload
    iops: float
    bytes_per_second: float
    requests: int
    latency: Latency
    backend_cpu_us: float
    """CPU time of all of the back-end's threads per request."""
    guest_cpu_percent: float
    """Of one of the guest's processors, as fio's own user and system time."""
    errors: int


@dataclass
class Cell:
    """All rounds at one depth, per back-end."""

    depth: int
    results: dict[str, list[Result]] = field(default_factory=dict)


# --- back-ends


def ours(store: str, image: Path, *, packed: bool) -> Peer:
    program = str(Path(sys.executable).with_name("vhost"))
    spec = {"null": f"null:{DISK}", "memory": f"memory:{DISK}", "file": f"raw:{image}"}[store]
    command = (program, "blk", "--socket-path", "{socket}", "--store", spec, "--log-level", "warning")
    return Peer(f"vhost blk{', packed' if packed else ''}", command, packed)


def storage_daemon(store: str, image: Path) -> Peer | None:
    """None: not installed, or it has no such store."""
    program = shutil.which("qemu-storage-daemon")
    node = {
        "null": f"driver=null-co,node-name=n,size={DISK},read-zeroes=off",
        "file": f"driver=file,filename={image},node-name=n,aio=io_uring",
    }.get(store)
    if program is None or node is None:
        return None
    export = "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={socket},writable=on"
    return Peer("qemu-storage-daemon", (program, "--blockdev", node, "--export", export))


@contextlib.asynccontextmanager
async def running(peer: Peer, folder: Path, number: int) -> AsyncIterator[tuple[Proc, Path]]:
    socket = folder / f"{number}.sock"
    command = [part.replace("{socket}", str(socket)) for part in peer.command]
    async with started(peer.name, command, folder / f"{number}.log") as proc:
        await until(lambda: listening(socket), proc, "listening")
        yield proc, socket


def cpu_ns(pid: int) -> int:
    """CPU time of a process by its CPU clock (clock_getcpuclockid), threads that ended included."""
    return time.clock_gettime_ns(~pid << 3 | 2)


# --- fio's disk


def fio_disk() -> Path:
    """A read-only ext4 image with fio, its libraries and its loader, made once.

    Raises: AssetError: fio is not installed, or the image cannot be made.
    """
    fio = shutil.which("fio")
    if fio is None:
        raise AssetError("fio is not installed; install the Debian package fio")
    said = subprocess.run(["ldd", fio], capture_output=True, text=True, check=True).stdout
    files = [Path(fio), *sorted({Path(word) for word in said.split() if word.startswith("/")})]
    key = hashlib.sha256(repr([(str(file), file.stat().st_mtime_ns) for file in files]).encode()).hexdigest()[:12]
    target = GUEST / f"fio-{key}.ext4"
    with locked("fio"):
        if not target.exists():
            GUEST.mkdir(parents=True, exist_ok=True)
            for old in GUEST.glob("fio-*.ext4"):
                old.unlink()
            _make_disk(files, target)
    return target


def _make_disk(files: Sequence[Path], target: Path) -> None:
    fresh = target.with_suffix(".new")
    with tempfile.TemporaryDirectory(prefix="vhk-fio-") as name:
        for file in files:
            shutil.copy(file, Path(name) / file.name)
        mib = sum(file.stat().st_size for file in files) * 5 // 4 >> 20
        command = ["/sbin/mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", name, str(fresh), f"{mib + 8}M"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssetError(f"mkfs.ext4 could not make a disk for fio: {done.stderr.strip()}")
    fresh.rename(target)


@contextlib.asynccontextmanager
async def booted(kind: str, folder: Path, disks: Sequence[tuple[Peer, Path]]) -> AsyncIterator[tuple[Guest, list[str]]]:
    """A guest with `disks`, fio's mounted on /mnt; and what the guest calls the disks."""
    tools = fio_disk()
    if kind == "uml":
        devices = [UmlDevice(socket, BLK) for _, socket in disks]
        async with boot_uml(folder, *devices, memory_mib=MEMORY_MIB, append=f"ubd0r={tools}") as guest:
            await guest.run("mount -t ext4 -o ro /dev/ubda /mnt")
            yield guest, [f"/dev/vd{chr(ord('a') + number)}" for number in range(len(disks))]
        return
    drive = f"file={tools},if=none,id=tools,format=raw,readonly=on"
    config = QemuConfig(
        devices=tuple(VhostUser(socket, packed=peer.packed) for peer, socket in disks),
        memory_mib=MEMORY_MIB,
        extra=("-drive", drive, "-device", "virtio-blk-pci,drive=tools"),
    )
    async with boot_qemu(config, folder) as machine_:
        names = [f"/dev/vd{chr(ord('a') + number)}" for number in range(len(disks) + 1)]
        await machine_.run(f"mount -t ext4 -o ro {names[-1]} /mnt")
        yield machine_, names[:-1]


# --- one run


async def fio(guest: Guest, disk: str, peer: Peer, proc: Proc, workload: Workload) -> Result:
    """Run fio on `disk` in the guest."""
    command = (
        f"/mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/fio --name=job --filename={disk} --direct=1"
        f" --rw={workload.rw} --bs={workload.block_bytes} --iodepth={workload.depth} --ioengine={workload.engine}"
        f" --time_based --runtime={workload.runtime:g} --thread --norandommap --randrepeat=0 --output-format=json"
    )
    before = cpu_ns(proc.pid)
    # packed and encoded: a serial line is slow, and passes text only
    said = await guest.output(
        f"{command} >/tmp/fio.json 2>/tmp/fio.err || {{ cat /tmp/fio.err /tmp/fio.json; exit 1; }}\n"
        "gzip -c /tmp/fio.json | base64",
        timeout=workload.runtime + 120,
    )
    spent = cpu_ns(proc.pid) - before
    text = gzip.decompress(base64.b64decode(said)).decode()
    return result_of(json.loads(text[text.index("{") :]), workload, spent)


def result_of(said: dict[str, Any], workload: Workload, backend_cpu_ns: int) -> Result:
    """What fio's JSON says, in the names of `vhost bench blk`."""
    (job,) = said["jobs"]
    parts = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    requests = sum(part["total_ios"] for part in parts)
    if not requests:
        raise click.ClickException(f"fio moved nothing: error {job.get('error')}")
    # of a mix: the side with more requests
    clat = max(parts, key=lambda part: int(part["total_ios"]))["clat_ns"]
    percent = clat["percentile"]
    return Result(
        workload=workload,
        iops=sum(part["iops"] for part in parts),
        bytes_per_second=sum(part["bw_bytes"] for part in parts),
        requests=requests,
        latency=Latency(
            mean_us=clat["mean"] / 1e3,
            p50_us=percent["50.000000"] / 1e3,
            p99_us=percent["99.000000"] / 1e3,
            p999_us=percent["99.900000"] / 1e3,
            max_us=clat["max"] / 1e3,
        ),
        backend_cpu_us=backend_cpu_ns / requests / 1e3,
        guest_cpu_percent=job["usr_cpu"] + job["sys_cpu"],
        errors=int(job.get("total_err", 0)),
    )


async def measure(
    peers: Sequence[Peer], cells: Sequence[Cell], rounds: int, guest_kind: str, template: dict[str, Any]
) -> None:
    """Fill `cells`: rounds of all peers in turn in one guest."""
    with tempfile.TemporaryDirectory(prefix="vhb-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            procs, disks = [], []
            for number, peer in enumerate(peers):
                proc, socket = await stack.enter_async_context(running(peer, folder, number))
                procs.append(proc)
                disks.append((peer, socket))
            guest, names = await stack.enter_async_context(booted(guest_kind, folder, disks))
            for cell in cells:
                for _ in range(rounds):
                    for peer, proc, disk in zip(peers, procs, names, strict=True):
                        workload = Workload(**template, guest=guest_kind, depth=cell.depth, packed=peer.packed)
                        result = await fio(guest, disk, peer, proc, workload)
                        if result.errors:
                            raise GuestError(f"{peer.name}: {result.errors} of fio's requests failed")
                        cell.results.setdefault(peer.name, []).append(result)


# --- report


def table_of(cells: Sequence[Cell], peers: Sequence[Peer], base: str | None, title: str) -> Table:
    table = Table(title=title)
    for name in ("depth", "back-end"):
        table.add_column(name, no_wrap=True)
    for name in ("k req/s (least-most)", "p50 µs", "p99 µs", "CPU µs", "guest %", "ratio (least-most)"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        for peer in peers:
            table.add_row(str(cell.depth), peer.name, *_figures(cell, peer.name), _compared(cell, peer.name, base))
        table.add_section()
    return table


def _figures(cell: Cell, peer: str) -> Iterator[str]:
    runs = cell.results[peer]
    iops = [run.iops / 1e3 for run in runs]
    yield f"{statistics.median(iops):,.1f} ({min(iops):,.1f}-{max(iops):,.1f})"
    yield f"{statistics.median(run.latency.p50_us for run in runs):,.1f}"
    yield f"{statistics.median(run.latency.p99_us for run in runs):,.1f}"
    yield f"{statistics.median(run.backend_cpu_us for run in runs):,.2f}"
    yield f"{statistics.median(run.guest_cpu_percent for run in runs):,.0f}"


def _compared(cell: Cell, peer: str, base: str | None) -> str:
    if base is None or peer == base:
        return "1" if peer == base else ""
    found = ratios(cell.results, peer, base, "iops")
    return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def as_json(cells: Sequence[Cell], rounds: int) -> dict[str, Any]:
    """As `make bench` writes it: `vhost bench compare` and `plot` read it."""
    kept = [{"results": {name: [asdict(run) for run in runs] for name, runs in cell.results.items()}} for cell in cells]
    return {"machine": machine(), "device": "blk", "rounds": rounds, "cells": kept}


def image_in(folder: Path, name: str) -> Path:
    """A disk image of its own for each back-end: two writers of one would be refused."""
    path = folder / name
    with path.open("wb") as out:
        for _ in range(DISK >> 20):
            out.write(bytes(1 << 20))  # no holes: reading one costs less
    return path


def peers_for(console: Console, guest: str, store: str, folder: Path) -> list[Peer]:
    def image(name: str) -> Path:
        return image_in(folder, name) if store == "file" else folder / name

    peers = [ours(store, image("split"), packed=False)]
    if guest == "qemu":  # User-mode Linux's driver negotiates no packed rings
        peers.append(ours(store, image("packed"), packed=True))
    other = storage_daemon(store, image("other"))
    if other is not None:
        peers.append(other)
    elif store == "memory":
        console.print("not compared: qemu-storage-daemon has no store in memory", style="dim")
    else:
        console.print("qemu-storage-daemon is missing; install the Debian package qemu-system-common", style="yellow")
    return peers


@click.command()
@click.option("--guest", type=click.Choice(("uml", "qemu")), default="uml", show_default=True)
@click.option("--store", type=click.Choice(("null", "memory", "file")), default="null", show_default=True)
@click.option("--rw", type=click.Choice(PATTERNS), default="randread", show_default=True)
@click.option("--bs", "block_bytes", type=click.IntRange(512), default=4096, show_default=True, help="Bytes.")
@click.option("--iodepth", "depths", default="1,32", show_default=True, help="One or more, with commas.")
@click.option("--ioengine", "engine", default="libaio", show_default=True, help="fio's: libaio, io_uring, psync …")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runtime", type=float, default=2, show_default=True, help="Seconds per run.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write all results to this file.")
def main(guest: str, store: str, depths: str, rounds: int, json_path: str | None, **load: Any) -> None:
    """Compare our disk with qemu-storage-daemon's under fio in a guest."""
    guard()
    console = Console()
    console.width = max(console.width, 120)  # a log is wide enough
    try:
        cells = [Cell(int(depth)) for depth in depths.split(",")]
    except ValueError:
        raise click.UsageError(f"--iodepth {depths}: write numbers with commas, such as 1,32") from None
    with tempfile.TemporaryDirectory(prefix="vhb-disk-") as name:
        peers = peers_for(console, guest, store, Path(name))
        try:
            trio.run(measure, peers, cells, rounds, guest, {"store": store, **load})
        except (AssetError, GuestError) as error:
            raise click.ClickException(str(error)) from error
    base = peers[-1].name if peers[-1].name == "qemu-storage-daemon" else None
    title = f"fio {load['rw']} {load['block_bytes']} B, {guest} guest, {store} store, {rounds} x {load['runtime']:g} s"
    console.print(table_of(cells, peers, base, title))
    if json_path is not None:
        Path(json_path).write_text(json.dumps(as_json(cells, rounds), indent=1) + "\n")


if __name__ == "__main__":
    main()

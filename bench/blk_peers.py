"""Our null disk and qemu-storage-daemon's, driven by the same front-end, in turns: requests/s, CPU, notifications.

    python -m bench [--quick] [--rounds N] [--runtime S] [--json FILE]

See bench/README.md for the method.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from devices.blk.bench import machine
from devices.blk.load import Result, Workload, measure

DISK = 1 << 30
DEPTHS = (1, 32, 128)
#: programs that would be peers too, and where they come from
NOT_PACKAGED = {"SPDK vhost": "no Debian package; build it from its source"}


@dataclass(frozen=True)
class Peer:
    """A back-end under test.

    Attributes:
        name: in tables.
        command: with {socket} in it.
        packed: ring layout to use.
    """

    name: str
    command: tuple[str, ...]
    packed: bool = False


@dataclass
class Cell:
    """One row of the table: a load, and every round's result per peer."""

    poll: bool
    depth: int
    results: dict[str, list[Result]] = field(default_factory=dict)


def ours(*, packed: bool) -> Peer:
    program = Path(sys.executable).with_name("vhost")
    command = (str(program), "blk", "--socket-path", "{socket}", "--store", f"null:{DISK}", "--log-level", "warning")
    return Peer(f"vhost blk, {'packed' if packed else 'split'}", command, packed)


def storage_daemon() -> Peer | None:
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        return None
    store = f"driver=null-co,node-name=n,size={DISK},read-zeroes=off"
    export = "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={socket},writable=on"
    return Peer("qemu-storage-daemon", (program, "--blockdev", store, "--export", export))


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[tuple[Path, int]]:
    """Start `peer`; its socket and process id."""
    socket = folder / f"{len(list(folder.iterdir()))}.sock"
    command = [part.replace("{socket}", str(socket)) for part in peer.command]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{peer.name} does not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.02)
        yield socket, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pin(pid: int, cpu: int) -> None:
    """All threads of `pid` to one processor."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cpu})


def ratio(cell: Cell, peer: str, base: str) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios of requests/s."""
    pairs = [
        mine.iops / theirs.iops for mine, theirs in zip(cell.results[peer], cell.results[base], strict=True)
    ]  # fmt: skip
    return statistics.median(pairs), min(pairs), max(pairs)


def table_of(cells: Sequence[Cell], peers: Sequence[Peer], base: str | None, title: str) -> Table:
    table = Table(title=title)
    for name in ("load", "back-end"):
        table.add_column(name, no_wrap=True)
    for name in ("k req/s (least-most)", "p50 µs", "CPU µs", "kicks", "calls", "ratio (least-most)"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        for peer in peers:
            runs = cell.results[peer.name]
            iops = [run.iops / 1e3 for run in runs]
            table.add_row(
                f"{'polling' if cell.poll else 'sleeping'}, {cell.depth}",
                peer.name,
                f"{statistics.median(iops):,.0f} ({min(iops):,.0f}-{max(iops):,.0f})",
                f"{statistics.median(run.latency.p50_us for run in runs):.1f}",
                f"{statistics.median(run.backend_cpu_us or 0 for run in runs):.2f}",
                f"{statistics.median(run.kicks for run in runs):.3f}",
                f"{statistics.median(run.calls for run in runs):.3f}",
                "1" if base in (None, peer.name) else _compared(cell, peer.name, base),
            )
        table.add_section()
    return table


def _compared(cell: Cell, peer: str, base: str | None) -> str:
    assert base is not None
    middle, least, most = ratio(cell, peer, base)
    return f"{middle:.2f} ({least:.2f}-{most:.2f})"


def run(peers: Sequence[Peer], cells: Sequence[Cell], rounds: int, runtime: float, console: Console) -> None:
    """Fill `cells`: rounds of all peers in turn, so that what disturbs the machine disturbs all of them."""
    cpus = sorted(os.sched_getaffinity(0))
    front, back = cpus[0], cpus[1 % len(cpus)]
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhb-")))
        live = {peer.name: stack.enter_context(running(peer, folder)) for peer in peers}
        task = progress.add_task("measuring", total=len(cells) * rounds * len(peers))
        for cell in cells:
            for _ in range(rounds):
                for peer in peers:
                    socket, pid = live[peer.name]
                    # two that poll need a processor each; one that sleeps gives its own away (see README.md)
                    pin(pid, back if cell.poll else front)
                    workload = Workload(
                        depth=cell.depth, poll=cell.poll, packed=peer.packed, runtime=runtime,
                        warmup=min(0.3, runtime), cpus=(front,), size=DISK,
                    )  # fmt: skip
                    result = trio.run(measure, socket, workload)
                    if result.errors:
                        raise click.ClickException(f"{peer.name}: {result.first_error}")
                    cell.results.setdefault(peer.name, []).append(replace(result, histogram=[]))
                    progress.advance(task)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runtime", type=float, default=1, show_default=True, help="Seconds per run.")
@click.option("--quick", is_flag=True, help="One short round of each, to see that it works; not for comparing.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write all results to this file.")
def main(rounds: int, runtime: float, quick: bool, json_path: str | None) -> None:
    """Compare our null disk with qemu-storage-daemon's: 4 KiB random reads, one queue."""
    console = Console()
    console.width = max(console.width, 112)  # a log is wide enough
    if quick:
        rounds, runtime = 1, 0.2
    daemon = storage_daemon()
    peers = [ours(packed=False), ours(packed=True), *([daemon] if daemon else [])]
    if daemon is None:
        console.print("qemu-storage-daemon is missing; install the Debian package qemu-system-common", style="yellow")
    for name, where in NOT_PACKAGED.items():
        console.print(f"not compared: {name} ({where})", style="dim")
    cells = [Cell(poll, depth) for poll in (True, False) for depth in DEPTHS]
    run(peers, cells, rounds, runtime, console)
    title = f"null store, 4 KiB random read, 1 queue, {rounds} x {runtime:g} s in turns; CPU, kicks, calls per request"
    console.print(table_of(cells, peers, daemon.name if daemon else None, title))
    if len(os.sched_getaffinity(0)) < 2:
        console.print("only one processor: the polling rows say nothing", style="yellow")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(_as_json(cells, rounds, runtime), indent=1) + "\n")


def _as_json(cells: Sequence[Cell], rounds: int, runtime: float) -> dict[str, Any]:
    return {
        "machine": machine(),
        "rounds": rounds,
        "runtime": runtime,
        "cells": [
            {
                "poll": cell.poll,
                "depth": cell.depth,
                "results": {name: [run.as_dict() for run in runs] for name, runs in cell.results.items()},
            }
            for cell in cells
        ],
    }


if __name__ == "__main__":
    main()

"""One TCP stream of a guest through our card and through its peers' in turns: the chain with a real driver in it.

    python -m bench.guest_net [tap] [nat] [--rounds N] [--runtime S] [--mtu BYTES] [--smp N] [--zerocopy] …

One QEMU guest has all cards at once; iperf3 sends on one after the other, A B A B, so that what disturbs the machine
disturbs all. The far end is a network namespace behind a tap, or the host behind a NAT. See bench/README.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
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
from bench.rounds import ratios, spread
from devices.net.config import NetFeature
from vhost.bench import machine

borrow()  # the guests are those of the tests

from guestlib import (  # noqa: E402
    AssetError,
    GuestError,
    Qemu,
    QemuConfig,
    QemuGuest,
    VhostNet,
    assets,
    backports_qemu,
    boot_qemu,
    started,
    system_qemu,
)
from guestlib import net as netlib  # noqa: E402
from guestlib.process import Proc, until  # noqa: E402

LINKS = {"tap": "a namespace behind a tap", "nat": "the host behind user-mode NAT"}
WAYS = {"out": "guest to host", "in": "host to guest"}
PLAIN_MTU = 1500
OURS, QEMU, PASST = "vhost net", "QEMU's own", "passt"
PASST_WHERE = "Debian's package passt, from trixie on"
#: whom ours is measured by, and the least ratio
BARS = {"tap": (QEMU, 1.2), "nat": (PASST, 1.0)}

#: whose CPU time is told apart
PARTS = ("vcpu", "qemu", "backend", "far")


@dataclass(frozen=True)
class Card:
    """A card of the guest.

    Attributes:
        name: in tables and results.
        link: one of LINKS.
        mac: by which the guest finds it.
        address: the guest's, with its prefix length.
        host, port: where the far end's iperf3 listens.
        far: that iperf3.
        backend: the process behind the card; None: QEMU itself.
    """

    name: str
    link: str
    mac: str
    address: str
    host: str
    port: int
    far: Proc
    backend: Proc | None


@dataclass(frozen=True)
class Workload:
    """What iperf3 is asked to do."""

    link: str
    way: str
    mtu: int
    smp: int
    zerocopy: bool
    qemu: str
    runtime: int


@dataclass(frozen=True)
class Result:
    """One run of iperf3. CPU is processor time of all threads, as percent of one processor and in ns per byte."""

    workload: Workload
    seconds: float
    bytes: int
    bytes_per_second: float
    retransmits: int
    cpu_ns: float
    """QEMU's and the back-end's per byte: all that a card costs its host, the guest's own work included."""
    vcpu_ns: float
    """Of it the guest's processors."""
    qemu_ns: float
    """QEMU's other threads."""
    backend_ns: float
    far_ns: float
    """The far end's iperf3, which is not in `cpu_ns`."""
    vcpu_percent: float
    qemu_percent: float
    backend_percent: float
    far_percent: float
    features: int
    """As the guest's driver negotiated them."""


@dataclass
class Cell:
    """All rounds on one link in one direction, per card."""

    link: str
    way: str
    results: dict[str, list[Result]] = field(default_factory=dict)


# --- cards


class Rig:
    """The cards of a guest to be: their back-ends run, what QEMU needs is collected."""

    def __init__(self, stack: contextlib.AsyncExitStack, folder: Path, qemu: Qemu, mtu: int) -> None:
        self.stack = stack
        self.folder = folder
        self.mtu = mtu
        self.cards: list[Card] = []
        self.devices: list[VhostNet] = []
        self.extra: list[str] = []
        #: to be done once QEMU runs: its own taps have to be there
        self.after: list[Callable[[], None]] = []
        # as VhostNet has them: the same for all cards
        self._vectors = 0 if assets.qemu_version(qemu) < (8, 0) else 4
        self._count = itertools.count(1)

    def _mac(self) -> str:
        return netlib.mac(len(self.cards) + 1)

    def _vhost_user(self, socket: Path) -> None:
        self.devices.append(VhostNet(socket, mac=self._mac()))

    def _own(self, netdev: str) -> None:
        number = next(self._count)
        device = f"virtio-net-pci,netdev=own{number},romfile=,mac={self._mac()},vectors={self._vectors}"
        self.extra += ["-netdev", f"{netdev},id=own{number}", "-device", device]

    async def _server(self, space: netlib.Namespace | None = None) -> tuple[Proc, int]:
        port = netlib.free_port()
        words: list[str | Path] = [iperf3(), "-s", "-p", str(port), "--forceflush"]
        if space is None:
            words += ["-B", "127.0.0.1"]
        log = self.folder / f"iperf3-{port}.log"
        proc = await self.stack.enter_async_context(
            started(f"iperf3 {port}", space.command(*words) if space else words, log)
        )
        await until(lambda: "listening" in log.read_text(), proc, "listening")
        return proc, port

    async def tap(self) -> None:
        """A namespace for each: one with a tap of ours, one with QEMU's."""
        for number, name in enumerate((OURS, QEMU)):
            space = self.stack.enter_context(netlib.namespace())
            host = f"10.9.{number}.1"
            far, port = await self._server(space)
            tap = f"vhb{os.getpid()}-{number}"
            backend = None
            if name == OURS:
                words = ("--tap", tap, "--log-level", "warning")
                served = netlib.vhost_net(self.folder, *words, name="tap", namespace=space)
                found = await self.stack.enter_async_context(served)
                backend = found.proc
                self._vhost_user(found.socket)
            else:
                self._own(f"tap,ifname={tap},script=no,downscript=no,vhost=off")
            self.after.append(self._given(space, tap, f"{host}/24", moved=name == QEMU))
            self.cards.append(Card(name, "tap", self._mac(), f"10.9.{number}.2/24", host, port, far, backend))

    def _given(self, space: netlib.Namespace, tap: str, address: str, *, moved: bool) -> Callable[[], None]:
        def give() -> None:
            if moved:  # QEMU's is made where QEMU is
                subprocess.run([netlib._ip(), "link", "set", tap, "netns", space.name], check=True)
            space.run("ip", "addr", "add", address, "dev", tap)
            space.run("ip", "link", "set", tap, "mtu", str(self.mtu), "up")

        return give

    async def nat(self, say: Callable[[str], None]) -> None:
        """A network for each, all of which lead to one iperf3 on the host's loopback."""
        far, port = await self._server()

        def card(name: str, number: int, backend: Proc | None) -> Card:
            net = f"10.0.{number}"
            return Card(name, "nat", self._mac(), f"{net}.15/24", f"{net}.2", port, far, backend)

        words = ["--user", "--net", "10.0.2.0/24", "--log-level", "warning"]
        if self.mtu != PLAIN_MTU:
            words += ["--mtu", str(self.mtu)]
        ours = await self.stack.enter_async_context(netlib.vhost_net(self.folder, *words, name="nat"))
        self._vhost_user(ours.socket)
        self.cards.append(card(OURS, 2, ours.proc))

        words = ["-4", "-a", "10.0.3.15", "-n", "24", "-g", "10.0.3.2", "-m", str(self.mtu)]
        try:
            theirs = await self.stack.enter_async_context(netlib.passt(self.folder, *words))
        except AssetError as error:
            say(f"missing: passt with --vhost-user ({PASST_WHERE}): {error}")
        else:
            self._vhost_user(theirs.socket)
            self.cards.append(card(PASST, 3, theirs.proc))

        if self.mtu == PLAIN_MTU:
            self._own("user,net=10.0.4.0/24,host=10.0.4.2,ipv6=off")
            self.cards.append(card(QEMU, 4, None))
        else:
            say(f"not compared: QEMU's -netdev user has no MTU but {PLAIN_MTU}")


def iperf3() -> str:
    """Its program. Raises: AssetError."""
    found = shutil.which("iperf3")
    if found is None:
        raise AssetError("iperf3 is not installed; install the Debian package iperf3")
    return found


def newest_qemu(name: str) -> Qemu:
    """The one of that name; ``newest``: the release's backports', or the release's where there is none."""
    if name != "system":
        try:
            return backports_qemu()
        except AssetError:
            if name != "newest":
                raise
    return system_qemu()


# --- what is spent


def cpu_ns(pid: int) -> int:
    """CPU time of a process by its CPU clock (clock_getcpuclockid), threads that ended included."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def thread_ns(pid: int, tid: int) -> int:
    """CPU time of one thread of another process."""
    return int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])


@dataclass(frozen=True)
class Spent:
    """Nanoseconds: of the clock, and of processors so far."""

    wall: int
    vcpu: int
    qemu: int
    backend: int
    far: int

    def since(self, before: Spent) -> Spent:
        return Spent(*(now - then for now, then in zip(vars(self).values(), vars(before).values(), strict=True)))


@dataclass(frozen=True)
class Live:
    """A guest that runs, the threads that are its processors, and what it calls a card by its MAC address."""

    guest: QemuGuest
    vcpus: tuple[int, ...]
    names: dict[str, str]

    def spent(self, card: Card) -> Spent:
        pid = self.guest.proc.pid
        vcpu = sum(thread_ns(pid, tid) for tid in self.vcpus)
        backend = cpu_ns(card.backend.pid) if card.backend else 0
        return Spent(time.monotonic_ns(), vcpu, cpu_ns(pid) - vcpu, backend, cpu_ns(card.far.pid))


@contextlib.asynccontextmanager
async def booted(rig: Rig, qemu: Qemu, smp: int) -> AsyncIterator[Live]:
    """The guest, every card with its address."""
    config = QemuConfig(devices=tuple(rig.devices), smp=smp, qemu=qemu, extra=tuple(rig.extra))
    async with boot_qemu(config, rig.folder) as guest:
        for each in rig.after:
            each()
        vcpus = tuple(each["thread-id"] for each in await guest.qmp.execute("query-cpus-fast"))
        said = await guest.output('for d in /sys/class/net/eth*; do echo "$(cat $d/address) ${d##*/}"; done')
        names = dict(line.split() for line in said.splitlines())
        for card in rig.cards:
            await netlib.address(guest, card.address, mtu=rig.mtu, device=names[card.mac])
        yield Live(guest, vcpus, names)


# --- one run


async def stream(live: Live, card: Card, workload: Workload) -> Result:
    """Send on `card` for a while."""
    command = f"iperf3 -J -i 0 -c {card.host} -p {card.port} -t {workload.runtime}"
    command += " -R" * (workload.way == "in") + " -Z" * workload.zerocopy
    before = live.spent(card)
    script = f"{command} >/tmp/iperf3.json 2>&1 || {{ cat /tmp/iperf3.json; exit 1; }}"
    await live.guest.run(script, timeout=workload.runtime + 60)
    spent = live.spent(card).since(before)
    features = await live.guest.output(f"cat /sys/class/net/{live.names[card.mac]}/device/features")
    # the first character is bit 0
    return result_of(await live.guest.output("cat /tmp/iperf3.json"), workload, spent, int(features[::-1], 2))


def result_of(said: str, workload: Workload, spent: Spent, features: int) -> Result:
    """What iperf3's JSON says, and what it cost."""
    end = json.loads(said)["end"]
    came = end["sum_received"]
    if not came["bytes"]:
        raise GuestError(f"iperf3 moved nothing:\n{said}")
    shares: dict[str, Any] = {}
    for name in PARTS:
        shares[f"{name}_ns"] = getattr(spent, name) / came["bytes"]
        shares[f"{name}_percent"] = 100 * getattr(spent, name) / spent.wall
    return Result(
        workload=workload,
        seconds=came["seconds"],
        bytes=came["bytes"],
        bytes_per_second=came["bytes"] / came["seconds"],
        retransmits=int(end["sum_sent"].get("retransmits", 0)),
        cpu_ns=(spent.vcpu + spent.qemu + spent.backend) / came["bytes"],
        **shares,
        features=features,
    )


async def measure(
    links: Sequence[str], rounds: int, template: dict[str, Any], say: Callable[[str], None]
) -> list[Cell]:
    """All cells: rounds of all cards in turn in one guest."""
    cells = [Cell(link, way) for link in links for way in WAYS]
    iperf3()
    qemu = newest_qemu(template["qemu"])
    major, minor = assets.qemu_version(qemu)
    template = {**template, "qemu": f"{major}.{minor}"}
    with tempfile.TemporaryDirectory(prefix="vhb-") as name:
        async with contextlib.AsyncExitStack() as stack:
            rig = Rig(stack, Path(name), qemu, template["mtu"])
            if "tap" in links:
                await rig.tap()
            if "nat" in links:
                await rig.nat(say)
            live = await stack.enter_async_context(booted(rig, qemu, template["smp"]))
            say(f"QEMU {major}.{minor}, {live.guest.accel}, {template['smp']} processor(s), MTU {template['mtu']}")
            for cell in cells:
                those = [card for card in rig.cards if card.link == cell.link]
                workload = Workload(**template, link=cell.link, way=cell.way)
                for card in those:  # the first run finds caches and windows cold
                    await stream(live, card, Workload(**{**asdict(workload), "runtime": 1}))
                for _ in range(rounds):
                    for card in those:
                        result = await stream(live, card, workload)
                        cell.results.setdefault(card.name, []).append(result)
    return cells


# --- report


def table_of(cells: Sequence[Cell], title: str) -> Table:
    table = Table(title=title)
    for name in ("stream", "card"):
        table.add_column(name, no_wrap=True)
    columns = ("MB/s (least-most)", "ratio", "CPU ns/B", "ratio of CPU", "guest %", "QEMU %", "back-end %", "far %")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        base = BARS[cell.link][0]
        for number, name in enumerate(cell.results):
            label = f"{cell.link}, {WAYS[cell.way]}" if not number else ""
            table.add_row(label, name, *_figures(cell, name, base if base in cell.results else name))
        table.add_section()
    return table


def _figures(cell: Cell, name: str, base: str) -> Iterator[str]:
    runs = cell.results[name]
    yield spread([run.bytes_per_second / 1e6 for run in runs], "{:,.1f}")
    yield "1" if name == base else spread(ratios(cell.results, name, base, "bytes_per_second"))
    yield f"{statistics.median(run.cpu_ns for run in runs):.2f}"
    yield "1" if name == base else spread(ratios(cell.results, name, base, "cpu_ns"))
    for part in PARTS:
        yield f"{statistics.median(getattr(run, f'{part}_percent') for run in runs):.0f}"


def targets_of(cells: Sequence[Cell]) -> Iterator[str]:
    """A line for each: met, or by how much it is missed."""
    for cell in cells:
        base, least = BARS[cell.link]
        if base not in cell.results:
            continue
        middle = statistics.median(ratios(cell.results, OURS, base, "bytes_per_second"))
        missed = (least - middle) / least
        words = f"missed by {max(missed, 0.01):.0%}" if missed > 0 else "met"
        yield f"{cell.link}, {WAYS[cell.way]}: at least {least:g} x {base}, measured {middle:.2f}: {words}"


def offloads_of(cells: Sequence[Cell]) -> Iterator[str]:
    """What each card does for the guest."""
    for link, those in itertools.groupby(cells, key=lambda cell: cell.link):
        for name, (run, *_) in next(those).results.items():
            bits = [bit.name or "" for bit in NetFeature if run.features & bit and bit is not NetFeature.MAC]
            yield f"{link}, {name}: {', '.join(bits)}"


def as_json(cells: Sequence[Cell], rounds: int) -> dict[str, Any]:
    """As `make bench` writes it: `vhost bench compare` reads it."""
    kept = [{"results": {name: [asdict(run) for run in runs] for name, runs in cell.results.items()}} for cell in cells]
    return {"machine": machine(), "device": "net", "rounds": rounds, "cells": kept}


@click.command()
@click.argument("links", nargs=-1, type=click.Choice(tuple(LINKS)), metavar="[tap] [nat]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runtime", type=click.IntRange(1), default=3, show_default=True, help="Seconds per run.")
@click.option("--mtu", type=click.IntRange(1280, 65520), default=PLAIN_MTU, show_default=True, help="Bytes.")
@click.option("--smp", type=click.IntRange(1, 8), default=1, show_default=True, help="The guest's processors.")
@click.option("--zerocopy", is_flag=True, help="iperf3 sends without copying (sendfile).")
@click.option("--qemu", type=click.Choice(("newest", "backports", "system")), default="newest", show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write all results to this file.")
def main(links: tuple[str, ...], rounds: int, json_path: str | None, **load: Any) -> None:
    """Compare our card with QEMU's own on a tap, and with passt and QEMU's own on NAT."""
    guard()
    console = Console()
    console.width = max(console.width, 150)  # a log is wide enough

    def say(line: str) -> None:
        console.print(line, style="yellow", soft_wrap=True, markup=False)

    try:
        cells = trio.run(measure, links or tuple(LINKS), rounds, load, say)
    except (AssetError, GuestError) as error:
        raise click.ClickException(str(error)) from error
    for line in offloads_of(cells):
        console.print(line, style="dim", soft_wrap=True, markup=False)
    title = f"one TCP stream of a guest, {rounds} x {load['runtime']} s; CPU of QEMU and back-end"
    console.print(table_of(cells, title))
    for line in targets_of(cells):
        console.print(line, soft_wrap=True, markup=False)
    if json_path is not None:
        Path(json_path).write_text(json.dumps(as_json(cells, rounds), indent=1) + "\n")


if __name__ == "__main__":
    main()

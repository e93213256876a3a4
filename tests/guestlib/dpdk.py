"""DPDK's testpmd: as a back-end (net_vhost) and as a front-end (virtio_user), driven by its own command line.

It runs without huge pages, and polls: one of the machine's processors is busy as long as it forwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import trio

from guestlib.debian import AssetError
from guestlib.process import GuestError, Proc, listening, started, until


@dataclass(frozen=True)
class PortStats:
    """testpmd's counters of its port 0."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


class Testpmd:
    """A running testpmd."""

    def __init__(self, proc: Proc, stdin: int) -> None:
        self.proc = proc
        self._stdin = stdin

    @property
    def log(self) -> str:
        """All it has printed."""
        return self.proc.log.read_text(errors="replace")

    async def ask(self, line: str, answer: str, timeout: float = 60) -> str:
        """Type ``line`` and wait until what it prints matches the expression ``answer``; what it printed since."""
        before = len(self.log)
        os.write(self._stdin, line.encode() + b"\n")
        with trio.move_on_after(timeout):
            while not re.search(answer, self.log[before:]):
                if self.proc.returncode is not None:
                    raise self.proc.fail(f"ended with status {self.proc.returncode} at '{line}'")
                await trio.sleep(0.05)
            return self.log[before:]
        raise self.proc.fail(f"no answer like '{answer}' to '{line}' within {timeout:g} s")

    async def forward(self, mode: str, seconds: float, *, first: int = 0) -> None:
        """Forward in ``mode`` for ``seconds``, with ``first`` bursts of 32 frames to begin with."""
        await self.ask(f"set fwd {mode}", f"Set {mode} packet forwarding mode")
        await self.ask(f"start tx_first {first}" if first else "start", "packet forwarding packets/burst")
        await trio.sleep(seconds)
        await self.ask("stop", r"Done\.")

    async def stats(self) -> PortStats:
        """Its counters now."""
        said = await self.ask("show port stats all", r"Tx-pps: +\d+")
        numbers = dict(re.findall(r"([RT]X-(?:packets|bytes)): +(\d+)", said))
        return PortStats(*(int(numbers[name]) for name in ("RX-packets", "RX-bytes", "TX-packets", "TX-bytes")))


def program() -> str:
    """The command's path. Raises: AssetError."""
    path = shutil.which("dpdk-testpmd")
    if path is None:
        raise AssetError("dpdk-testpmd is not installed; install the Debian package dpdk-dev")
    if len(os.sched_getaffinity(0)) < 2:
        raise AssetError("dpdk-testpmd needs two processors, one for its command line and one that polls")
    return path


@contextlib.asynccontextmanager
async def running(folder: Path, device: str, *args: str, name: str) -> AsyncIterator[Testpmd]:
    """Run testpmd on the one virtual ``device`` (DPDK's words), ``args`` being testpmd's own, until the block ends."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    words = [
        "stdbuf",
        "-oL",
        program(),
        "-l",
        ",".join(map(str, cores)),
        "--no-pci",
        "--no-huge",
        "-m",
        "256",
        "--no-telemetry",
    ]
    words += ["--file-prefix", f"{name}-{os.getpid()}", "--vdev", device]
    words += ["--", "-i", "--nb-cores=1", "--total-num-mbufs=8192", *args]
    reading, writing = os.pipe()
    try:
        # its sockets lie deep in there, and their paths have to be short
        with tempfile.TemporaryDirectory(prefix="vhk-") as runtime:
            env = {"RUNTIME_DIRECTORY": runtime}
            async with started(name, words, folder / f"{name}.log", stdin=reading, env=env) as proc:
                os.close(reading)
                reading = -1
                one = Testpmd(proc, writing)
                await until(lambda: "testpmd>" in one.log, proc, "its prompt", 60)
                yield one
                with contextlib.suppress(GuestError, BrokenPipeError):
                    await one.ask("quit", "Bye")
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)


@contextlib.asynccontextmanager
async def virtio_user(
    folder: Path, socket: Path, *, packed: bool = False, mergeable: bool = True, queue_size: int = 256, more: str = ""
) -> AsyncIterator[Testpmd]:
    """testpmd as a front-end of the back-end behind ``socket``."""
    device = f"net_virtio_user0,path={socket},queues=1,queue_size={queue_size},packed_vq={packed:d}"
    async with running(folder, f"{device},mrg_rxbuf={mergeable:d}{more}", name="virtio-user") as front:
        yield front


@contextlib.asynccontextmanager
async def net_vhost(folder: Path, socket: Path, *args: str) -> AsyncIterator[Testpmd]:
    """testpmd as a back-end that listens on ``socket``."""
    async with running(folder, f"net_vhost0,iface={socket},queues=1", *args, name="net-vhost") as back:
        await until(lambda: listening(socket), back.proc, f"listening on {socket.name}")
        yield back

"""Network back-ends under test: ours, dpdk-testpmd as a back-end; and dpdk-testpmd as a front-end that is not ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import click

from bench.contend import Awake, Driven, Figures, figures_of
from bench.peers import ALWAYS_US, Peer, Program, vhost_program
from bench.stage import Live, Stage
from devices.net.load import Workload, measure

TESTPMD = "testpmd"
TESTPMD_WHERE = "install the Debian package dpdk-dev"
_ANSWER_S = 10
_HUGE_MIB = 256


def layout(packed: bool) -> str:
    """As names of peers have it."""
    return "packed" if packed else "split"


def ours_name(*, packed: bool = False, polling: bool = True) -> str:
    """What tables call one of ours."""
    return f"vhost net, {layout(packed)}{', polling' if polling else ''}"


def dpdk_name(*, packed: bool = False) -> str:
    """What tables call dpdk-testpmd as a back-end."""
    return f"{TESTPMD} net_vhost, {layout(packed)}"


def dpdk_program() -> str | None:
    """None: not installed."""
    return shutil.which("dpdk-testpmd")


def ours(link: tuple[str, ...], *, packed: bool = False, polling: bool = True) -> Peer:
    """`vhost net` on a link (its option)."""
    command = [vhost_program(), "net", "--socket-path", "{folder}/s", *link, "--log-level", "warning"]
    if polling:
        command += ["--poll-us", str(ALWAYS_US)]
    return Peer(ours_name(packed=packed, polling=polling), Program(tuple(command), spins=polling), packed=packed)


def ours_switch(*, packed: bool = False, polling: bool = True) -> Peer:
    """Two cards on a switch, one worker."""
    lines = ["[server]", 'log-level = "warning"']
    if polling:
        lines.append(f"poll-us = {ALWAYS_US}")
    for number in range(2):
        lines += ["[[device]]", 'type = "net"', f'socket-path = "{{folder}}/{number}"', 'switch = "bench"']
    command = (vhost_program(), "serve", "{folder}/config")
    program = Program(command, ("0", "1"), "\n".join(lines) + "\n", spins=polling)
    return Peer(ours_name(packed=packed, polling=polling), program, ("0", "1"), packed)


def memory_words() -> list[str]:
    """Where dpdk-testpmd's memory comes from: huge pages where as many are free."""
    free = re.search(r"HugePages_Free: +(\d+)", Path("/proc/meminfo").read_text())
    huge = free is not None and int(free[1]) * 2 >= _HUGE_MIB
    # one file: a back-end takes few regions
    kind = ["--in-memory", "--single-file-segments"] if huge else ["--no-huge"]
    return ["--no-telemetry", "-m", str(_HUGE_MIB), *kind]


def dpdk(forward: str, *, packed: bool = False, ports: int = 1, frame: int = 64) -> Peer | None:
    """Its net_vhost ports in one of its forwarding modes, for frames of as many bytes; None: not installed."""
    program = dpdk_program()
    if program is None:
        return None
    sockets = tuple("01"[:ports]) if ports > 1 else ("s",)
    # legacy: what a frame lacks is passed on to the other port
    more = ",tso=1,legacy-ol-flags=1" if frame > 1518 else ""
    command = [program, "--lcores", "0@{back},1@{back}", "--no-pci", *memory_words(), "--file-prefix", "vhb-back"]
    for number, name in enumerate(sockets):
        command += ["--vdev", f"net_vhost{number},iface={{folder}}/{name},queues=1{more}"]
    # without statistics it ends when its input does
    command += ["--", "--auto-start", "--stats-period", "1000", "--total-num-mbufs=16384"]
    command += [f"--forward-mode={forward}", *([f"--txpkts={frame}"] if forward == "txonly" else [])]
    return Peer(dpdk_name(packed=packed), Program(tuple(command), sockets, spins=True), sockets, packed)


@dataclass(frozen=True)
class NetBackend(Driven):
    """A network back-end, driven by our load generator."""

    def _once(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        result = self._measured(measure, stage.sockets(self.peer), workload, "frames")
        return {**figures_of(result), "share": self._share(result, result.packets, together=together)}


# --- dpdk-testpmd as the front-end


class _VirtioUser:
    """dpdk-testpmd with one virtio_user port, told what to do by its own commands.

    Resource handling: ends it at the end of the `with` block.
    """

    def __init__(self, socket: str, workload: Workload, cpu: int, folder: Path) -> None:
        program = dpdk_program()
        assert program is not None
        device = f"net_virtio_user0,path={socket},queues=1,queue_size={workload.queue_size}"
        device += f",packed_vq={int(workload.packed)},mrg_rxbuf={int(workload.mergeable)},in_order=0"
        self._log = folder / "virtio-user.log"
        # its output is a file: by the line
        command = ["stdbuf", "-oL", program, "--lcores", f"0@{cpu},1@{cpu}", "--no-pci", *memory_words()]
        command += ["--file-prefix", "vhb-front", "--vdev", device]
        command += ["--", "-i", "--nb-cores=1", "--total-num-mbufs=16384", f"--txpkts={workload.frame}"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(OSError):
            self._type("quit")
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def _type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, line: str, answer: str) -> str:
        """Type `line`; what it prints until that matches `answer`."""
        if line:
            self._type(line)
        deadline = time.monotonic() + _ANSWER_S
        while True:
            said = self._log.read_text(errors="replace")[self._seen :]
            if found := re.search(answer, said):
                self._seen += found.end()
                return said[: found.end()]
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{TESTPMD} virtio_user does not answer: {said[-500:]}")
            time.sleep(0.002)

    def counted(self) -> tuple[int, int, float]:
        """Frames received and sent so far, and when."""
        said = self.ask("show port stats 0", r"TX-bytes: +\d+")
        now = time.monotonic()
        received, sent = (re.search(rf"{name}: *(\d+)", said) for name in ("RX-packets", "TX-packets"))
        assert received is not None
        assert sent is not None
        return int(received[1]), int(sent[1]), now


_FORWARD = {"tx": ("txonly", ""), "rx": ("rxonly", ""), "echo": ("io", " tx_first 8")}


@dataclass(frozen=True)
class ByVirtioUser(Awake):
    """A back-end, driven by dpdk-testpmd's virtio_user: what it makes of a front-end that is not ours."""

    def look(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        (socket,) = stage.sockets(self.peer)
        mine = replace(workload, packed=self.peer.packed)
        mode, how = _FORWARD[mine.mode]
        with _VirtioUser(socket, mine, stage.places.front, live.folder) as front:
            front.ask("", "testpmd> ")
            front.ask(f"set fwd {mode}", "testpmd> ")
            front.ask(f"start{how}", "packets/burst")
            time.sleep(mine.warmup)
            cpu, front_cpu = time.clock_gettime_ns(live.cpu_clock), _cpu_of(front.process.pid)
            before = front.counted()
            time.sleep(mine.runtime)
            after = front.counted()
            spent, front_spent = time.clock_gettime_ns(live.cpu_clock) - cpu, _cpu_of(front.process.pid) - front_cpu
        seconds = after[2] - before[2]
        side = 1 if mine.mode == "tx" else 0
        packets = max(after[side] - before[side], 1)
        polls = [front_spent] + ([spent] if self.peer.program.spins else [])
        return {
            "workload": asdict(mine), "seconds": seconds, "packets": packets, "packets_per_second": packets / seconds,
            "bits_per_second": packets * mine.frame * 8 / seconds, "backend_cpu_us": spent / packets / 1e3,
            "backend_cpu_percent": spent / seconds / 1e7, "frontend_cpu_us": front_spent / packets / 1e3,
            "share": min(100.0, *(each / seconds / 1e7 for each in polls)),
        }  # fmt: skip


def _cpu_of(pid: int) -> int:
    """Nanoseconds of CPU time of a process so far."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def missing() -> tuple[str, str] | None:
    """The peer that is not there, and who brings it."""
    if dpdk_program() is None:
        return TESTPMD, TESTPMD_WHERE
    if len(os.sched_getaffinity(0)) < 2:
        return TESTPMD, "it polls: needs a processor of its own"
    return None

"""What takes part in a cell: back-ends over their sockets, and baselines that have no back-end."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import click
import trio

from bench.peers import WHERE, Peer, Store
from bench.stage import Live, Stage
from devices.blk.load import Result, Workload, measure_all
from vhost.errors import VhostError

#: a run that had less than this percentage of its processors, because something else ran, is repeated
SHARE = 95
REPEATS = 3
SHORT_S = 0.2

#: one run: names and values as `vhost bench blk --json` has them, ``workload`` among them
Figures = dict[str, Any]


class Contender(Protocol):
    """Measured in turns with others."""

    @property
    def name(self) -> str: ...

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        """One run; `together`: both ends on one processor."""


def figures_of(result: Result) -> Figures:
    """Without what fills files: the histogram."""
    found = replace(result, histogram=[]).as_dict()
    del found["histogram"]
    spent = found["backend_cpu_us"]
    # how the cost of a request is compared: the back-end's, whatever the front-end made of it
    return {**found, "per_cpu_second": 1e6 / spent if spent else None}


@dataclass(frozen=True)
class Backend:
    """A peer, driven by our front-end.

    Attributes:
        hugepages: guest memory in 2 MiB pages, for all in a cell if one needs it.
        more: fields of the workload that are its own.
    """

    peer: Peer
    hugepages: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.peer.name

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        live = stage.awake(self.peer, together=together)
        assert live is not None
        mine = self._own(workload, stage)
        tried: list[Figures] = []
        # a very short run is not meant for its figures
        most = REPEATS if workload.runtime >= SHORT_S else 1
        while len(tried) < most and not (tried and tried[-1]["share"] >= SHARE):
            tried.append(self._once(stage, live, mine, together=together))
        return max(tried, key=lambda figures: float(figures["share"]))

    def _own(self, workload: Workload, stage: Stage) -> Workload:
        return replace(
            workload, packed=self.peer.packed, hugepages=self.hugepages, cpus=(stage.places.front,), **dict(self.more)
        )

    def _once(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        try:
            result = trio.run(measure_all, stage.sockets(self.peer), workload)
        except (VhostError, ValueError) as error:
            raise click.ClickException(f"{self.name}: {error}\n{live.words}") from error
        if result.errors:
            raise click.ClickException(f"{self.name}: {result.errors} requests failed; the first: {result.first_error}")
        return {**figures_of(result), "share": self._share(result, together)}

    def _share(self, result: Result, together: bool) -> float:
        """Percentage of the processors it should have had: a side that polls all of one, two that take turns one."""
        front = result.frontend_cpu_us * result.requests / result.seconds / 1e4
        back = result.backend_cpu_percent or 0
        if result.workload.rate:
            together = False  # mostly idle
        sides = [100.0]
        if result.workload.poll:
            sides.append(front)
        if self.peer.program.spins:
            sides.append(back)
        if together:
            sides.append(front + back)
        return min(sides)


def baseline(workload: Workload, iops: float, requests: int, seconds: float, **more: Any) -> Figures:
    """Figures of something that is no back-end."""
    return {
        "workload": asdict(workload),
        "seconds": seconds,
        "requests": requests,
        "iops": iops,
        "bytes_per_second": iops * workload.block_bytes,
        **more,
    }


@dataclass(frozen=True)
class Fio:
    """fio's io_uring engine on the image itself: what the kernel gives a program without any VM."""

    store: Store
    name: str = "fio io_uring, native"

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        stage.awake(None)
        cpu = stage.places.front if together else stage.places.back
        command = [
            "fio", "--name=job", f"--filename={self.store.path}", "--ioengine=io_uring", "--thread",
            f"--rw={workload.rw}", f"--bs={workload.block_bytes}", f"--iodepth={workload.depth}", "--time_based",
            # fio counts in seconds
            f"--runtime={max(1, round(workload.runtime))}", "--norandommap", "--randrepeat=0", "--invalidate=0",
            f"--direct={int(self.store.kind == 'direct')}", f"--size={self.store.bytes}", f"--cpus_allowed={cpu}",
            "--output-format=json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"fio failed: {done.stderr.strip() or done.stdout.strip()[-300:]}")
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        side = job["read"]
        clat = side["clat_ns"]
        percent = clat["percentile"]
        latency = {
            "mean_us": clat["mean"] / 1e3,
            "p50_us": percent["50.000000"] / 1e3,
            "p90_us": percent["90.000000"] / 1e3,
            "p99_us": percent["99.000000"] / 1e3,
            "p999_us": percent["99.900000"] / 1e3,
            "max_us": clat["max"] / 1e3,
            "samples": side["total_ios"],
        }
        return baseline(workload, side["iops"], side["total_ios"], side["runtime"] / 1e3, latency=latency)


@dataclass(frozen=True)
class Memcpy:
    """memcpy() of random pieces of as much memory: what the processor gives a store in memory."""

    store: Store
    name: str = "memcpy, random 4 KiB"

    def run(self, stage: Stage, workload: Workload, *, together: bool) -> Figures:
        stage.awake(None)
        cpu = stage.places.front if together else stage.places.back
        with tempfile.TemporaryDirectory(prefix="vhb-") as folder:
            program = compiled("memcpy", Path(folder))
            numbers = (self.store.bytes, workload.block_bytes, workload.depth, int(workload.runtime * 1e9), cpu)
            done = subprocess.run([program, *map(str, numbers)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"bench/memcpy.c failed: {done.stderr.strip()}")
        pieces, nanoseconds = map(int, done.stdout.split())
        return baseline(workload, pieces / nanoseconds * 1e9, pieces, nanoseconds / 1e9)


def compiled(name: str, folder: Path) -> Path:
    """This folder's `name`.c as a program in `folder`. Raises: ClickException: no compiler, or it fails."""
    program = folder / name
    compiler = shutil.which("cc")
    if compiler is None:
        raise click.ClickException(f"{name}: {WHERE['memcpy']}")
    command = [compiler, "-O2", "-o", str(program), str(Path(__file__).with_name(f"{name}.c"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"bench/{name}.c does not compile: {done.stderr.strip()[-500:]}")
    return program

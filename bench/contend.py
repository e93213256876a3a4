"""What takes part in a cell: back-ends over their sockets, and baselines that have no back-end."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import trio

from bench.peers import WHERE, Peer, Store
from bench.stage import Live, Stage
from devices.blk.load import Workload, measure_all
from vhost.bench.generate import Measured
from vhost.errors import VhostError

#: a run that had less than this percentage of its processors, because something else ran, is repeated
SHARE = 95
REPEATS = 3
SHORT_S = 0.2

#: one run: names and values as `vhost bench blk --json` has them, ``workload`` among them
Figures = dict[str, Any]


Result = TypeVar("Result", bound=Measured[Any])


class Load(Protocol):
    """What the suite itself looks at in a workload, whatever the device."""

    @property
    def poll(self) -> bool: ...


class Contender(Protocol):
    """Measured in turns with others."""

    @property
    def name(self) -> str: ...

    def run(self, stage: Stage, workload: Any, *, together: bool) -> Figures:
        """One run of a load of its device; `together`: both ends on one processor."""


def figures_of(result: Measured[Any]) -> Figures:
    """Without what fills files: the histogram."""
    found = replace(result, histogram=[]).as_dict()
    del found["histogram"]
    return found


def per_cpu_second(found: Figures) -> Figures:
    """How the cost of a request is compared: the back-end's, whatever the front-end made of it."""
    spent = found["backend_cpu_us"]
    return {"per_cpu_second": 1e6 / spent if spent else None}


@dataclass(frozen=True)
class Awake(ABC):
    """A peer that is awake while it is measured, the others being stopped."""

    peer: Peer

    @property
    def name(self) -> str:
        return self.peer.name

    def run(self, stage: Stage, workload: Any, *, together: bool) -> Figures:
        live = stage.awake(self.peer, together=together)
        assert live is not None
        with self.blamed(live):
            return self.look(stage, live, workload, together=together)

    @contextmanager
    def blamed(self, live: Live) -> Iterator[None]:
        """What goes wrong is said with the peer's name and last words."""
        try:
            yield
        except (VhostError, ValueError) as error:
            raise click.ClickException(f"{self.name}: {error}\n{live.words}") from error

    @abstractmethod
    def look(self, stage: Stage, live: Live, workload: Any, *, together: bool) -> Figures:
        """One run of the peer, which is `live`."""


@dataclass(frozen=True)
class Driven(Awake):
    """A peer, driven by our front-end.

    Attributes:
        hugepages: guest memory in 2 MiB pages, for all in a cell if one needs it.
        more: fields of the workload that are its own.
    """

    hugepages: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    def look(self, stage: Stage, live: Live, workload: Any, *, together: bool) -> Figures:
        mine = self._own(workload, stage)
        tried: list[Figures] = []
        # a very short run is not meant for its figures
        most = REPEATS if workload.runtime >= SHORT_S else 1
        while len(tried) < most and not (tried and tried[-1]["share"] >= SHARE):
            tried.append(self._once(stage, live, mine, together=together))
        return max(tried, key=lambda figures: float(figures["share"]))

    def _own(self, workload: Any, stage: Stage) -> Any:
        return replace(workload, packed=self.peer.packed, cpus=(stage.places.front,), **dict(self.more))

    @abstractmethod
    def _once(self, stage: Stage, live: Live, workload: Any, *, together: bool) -> Figures: ...

    def _again(self, stage: Stage, live: Live, *, together: bool) -> Live:
        """The peer once more, where it ends with its connection."""
        again = stage.awake(self.peer, together=together) if self.peer.program.once else live
        assert again is not None
        return again

    def _measured(
        self, measure: Callable[[Any, Any], Awaitable[Result]], target: Any, workload: Any, what: str
    ) -> Result:  # fmt: skip
        """What `measure` finds. Raises: ClickException: some of `what` went wrong."""
        result = trio.run(measure, target, workload)
        if result.errors:
            words = f"{result.errors} {what} went wrong; the first: {result.first_error}"
            raise click.ClickException(f"{self.name}: {words}")
        return result

    def _share(self, result: Measured[Any], done: int, *, together: bool) -> float:
        """Percentage of the processors it should have had: a side that polls all of one, two that take turns one."""
        front = result.frontend_cpu_us * done / result.seconds / 1e4
        back = result.backend_cpu_percent or 0
        if getattr(result.workload, "rate", 0):
            together = False  # mostly idle
        sides = [100.0]
        if result.workload.poll:
            sides.append(front)
        if self.peer.program.spins:
            sides.append(back)
        if together:
            sides.append(front + back)
        return min(sides)


@dataclass(frozen=True)
class Backend(Driven):
    """A disk, or several, driven by our load generator."""

    def _own(self, workload: Any, stage: Stage) -> Any:
        return replace(super()._own(workload, stage), hugepages=self.hugepages)

    def _once(self, stage: Stage, live: Live, workload: Any, *, together: bool) -> Figures:
        result = self._measured(measure_all, stage.sockets(self.peer), workload, "requests")
        found = figures_of(result)
        return {**found, **per_cpu_second(found), "share": self._share(result, result.requests, together=together)}


def baseline(workload: Any, iops: float, requests: int, seconds: float, **more: Any) -> Figures:
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


def compiled(name: str, folder: Path, *flags: str) -> Path:
    """This folder's `name`.c as a program in `folder`, or by more `flags` as something else.

    Raises: ClickException: no compiler, or it fails.
    """
    program = folder / name
    compiler = shutil.which("cc")
    if compiler is None:
        raise click.ClickException(f"{name}: {WHERE['memcpy']}")
    command = [compiler, "-O2", *flags, "-o", str(program), str(Path(__file__).with_name(f"{name}.c"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"bench/{name}.c does not compile: {done.stderr.strip()[-500:]}")
    return program

"""Sections idle and rate: what a back-end costs that has nothing to do, or little."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import trio

from bench.contend import Awake, Backend, Contender, Figures
from bench.peers import NULL_BYTES, Store, ours, spdk, storage_daemon
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Live, Stage
from devices.blk.load import Workload
from vhost.frontend import Frontend, Memory

NULL = Store("null", NULL_BYTES)
IDLE_S = 2
SETTLE_S = 0.5
RATE = 10_000
RATE_S = 1


@dataclass(frozen=True)
class Silent(Awake):
    """A back-end left alone by a driver that is there."""

    seconds: float

    def look(self, stage: Stage, live: Live, workload: Any, *, together: bool) -> Figures:
        (socket,) = stage.sockets(self.peer)
        mine = replace(workload, packed=self.peer.packed, hugepages=self.peer.hugepages)
        spent = trio.run(self._idle, socket, live, mine)
        return {"workload": asdict(mine), "seconds": self.seconds, "backend_cpu_percent": spent / self.seconds / 1e7}

    async def _idle(self, socket: str, live: Live, workload: Any) -> int:
        """Nanoseconds of CPU time."""
        with Memory(8 << 20, hugepages=workload.hugepages) as memory:
            async with Frontend.connect(socket, memory=memory) as frontend:
                await self._begin(frontend, workload)
                await trio.sleep(SETTLE_S)
                before = time.clock_gettime_ns(live.cpu_clock)
                await trio.sleep(self.seconds)
                spent = time.clock_gettime_ns(live.cpu_clock) - before
                await frontend.stop()
                return spent

    @abstractmethod
    async def _begin(self, frontend: Frontend, workload: Any) -> None:
        """Start its queues and see that they work."""


@dataclass(frozen=True)
class Idle(Silent):
    """A disk with a queue that runs and has had a request."""

    async def _begin(self, frontend: Frontend, workload: Workload) -> None:
        await frontend.start(packed=workload.packed, size=128)
        await frontend.queues[0].request([bytes(16)], [512, 1])


def idle_cells(plan: Plan) -> list[Cell]:
    """Ours with default settings, and the others."""
    other = storage_daemon(NULL)
    peers = [ours(NULL), ours(NULL, packed=True), *([other] if other else []), *spdk(NULL)[:1]]
    seconds = min(IDLE_S, plan.runtime * 4)
    # the load there is not; what of it says how the back-end was connected is true
    workload = plan.workload(1, poll=False, size=NULL_BYTES)
    those = [Idle(peer, seconds) for peer in peers]
    return plan.chosen([Cell("idle", "no requests", workload, those, figure="backend_cpu_percent")])


def rate_cells(plan: Plan) -> list[Cell]:
    """Adaptive and always polling workers of ours, and the others; each side has a processor of its own."""
    other = storage_daemon(NULL)
    peers = [ours(NULL, polling=True), ours(NULL), *([other] if other else []), *spdk(NULL)[:1]]
    hugepages = any(peer.hugepages for peer in peers)
    those: list[Contender] = [Backend(peer, hugepages) for peer in peers]
    runtime = min(RATE_S, plan.runtime * 2)
    return plan.chosen(
        Cell(
            "rate", f"{'polling' if poll else 'sleeping'}, {RATE:,}/s",
            plan.workload(32, poll=poll, size=NULL_BYTES, rate=RATE, runtime=runtime), those,
            peers[0].name, figure="backend_cpu_percent",
        )
        for poll in (True, False)
    )  # fmt: skip


@contextmanager
def opened(section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells."""
    if section == "idle":
        yield "null store, a front-end is connected and silent", idle_cells(plan)
    else:
        title = f"null store, {RATE:,} random 4 KiB reads/s, a processor for each side; ratio of CPU"
        yield title, rate_cells(plan)

"""Section python: a device written in Python (examples/echo.py), driven through the batch calls of a driver ring."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from bench.contend import Awake, Figures, baseline
from bench.peers import Peer, Program
from bench.plan import Plan
from bench.rounds import Cell
from bench.stage import Live, Stage
from devices.blk.load import Workload
from ring._ring import ffi, lib
from vhost.errors import VhostError
from vhost.frontend import Frontend, NativeRing, Queue

BYTES = 64
DEPTH = 32
NAME = "examples/echo.py"
_BATCH = 256
_KICK = (1).to_bytes(8, sys.byteorder)


class Driver:
    """Keeps a queue full: BYTES out, BYTES in, from one thread that never sleeps.

    It calls the ring's C functions itself, two per request; that is an order of magnitude less than a device in Python
    does for one, so that the device is what is measured.
    """

    def __init__(self, frontend: Frontend, queue: Queue, depth: int) -> None:
        assert isinstance(queue.ring, NativeRing)
        self._memory = frontend.memory
        self._ring = queue.ring.driver.ptr
        self._kick_fd = queue.kick_fd
        self._slots = [self._memory.alloc(2 * BYTES, 64) for _ in range(depth)]
        self._buffers = []
        for number, gpa in enumerate(self._slots):
            self._memory.write(gpa, self._content(number))
            buffers = ffi.new("struct ring_drv_buf[2]")
            buffers[0].addr, buffers[0].len = gpa, BYTES
            buffers[1].addr, buffers[1].len = gpa + BYTES, BYTES
            self._buffers.append(buffers)
        self._sent = [0] * depth
        self._free = list(range(depth))

    @staticmethod
    def _content(number: int) -> bytes:
        return bytes((number + i) & 0xFF for i in range(BYTES))

    def run(self, seconds: float) -> tuple[int, list[int], int]:
        """Requests that came back, latencies of some in nanoseconds, and looks that found something."""
        ring, buffers, sent, free = self._ring, self._buffers, self._sent, self._free
        add, poll, publish = lib.ring_drv_add, lib.ring_drv_poll, lib.ring_drv_publish
        used: Any = ffi.new("struct ring_drv_used[]", _BATCH)
        took, done, looks = [], 0, 0
        lib.ring_drv_calls_off(ring)
        now = time.perf_counter_ns()
        end = now + int(seconds * 1e9)
        while now < end:
            if free:
                for token in free:
                    sent[token] = now
                    if add(ring, buffers[token], 1, 1, token, 1) < 0:
                        raise VhostError("the driver ring is full")
                free.clear()
                if publish(ring):
                    os.write(self._kick_fd, _KICK)
            count = poll(ring, used, _BATCH)
            now = time.perf_counter_ns()
            if count:
                for i in range(count):
                    if used[i].len != BYTES:
                        raise VhostError(f"a request came back with {used[i].len} bytes, not {BYTES}")
                    free.append(used[i].token)
                took.append(now - sent[free[0]])
                done += count
                looks += 1
        return done, took, looks

    def check(self) -> None:
        """Raises: VhostError: not every buffer holds what was sent."""
        for number, gpa in enumerate(self._slots):
            if number in self._free and self._memory.read(gpa + BYTES, BYTES) != self._content(number):
                raise VhostError(f"request {number} came back with other bytes than were sent")


@dataclass(frozen=True)
class Echo(Awake):
    """The example, in a process of its own."""

    def look(self, stage: Stage, live: Live, workload: Workload, *, together: bool) -> Figures:
        (socket,) = stage.sockets(self.peer)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {stage.places.front})
        try:
            return trio.run(self._drive, socket, live, workload)
        finally:
            os.sched_setaffinity(0, before)

    async def _drive(self, socket: str, live: Live, workload: Workload) -> Figures:
        async with Frontend.connect(socket, memory_size=4 << 20) as frontend:
            await frontend.start(size=128, packed=workload.packed, serve=False)
            driver = Driver(frontend, frontend.queues[0], workload.depth)
            driver.run(workload.warmup)
            before, begun = time.clock_gettime_ns(live.cpu_clock), time.perf_counter()
            done, took, looks = driver.run(workload.runtime)
            seconds = time.perf_counter() - begun
            spent = time.clock_gettime_ns(live.cpu_clock) - before
            driver.check()
            await frontend.stop()
        if not done:
            raise VhostError("no request came back")
        took.sort()
        latency = {"p50_us": took[len(took) // 2] / 1e3, "p99_us": took[len(took) * 99 // 100] / 1e3}
        return baseline(
            workload, done / seconds, done, seconds, latency=latency, batch_mean=done / looks, errors=0,
            backend_cpu_us=spent / done / 1e3, backend_cpu_percent=spent / seconds / 1e7,
        )  # fmt: skip


@contextmanager
def opened(_section: str, _stage: Stage, plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Title and cells."""
    program = Path(__file__).parent.parent / NAME
    peer = Peer(NAME, Program((sys.executable, str(program), "{folder}/s")))
    workload = plan.workload(DEPTH, block_bytes=BYTES, rw="rw", read_percent=50)
    cells = [Cell("python", f"polling, {DEPTH}", workload, [Echo(peer)])]
    yield f"a device written in Python, {BYTES} bytes out and the same in", plan.chosen(cells)

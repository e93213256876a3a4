"""Load on any vhost-user-blk back-end: a C generator on our front-end's rings, and what it costs both sides.

    result = await measure("/run/disk.sock", Workload(rw="randread", depth=32))
    print(result.iops, result.latency.p99_us)
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from devices.blk._load import ffi, lib
from ring import strerror
from vhost.constants import VirtioFeature
from vhost.errors import DeviceError, VhostError
from vhost.frontend import Frontend, Memory, NativeRing, Queue
from vhost.frontend.core import DEVICE_FEATURES, Target

__all__ = ["PATTERNS", "Latency", "Result", "Workload", "measure"]

PATTERNS: Final = {
    # name: percent of reads (None: as asked), random
    "read": (100, False),
    "write": (0, False),
    "rw": (None, False),
    "randread": (100, True),
    "randwrite": (0, True),
    "randrw": (None, True),
}

_CONFIG_BYTES: Final = 8
_INDIRECT_MAX: Final = 4
"""Descriptors per indirect table: three are used, four fill a cache line."""
_DRAIN_S: Final = 10
_RO: Final = 1 << 5
_FILL_S: Final = 120

_ERRORS: Final = {
    lib.LOAD_E_STATUS: "a request failed with status {info}",
    lib.LOAD_E_LENGTH: "the back-end said it wrote {info} bytes",
    lib.LOAD_E_DATA: "sector {info} does not hold what was written",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What to do to a disk.

    Attributes:
        rw: one of PATTERNS, names as fio's.
        block_bytes: per request, a multiple of 512.
        depth: requests in flight per queue, 1-1024.
        queues, threads: threads share the queues evenly.
        queue_size: entries; 0: as many as `depth` needs, at least 128.
        read_percent: of the mixed patterns.
        packed, event_idx, indirect: ring features; event_idx and indirect as far as offered.
        poll: the front-end polls; else it sleeps on call eventfds.
        runtime, warmup: seconds.
        rate: requests/s in all, evenly spaced; 0: as fast as they come back.
        verify: write a pattern first, then check every read.
        size: bytes of the disk to use; 0: all (with `verify` at most 64 MiB).
        hugepages: guest memory in 2 MiB pages.
        cpus: processor of each front-end thread; empty: not pinned.
    """

    rw: str = "randread"
    block_bytes: int = 4096
    depth: int = 32
    queues: int = 1
    threads: int = 1
    queue_size: int = 0
    read_percent: int = 70
    packed: bool = False
    event_idx: bool = True
    indirect: bool = True
    poll: bool = True
    runtime: float = 2
    warmup: float = 0.5
    rate: int = 0
    verify: bool = False
    size: int = 0
    hugepages: bool = False
    cpus: Sequence[int] = ()
    seed: int = 1

    def check(self) -> None:
        """Raises: ValueError: it makes no sense."""
        if self.rw not in PATTERNS:
            raise ValueError(f"pattern {self.rw!r} is none of {', '.join(PATTERNS)}")
        if self.block_bytes <= 0 or self.block_bytes % 512:
            raise ValueError(f"a block of {self.block_bytes} bytes is no multiple of 512")
        if not 1 <= self.depth <= lib.LOAD_DEPTH:
            raise ValueError(f"depth {self.depth} is not 1 to {lib.LOAD_DEPTH}")
        if not 1 <= self.threads <= self.queues:
            raise ValueError(f"{self.threads} threads for {self.queues} queues: every thread needs a queue")
        if missing := set(self.cpus) - os.sched_getaffinity(0):
            raise ValueError(f"this process may not run on processor {min(missing)}")
        if self.queues > lib.LOAD_QUEUES:
            raise ValueError(f"{self.queues} queues, at most {lib.LOAD_QUEUES} are driven")


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds from sending to taking back; in a rate-limited run from when a request was due."""

    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    samples: int


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Counts per request are over requests that came back within the measured time."""

    workload: Workload
    features: int
    seconds: float
    requests: int
    iops: float
    bytes_per_second: float
    latency: Latency
    errors: int
    first_error: str
    frontend_cpu_us: float
    """CPU time of the front-end's threads per request."""
    backend_cpu_us: float | None
    """CPU time of all of the back-end's threads per request; None where its process is not known."""
    backend_cpu_percent: float | None
    kicks: float
    """Per request, as are `calls`."""
    calls: float
    batch_mean: float
    batch_max: int
    frontend_switches: float
    """Context switches of the front-end's threads per request."""
    backend_switches: float | None
    late: int
    histogram: list[tuple[float, int]] = field(repr=False, default_factory=list)
    """Latency in microseconds and how many requests had it."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Peer:
    """CPU time and context switches of the back-end's process, if it is one other than ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid if pid not in (0, os.getpid()) else None

    def cpu_ns(self) -> int | None:
        if self.pid is None:
            return None
        try:
            # the process's CPU clock (clock_getcpuclockid): exact, counts threads that ended too
            return time.clock_gettime_ns(~self.pid << 3 | 2)
        except OSError:
            return None

    def switches(self) -> int | None:
        if self.pid is None:
            return None
        total = 0
        try:
            for status in Path(f"/proc/{self.pid}/task").glob("*/status"):
                total += sum(
                    int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line
                )
        except OSError:
            return None
        return total


class _Generator:
    """One thread's `struct load` with its queues and buffers."""

    def __init__(self, workload: Workload, memory: Memory, start: int, size: int, cpu: int | None) -> None:
        percent, random = PATTERNS[workload.rw]
        config = ffi.new("struct load_config *")
        config.disk_start, config.disk_bytes = start, size
        config.block_bytes, config.depth = workload.block_bytes, workload.depth
        config.read_percent = workload.read_percent if percent is None else percent
        config.random, config.poll = random, workload.poll
        config.verify, config.seed = workload.verify, workload.seed
        config.rate = workload.rate // workload.threads
        self.cpu = cpu
        self.workload = workload
        self.memory = memory
        self._indirect = False
        self._config = config
        self._ptr: Any = None

    def start(self, queues: Sequence[Queue], indirect: bool) -> None:
        self._config.indirect = indirect
        self._ptr = lib.load_new(self._config)
        if self._ptr == ffi.NULL:
            raise ValueError("the disk is smaller than one block")
        for queue in queues:
            assert isinstance(queue.ring, NativeRing)
            slots = self.memory.alloc(lib.LOAD_SLOT_BYTES * self.workload.depth, 4096)
            data = self.memory.alloc(self.workload.block_bytes * self.workload.depth, 4096)
            code = lib.load_add_queue(
                self._ptr, queue.ring.driver.ptr, queue.kick_fd, queue.call_fd,
                ffi.cast("void *", self.memory.hva(slots)), slots,
                ffi.cast("void *", self.memory.hva(data)), data,
            )  # fmt: skip
            if code < 0:
                raise DeviceError(f"cannot drive queue {queue.index}: {os.strerror(-code)}")

    def run(self, seconds: float, mode: int) -> int:
        """On a thread of its own; the GIL is released."""
        before = os.sched_getaffinity(0)
        try:
            if self.cpu is not None:
                os.sched_setaffinity(0, {self.cpu})
            code: int = lib.load_run(self._ptr, int(seconds * 1e9), mode)
            return code
        finally:
            os.sched_setaffinity(0, before)

    def stop(self) -> None:
        lib.load_stop(self._ptr)

    @property
    def stats(self) -> Any:
        return lib.load_stats(self._ptr)

    @contextmanager
    def mode(self, percent: int, verify: bool) -> Iterator[None]:
        lib.load_set_mode(self._ptr, percent, self._config.random, verify)
        yield
        lib.load_set_mode(self._ptr, self._config.read_percent, self._config.random, self._config.verify)

    def close(self) -> None:
        if self._ptr is not None:
            lib.load_free(self._ptr)
            self._ptr = None


async def measure(target: Target, workload: Workload) -> Result:
    """Connect, start the queues, warm up, measure, drain.

    Args:
        target: path of the back-end's socket, or a connected socket, which is taken over.

    Raises:
        ValueError: the workload makes no sense for this disk.
        VhostError: no connection, or the back-end lacks what is asked for.
        DeviceError: it returned nonsense, or stopped answering.

    Cancellation: the generator stops within a round; data on the disk may be half written.
    """
    workload.check()
    with Memory(_memory_bytes(workload), hugepages=workload.hugepages) as memory:
        async with Frontend.connect(target, memory=memory) as frontend:
            if frontend.num_queues < workload.queues and workload.queues > 1:
                raise VhostError(
                    f"the back-end has {frontend.num_queues} queues, {workload.queues} were asked for; "
                    "start it with more"
                )
            capacity = 512 * int.from_bytes(await frontend.get_config(0, _CONFIG_BYTES), "little")
            direct = not (workload.indirect and frontend.features_offered & VirtioFeature.INDIRECT_DESC)
            await frontend.start(
                queues=workload.queues, size=_queue_size(workload, direct), packed=workload.packed,
                event_idx=workload.event_idx, indirect=workload.indirect,
                features=DEVICE_FEATURES, serve=False, indirect_max=_INDIRECT_MAX,
            )  # fmt: skip
            if frontend.features & _RO and (PATTERNS[workload.rw][0] != 100 or workload.verify):
                raise VhostError("the disk is read-only; use read or randread without verification")
            return await _drive(frontend, workload, capacity)


def _queue_size(workload: Workload, direct: bool) -> int:
    need = max(128, workload.depth * (3 if direct else 1))
    return workload.queue_size or 1 << (need - 1).bit_length()


def _memory_bytes(workload: Workload) -> int:
    ring_bytes = _queue_size(workload, direct=True) * (16 + 2 + 8 + 16 * _INDIRECT_MAX)
    buffers = workload.depth * (workload.block_bytes + lib.LOAD_SLOT_BYTES)
    return (workload.queues * (ring_bytes + buffers + (64 << 10)) + (4 << 20)) & -(2 << 20)


async def _drive(frontend: Frontend, workload: Workload, capacity: int) -> Result:
    size = min(workload.size or (64 << 20 if workload.verify else capacity), capacity)
    share = size // workload.threads // workload.block_bytes * workload.block_bytes
    if share < workload.block_bytes:
        raise ValueError(f"{size} bytes are too little for blocks of {workload.block_bytes}; use a larger disk")
    indirect = bool(frontend.features & VirtioFeature.INDIRECT_DESC)
    cpus = list(workload.cpus)
    generators = [
        _Generator(workload, frontend.memory, thread * share, share, cpus[thread % len(cpus)] if cpus else None)
        for thread in range(workload.threads)
    ]
    run = _Runner(frontend, len(generators))
    try:
        for thread, generator in enumerate(generators):
            mine = [queue for index, queue in frontend.queues.items() if index % len(generators) == thread]
            generator.start(mine, indirect)
        if workload.verify:
            for generator in generators:
                with generator.mode(0, True):
                    await run([generator], _FILL_S, lib.LOAD_ONCE)
                _check(generator)
        if workload.warmup:
            await run(generators, workload.warmup, lib.LOAD_RUN)
        peer = _Peer(frontend.backend_pid)
        switches, cpu = peer.switches(), peer.cpu_ns()
        await run(generators, workload.runtime, lib.LOAD_RUN)
        cpu_after, switches_after = peer.cpu_ns(), peer.switches()
        result = _result(
            frontend, workload, generators, _difference(cpu, cpu_after), _difference(switches, switches_after)
        )
        await run(generators, _DRAIN_S, lib.LOAD_DRAIN)
        await frontend.stop()
    finally:
        for generator in generators:
            generator.close()
    return result


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


class _Runner:
    """Runs generators, each on a thread, until they are through, cancelled, or the back-end goes away."""

    def __init__(self, frontend: Frontend, threads: int) -> None:
        self._link = frontend.link
        self._limiter = trio.CapacityLimiter(threads)

    async def __call__(self, generators: Sequence[_Generator], seconds: float, mode: int) -> None:
        codes: dict[int, int] = {}

        async def one(number: int) -> None:
            codes[number] = await trio.to_thread.run_sync(generators[number].run, seconds, mode, limiter=self._limiter)

        async def watch() -> None:
            try:
                await self._link.gone.wait()
            finally:  # cancelled or not: the threads must come back
                for generator in generators:
                    generator.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as threads:
                for number in range(len(generators)):
                    threads.start_soon(one, number)
            nursery.cancel_scope.cancel()
        self._link.check()
        for number, code in codes.items():
            if code == -errno.ETIME:
                raise DeviceError(f"the back-end left requests unanswered for {seconds:g} s")
            if code < 0:
                info = generators[number].stats.first_error_info
                raise DeviceError(f"the back-end broke a ring: {strerror(info) if info else os.strerror(-code)}")


def _check(generator: _Generator) -> None:
    stats = generator.stats
    if stats.errors:
        text = _ERRORS.get(stats.first_error, "error {info}").format(info=stats.first_error_info)
        raise DeviceError(f"while writing the pattern: {text}")


def _result(
    frontend: Frontend, workload: Workload, generators: Sequence[_Generator], cpu_ns: int | None, switches: int | None
) -> Result:
    stats = [generator.stats for generator in generators]
    done = sum(stat.done for stat in stats)
    per = max(done, 1)
    seconds = max(stat.ns for stat in stats) / 1e9
    histogram: dict[int, int] = {}
    for stat in stats:
        for bucket in range(lib.LOAD_HIST):
            if count := stat.hist[bucket]:
                histogram[bucket] = histogram.get(bucket, 0) + count
    us_per_tick = stats[0].ns / stats[0].ticks / 1e3
    points = [(lib.load_hist_value(bucket) * us_per_tick, count) for bucket, count in sorted(histogram.items())]
    first = next((stat for stat in stats if stat.errors), None)
    batches = max(sum(stat.batches for stat in stats), 1)
    return Result(
        workload=workload,
        features=int(frontend.features),
        seconds=seconds,
        requests=done,
        iops=done / seconds,
        bytes_per_second=sum(stat.bytes for stat in stats) / seconds,
        latency=_latency(points, max(stat.max_ticks for stat in stats) * us_per_tick),
        errors=sum(stat.errors for stat in stats),
        first_error=_ERRORS.get(first.first_error, "").format(info=first.first_error_info) if first else "",
        frontend_cpu_us=sum(stat.cpu_ns for stat in stats) / per / 1e3,
        backend_cpu_us=None if cpu_ns is None else cpu_ns / per / 1e3,
        backend_cpu_percent=None if cpu_ns is None else cpu_ns / seconds / 1e7,
        kicks=sum(stat.kicks for stat in stats) / per,
        calls=sum(stat.calls for stat in stats) / per,
        batch_mean=done / batches,
        batch_max=max(stat.max_batch for stat in stats),
        frontend_switches=sum(stat.voluntary + stat.involuntary for stat in stats) / per,
        backend_switches=None if switches is None else switches / per,
        late=sum(stat.late for stat in stats),
        histogram=points,
    )


def _latency(points: Sequence[tuple[float, int]], largest: float) -> Latency:
    total = sum(count for _, count in points)

    def at(share: float) -> float:
        seen = 0
        for value, count in points:
            seen += count
            if seen >= share * total:
                return min(value, largest)
        return largest

    mean = sum(value * count for value, count in points) / max(total, 1)
    return Latency(mean, at(0.5), at(0.9), at(0.99), at(0.999), largest, total)

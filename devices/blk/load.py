"""Load on any vhost-user-blk back-end: a C generator on our front-end's rings, and what it costs both sides.

result = await measure("/run/disk.sock", Workload(rw="randread", depth=32))
print(result.iops, result.latency.p99_us)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from devices.blk._load import ffi, lib
from vhost.bench.generate import BackendCost, Calls, Generator, Latency, Measured, Spent, Sum, run_generators
from vhost.constants import VirtioFeature
from vhost.errors import DeviceError, VhostError
from vhost.frontend import Frontend, Memory, NativeRing, Queue
from vhost.frontend.core import DEVICE_FEATURES, Target
from vhost.frontend.memory import PAGE

__all__ = ["PATTERNS", "Latency", "Result", "Workload", "measure", "measure_all"]

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
    lib.GEN_E_LENGTH: "the back-end said it wrote {info} bytes",
    lib.GEN_E_DATA: "sector {info} does not hold what was written",
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
        regions: memory regions the back-end is told of; above 1 each block of data lies in one of its own.
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
    regions: int = 1
    cpus: Sequence[int] = ()
    seed: int = 1

    def check(self) -> None:
        """Raises: ValueError: it makes no sense."""
        if self.rw not in PATTERNS:
            raise ValueError(f"pattern {self.rw!r} is none of {', '.join(PATTERNS)}")
        if self.block_bytes <= 0 or self.block_bytes % 512:
            raise ValueError(f"a block of {self.block_bytes} bytes is no multiple of 512")
        if not 1 <= self.depth <= lib.GEN_DEPTH:
            raise ValueError(f"depth {self.depth} is not 1 to {lib.GEN_DEPTH}")
        if not 1 <= self.threads <= self.queues:
            raise ValueError(f"{self.threads} threads for {self.queues} queues: every thread needs a queue")
        if missing := set(self.cpus) - os.sched_getaffinity(0):
            raise ValueError(f"this process may not run on processor {min(missing)}")
        if self.regions < 1 or (self.regions > 1 and self.hugepages):
            raise ValueError(f"{self.regions} memory regions: at least 1, and no huge pages with several")
        if self.queues > lib.GEN_QUEUES:
            raise ValueError(f"{self.queues} queues, at most {lib.GEN_QUEUES} are driven")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Measured[Workload]):
    """One run. Counts per request are over requests that came back within the measured time."""

    requests: int
    iops: float
    bytes_per_second: float
    latency: Latency
    batch_mean: float
    batch_max: int


class _Buffers:
    """Memory for data: of the rings' region, or in regions of their own, a block in each."""

    def __init__(self, memory: Memory, workload: Workload, queues: int) -> None:
        self._memory = memory
        self._end = 0
        if workload.regions > 1:
            block = -(-workload.block_bytes // PAGE) * PAGE
            blocks = queues * workload.depth
            count = workload.regions - 1
            # more blocks than regions: several in each
            each = block * -(-blocks // count)
            gpa = memory.regions[-1].gpa + memory.regions[-1].size
            self._end = memory.add_pieces(gpa, each, count).gpa + each * count

    def take(self, size: int) -> int:
        """From the far end: a back-end that searches in order has the longest way."""
        if not self._end:
            return self._memory.alloc(size, 4096)
        self._end -= -(-size // PAGE) * PAGE
        return self._end


class _Generator(Generator):
    """One thread's `struct load` with its queues and buffers; the number-th of the disk's parts of `size` bytes."""

    calls = Calls(lib, "load")

    def __init__(self, workload: Workload, memory: Memory, buffers: _Buffers, number: int, size: int) -> None:
        super().__init__(workload.cpus, number)
        percent, random = PATTERNS[workload.rw]
        config = ffi.new("struct load_config *")
        config.disk_start, config.disk_bytes = number * size, size
        config.block_bytes, config.depth = workload.block_bytes, workload.depth
        config.read_percent = workload.read_percent if percent is None else percent
        config.random, config.poll = random, workload.poll
        config.verify, config.seed = workload.verify, workload.seed
        config.rate = workload.rate // workload.threads
        self.workload = workload
        self.memory = memory
        self.buffers = buffers
        self._config = config

    def start(self, queues: Sequence[Queue], indirect: bool) -> None:
        self._config.indirect = indirect
        self._ptr = lib.load_new(self._config)
        if self._ptr == ffi.NULL:
            raise ValueError("the disk is smaller than one block")
        for queue in queues:
            assert isinstance(queue.ring, NativeRing)
            slots = self.memory.alloc(lib.LOAD_SLOT_BYTES * self.workload.depth, 4096)
            data = self.buffers.take(self.workload.block_bytes * self.workload.depth)
            code = lib.load_add_queue(
                self._ptr, queue.ring.driver.ptr, queue.kick_fd, queue.call_fd,
                ffi.cast("void *", self.memory.hva(slots)), slots,
                ffi.cast("void *", self.memory.hva(data)), data,
            )  # fmt: skip
            if code < 0:
                raise DeviceError(f"cannot drive queue {queue.index}: {os.strerror(-code)}")

    @contextmanager
    def mode(self, percent: int, verify: bool) -> Iterator[None]:
        lib.load_set_mode(self._ptr, percent, self._config.random, verify)
        yield
        lib.load_set_mode(self._ptr, self._config.read_percent, self._config.random, self._config.verify)


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
    return await measure_all([target], workload)


async def measure_all(targets: Sequence[Target], workload: Workload) -> Result:
    """The same load on several disks at once, each with `workload.queues` queues, by the same threads.

    What the back-end's process spends is known where all are of one process. Arguments, errors as `measure`.
    """
    workload.check()
    if workload.verify and len(targets) > 1:
        raise ValueError("verification takes one disk: what is written is spread over all queues")
    queues = workload.queues * len(targets)
    if queues > lib.GEN_QUEUES * workload.threads:
        raise ValueError(f"{queues} queues for {workload.threads} threads, at most {lib.GEN_QUEUES} each")
    async with AsyncExitStack() as stack:
        memory = stack.enter_context(Memory(_memory_bytes(workload, queues), hugepages=workload.hugepages))
        buffers = _Buffers(memory, workload, queues)
        frontends = [await stack.enter_async_context(Frontend.connect(target, memory=memory)) for target in targets]
        capacity = min([await _start(frontend, workload) for frontend in frontends])
        return await _drive(frontends, buffers, workload, capacity)


async def _start(frontend: Frontend, workload: Workload) -> int:
    """Start its queues; the disk's size in bytes."""
    if frontend.num_queues < workload.queues and workload.queues > 1:
        raise VhostError(
            f"the back-end has {frontend.num_queues} queues, {workload.queues} were asked for; start it with more"
        )
    if workload.regions > max(frontend.max_mem_slots, frontend.personality.max_regions):
        raise VhostError(f"the back-end takes {frontend.max_mem_slots} memory regions, not {workload.regions}")
    capacity = 512 * int.from_bytes(await frontend.get_config(0, _CONFIG_BYTES), "little")
    direct = not (workload.indirect and frontend.features_offered & VirtioFeature.INDIRECT_DESC)
    await frontend.start(
        queues=workload.queues, size=_queue_size(workload, direct), packed=workload.packed,
        event_idx=workload.event_idx, indirect=workload.indirect,
        features=DEVICE_FEATURES, serve=False, indirect_max=_INDIRECT_MAX,
    )  # fmt: skip
    if frontend.features & _RO and (PATTERNS[workload.rw][0] != 100 or workload.verify):
        raise VhostError("the disk is read-only; use read or randread without verification")
    return capacity


def _queue_size(workload: Workload, direct: bool) -> int:
    need = max(128, workload.depth * (3 if direct else 1))
    return workload.queue_size or 1 << (need - 1).bit_length()


def _memory_bytes(workload: Workload, queues: int) -> int:
    ring_bytes = _queue_size(workload, direct=True) * (16 + 2 + 8 + 16 * _INDIRECT_MAX)
    buffers = workload.depth * (workload.block_bytes + lib.LOAD_SLOT_BYTES)
    return (queues * (ring_bytes + buffers + (64 << 10)) + (4 << 20)) & -(2 << 20)


async def _drive(frontends: Sequence[Frontend], buffers: _Buffers, workload: Workload, capacity: int) -> Result:
    first = frontends[0]
    size = min(workload.size or (64 << 20 if workload.verify else capacity), capacity)
    share = size // workload.threads // workload.block_bytes * workload.block_bytes
    if share < workload.block_bytes:
        raise ValueError(f"{size} bytes are too little for blocks of {workload.block_bytes}; use a larger disk")
    indirect = bool(first.features & VirtioFeature.INDIRECT_DESC)
    generators = [_Generator(workload, first.memory, buffers, number, share) for number in range(workload.threads)]
    run = partial(run_generators, frontends)
    try:
        queues = [queue for frontend in frontends for queue in frontend.queues.values()]
        for thread, generator in enumerate(generators):
            generator.start(queues[thread :: len(generators)], indirect)
        if workload.verify:
            for generator in generators:
                with generator.mode(0, True):
                    await run([generator], _FILL_S, lib.GEN_ONCE)
                _check(generator)
        if workload.warmup:
            await run(generators, workload.warmup, lib.GEN_RUN)
        cost = BackendCost(frontends)
        before = cost.now()
        await run(generators, workload.runtime, lib.GEN_RUN)
        result = _result(first, workload, generators, cost.now().since(before))
        await run(generators, _DRAIN_S, lib.GEN_DRAIN)
        for frontend in frontends:
            await frontend.stop()
    finally:
        for generator in generators:
            generator.close()
    return result


def _check(generator: _Generator) -> None:
    if (stats := generator.stats).run.errors:
        raise DeviceError(f"while writing the pattern: {_error_of(stats)}")


def _error_of(stats: Any) -> str:
    return _ERRORS.get(stats.run.first_error, "error {info}").format(info=stats.run.first_error_info)


def _result(frontend: Frontend, workload: Workload, generators: Sequence[_Generator], spent: Spent) -> Result:
    found = Sum(generators, _error_of)
    done = found.total("done")
    return Result(
        requests=done,
        iops=done / found.seconds,
        bytes_per_second=found.own("bytes") / found.seconds,
        latency=found.latency,
        batch_mean=done / max(found.total("batches"), 1),
        batch_max=found.max_batch,
        **found.measured(workload, frontend, done, spent),
    )

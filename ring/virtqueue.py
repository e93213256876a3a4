"""The device side of a virtqueue: chains of guest buffers, popped in batches, completed in any order.

A device written for trio iterates::

    async for chain in queue:
        for view in chain.writable:          # memoryviews that lie in guest memory
            view[:] = os.urandom(len(view))
        chain.complete(chain.in_bytes)

or, where every microsecond counts, works by the batch::

    while await queue.wait():
        for chain in queue.pop_batch(128):
            chain.complete()
        queue.flush()

A queue that a C worker drives (`ring.Worker`) is configured, started and stopped here just the same; then everything
under "owner" belongs to the worker's thread.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, NewType

import trio
from _cffi_backend import FFI

from ring._ring import ffi, lib
from ring.chain import SCRATCH, Chain
from ring.errors import check
from ring.memory import AddressKind
from ring.waiting import Turn, read_kicks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ring.iotlb import Iotlb
    from ring.memory import GuestMemory

__all__ = [
    "QueueConfig",
    "QueueState",
    "QueueStats",
    "Virtqueue",
    "VqPtr",
    "inflight_bytes",
]

VqPtr = NewType("VqPtr", FFI.CData)

_BATCH_MAX: int = lib.RING_BATCH_MAX
_BATCH = 32  # chains taken at once by ``async for``: enough to share a publish, few enough to stay fair
_POLL_SECONDS = 0.001  # how often a queue without a kick fd is looked at

_pop = lib.ring_vq_pop
_flush = lib.ring_vq_flush
_ready = lib.ring_vq_ready
_unpack = ffi.unpack


class QueueState(IntEnum):
    """What a queue may do; the table is at the head of ``ring/csrc/ring.h``."""

    STOPPED = lib.RING_VQ_STOPPED
    RUNNING = lib.RING_VQ_RUNNING
    BROKEN = lib.RING_VQ_BROKEN


@dataclass(slots=True)
class QueueConfig:
    """How a queue is to run.

    Attributes:
        size: entries; split a power of two, packed any number, up to 32768.
        features: negotiated virtio features; bits 28, 29, 33, 34 and 35 matter.
        desc: address of the descriptor table (packed: of the ring).
        avail: address of the available ring (packed: of the driver's event suppression).
        used: address of the used ring (packed: of the device's event suppression).
        base: where to start, as SET_VRING_BASE encodes it: split the available index, packed
            ``avail | wrap << 15 | used << 16 | wrap << 31``.
        addr_kind: what the three addresses are; an IOTLB makes them I/O addresses.
        log: log writes to the used ring at guest-physical address ``log_addr``.
        log_addr: see ``log``.
        iotlb: translates all addresses; None: descriptors hold guest-physical addresses.
        inflight: this queue's part of the inflight region, writable; kept until the queue stops.
        call_fd: written to notify the driver; made non-blocking, not owned. -1: none.
        err_fd: written when the queue breaks; likewise.
        news_fd: eventfd of the embedder, written when the queue breaks, misses an IOTLB entry or has drained. -1: none.
        base_from_used: ignore ``base``, go on where the used ring ends.
    """

    size: int
    features: int
    desc: int
    avail: int
    used: int
    base: int = 0
    addr_kind: AddressKind = AddressKind.UADDR
    log: bool = False
    log_addr: int = 0
    iotlb: Iotlb | None = None
    inflight: memoryview | None = None
    call_fd: int = -1
    err_fd: int = -1
    news_fd: int = -1
    base_from_used: bool = False


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Counters since the queue was made."""

    popped: int
    pushed: int
    batches: int
    notified: int
    suppressed: int
    rearms: int
    misses: int
    resubmitted: int
    held: int


def inflight_bytes(queue_size: int, packed: bool) -> int:
    """Bytes of one queue's part of an inflight region."""
    return lib.ring_inflight_bytes(queue_size, packed)


class Virtqueue:
    """Queue number ``index`` of a device, on ``memory``.

    Use from one thread: the trio thread, or control code while the worker that owns the queue is parked. One task at
    a time may wait.

    A bad ring is the guest's fault, not the program's: no exception is raised for it. The queue turns `BROKEN
    <QueueState>`, ``err_fd`` and ``news_fd`` are written, `error` tells why, and iteration ends.
    """

    def __init__(self, memory: GuestMemory, index: int) -> None:
        ptr = lib.ring_vq_new(memory.ptr, index)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a virtqueue")
        self._ptr: VqPtr = VqPtr(ptr)
        self._memory = memory
        self._queues = memory._queues
        self._queues[id(self)] = _freer(self, ptr, memory._queues)
        self._index = index
        self._config: QueueConfig | None = None
        self._pinned: Any = None  # the inflight memory
        self._array = ffi.new("struct ring_chain *[]", _BATCH_MAX)
        self._scratch = ffi.new("char[]", SCRATCH)  # for Chain.read; of one queue, so of one thread
        self._live: dict[Chain, None] = {}  # popped, not completed; oldest first
        self._pending: list[Chain] = []  # popped by ``async for``, not yet handed out; newest first
        self._running = False
        self._staged = False
        self._waiting = False  # a task is in wait()
        self._sleeping = False  # ... for the kick fd
        self._attentive = False  # somebody waits: for the queue, or for it to drain
        self._scheduled = False  # a flush is to come by itself
        self._missed = False  # the last pop lacked an IOTLB entry
        self._turn = Turn()
        self._kick_fd: int | None = None
        self._resumed: trio.Event | None = None
        self._drained: trio.Event | None = None
        self._ended: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    # --- control

    @property
    def ptr(self) -> VqPtr:
        """The ``struct ring_vq *``, for devices in C.

        Raises:
            RuntimeError: the queue or its memory was closed.
        """
        if id(self) not in self._queues:
            raise RuntimeError(f"queue {self._index} is closed")
        return self._ptr

    @property
    def memory(self) -> GuestMemory:
        """The memory its buffers lie in."""
        return self._memory

    @property
    def index(self) -> int:
        """The number given at the beginning."""
        return self._index

    @property
    def config(self) -> QueueConfig | None:
        """What it was last started with."""
        return self._config

    def start(self, config: QueueConfig) -> None:
        """STOPPED -> RUNNING.

        Raises:
            RingError: size or addresses are not usable, the inflight record is inconsistent, or the ring addresses
                lack an IOTLB entry (code `ErrorCode.MISS`: the miss is recorded, try again after the update).
        """
        ptr = self.ptr
        c = ffi.new("struct ring_vq_config *")
        c.size, c.base, c.features = config.size, config.base, config.features
        c.desc, c.avail, c.used = config.desc, config.avail, config.used
        c.addr_kind, c.log, c.log_addr = config.addr_kind, config.log, config.log_addr
        c.call_fd, c.err_fd, c.news_fd = config.call_fd, config.err_fd, config.news_fd
        c.base_from_used = config.base_from_used
        if config.iotlb is not None:
            c.iotlb = config.iotlb.ptr
        pinned = None
        if config.inflight is not None:
            pinned = ffi.from_buffer(config.inflight, require_writable=True)
            c.inflight, c.inflight_bytes = pinned, len(pinned)
        try:
            check(lib.ring_vq_start(ptr, c), f"start of queue {self._index}, {config.size} entries", config.size)
        except BaseException:
            if pinned is not None:
                ffi.release(pinned)
            raise
        self._config = config
        self._pinned = pinned
        self._running = True
        self._staged = self._scheduled = self._missed = False
        self._wake()

    def stop(self) -> int:
        """-> STOPPED; returns the base to go on from. Chains handed out and not completed are lost: drain first.

        What ``async for`` has taken but not handed out is given back to the ring.
        """
        ptr = self.ptr
        if self._running:
            self._unpop_pending()
            if self._staged:
                self.flush()
        self._running = False
        lib.ring_vq_stop(ptr)
        self._invalidate()
        self._unpin()
        self._wake()
        return self.base

    def _unpin(self) -> None:
        if self._pinned is not None:
            ffi.release(self._pinned)
            self._pinned = None

    def _invalidate(self) -> None:
        self._staged = False
        self._pending.clear()
        for chain in self._live:
            chain._invalidate()
        self._live.clear()
        self._tell_drained()

    @property
    def base(self) -> int:
        """Where the queue stands, in SET_VRING_BASE's encoding."""
        return lib.ring_vq_base(self.ptr)

    @property
    def state(self) -> QueueState:
        """STOPPED, RUNNING or BROKEN."""
        return QueueState(lib.ring_vq_state(self.ptr))

    @property
    def error(self) -> tuple[int, int] | None:
        """Why it is BROKEN: `ErrorCode` and the offending number; None otherwise."""
        detail = ffi.new("uint64_t *")
        code = lib.ring_vq_error(self.ptr, detail)
        return (code, detail[0]) if code else None

    @property
    def in_flight(self) -> int:
        """Chains popped and not completed."""
        return lib.ring_vq_in_flight(self.ptr)

    @property
    def size(self) -> int:
        """Entries."""
        return lib.ring_vq_size(self.ptr)

    @property
    def stats(self) -> QueueStats:
        """Counters; may be read while a worker runs the queue."""
        out = ffi.new("struct ring_vq_stats *")
        lib.ring_vq_stats(self.ptr, out)
        return QueueStats(
            out.popped,
            out.pushed,
            out.batches,
            out.notified,
            out.suppressed,
            out.rearms,
            out.misses,
            out.resubmitted,
            out.held,
        )

    def set_call(self, fd: int) -> None:
        """Notify through ``fd`` from now on; -1: not at all. Not owned."""
        lib.ring_vq_set_call(self.ptr, fd)

    def set_err(self, fd: int) -> None:
        """Write ``fd`` when the queue breaks; -1: nothing. Not owned."""
        lib.ring_vq_set_err(self.ptr, fd)

    def set_logging(self, on: bool, log_used: bool = False, log_addr: int = 0) -> None:
        """Mark what is written to buffers, and with ``log_used`` to the used ring, in the memory's dirty log."""
        lib.ring_vq_set_logging(self.ptr, on, log_used, log_addr)

    def remap(self) -> None:
        """Memory or IOTLB changed: translate the ring addresses again.

        Raises:
            RingError: they are not mapped any more; the queue is BROKEN then.
        """
        check(lib.ring_vq_remap(self.ptr), f"ring addresses of queue {self._index} after a change of memory")

    def break_(self, code: int, detail: int = 0) -> None:
        """Mark the queue BROKEN.

        Args:
            code: `ErrorCode`, usually DEVICE: the request is beyond repair.
            detail: the offending number.
        """
        lib.ring_vq_break(self.ptr, code, detail)
        self._wake()

    def overlaps(self, hva: int, size: int) -> bool:
        """A chain in flight has a piece inside ``[hva, hva + size)`` of this process."""
        return bool(lib.ring_vq_overlaps(self.ptr, ffi.cast("void *", hva), size))

    def close(self) -> None:
        """Stop and free the queue. May be called again."""
        if id(self) in self._queues:
            self.stop()
            self._queues[id(self)]()

    def __del__(self) -> None:
        queues = getattr(self, "_queues", {})
        if id(self) in queues:
            queues[id(self)]()

    # --- owner: batches

    def pop_batch(self, limit: int = _BATCH_MAX) -> list[Chain]:
        """Up to ``limit`` (1 to 256) chains, without waiting.

        Empty if there are none, if the queue is paused, broken or stopped, or if an IOTLB entry is missing: ``wait``
        tells these apart.
        """
        return self._take(limit, False) if self._resumed is None else []

    def _take(self, limit: int, auto: bool) -> list[Chain]:
        if not self._running:
            return []
        n = _pop(self._ptr, self._array, limit if limit < _BATCH_MAX else _BATCH_MAX)
        if n <= 0:
            self._missed = n == -lib.RING_MISS  # a broken ring is told by state, err_fd and news_fd
            return []
        chains = [Chain(self, ptr, auto) for ptr in _unpack(self._array, n)]
        self._live.update(dict.fromkeys(chains))
        return chains

    def unpop(self, count: int) -> None:
        """Give back the ``count`` chains popped last, as if never popped.

        Raises:
            RingError: one of them was completed.
            ValueError: there are not so many.
        """
        if not 0 <= count <= len(self._live):
            raise ValueError(f"count={count}, but {len(self._live)} chains are in flight")
        chains = list(islice(reversed(self._live), count))
        check(lib.ring_vq_unpop(self.ptr, count), f"return of {count} chains to queue {self._index}", count)
        for chain in chains:
            del self._live[chain]
            chain._invalidate()
        if not self._live:
            self._tell_drained()

    def flush(self) -> bool:
        """Publish what was completed; True if the driver was notified."""
        self._staged = False
        return self._running and bool(_flush(self._ptr))

    def kicks_off(self) -> None:
        """Tell the driver that kicks are not needed: for a device that polls."""
        lib.ring_vq_kicks_off(self.ptr)

    def kicks_on(self) -> bool:
        """Ask for kicks; True if chains are there already."""
        return bool(lib.ring_vq_kicks_on(self.ptr))

    @property
    def ready(self) -> bool:
        """A cheap look: a pop would find something."""
        return self._running and bool(_ready(self._ptr))

    # --- owner: waiting

    def set_kick(self, fd: int | None) -> None:
        """Wait on ``fd`` (eventfd, pipe or socket; read, not owned) for kicks; None or -1: look every millisecond."""
        old, self._kick_fd = self._kick_fd, None if fd is None or fd < 0 else fd
        self._wake(old)

    async def ended(self) -> None:
        """Wait until the queue is stopped, or given up by `break_`; for a device that waits for other things, too.

        Cancellation: safe.
        """
        if self._ended is None:
            self._ended = trio.Event()
        if not self._running or self.state is not QueueState.RUNNING:
            self._ended.set()
        await self._ended.wait()

    def _wake(self, fd: int | None = None) -> None:
        """Let a task in `wait` look at the world again."""
        if self._ended is not None and (not self._running or self.state is not QueueState.RUNNING):
            self._ended.set()
        fd = self._kick_fd if fd is None else fd
        if self._sleeping and fd is not None:
            trio.lowlevel.notify_closing(fd)
        if not self._running and self._resumed is not None:
            self._resumed.set()  # a stop ends the wait of a paused queue too; it stays paused
            self._resumed = trio.Event()

    async def wait(self) -> bool:
        """Flush, then wait until there may be chains. False: the queue has stopped or broken, there is nothing to come.

        Always a checkpoint, but under load not every call gives way: with work at hand, or coming within some 20 µs,
        the caller goes on, and other tasks have their turn every 250 µs. Kicks are asked for before the last look at
        the ring, so that none is missed, and suppressed again on return.

        Cancellation: safe; nothing has been popped.

        Raises:
            RuntimeError: another task waits already.
        """
        if self._waiting:
            raise RuntimeError(f"another task waits for queue {self._index} already")
        if self._staged:
            self.flush()
        # kicks have been off since the turn began
        if self._goes_on():
            await trio.lowlevel.checkpoint_if_cancelled()
            return True
        self._waiting = self._attentive = True
        try:
            if self._turn.over:  # no reason yet to ask for kicks: the driver may be at it just now
                await trio.lowlevel.checkpoint()
                self._turn.begin()
                if self._goes_on():
                    return self._work()
            return await self._wait()
        finally:
            self._waiting = False
            self._attentive = self._drained is not None
            self._turn.begin()

    def _goes_on(self) -> bool:
        return self._running and self._resumed is None and not self._missed and self._turn.goes_on(self._ptr)

    async def _wait(self) -> bool:
        while self._running:
            if self._resumed is not None:
                await self._resumed.wait()
                continue
            if self._missed:
                self._missed = False
                await trio.sleep(_POLL_SECONDS)  # the front-end is being asked; try again
                return True
            if lib.ring_vq_kicks_on(self._ptr):
                await trio.lowlevel.checkpoint()
                return self._work()
            if lib.ring_vq_state(self._ptr) != QueueState.RUNNING:
                break
            if await self._sleep() and self.ready and not self.paused:
                return self._work()
        await trio.lowlevel.checkpoint()
        return False

    def _work(self) -> bool:
        if self._running:
            lib.ring_vq_kicks_off(self._ptr)
        return True

    async def _sleep(self) -> bool:
        """Until a kick, or a millisecond; False if the world has changed."""
        fd = self._kick_fd
        if fd is None:
            await trio.sleep(_POLL_SECONDS)
            return True
        self._sleeping = True
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            return False  # set_kick, stop or pause
        except OSError:  # a file that cannot be waited for, or no file at all
            if self._kick_fd == fd:
                self._kick_fd = None
            return False
        finally:
            self._sleeping = False
        if not read_kicks(fd) and self._kick_fd == fd:
            self._kick_fd = None  # closed by the other side: it would be readable for ever
        return True

    def __aiter__(self) -> Virtqueue:
        """Chains as they come, until the queue stops or breaks."""
        self._token = trio.lowlevel.current_trio_token()
        return self

    async def __anext__(self) -> Chain:
        pending = self._pending
        if not pending:
            if self._token is None:
                self._token = trio.lowlevel.current_trio_token()
            # one wait per batch: it flushes, is the checkpoint, and returns at once while there is work
            while not pending:
                if not await self.wait():
                    raise StopAsyncIteration
                if self._resumed is None:
                    pending.extend(reversed(self._take(_BATCH, True)))
        return pending.pop()

    def _completed(self) -> None:
        """A chain was completed and somebody may need to know soon."""
        if self._waiting:
            self.flush()  # whoever waits has flushed before
            if self._sleeping and self.ready:
                self._wake()  # there was no room for its long chain
        elif not self._scheduled and self._token is not None:
            try:
                self._token.run_sync_soon(self._flush_scheduled)
                self._scheduled = True
            except trio.RunFinishedError:
                self.flush()
        if not self._live:
            self._tell_drained()

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        if self._staged:
            self.flush()

    # --- owner: quiet

    def pause(self) -> None:
        """Take no more chains: iteration and `wait` block. What was taken may be completed; `drain` waits for it."""
        if self._resumed is None:
            self._resumed = trio.Event()
            self._unpop_pending()
            self._wake()

    def resume(self) -> None:
        """Take chains again."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    @property
    def paused(self) -> bool:
        """`pause` was called, `resume` was not."""
        return self._resumed is not None

    async def drain(self) -> None:
        """Wait until the device has completed all it was handed out, and publish it. Pause first.

        Cancellation: safe at any time.
        """
        await trio.lowlevel.checkpoint()
        while len(self._live) > len(self._pending):
            if self._drained is None:
                self._drained = trio.Event()
                self._attentive = True
            await self._drained.wait()
        if self._staged:
            self.flush()

    def _tell_drained(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None
            self._attentive = self._waiting

    def _unpop_pending(self) -> None:
        """What ``async for`` took ahead was never handed out: the ring can have it back."""
        if self._pending and self._running:
            self.unpop(len(self._pending))
            self._pending.clear()


def _freer(queue: Virtqueue, ptr: Any, queues: dict[int, Callable[[], None]]) -> Callable[[], None]:
    """How to free ``queue``, for its own `close` and for its memory's; does not keep it alive."""
    key, ref = id(queue), weakref.ref(queue)

    def free() -> None:
        del queues[key]
        alive = ref()
        if alive is not None:
            alive._running = False
            alive._invalidate()
            alive._wake()
        lib.ring_vq_free(ptr)
        if alive is not None:
            alive._unpin()

    return free

"""One ring of a connection: its descriptors, its virtqueue, and whoever works on it.

States (of a `Queue`; the session's own are in session.py)

    IDLE      no virtqueue                                      start -> RUNNING, or AWAITING
    AWAITING  start was asked for, the IOTLB lacks the ring     update -> RUNNING; stop -> IDLE
    RUNNING   a worker polls it, or a task runs Device.run      stop -> DRAINING; lost IOTLB entries -> AWAITING
    DRAINING  takes nothing new, finishes what is in flight     nothing in flight -> IDLE

A queue that may not take requests now (disabled, device quiesced, draining) is paused: requests in flight end normally.

Rules: a C queue is only touched with its worker parked, and after an await everything is looked at anew (another task
may have stopped it). Whatever is stopped without draining goes on in `bury`: its source is freed, and the memory it
writes to given up, only when nothing is in flight any more.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import trio

import ring
from vhost import actions
from vhost.constants import VirtioFeature
from vhost.device import Discards
from vhost.fds import OwnedFd

if TYPE_CHECKING:
    from vhost.device import Source
    from vhost.instance import Instance

__all__ = ["Queue", "RunState", "parked"]

_LOOK_AGAIN: Final = 0.02
"""Seconds between looks at a draining queue. It tells us by its news fd; this is for what gets lost."""

_TASK_SECONDS: Final = 2.0
"""How long `Device.run` may take to return after its queue has ended."""

_KINDS: Final = {
    actions.AddressKind.UADDR: ring.AddressKind.UADDR,
    actions.AddressKind.GPA: ring.AddressKind.GPA,
    actions.AddressKind.IOVA: ring.AddressKind.UADDR,
}


class RunState(Enum):
    """See the table at the head of this file."""

    IDLE = auto()
    AWAITING = auto()
    RUNNING = auto()
    DRAINING = auto()


@asynccontextmanager
async def parked(workers: Iterable[ring.Worker]) -> AsyncIterator[None]:
    """Hold all `workers` at safe points. The event loop runs on while one cannot come (a page is being fetched)."""
    async with AsyncExitStack() as stack:
        for worker in dict.fromkeys(workers):
            await stack.enter_async_context(worker.aparked())
        yield


class Queue:
    """Ring `index` of an instance."""

    def __init__(self, instance: Instance, index: int) -> None:
        self.instance = instance
        self.index = index
        self.state = RunState.IDLE
        self.enabled = False
        self.vq: ring.Virtqueue | None = None
        self.worker: ring.Worker | None = None
        self.config: actions.QueueConfig | None = None
        self.log_addr: int | None = None
        self.reported = False
        self._kick: OwnedFd | None = None
        self._call: OwnedFd | None = None
        self._err: OwnedFd | None = None
        self._source: Source | None = None
        self._base = 0
        self._done = trio.Event()
        self._task = trio.CancelScope()

    # What it is

    @property
    def running(self) -> bool:
        """It has a virtqueue that may touch guest memory."""
        return self.vq is not None

    @property
    def paused(self) -> bool:
        """It may take no new requests now."""
        return not self.enabled or self.instance.held or self.state is RunState.DRAINING

    @property
    def in_flight(self) -> int:
        """Requests taken and not given back."""
        return self.vq.in_flight if self.vq is not None else 0

    def ring_ranges(self) -> list[tuple[int, int]]:
        """Address and bytes of its three areas, in the address space of its configuration."""
        config = self.config
        if config is None:
            return []
        n = config.size
        if config.packed:
            return [(config.desc, 16 * n), (config.avail, 4), (config.used, 4)]
        return [(config.desc, 16 * n), (config.avail, 6 + 2 * n), (config.used, 6 + 8 * n)]

    def broken(self) -> tuple[int, int] | None:
        """Why the guest's ring is beyond use, None while it is not."""
        return self.vq.error if self.vq is not None else None

    # Descriptors

    async def set_kick(self, fd: OwnedFd | None) -> None:
        """Wait on `fd` (taken over) for kicks; None: look every millisecond, unless kicks come in-band."""
        if fd is None and self.instance.inband:
            fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        async with self._parked():
            old, self._kick = self._kick, fd
            self._apply_kick()
        if old is not None:
            old.close()

    async def set_call(self, fd: OwnedFd | None) -> None:
        """Notify the driver by `fd` (taken over)."""
        if fd is None and self.instance.inband:
            fd = self.instance.inband_fd(self.index, err=False)
        async with self._parked():
            old, self._call = self._call, fd
            if self.vq is not None:
                self.vq.set_call(_fileno(fd))
        # A notification that fell between the two descriptors would be lost; one too many does no harm.
        if self.state is RunState.RUNNING:
            _signal(fd)
        if old is not None:
            old.close()

    async def set_err(self, fd: OwnedFd | None) -> None:
        """Tell the front-end by `fd` (taken over) when the ring breaks."""
        if fd is None and self.instance.inband:
            fd = self.instance.inband_fd(self.index, err=True)
        async with self._parked():
            old, self._err = self._err, fd
            if self.vq is not None:
                self.vq.set_err(_fileno(fd))
        if old is not None:
            old.close()

    async def forget_err(self) -> None:
        """Tell nobody when the ring breaks."""
        async with self._parked():
            if self.vq is not None:
                self.vq.set_err(-1)

    async def kick(self) -> None:
        """Look at the ring: an in-band kick."""
        if self._kick is not None:
            _signal(self._kick)
        else:
            await self.wake()

    async def wake(self) -> None:
        """Look at the ring once without a kick."""
        async with self._parked():
            self.wake_parked()

    def wake_parked(self) -> None:
        """As `wake`, with the worker parked. A request that had to wait for an IOTLB entry is tried again."""
        if self._source is not None and self.worker is not None:
            self.worker.wake(self._source.ptr)

    # Start and stop

    async def start(self, config: actions.QueueConfig) -> None:
        """Start, or wait for the IOTLB to know the ring.

        Raises:
            RingError: the ring cannot be used.
            DeviceError: the device cannot run it.
        """
        assert self.state is RunState.IDLE, self.state
        self.config = config
        self.enabled = config.enabled
        self.log_addr = config.log_addr
        self.reported = False
        self._base = config.base
        self._done = trio.Event()
        self.state = RunState.AWAITING
        try:
            await self.try_start()
        except BaseException:
            self.state = RunState.IDLE
            self.config = None
            raise

    async def try_start(self) -> None:
        """AWAITING -> RUNNING if the IOTLB allows."""
        config = self.config
        if self.state is not RunState.AWAITING or config is None:
            return
        vq = ring.Virtqueue(self.instance.memory, self.index)
        try:
            how = self._ring_config(config)
            await self.instance.touching(lambda: vq.start(how))
        except ring.RingError as error:
            vq.close()
            if error.code == ring.ErrorCode.MISS:
                self.instance.translations.ask()
                return
            raise
        try:
            vq.set_logging(self.instance.logging, self.log_addr is not None, self.log_addr or 0)
            self.vq = vq
            self.state = RunState.RUNNING
            if self.instance.device.is_native:
                await self._start_native(vq)
            else:
                self._start_task(vq)
        except BaseException:
            if self.vq is vq:
                self.vq = None
                self.state = RunState.IDLE
                vq.close()
            raise

    def _ring_config(self, config: actions.QueueConfig) -> ring.QueueConfig:
        inflight = self.instance.inflight
        return ring.QueueConfig(
            size=config.size,
            features=config.features,
            desc=config.desc,
            avail=config.avail,
            used=config.used,
            base=self._base,
            addr_kind=_KINDS[config.addr_kind],
            log=self.log_addr is not None and self.instance.logging,
            log_addr=self.log_addr or 0,
            iotlb=self.instance.translations.iotlb if config.features & VirtioFeature.ACCESS_PLATFORM else None,
            inflight=inflight.part(self.index) if inflight is not None else None,
            call_fd=_fileno(self._call),
            err_fd=_fileno(self._err),
            news_fd=self.instance.news.fileno(),
        )

    async def _start_native(self, vq: ring.Virtqueue) -> None:
        device, pool = self.instance.device, self.instance.pool
        # A worker that waits for a page must not hold up other guests.
        worker = await pool.take(device, self.index, alone=self.instance.postcopy)
        source = None
        try:
            async with worker.aparked():
                source = device.make_source(vq, worker)
                worker.add(source.ptr)
                self.worker, self._source = worker, source
                worker.set_kick(source.ptr, _fileno(self._kick))
                self._apply_to(source, worker)
                worker.wake(source.ptr)
        except BaseException:
            if source is not None:
                if self._source is not None:
                    async with parked([worker]):
                        worker.remove(source.ptr)
                source.close()
            self.worker = self._source = None
            pool.release(worker, device, self.index)
            raise

    def _start_task(self, vq: ring.Virtqueue) -> None:
        if self.paused:
            vq.pause()
        vq.set_kick(_fileno(self._kick))
        self._task = trio.CancelScope()
        self.instance.nursery.start_soon(self._run_task, vq, self._done)

    async def _run_task(self, vq: ring.Virtqueue, done: trio.Event) -> None:
        try:
            with self._task:
                await self.instance.device.run(vq)
        except Exception:
            self.instance.log.exception("device failed on queue %d, which is stopped", self.index)
            if vq is self.vq and vq.state is ring.QueueState.RUNNING:
                vq.break_(ring.ErrorCode.DEVICE)
        finally:
            done.set()

    async def stop(self, *, drain: bool = True) -> int:
        """-> IDLE; the base to go on from. Without `drain` requests in flight stay in the inflight record.

        Cancellation: the queue takes nothing new and can be stopped again.
        """
        if self.vq is None:
            base = self._base
            await trio.lowlevel.checkpoint()
        else:
            self.state = RunState.DRAINING
            await self.apply_pause()
            if drain:
                await self.drained()
                base = await self._finish()
            else:
                base = await self.abandon()
        self.state = RunState.IDLE
        self.config = None
        old, self._kick = self._kick, None
        if old is not None:
            old.close()
        return base

    async def suspend(self) -> None:
        """RUNNING -> AWAITING: the IOTLB lost the ring. What is in flight ends first."""
        if self.vq is None or self.state is not RunState.RUNNING:
            return
        self.state = RunState.DRAINING
        await self.apply_pause()
        await self.drained()
        self._base = await self._finish()
        if self.state is RunState.DRAINING:
            self.state = RunState.AWAITING

    async def _finish(self) -> int:
        """Stop the drained virtqueue and take it from its worker or task."""
        if self.vq is None:
            return self._base
        async with self._parked():
            vq, source, worker = self._now()
            if vq is None:
                return self._base
            if source is not None and worker is not None:
                worker.remove(source.ptr)
            self._base = vq.stop()
            self.vq = self._source = self.worker = None
        if source is not None and worker is not None:
            source.close()
            self.instance.pool.release(worker, self.instance.device, self.index)
        else:
            with trio.move_on_after(_TASK_SECONDS):
                await self._done.wait()
            if not self._done.is_set():
                self.instance.log.warning("device does not leave stopped queue %d; its task is cancelled", self.index)
                self._task.cancel()
                await self._done.wait()
        vq.close()
        return self._base

    async def abandon(self) -> int:
        """Take the ring from the device at once; returns its base. What is in flight goes on and tells nobody."""
        async with self._parked():
            vq, source, worker = self._now()
            if vq is None:
                return self._base
            self._base = vq.base
            vq.set_err(-1)
            # BROKEN: late completions touch neither the ring nor the inflight record.
            vq.break_(ring.ErrorCode.STATE)
            self.vq = self._source = self.worker = None
        self.instance.nursery.start_soon(self.instance.bury, vq, source, worker)
        return self._base

    def disown(self) -> None:
        """As `abandon`, as far as that can be done without waiting: late completions of a task go nowhere."""
        if self.vq is not None and self._source is None:
            self.vq.set_err(-1)
            self.vq.break_(ring.ErrorCode.STATE)

    async def drained(self) -> None:
        """Wait until nothing is in flight. Pause first."""
        while (vq := self.vq) is not None:
            if self._source is None:
                await vq.drain()
                return
            if not vq.in_flight:
                return
            with trio.move_on_after(_LOOK_AGAIN):
                await self.instance.next_news()

    # Change while it runs

    async def apply_pause(self) -> None:
        """Make `paused` true of the ring."""
        vq = self.vq
        if vq is None:
            return
        if self._source is None:
            (vq.pause if self.paused else vq.resume)()
            return
        async with self._parked():
            _, source, worker = self._now()
            if source is None or worker is None:
                return
            if not self._apply_to(source, worker):
                worker.wake(source.ptr)

    def _apply_to(self, source: Source, worker: ring.Worker) -> bool:
        """Make `paused` true of `source`, or let it discard what comes. Worker parked. Returns whether it is paused."""
        paused = self.paused
        if isinstance(source, Discards):
            source.set_enabled(self.enabled)
            paused = self.instance.held or self.state is RunState.DRAINING
        worker.pause(source.ptr, paused)
        return paused

    def apply_logging(self) -> None:
        """Log writes as the instance and `log_addr` say. Worker parked."""
        if self.vq is not None:
            self.vq.set_logging(self.instance.logging, self.log_addr is not None, self.log_addr or 0)

    def apply_memory(self) -> None:
        """Guest memory has changed. Worker parked."""
        if self.vq is None or self.vq.state is not ring.QueueState.RUNNING:
            return
        try:
            self.vq.remap()
        except ring.RingError as error:
            self.instance.log.debug("queue %d after a change of memory: %s", self.index, error)

    def _apply_kick(self) -> None:
        if self._source is not None and self.worker is not None:
            self.worker.set_kick(self._source.ptr, _fileno(self._kick))
            self.worker.wake(self._source.ptr)
        elif self.vq is not None:
            self.vq.set_kick(_fileno(self._kick))

    def _now(self) -> tuple[ring.Virtqueue | None, Source | None, ring.Worker | None]:
        """What there is now: to be asked again after each await."""
        return self.vq, self._source, self.worker

    @asynccontextmanager
    async def _parked(self) -> AsyncIterator[None]:
        """Its worker is parked, if it has one."""
        async with parked([] if self.worker is None else [self.worker]):
            yield

    def close(self) -> None:
        """Close its descriptors; it is IDLE."""
        for fd in (self._kick, self._call, self._err):
            if fd is not None:
                fd.close()
        self._kick = self._call = self._err = None


def _fileno(fd: OwnedFd | None) -> int:
    return -1 if fd is None else fd.fileno()


def _signal(fd: OwnedFd | None) -> None:
    """Add 1 to an eventfd. A full one is signalled already, and one that nobody can write to is the peer's problem."""
    if fd is None:
        return
    with suppress(OSError):
        os.write(fd.fileno(), (1).to_bytes(8, "little"))

"""A device at work for one guest: its memory, its rings, and what the front-end's messages make of them.

`Instance.perform` does what a session asks (actions.py). There is no socket here: an embedding VMM drives an instance
by the same actions (embed.py).

Theory of operation. Everything runs on the trio thread, but C queues, which belong to their workers: to change them, or
memory they use, the workers are parked. `perform` may wait as long as a request in flight takes, hence one task per
connection calls it, and nothing else waits for that task. News of the rings (broken, IOTLB entry missing, drained) come
by one eventfd, which a task of the instance reads.

Resource handling: an instance owns what it took from actions. `close` stops the rings, lets requests in flight end,
then unmaps guest memory; never the other way round.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

import ring
from vhost import actions
from vhost._log import Fields, RateLimit
from vhost._shelter import sheltered_nursery
from vhost.constants import BackendRequest, ProtocolFeature
from vhost.errors import DeviceError
from vhost.fds import OwnedFd
from vhost.inflight import InflightRegion, create
from vhost.messages import MemRegion, Message, Payload, VringState
from vhost.migration import LOG_KICK_SECONDS, LogKicker, StateTransfer
from vhost.postcopy import Postcopy
from vhost.queues import Queue, RunState, parked
from vhost.translations import Translations

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from vhost.device import Device, Source
    from vhost.placement import WorkerPool

__all__ = ["Instance", "Post", "open_instance"]

_Answered = Callable[[Message | None], None]
Post = Callable[[BackendRequest, Payload, object, _Answered | None], bool]
"""Says something to the front-end without waiting: request, payload, key (as BackendChannel.post), answer to; whether
it will be said."""

T = TypeVar("T")

STILL_WAITING_SECONDS: Final = 10.0
"""How often a store that does not finish is complained about."""

_abandoned: list[Any] = []
"""Memory that requests of a hung store may still write to, when the grace time was over: never unmapped."""


class Instance:
    """One guest's use of a device. Made by `open_instance`."""

    def __init__(self, device: Device, pool: WorkerPool, nursery: trio.Nursery, log: Fields, limit: RateLimit) -> None:
        self.device = device
        self.pool = pool
        self.nursery = nursery
        self.log = log
        self.memory = ring.GuestMemory()
        self.translations = Translations(self)
        self.inflight: InflightRegion | None = None
        self.features = 0
        self.protocol = ProtocolFeature(0)
        self.logging = False
        self.queues = [Queue(self, index) for index in range(device.num_queues)]
        self.news = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.post: Post = _nobody
        self.take_channel: Callable[[OwnedFd], Awaitable[None]] = _no_channel
        self.hang_up: Callable[[], None] = _nothing
        self.needs_reset: Callable[[], None] = _nothing
        self._fault_told = False
        self.limit = limit
        self._news_event = trio.Event()
        self._postcopy = Postcopy(self.memory)
        self._transfer = StateTransfer(device, nursery)
        self._log_kicker: LogKicker | None = None
        self._stale_inflight: list[InflightRegion] = []
        self._buried = 0
        self._burials: list[trio.CancelScope] = []
        self._buried_at: list[ring.Worker] = []
        self._relays: dict[tuple[int, BackendRequest], trio.CancelScope] = {}
        self._unburied = trio.Event()
        self._touched = False

    # What queues ask

    @property
    def held(self) -> bool:
        """No queue may take new requests now."""
        return self.device.quiesced

    @property
    def inband(self) -> bool:
        """Kicks and calls are messages."""
        return ProtocolFeature.INBAND_NOTIFICATIONS in self.protocol

    @property
    def running(self) -> list[Queue]:
        """Queues that may touch guest memory."""
        return [queue for queue in self.queues if queue.running]

    def all_parked(self) -> Any:
        """All workers with a queue on this guest's memory are parked."""
        return parked([queue.worker for queue in self.queues if queue.worker is not None] + self._buried_at)

    async def next_news(self) -> None:
        """Wait until a ring has something to tell."""
        await self._news_event.wait()

    def inband_fd(self, index: int, *, err: bool) -> OwnedFd:
        """A descriptor that becomes a VRING_CALL (or VRING_ERR) message when it is written."""
        fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        request = BackendRequest.VRING_ERR if err else BackendRequest.VRING_CALL
        if (old := self._relays.get((index, request))) is not None:
            old.cancel()
        scope = self._relays[index, request] = trio.CancelScope()
        self.nursery.start_soon(self._relay, fd.dup(), index, request, scope)
        return fd

    async def _relay(self, ours: OwnedFd, index: int, request: BackendRequest, scope: trio.CancelScope) -> None:
        with ours, scope:
            while True:
                await trio.lowlevel.wait_readable(ours.fileno())
                os.eventfd_read(ours.fileno())
                self.post(request, VringState(index, 0), (request, index), None)

    @property
    def postcopy(self) -> bool:
        """Pages of guest memory may still be on another host: touching one may take as long as its VMM likes."""
        return self._postcopy.listening

    def end_postcopy(self) -> None:
        """Nobody brings pages any more: whoever waits for one goes on, with zeros."""
        self._postcopy.end()

    async def touching(self, function: Callable[[], T]) -> T:
        """Call what touches guest memory: on a thread of its own while pages are on their way from another host.

        Cancellation: ends postcopy, so that whoever waits for a page goes on (with zeros; nobody will look).
        """
        if not self.postcopy:
            return function()
        self._touched = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_postcopy_when_cancelled)
            with trio.CancelScope(shield=True):
                result = await trio.to_thread.run_sync(function)
            self._touched = True
            nursery.cancel_scope.cancel()
        return result

    async def _end_postcopy_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not self._touched:
                self._postcopy.end()

    # News

    async def watch_news(self) -> None:
        """Read the rings' news until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.news.fileno())
            try:
                os.eventfd_read(self.news.fileno())
            except BlockingIOError:
                continue
            event, self._news_event = self._news_event, trio.Event()
            event.set()
            for queue in self.queues:
                self._report(queue)
            self.translations.ask()
            if self.memory.faulted and not self._fault_told:
                self._fault_told = True
                self.log.error("the front-end truncated a memory file that it shares; its guest cannot go on")
                self.hang_up()

    def _report(self, queue: Queue) -> None:
        error = queue.broken()
        if error is None or queue.reported:
            return
        queue.reported = True
        self.needs_reset()
        code, detail = error
        if self.limit():
            skipped = f" ({self.limit.suppressed} such lines before were left out)" if self.limit.suppressed else ""
            self.limit.suppressed = 0
            self.log.warning(
                "the guest broke queue %d: %s (%#x); it is parked until the guest resets the device%s",
                queue.index,
                ring.strerror(code),
                detail,
                skipped,
                extra={"queue": queue.index, "code": int(code)},
            )

    async def look_again(self) -> None:
        """Rings and requests that wait for IOTLB entries try again."""
        for queue in self.queues:
            try:
                await queue.try_start()
            except ring.RingError as error:
                self.log.warning("queue %d cannot start: %s", queue.index, error)
        async with self.all_parked():
            for queue in self.queues:
                queue.wake_parked()

    # Actions

    async def perform(self, action: actions.Action) -> object:
        """Do one action of a session; returns what the action's docstring says.

        Raises:
            DeviceError, ProtocolError, RingError, OSError, ValueError: it failed; `Step.finish` wants to know.
        """
        match action:
            case actions.SetFeatures(features=features):
                self.features = features
                self.translations.forget()
                self.device.features_acked(features)
            case actions.SetProtocolFeatures(features=features):
                self.protocol = ProtocolFeature(features)
            case actions.SetStatus(status=status):
                self.device.set_status(status)
            case actions.ResetDevice():
                self.translations.forget()
                self.device.reset()
                self._drop_inflight()
            case actions.GetConfig(offset=offset, size=size):
                return self.device.config()[offset : offset + size].ljust(size, b"\0")
            case actions.SetConfig(offset=offset, data=data):
                self.device.set_config(offset, data)
            case actions.SetBackendChannel(fd=fd):
                await self.take_channel(fd)
                await self.look_again()
            case actions.SetGpuSocket(fd=fd):
                self._give_gpu_socket(fd)
            case actions.SendRarp(mac=mac):
                self.device.send_rarp(mac)
            case actions.SetMtu(mtu=mtu):
                self.device.set_mtu(mtu)
            case actions.GetSharedObject(uuid=uuid):
                found = self.device.shared_object(uuid)
                return None if found is None else OwnedFd(os.dup(found))
            case actions.SetMemTable(regions=regions, postcopy=postcopy):
                return await self._set_memory(regions, postcopy)
            case actions.AddRegion(region=region, postcopy=postcopy):
                async with self.all_parked():
                    address = self._add(region, postcopy)
                    self._memory_changed()
                return address
            case actions.RemoveRegion(where=where):
                await self._remove(where)
            case actions.SetLog(size=size, offset=offset, fd=fd):
                async with self.all_parked():
                    self.memory.set_log(fd.fileno(), size, offset)
            case actions.SetLogFd(fd=fd):
                self._set_log_fd(fd)
            case actions.SetLogging(enabled=enabled):
                await self._set_logging(enabled)
            case actions.IotlbUpdate(iova=iova, size=size, uaddr=uaddr, perm=perm):
                await self.translations.update(iova, size, uaddr, perm)
            case actions.IotlbInvalidate(iova=iova, size=size):
                await self.translations.invalidate(iova, size)
            case actions.PostcopyAdvise():
                return self._postcopy.advise()
            case actions.PostcopyListen():
                self._postcopy.listen()
            case actions.PostcopyRegister():
                self._postcopy.register()
            case actions.PostcopyEnd():
                self._postcopy.end()
            case actions.SetKick(index=index, fd=kick):
                await self.queues[index].set_kick(None if kick is None else kick.move())
            case actions.SetCall(index=index, fd=call):
                await self.queues[index].set_call(None if call is None else call.move())
            case actions.SetErr(index=index, fd=err):
                await self.queues[index].set_err(None if err is None else err.move())
            case actions.StartQueue(config=config):
                await self.queues[config.index].start(config)
                self._release_stale()
            case actions.StopQueue(index=index, drain=drain):
                return await self.queues[index].stop(drain=drain)
            case actions.EnableQueue(index=index):
                await self._enable(index, True)
            case actions.DisableQueue(index=index):
                await self._enable(index, False)
            case actions.SetQueueLog(index=index, log_addr=log_addr):
                async with self.all_parked():
                    self.queues[index].log_addr = log_addr
                    self.queues[index].apply_logging()
            case actions.KickQueue(index=index):
                await self.queues[index].kick()
            case actions.GetInflight(num_queues=num_queues, queue_size=queue_size, packed=packed):
                area, size = create(num_queues, queue_size, packed=packed)
                return actions.InflightArea(area, size)
            case actions.SetInflight() as given:
                self._set_inflight(given)
            case actions.SaveState(fd=fd):
                self._transfer.save(fd.move())
            case actions.LoadState(fd=fd):
                self._transfer.load(fd.move())
            case actions.CheckState():
                await self._transfer.check()
        return None

    def _give_gpu_socket(self, fd: OwnedFd) -> None:
        number = fd.take()
        try:
            self.device.set_gpu_socket(number)
        except BaseException:
            os.close(number)
            raise

    async def _enable(self, index: int, on: bool) -> None:
        queue = self.queues[index]
        queue.enabled = on
        await queue.apply_pause()

    async def apply_hold(self) -> None:
        """`held` has changed."""
        for queue in self.queues:
            await queue.apply_pause()

    async def drain(self) -> None:
        """Wait until nothing is in flight on any queue. Hold first."""
        async with trio.open_nursery() as nursery:
            for queue in self.queues:
                nursery.start_soon(queue.drained)

    # Memory

    async def _set_memory(self, regions: tuple[actions.Region, ...], postcopy: bool) -> list[int | None]:
        async with self.all_parked():
            for region in self.memory.regions:
                self.device.region_removed(region.gpa)
            self.memory.clear()
            try:
                return [self._add(region, postcopy) for region in regions]
            except BaseException:
                self.memory.clear()
                raise
            finally:
                self._memory_changed()

    def _add(self, region: actions.Region, postcopy: bool) -> int | None:
        where, fd = region.where, region.fd.fileno()
        by_gpa = ProtocolFeature.GPA_ADDRESSES in self.protocol
        read_only = _is_read_only(fd)
        self.memory.add_region(
            fd,
            gpa=where.gpa,
            size=where.size,
            uaddr=where.gpa if by_gpa else where.uaddr,
            offset=where.mmap_offset,
            read_only=read_only,
            postcopy=postcopy,
        )
        self.device.region_added(where.gpa, where.size, fd, where.mmap_offset, read_only=read_only)
        return self._postcopy.added(where.gpa) if postcopy else None

    async def _remove(self, where: MemRegion) -> None:
        by_gpa = ProtocolFeature.GPA_ADDRESSES in self.protocol
        async with self.all_parked():
            self.memory.remove_region(gpa=where.gpa, size=where.size, uaddr=where.gpa if by_gpa else where.uaddr)
            self.device.region_removed(where.gpa)
            self._memory_changed()

    def _memory_changed(self) -> None:
        for queue in self.running:
            queue.apply_memory()

    # Dirty log

    async def _set_logging(self, enabled: bool) -> None:
        async with self.all_parked():
            self.logging = enabled
            for queue in self.queues:
                queue.apply_logging()
            if not enabled:
                self.memory.clear_log()

    def _set_log_fd(self, fd: OwnedFd) -> None:
        if self._log_kicker is None:
            self.nursery.start_soon(self._kick_log)
        else:
            self._log_kicker.close()
        self._log_kicker = LogKicker(fd.move())

    async def _kick_log(self) -> None:
        seen = -1
        while self._log_kicker is not None:
            await trio.sleep(LOG_KICK_SECONDS)
            done = sum(queue.vq.stats.pushed for queue in self.queues if queue.vq is not None)
            if self.logging and done != seen and self._log_kicker is not None:
                self._log_kicker.kick()
            seen = done

    # Inflight region

    def _set_inflight(self, given: actions.SetInflight) -> None:
        if given.num_queues > len(self.queues):
            raise DeviceError(f"an inflight region for {given.num_queues} rings, this device has {len(self.queues)}")
        region = InflightRegion(
            given.fd.fileno(),
            size=given.size,
            offset=given.offset,
            num_queues=given.num_queues,
            queue_size=given.queue_size,
            packed=given.packed,
        )
        self._drop_inflight()
        self.inflight = region

    def _drop_inflight(self) -> None:
        """Rings that run keep the region they were started with."""
        if self.inflight is not None:
            self._stale_inflight.append(self.inflight)
            self.inflight = None
        self._release_stale()

    def _release_stale(self) -> None:
        if not self.running and not self._buried:
            for region in self._stale_inflight:
                region.close()
            self._stale_inflight.clear()

    # The end

    async def bury(self, vq: ring.Virtqueue, source: Source | None, worker: ring.Worker | None) -> None:
        """Free a queue that was abandoned with requests in flight, when they have ended.

        Cancellation: none, but by `close` when the grace time is over; then memory is kept for what is in flight.
        """
        if not self._buried:
            self._unburied = trio.Event()
        self._buried += 1
        if worker is not None:
            self._buried_at.append(worker)
        with trio.CancelScope(shield=True) as scope:
            self._burials.append(scope)
            if source is not None and worker is not None:
                while vq.in_flight:
                    with trio.move_on_after(0.02):
                        await self.next_news()
                async with parked([worker]):
                    worker.remove(source.ptr)
                    vq.stop()
                source.close()
                self._buried_at.remove(worker)
                self.pool.release(worker, self.device, vq.index)
            else:
                await vq.drain()
            vq.close()
            self._burials.remove(scope)
            self._buried -= 1
            if not self._buried:
                self._unburied.set()

    async def close(self, stopping: trio.Event, grace: float) -> None:
        """Stop all rings, let requests in flight end, unmap memory.

        Args:
            stopping: set when the program is to end: from then on no longer than `grace` seconds are waited.
        """
        if self._transfer is not None:
            self._postcopy.end()
        finished = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._limit_wait, stopping, grace, nursery.cancel_scope)
            async with trio.open_nursery() as stops:
                for queue in self.queues:
                    stops.start_soon(self._stop_quietly, queue)
            while self._buried:
                await self._unburied.wait()
            finished = True
            nursery.cancel_scope.cancel()
        for queue in self.queues:
            queue.close()
        if self._log_kicker is not None:
            kicker, self._log_kicker = self._log_kicker, None
            kicker.close()
        if finished:
            self._drop_inflight()
            self.memory.close()
        else:
            left = sum(queue.in_flight for queue in self.queues)
            self.log.error("gave up waiting: %d requests are in flight that the store does not finish", left)
            for queue in self.queues:
                queue.disown()
            for burial in self._burials:
                burial.cancel()
            _abandoned.append(self)
        self.news.close()

    async def _stop_quietly(self, queue: Queue) -> None:
        if queue.vq is None and queue.state is RunState.IDLE:
            return
        # Nobody listens any more; a notification would reach whoever inherits the descriptors.
        await queue.forget_err()
        await queue.stop()

    async def _limit_wait(self, stopping: trio.Event, grace: float, scope: trio.CancelScope) -> None:
        with trio.CancelScope() as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._complain)
                await stopping.wait()
                waiting.cancel()
        await trio.sleep(grace)
        scope.cancel()

    async def _complain(self) -> None:
        while True:
            await trio.sleep(STILL_WAITING_SECONDS)
            left = sum(queue.in_flight for queue in self.queues)
            self.log.warning("the front-end is gone; still waiting for the store to finish %d requests", left)


@asynccontextmanager
async def open_instance(
    device: Device,
    pool: WorkerPool,
    *,
    log: Fields | None = None,
    limit: RateLimit | None = None,
    stopping: trio.Event | None = None,
    grace: float = 5.0,
) -> AsyncIterator[Instance]:
    """An instance that is closed in good order at the end of the block.

    Args:
        device: what to run; `pool`: where its queues run.
        stopping: set when the program is to end soon; `grace`: how long requests may take from then on, seconds.

    Cancellation: requests in flight are waited for, at most `grace` seconds after `stopping`.
    """
    async with sheltered_nursery() as nursery:
        log = log or Fields(logging.getLogger("vhost"), {"device": device.name})
        instance = Instance(device, pool, nursery, log, limit or RateLimit())
        nursery.start_soon(instance.watch_news)
        try:
            yield instance
        finally:
            with trio.CancelScope(shield=True):
                await instance.close(trio.Event() if stopping is None else stopping, grace)


def _nothing() -> None:
    """Nobody wants to know."""


def _nobody(
    _request: BackendRequest,
    _payload: Payload = None,
    _key: object = None,
    _answered: Callable[[Message | None], None] | None = None,
) -> bool:
    """There is no back-end channel."""
    return False


async def _no_channel(_fd: OwnedFd) -> None:
    raise DeviceError("this front-end has no use for a back-end channel")


def _is_read_only(fd: int) -> bool:
    """The descriptor allows no writing: read-only guest memory (ROM)."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY

"""A device inside a VMM's own process: memory and eventfds are handed over directly, no socket in between.

    async with vhost.open_embedder() as embedder:
        async with embedder.attach(Blk(store)) as guest:
            await guest.set_features(guest.offered_features & wanted)
            await guest.add_memory(memfd, gpa=0, size=1 << 30)
            await guest.start_queue(0, size=128, desc=…, avail=…, used=…, kick=kick_fd, call=call_fd)
            …
            base = await guest.stop_queue(0)

The same `Instance` as behind a socket does the work, with the same checks; addresses of rings are guest-physical.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

import ring
from vhost import actions
from vhost._log import Fields, RateLimit
from vhost._session_state import Options, offered_features
from vhost._shelter import bare_errors, set_when_cancelled, sheltered_nursery
from vhost.connection import describe
from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.device import Device, Link
from vhost.fds import OwnedFd
from vhost.instance import Instance, open_instance
from vhost.messages import MemRegion
from vhost.placement import Policy, WorkerOptions, WorkerPool, least_loaded

if TYPE_CHECKING:
    from vhost.queues import Queue

__all__ = ["EmbeddedDevice", "Embedder", "open_embedder"]


class _EmbeddedLink(Link):
    """The way back to the VMM is a function call."""

    def __init__(self, instance: Instance, changed: Callable[[], None]) -> None:
        self._instance = instance
        self._changed = changed

    def config_changed(self) -> None:
        self._changed()

    async def pause(self) -> None:
        await self._instance.apply_hold()

    async def resume(self) -> None:
        await self._instance.apply_hold()

    async def drain(self) -> None:
        await self._instance.drain()


class EmbeddedDevice:
    """A device at work on a guest's memory. Made by `Embedder.attach`.

    Attributes:
        device: the device.
        offered_features: virtio features it and our rings have.
    """

    def __init__(self, instance: Instance, options: Options) -> None:
        self.device = instance.device
        self._instance = instance
        mine = VirtioFeature.PROTOCOL_FEATURES | VirtioFeature.LOG_ALL
        self.offered_features = offered_features(describe(self.device), options) & ~mine
        self._features: int | None = None

    @property
    def features(self) -> int:
        """Features in force, 0 before `set_features`."""
        return self._features or 0

    async def set_features(self, features: int) -> None:
        """What the driver chose, before queues start.

        Raises:
            ValueError: not offered, or VERSION_1 is missing.
            RuntimeError: queues run.
        """
        if features & ~self.offered_features:
            raise ValueError(f"features {features & ~self.offered_features:#x} were not offered")
        if self._instance.running:
            raise RuntimeError("stop the queues before features change")
        await self._instance.perform(actions.SetFeatures(features))
        self._features = features

    # Memory

    async def add_memory(self, fd: int, *, gpa: int, size: int, offset: int = 0) -> None:
        """Map `size` bytes of `fd` at `offset` as guest memory at `gpa`; also while queues run.

        Resource handling: the fd stays the caller's and is not kept.

        Raises: RingError: it overlaps, or the file is shorter.
        """
        with OwnedFd(os.dup(fd)) as copy:
            region = actions.Region(MemRegion(gpa, size, gpa, offset), copy)
            await self._instance.perform(actions.AddRegion(region))

    async def remove_memory(self, *, gpa: int, size: int) -> None:
        """Take a region away; also while queues run (one whose rings lie there breaks).

        Raises: RingError: there is none such.
        """
        await self._instance.perform(actions.RemoveRegion(MemRegion(gpa, size, gpa, 0)))

    @property
    def memory(self) -> ring.GuestMemory:
        """The guest's memory as the device sees it; owned by this object."""
        return self._instance.memory

    # Queues

    async def start_queue(
        self,
        index: int,
        *,
        size: int,
        desc: int,
        avail: int,
        used: int,
        kick: int | None,
        call: int | None,
        err: int | None = None,
        base: int | None = None,
    ) -> None:
        """Start queue `index`.

        Args:
            size: entries; split: a power of two.
            desc, avail, used: guest-physical addresses; packed: descriptor ring, driver and device event areas.
            kick: eventfd the guest's notifications arrive at; None: the ring is looked at every millisecond.
            call: eventfd written to interrupt the guest; None: it polls.
            err: eventfd written when the guest broke the ring.
            base: where to go on, as `stop_queue` returned it; None: from the beginning.

        Resource handling: descriptors are duplicated.

        Raises:
            RingError: the ring is not usable.
            ValueError: no such queue, or a size the device does not take.
            RuntimeError: it runs, or features were not set.
        """
        queue = self._queue(index)
        if self._features is None:
            raise RuntimeError("set_features comes first")
        if queue.running:
            raise RuntimeError(f"queue {index} runs already")
        if not 1 <= size <= self.device.max_queue_size:
            raise ValueError(f"queue size {size}, this device takes 1 to {self.device.max_queue_size}")
        packed = bool(self._features & VirtioFeature.RING_PACKED)
        if base is None:
            base = 0x80008000 if packed else 0
        for make, fd in ((actions.SetCall, call), (actions.SetErr, err), (actions.SetKick, kick)):
            with _Borrowed(fd) as copy:
                await self._instance.perform(make(index, copy))
        await self._instance.perform(
            actions.StartQueue(
                actions.QueueConfig(
                    index=index,
                    size=size,
                    packed=packed,
                    base=base,
                    desc=desc,
                    avail=avail,
                    used=used,
                    addr_kind=actions.AddressKind.GPA,
                    features=self._features,
                    enabled=True,
                    log=False,
                    log_addr=None,
                    polled=kick is None,
                )
            )
        )

    async def stop_queue(self, index: int) -> int:
        """Complete what is in flight, then stop; returns the base for the next start.

        Cancellation: the queue takes nothing new and can be stopped again.
        """
        result = await self._instance.perform(actions.StopQueue(self._queue(index).index))
        assert isinstance(result, int)
        return result

    async def reset(self) -> None:
        """Stop all queues and reset the device, as RESET_DEVICE does."""
        for queue in self._instance.queues:
            await queue.stop()
        await self._instance.perform(actions.ResetDevice())

    def _queue(self, index: int) -> Queue:
        if not 0 <= index < len(self._instance.queues):
            raise ValueError(f"queue {index} does not exist, this device has {len(self._instance.queues)}")
        return self._instance.queues[index]

    def queue_error(self, index: int) -> str | None:
        """Why the guest's ring `index` is parked, None while it is not."""
        error = self._queue(index).broken()
        return None if error is None else ring.strerror(error[0])

    # Configuration space

    def read_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space; zeros beyond its end."""
        return self.device.config()[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes `data` at `offset`. Raises: ValueError: refused, or not inside."""
        if offset < 0 or offset + len(data) > len(self.device.config()):
            raise ValueError(f"{len(data)} bytes at {offset} are not inside the configuration space")
        self.device.set_config(offset, data)


class _Borrowed:
    """A duplicate of the caller's descriptor for an action to take; closed if it did not."""

    def __init__(self, fd: int | None) -> None:
        self._copy = None if fd is None or fd < 0 else OwnedFd(os.dup(fd))

    def __enter__(self) -> OwnedFd | None:
        return self._copy

    def __exit__(self, *_exc: object) -> None:
        if self._copy is not None:
            self._copy.close()


class Embedder:
    """Worker threads for embedded devices. Made by `open_embedder`."""

    def __init__(self, pool: WorkerPool, stopping: trio.Event, grace: float) -> None:
        self._pool = pool
        self._stopping = stopping
        self._grace = grace

    @asynccontextmanager
    async def attach(
        self, device: Device, *, options: Options | None = None, config_changed: Callable[[], None] | None = None
    ) -> AsyncIterator[EmbeddedDevice]:
        """Put `device` to work for one guest; leaving the block ends it when its requests in flight have ended.

        Args:
            options: what to offer.
            config_changed: called when the guest should read the configuration space again.
        """
        log = Fields(logging.getLogger("vhost.embed"), {"device": device.name})
        with bare_errors():
            async with open_instance(
                device, self._pool, log=log, limit=RateLimit(), stopping=self._stopping, grace=self._grace
            ) as instance:
                # Regions and rings are known by guest-physical address only.
                await instance.perform(actions.SetProtocolFeatures(int(ProtocolFeature.GPA_ADDRESSES)))
                link = _EmbeddedLink(instance, config_changed or _ignore)
                device.attach(link)
                try:
                    yield EmbeddedDevice(instance, options or Options())
                finally:
                    device.detach(link)


def _ignore(*_args: Any) -> None:
    """Nobody wants to know."""


@asynccontextmanager
async def open_embedder(
    *, workers: WorkerOptions | None = None, policy: Policy = least_loaded, grace: float = 5.0
) -> AsyncIterator[Embedder]:
    """Worker threads for devices in this process; arguments as `open_server`."""
    stopping = trio.Event()
    with bare_errors():
        async with sheltered_nursery() as threads:
            pool = WorkerPool(threads, workers, policy)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(set_when_cancelled, stopping)
                try:
                    yield Embedder(pool, stopping, grace)
                finally:
                    nursery.cancel_scope.cancel()
        pool.close()

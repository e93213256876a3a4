"""A guest's view of a disk without a socket: driver rings, queues and a worker in this process."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.lowlevel

import ring
from devices.blk import Blk

IN, OUT, FLUSH, GET_ID, GET_LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE = 0, 1, 4, 8, 10, 11, 13, 14
OK, IOERR, UNSUPP = 0, 1, 2
UNSET = 0xEE

INDIRECT, EVENT_IDX, VERSION_1, PACKED = 1 << 28, 1 << 29, 1 << 32, 1 << 34
ALL_BLK = 0x1FFFF

MEMORY = 8 << 20
RING = 1 << 20  # bytes of memory for a ring


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


class Queue:
    """One queue with its driver."""

    def __init__(self, rig: Rig, index: int, size: int, features: int) -> None:
        self.rig = rig
        self.gpa = index * (MEMORY // 2)
        area = memoryview(rig.map)[self.gpa : self.gpa + RING]
        self.driver = ring.Driver(area, gpa=self.gpa, size=size, features=features, indirect_max=64)
        assert self.driver.offsets.size <= RING
        self.kick = os.eventfd(0, os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.vq = ring.Virtqueue(rig.memory, index)
        self.vq.start(
            ring.QueueConfig(
                size=size,
                features=features,
                desc=self.driver.desc,
                avail=self.driver.avail,
                used=self.driver.used,
                base=self.driver.base,
                addr_kind=ring.AddressKind.GPA,
                call_fd=self.call,
                news_fd=self.news,
            )
        )
        self.source: Any = rig.disk.make_source(self.vq, rig.worker)
        self.next = self.gpa + RING
        self.token = 0
        self.done: dict[int, int] = {}

    def put(self, data: bytes, align: int = 64, skew: int = 0) -> tuple[int, int]:
        """Copy ``data`` into guest memory; where it is."""
        at = (self.next + align - 1) // align * align + skew
        if at + len(data) > self.gpa + MEMORY // 2:
            at = (self.gpa + RING + align - 1) // align * align + skew
        self.next = at + len(data)
        self.rig.map[at : at + len(data)] = data
        return at, len(data)

    def send(self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]], indirect: bool) -> int:
        self.token += 1
        self.driver.add(readable, writable, token=self.token, indirect=indirect)
        return self.token

    def publish(self) -> None:
        if self.driver.publish():
            os.eventfd_write(self.kick, 1)

    def poll(self) -> None:
        for used in self.driver.poll():
            self.done[used.token] = used.length

    async def wait(self, token: int, seconds: float = 10) -> int:
        """The used length of the request ``token``."""
        with trio.fail_after(seconds):
            while token not in self.done:
                self.poll()
                await trio.lowlevel.checkpoint()
        return self.done.pop(token)

    async def raw(
        self, out: Sequence[bytes], into: Sequence[int], *, indirect: bool = False, align: int = 64, skew: int = 0
    ) -> tuple[int, list[bytes]]:
        """One request of such pieces: the used length, and what the writable pieces hold after it."""
        readable = [self.put(piece) if i == 0 else self.put(piece, align, skew) for i, piece in enumerate(out)]
        writable = [self.put(bytes([UNSET]) * n, 64 if n == 1 else align, 0 if n == 1 else skew) for n in into]
        token = self.send(readable, writable, indirect)
        self.publish()
        used = await self.wait(token)
        return used, [bytes(self.rig.map[at : at + n]) for at, n in writable]

    async def status(self, kind: int, sector: int = 0, data: bytes = b"", length: int = 0) -> int:
        """The status of one ordinary request."""
        return (await self.ask(kind, sector, data, length))[0]

    async def ask(
        self, kind: int, sector: int = 0, data: bytes = b"", length: int = 0, **how: Any
    ) -> tuple[int, bytes]:
        """Status and data of one request: header, data and status each in a descriptor."""
        used, back = await self.raw(
            [header(kind, sector), *([data] if data else [])], [*([length] if length else []), 1], **how
        )
        status = back[-1][0]
        got = back[0] if length else b""
        assert used == (1 + length if status == OK and length else 1), (used, status, length)
        return status, got

    async def read(self, sector: int, length: int, **how: Any) -> bytes:
        status, data = await self.ask(IN, sector, length=length, **how)
        assert status == OK
        return data

    async def write(self, sector: int, data: bytes, **how: Any) -> None:
        assert (await self.ask(OUT, sector, data, **how))[0] == OK

    def close(self) -> None:
        self.source.close()
        self.vq.close()
        self.driver.close()
        for fd in (self.kick, self.call, self.news):
            os.close(fd)


class Rig:
    """Guest memory, a worker, a disk and its queues."""

    def __init__(self, disk: Blk, features: int, size: int, worker: ring.Worker, guest_file: str | None = None) -> None:
        self.disk = disk
        self.worker = worker
        self.features = features
        self.size = size
        if guest_file:
            fd = os.open(guest_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        else:
            fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(fd, MEMORY)
        self.map = mmap.mmap(fd, MEMORY)
        self.memory = ring.GuestMemory()
        self.memory.add_region(fd, gpa=0, size=MEMORY)
        os.close(fd)
        self.queues: list[Queue] = []
        self.nursery: trio.Nursery | None = None

    async def start(self) -> None:
        """Run the worker, on whatever thread."""
        assert self.nursery
        await self.nursery.start(self.worker.run)

    def add_queue(self) -> Queue:
        queue = Queue(self, len(self.queues), self.size, self.features)
        self.queues.append(queue)
        with self.worker.parked():
            self.worker.add(queue.source.ptr)
            self.worker.set_kick(queue.source.ptr, queue.kick)
        return queue

    async def drained(self) -> None:
        """Pause all queues and wait until nothing is in flight."""
        for queue in self.queues:
            with self.worker.parked():
                self.worker.pause(queue.source.ptr)
        with trio.fail_after(60):
            while any(queue.vq.in_flight for queue in self.queues):
                await trio.sleep(0.001)


@asynccontextmanager
async def rig(
    disk: Blk,
    *,
    features: int = ALL_BLK,
    ring_features: int = INDIRECT | VERSION_1,
    size: int = 64,
    queues: int = 1,
    guest_file: str | None = None,
    **how: Any,
) -> AsyncIterator[Rig]:
    """A running ``disk`` of whose features ``features`` are acked.

    ``guest_file`` is where guest memory lives, not a memfd; ``how`` goes to the worker.
    """
    worker = ring.Worker(**how)
    acked = disk.features & features
    disk.features_acked(acked | ring_features)
    here = Rig(disk, acked | ring_features, size, worker, guest_file)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(queues):
                here.add_queue()
            here.nursery = nursery
            await here.start()
            yield here
            await here.drained()
            worker.stop()
    finally:
        for queue in here.queues:
            worker.remove(queue.source.ptr)
            queue.close()
        worker.close()
        here.memory.close()
        here.map.close()


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until ``condition`` holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.001)

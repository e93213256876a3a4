"""A queue, its driver and a few pages of guest memory, for tests of the Python classes."""

from __future__ import annotations

import mmap
import os
from typing import Any, Self

import ring

PACKED, INDIRECT, EVENT_IDX = 1 << 34, 1 << 28, 1 << 29
BUFFERS = 0x40000  # offset and guest-physical address of what is free for buffers
RAM = 0x80000


class Link:
    """Both ends of one ring, on guest-physical addresses that are offsets."""

    def __init__(self, *, size: int = 16, features: int = 0, start: bool = True, **config: Any) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, RAM)
        self.ram = mmap.mmap(self.fd, RAM)
        self.memory = ring.GuestMemory()
        self.memory.add_region(self.fd, gpa=0, size=RAM)
        self.driver = ring.Driver(self.ram, gpa=0, size=size, features=features)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_NONBLOCK)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue = ring.Virtqueue(self.memory, 3)
        self.queue.set_kick(self.kick)
        self.config = ring.QueueConfig(
            size,
            features,
            self.driver.desc,
            self.driver.avail,
            self.driver.used,
            base=self.driver.base,
            call_fd=self.call,
            err_fd=self.err,
            **config,
        )
        if start:
            self.queue.start(self.config)
        self.sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.close()
        self.memory.close()
        self.ram.close()
        for fd in (self.fd, self.call, self.err, self.kick):
            os.close(fd)

    def send(self, data: bytes = b"ping", room: int = 16, *, kick: bool = True) -> int:
        """A request: ``data`` in, ``room`` bytes for the answer. Returns where the answer will be."""
        at = BUFFERS + 64 * (self.sent % 1024)
        self.sent += 1
        self.ram[at : at + len(data)] = data
        self.driver.add([(at, len(data))] if data else [], [(at + 32, room)] if room else [], token=self.sent)
        if self.driver.publish() and kick:
            os.eventfd_write(self.kick, 1)
        return at + 32

    def calls(self) -> int:
        """Notifications since the last look."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    def bad(self) -> None:
        """Make something available that no driver would."""
        self.ram[self.config.avail + 2 : self.config.avail + 4] = b"\xff\x7f"

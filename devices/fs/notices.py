"""What a guest is told without having asked: FUSE's notifications, by a queue of their own.

The driver leaves empty buffers in the queue; each comes back with one message. Drivers that know the queue are rare
(Linux's does not): it is there only where it is asked for and the driver agreed.

Spec: VIRTIO 1.3, 5.11.2, 5.11.3; messages: linux/fuse.h, enum fuse_notify_code.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import ring

__all__ = ["BUFFER_BYTES", "Notice", "Notices", "delete", "inval_entry", "inval_inode", "store"]

_HEADER = struct.Struct("<IiQ")
_INODE = struct.Struct("<Qqq")
_ENTRY = struct.Struct("<QII")
_DELETE = struct.Struct("<QQII")
_STORE = struct.Struct("<QQII")

_DATA = 4096
BUFFER_BYTES = _HEADER.size + _STORE.size + _DATA
"""What the driver is asked to give each message."""

#: messages and bytes that wait for one guest
_MOST = 8192
_MOST_BYTES = 4 << 20
_BATCH = 32


class Notice(IntEnum):
    """Kinds of messages, in the place of a reply's error."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    DELETE = 6


def _message(kind: Notice, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, 0) + body


def _name(name: str) -> bytes:
    raw = os.fsencode(name)
    if not 0 < len(raw) <= 255 or b"/" in raw or b"\0" in raw:
        raise ValueError(f"{name!r} is not the name of a file")
    return raw


def inval_inode(inode: int, offset: int, length: int) -> bytes:
    """Attributes and, from `offset` on, cached content: `length` bytes, 0: to the end; negative offset: no content."""
    return _message(Notice.INVAL_INODE, _INODE.pack(inode, offset, length))


def inval_entry(parent: int, name: str) -> bytes:
    """What `name` in folder `parent` is."""
    raw = _name(name)
    return _message(Notice.INVAL_ENTRY, _ENTRY.pack(parent, len(raw), 0) + raw + b"\0")


def delete(parent: int, inode: int, name: str) -> bytes:
    """`name` is gone, and `inode` was what it was."""
    raw = _name(name)
    return _message(Notice.DELETE, _DELETE.pack(parent, inode, len(raw), 0) + raw + b"\0")


def store(inode: int, offset: int, data: bytes) -> Iterator[bytes]:
    """`data` for the guest's cache, in as many messages as it takes."""
    while data:
        size = min(len(data), _DATA - offset % _DATA)
        yield _message(Notice.STORE, _STORE.pack(inode, offset, size, 0) + data[:size])
        offset, data = offset + size, data[size:]


class Notices:
    """What waits for one guest, and the task that hands it over (`run`).

    A guest that leaves no buffers makes nobody wait: beyond a bound the oldest messages are lost, and counted.

    Attributes:
        agreed: the driver knows the queue.
        sent: messages handed over.
        lost: messages that were dropped.
        short: buffers that were too small for theirs.
    """

    def __init__(self) -> None:
        self.agreed = False
        self.sent = self.lost = self.short = 0
        #: in order; the same twice is the same once
        self._pending: dict[bytes, None] = {}
        self._bytes = 0
        self._news: trio.Event | None = None

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._pending)

    def add(self, message: bytes) -> None:
        """Have it handed over."""
        if message in self._pending:
            del self._pending[message]
        else:
            self._bytes += len(message)
        self._pending[message] = None
        while len(self._pending) > _MOST or self._bytes > _MOST_BYTES:
            self._take()
            self.lost += 1
        if self._news is not None:
            self._news.set()
            self._news = None

    def clear(self) -> None:
        """The guest knows nothing any more that could have changed."""
        self._pending.clear()
        self._bytes = 0

    def _take(self) -> bytes:
        message = next(iter(self._pending))
        del self._pending[message]
        self._bytes -= len(message)
        return message

    async def run(self, queue: ring.Virtqueue) -> None:
        """Work on the queue until it stops. Buffers stay with the driver until there is something for them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_the_end, queue, nursery.cancel_scope)
            await self._hand_over(queue)
            nursery.cancel_scope.cancel()

    async def _hand_over(self, queue: ring.Virtqueue) -> None:
        while True:
            while not self._pending:
                if self._news is None:
                    self._news = trio.Event()
                await self._news.wait()
            if not await queue.wait():
                return
            if self._pending:
                for buffer in queue.pop_batch(min(len(self._pending), _BATCH)):
                    buffer.complete(self._fill(buffer))
                queue.flush()

    def _fill(self, buffer: ring.Chain) -> int:
        """The next message, in a buffer; returns its bytes, 0 where there is no room for it."""
        if buffer.in_bytes < len(next(iter(self._pending))):
            self.short += 1
            return 0
        self.sent += 1
        return buffer.write(0, self._take())


async def _cancel_at_the_end(queue: ring.Virtqueue, scope: trio.CancelScope) -> None:
    await queue.ended()
    scope.cancel()

"""A small FUSE client on a request queue of our front-end: what a load generator needs before and after a run."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import trio

from vhost.errors import DeviceError
from vhost.frontend import Frontend, NativeRing, Queue

__all__ = ["ROOT", "Client", "Node"]

ROOT: Final = 1
LOOKUP, GETATTR, MKDIR, UNLINK, RMDIR = 1, 3, 9, 10, 11
OPEN, RELEASE, INIT, OPENDIR, CREATE, DESTROY = 14, 18, 26, 27, 35, 38

_MINOR: Final = 38
_FLAGS: Final = sum(
    1 << bit
    for bit in (
        0,  # ASYNC_READ
        1,  # POSIX_LOCKS
        3,  # ATOMIC_O_TRUNC
        4,  # EXPORT_SUPPORT
        5,  # BIG_WRITES
        6,  # DONT_MASK
        10,  # FLOCK_LOCKS
        12,  # AUTO_INVAL_DATA
        13,  # DO_READDIRPLUS
        14,  # READDIRPLUS_AUTO
        15,  # ASYNC_DIO
        18,  # PARALLEL_DIROPS
        22,  # MAX_PAGES
        23,  # CACHE_SYMLINKS
        25,  # EXPLICIT_INVAL_DATA
        27,  # SUBMOUNTS
        28,  # HANDLE_KILLPRIV_V2
        30,  # INIT_EXT
    )
)
"""What a Linux guest offers and a load can do without noticing."""

_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_IN: Final = struct.Struct("<IIIII44x")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHH")
_ENTRY: Final = struct.Struct("<QQQQIIQQ")
"""Node, generation, times; of the attributes inode and size."""
_SLOT: Final = 512
_SLOTS: Final = 32
_TIMEOUT_S: Final = 20
_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Node:
    """What a look-up tells."""

    node: int
    ino: int
    size: int


class _Request(NamedTuple):
    opcode: int
    node: int
    body: bytes
    room: int


class Client:
    """Requests on `queue`, one at a time or many at once, as `uid` and `gid` of this process.

    Resource handling: takes a little of the front-end's memory and gives it back on `close`.
    """

    def __init__(self, frontend: Frontend, queue: Queue) -> None:
        assert isinstance(queue.ring, NativeRing)
        self._link = frontend.link
        self._memory = memory = frontend.memory
        self._queue = queue
        self._ring = queue.ring
        self._gpa = memory.alloc(_SLOT * 2 * _SLOTS, _SLOT)
        self._unique = 0
        self.max_write = 0

    def close(self) -> None:
        """Nothing may be in flight."""
        self._memory.free(self._gpa)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def call(self, opcode: int, node: int, body: bytes = b"", room: int = 0) -> bytes:
        """One request; what follows the reply's header. Raises: OSError: it says so."""
        (reply,) = await self.call_many([_Request(opcode, node, body, room)])
        if isinstance(reply, OSError):
            raise reply
        return reply

    async def call_many(self, requests: Sequence[Any]) -> list[bytes | OSError]:
        """Many at once (opcode, node, body, room); answers in the same order.

        Raises:
            VhostError: the connection broke.
            DeviceError: no answer, or nonsense.
        """
        answers: dict[int, bytes | OSError] = {}
        free = list(range(_SLOTS))
        sent = 0
        asked: dict[int, tuple[int, int]] = {}
        with trio.move_on_after(_TIMEOUT_S) as scope:
            while len(answers) < len(requests):
                while free and sent < len(requests):
                    slot = free.pop()
                    asked[slot] = sent, self._send(slot, requests[sent])
                    sent += 1
                if self._ring.publish():
                    os.eventfd_write(self._queue.kick_fd, 1)
                for used in await self._come_back():
                    number, unique = asked.pop(used.token)
                    answers[number] = self._answer(used.token, used.length, unique)
                    free.append(used.token)
        if scope.cancelled_caught:
            raise DeviceError(f"the back-end left a request unanswered for {_TIMEOUT_S} s")
        return [answers[number] for number in range(len(requests))]

    def _send(self, slot: int, request: Any) -> int:
        opcode, node, body, room = request
        self._unique += 2
        at = self._gpa + 2 * _SLOT * slot
        size = _IN.size + len(body)
        header = _IN.pack(size, opcode, self._unique, node, os.geteuid(), os.getegid(), os.getpid(), 0, 0)
        self._memory.write(at, header + body)
        out = [(at, _IN.size), *([(at + _IN.size, len(body))] if body else [])]
        self._ring.add(out, [(at + _SLOT, _OUT.size), *([(at + _SLOT + _OUT.size, room)] if room else [])], slot)
        return self._unique

    async def _come_back(self) -> list[Any]:
        while True:
            if used := self._ring.poll():
                return list(used)
            if not self._ring.calls_on():
                with trio.move_on_after(_LOOK_S):
                    await trio.lowlevel.wait_readable(self._queue.call_fd)
                self._link.check()
                with suppress(BlockingIOError):
                    os.eventfd_read(self._queue.call_fd)
            self._ring.calls_off()

    def _answer(self, slot: int, length: int, unique: int) -> bytes | OSError:
        at = self._gpa + 2 * _SLOT * slot + _SLOT
        if not length and self._opcode(slot) == DESTROY:
            return b""  # virtiofsd in Rust does not answer it
        if length < _OUT.size:
            raise DeviceError(f"the back-end answered with {length} bytes")
        told, error, which = _OUT.unpack(self._memory.read(at, _OUT.size))
        if told != length or which != unique:
            raise DeviceError(f"the back-end's answer says {told} bytes and number {which}: {length}, {unique}")
        if error:
            return OSError(-error, os.strerror(-error))
        return self._memory.read(at + _OUT.size, length - _OUT.size)

    def _opcode(self, slot: int) -> int:
        return int.from_bytes(self._memory.read(self._gpa + 2 * _SLOT * slot + 4, 4), "little")

    # FUSE

    async def init(self) -> None:
        """Begin. Raises: DeviceError: it speaks another FUSE, or fails."""
        try:
            reply = await self.call(INIT, 0, _INIT_IN.pack(7, _MINOR, 1 << 20, _FLAGS, 0), 64)
        except OSError as error:
            raise DeviceError(f"the back-end refuses FUSE_INIT: {error.strerror}") from error
        major, minor, *_rest, self.max_write, _gran, _pages, _align = _INIT_OUT.unpack_from(reply)
        if (major, minor) < (7, 23):
            raise DeviceError(f"the back-end speaks FUSE {major}.{minor}, too old for this front-end")

    async def destroy(self) -> None:
        """The end: the back-end forgets all of it."""
        try:
            await self.call(DESTROY, 0)
        except OSError as error:
            raise DeviceError(f"the back-end refuses FUSE_DESTROY: {error.strerror}") from error

    async def lookup(self, parent: int, names: Sequence[str]) -> list[Node | None]:
        """None: there is no such name. Raises: OSError: any other error."""
        return [_found(reply) for reply in await self.call_many([(LOOKUP, parent, _z(name), 128) for name in names])]

    async def mkdir(self, parent: int, name: str) -> Node:
        """A folder for everyone. Raises: OSError."""
        return _node(await self.call(MKDIR, parent, struct.pack("<II", 0o755, 0) + _z(name), 128))

    async def create(self, parent: int, names: Sequence[str]) -> list[Node]:
        """Empty files. Raises: OSError: the first that fails."""
        nodes: list[Node] = []
        # handles are open between the two: few at a time
        for start in range(0, len(names), _SLOTS):
            nodes += await self._create(parent, names[start : start + _SLOTS])
        return nodes

    async def _create(self, parent: int, names: Sequence[str]) -> list[Node]:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        body = struct.pack("<IIII", flags, 0o100644, 0, 0)
        replies = _all(await self.call_many([(CREATE, parent, body + _z(name), 144) for name in names]))
        nodes = [_node(reply) for reply in replies]
        handles = [int.from_bytes(reply[128:136], "little") for reply in replies]
        closes = [struct.pack("<QIIQ", fh, flags, 0, 0) for fh in handles]
        _all(await self.call_many([(RELEASE, node.node, body, 0) for node, body in zip(nodes, closes, strict=True)]))
        return nodes

    async def open(self, nodes: Sequence[int], flags: int, *, folders: bool = False) -> list[int]:
        """Handles. Raises: OSError: the first that fails."""
        opcode = OPENDIR if folders else OPEN
        replies = await self.call_many([(opcode, node, struct.pack("<II", flags, 0), 16) for node in nodes])
        return [int.from_bytes(reply[:8], "little") for reply in _all(replies)]

    async def remove(self, parent: int, names: Sequence[str], *, folders: bool = False) -> None:
        """Unlink names that may be gone already. Raises: OSError."""
        opcode = RMDIR if folders else UNLINK
        for reply in await self.call_many([(opcode, parent, _z(name), 0) for name in names]):
            if isinstance(reply, OSError) and reply.errno != errno.ENOENT:
                raise reply


def _z(name: str) -> bytes:
    return name.encode() + b"\0"


def _node(reply: bytes) -> Node:
    node, _generation, *_times, ino, size = _ENTRY.unpack_from(reply)
    return Node(node, ino, size)


def _found(reply: bytes | OSError) -> Node | None:
    if isinstance(reply, OSError):
        if reply.errno != errno.ENOENT:
            raise reply
        return None
    found = _node(reply)
    return found if found.node else None  # a name that is known to be absent


def _all(replies: Sequence[bytes | OSError]) -> list[bytes]:
    found = []
    for reply in replies:
        if isinstance(reply, OSError):
            raise reply
        found.append(reply)
    return found

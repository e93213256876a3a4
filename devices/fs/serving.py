"""How a `Filesystem` is served: requests decoded by C become tasks that call its methods, results become replies.

One `PythonServer` is one guest's view of a file system: what the guest knows of it (inodes, open files, listings) and
nothing else. A guest is hostile: methods only ever see inodes and handles that it was given and that fit each other.

Life of what a guest knows
    inode   each reply that names it counts one, FORGET takes back; at 0, and when no request uses it: `forget`
    handle  OPEN, CREATE to RELEASE or the session's end; when no request uses it: `release`
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from devices.fs._fs import ffi, lib
from devices.fs.config import InitFlag, Opcode
from devices.fs.filesystem import Caller, FileHandle, Filesystem, Inode, LockOwner, _caller, _guest
from devices.fs.known import Handle, Handles, Inodes
from devices.fs.notices import Notices
from devices.fs.requests import OPERATIONS, Operation, Reply, forget, release, releasedir
from devices.fs.server import Server
from vhost import Metric
from vhost._log import RateLimit

if TYPE_CHECKING:
    import ring

__all__ = ["PythonServer"]

log = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that requests have to end when their guest is gone
_LOOK = 0.05  # seconds between looks at a queue that may be paused while requests wait for locks
_OPCODES = frozenset(Opcode)
_guests = itertools.count(1)


def init_flags(fs: Filesystem) -> InitFlag:
    """What the guest may be told that `fs` can do: what follows from the methods it brings."""
    flags = InitFlag.AUTO_INVAL_DATA | InitFlag.ASYNC_DIO
    if fs.overrides("setlk") and fs.overrides("getlk"):
        flags |= InitFlag.POSIX_LOCKS
    if fs.overrides("flock"):
        flags |= InitFlag.FLOCK_LOCKS
    if fs.overrides("readdir") and fs.overrides("lookup"):
        flags |= InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO
    if not fs.overrides("open"):
        flags |= InitFlag.NO_OPEN_SUPPORT
    if fs.writeback:
        flags |= InitFlag.WRITEBACK_CACHE
    return flags


class PythonServer(Server):
    """Serves `fs` to one guest.

    Args:
        fs: may be served to others by servers of their own.
        concurrency: requests of one queue that are worked on at once; those that wait for locks are not counted.
    """

    def __init__(self, fs: Filesystem, *, concurrency: int = 64) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least 1 request is worked on")
        self.fs = fs
        self.description = type(fs).__name__
        #: the methods it brings
        self.has = frozenset(name for name in fs.METHODS if fs.overrides(name))
        self.inodes = Inodes(fs)
        self.handles = Handles(fs)
        self.notices = Notices()
        fs._guests.add(self)
        self._concurrency = concurrency
        self._guest = next(_guests)
        #: by opcode: answered, and of them with an error; 0: opcodes that nobody knows
        self.requests: Counter[int] = Counter()
        self.errors: Counter[int] = Counter()
        self._works: set[_Work] = set()
        self._scratch: Any = ffi.new("char[]", 65536)
        self._complain = RateLimit()
        ptr = lib.fs_py_server_new(int(init_flags(fs)))
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a file system's server")
        self.ptr: Any = ffi.gc(ptr, lib.fs_py_server_free)

    def reset(self) -> None:
        """As `Server.reset`. Requests in flight have a second to end before they are cancelled."""
        for work in self._works:
            work.leave()
        self.forget_guest()

    def forget_guest(self) -> None:
        """The guest is gone, or starts anew: locks end, files are closed, inodes forgotten."""
        lib.fs_py_reset(self.ptr)
        self.notices.clear()
        self.handles.clear()
        self.inodes.clear()

    def tell(self, inode: int, messages: Iterable[bytes]) -> bool:
        """As `Guest.tell`."""
        if not self.notices.agreed or inode not in self.inodes:
            return False
        for message in messages:
            self.notices.add(message)
        return True

    async def run(self, queue: ring.Virtqueue) -> None:
        """As `Server.run`. What is unanswered when the queue has stopped is cancelled.

        Cancellation: likewise.
        """
        async with trio.open_nursery() as nursery:
            work = _Work(self, queue, await nursery.start(_requests))
            self._works.add(work)
            try:
                async for chain in queue:
                    if work.busy >= self._concurrency:
                        await work.room()
                    work.begin(chain)
            finally:
                self._works.discard(work)
            nursery.cancel_scope.cancel()

    def info(self) -> dict[str, Any]:
        """As `Server.info`."""
        found = {"methods": sorted(self.has), "inodes": len(self.inodes), "handles": len(self.handles)}
        if self.notices.agreed:
            found["notifications"] = {name: getattr(self.notices, name) for name in ("sent", "lost", "short")}
        return {**super().info(), **found}

    def metrics(self) -> Iterator[Metric]:
        """As `Server.metrics`."""
        yield Metric("fs_mounted", "gauge", "1 while a guest has it mounted.", lib.fs_py_ready(self.ptr))
        yield Metric("fs_inodes", "gauge", "Inodes that the guest knows.", len(self.inodes))
        yield Metric("fs_handles", "gauge", "Files and folders that the guest has open.", len(self.handles))
        if self.notices.agreed:
            told = self.notices
            yield Metric("fs_notifications_total", "counter", "Messages that the guest was sent.", told.sent)
            yield Metric("fs_notifications_lost_total", "counter", "Messages dropped: it took none.", told.lost)
        for opcode, number in tuple(self.requests.items()):
            label = {"op": Opcode(opcode).name.lower() if opcode in _OPCODES else "unknown"}
            yield Metric("fs_requests_total", "counter", "Requests answered.", number, label)
            yield Metric("fs_errors_total", "counter", "Requests answered with an error.", self.errors[opcode], label)

    # What handlers ask for

    def data(self, q: Any) -> bytes:
        """What a request brings besides its arguments."""
        size: int = q.data_len
        if size > len(self._scratch):
            self._scratch = ffi.new("char[]", size)  # at most what a chain holds, and kept
        data: bytes = ffi.unpack(self._scratch, lib.fs_py_read(q, 0, self._scratch, size))
        return data

    def owner(self, number: int) -> LockOwner:
        """The owner of locks that the guest calls `number`."""
        return LockOwner((self._guest, number))

    @contextmanager
    def maybe_handle(self, number: int | None, inode: Inode) -> Iterator[FileHandle | None]:
        """The file system's name of handle `number`, for the length of the block; None where there is none."""
        if number is None or (not number and "open" not in self.has):
            yield None
            return
        handle = self.handles.enter(number, inode)
        try:
            yield handle.fh
        finally:
            self.handles.leave(handle)


async def _requests(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A nursery for requests: it can be cancelled without the task that takes them from the queue."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


class _Slot:
    """A request on its way: what C keeps of it."""

    __slots__ = ("ptr", "q")

    def __init__(self, server: PythonServer) -> None:
        ptr = lib.fs_py_slot_new(server.ptr)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a request")
        self.ptr: Any = ffi.gc(ptr, lib.fs_py_slot_free)
        self.q: Any = lib.fs_py_req(ptr)


class _Work:
    """The requests of one queue."""

    def __init__(self, server: PythonServer, queue: ring.Virtqueue, nursery: trio.Nursery) -> None:
        self.busy = 0
        self._server = server
        self._queue = queue
        self._nursery = nursery
        self._free: list[_Slot] = []
        self._room: trio.Event | None = None
        self._waiting: set[trio.CancelScope] = set()
        self._leaving = self._gone = False

    async def room(self) -> None:
        """Wait until a request is done."""
        self._room = trio.Event()
        await self._room.wait()

    def begin(self, chain: ring.Chain) -> None:
        """Answer a request at once, or start a task that does."""
        slot = self._free.pop() if self._free else _Slot(self._server)
        error = lib.fs_py_decode(slot.ptr, chain.ptr) or (-errno.EIO if self._gone else 0)
        if error:
            self._end(slot, chain, (lib.fs_py_fail, error))
            return
        try:
            operation = self._at_once(slot)
        except OSError as exc:
            self._end(slot, chain, (lib.fs_py_fail, exc.errno or errno.EIO))
            return
        if not isinstance(operation, Operation):
            self._end(slot, chain, operation)
        elif slot.q.opcode == Opcode.SETLKW:
            self._nursery.start_soon(self._wait, slot, chain, operation)
        else:
            self.busy += 1
            self._nursery.start_soon(self._task, slot, chain, operation)

    def _at_once(self, slot: _Slot) -> Operation | Reply:
        """The reply to what needs no waiting, or else what is to be done."""
        server, q = self._server, slot.q
        operation = OPERATIONS.get(q.opcode)
        if operation is not None:
            if not lib.fs_py_ready(server.ptr):
                raise OSError(errno.EIO, "a request before INIT")
            if operation.methods and server.has.isdisjoint(operation.methods):
                return self._unable(q.opcode)
            return operation
        if q.opcode == Opcode.FORGET:
            return forget(server, q)
        if q.opcode == Opcode.RELEASE:
            return release(server, q)
        if q.opcode == Opcode.BATCH_FORGET:
            return self._forget_many(slot)
        if q.opcode == Opcode.RELEASEDIR:
            return releasedir(server, q)
        if q.opcode in (Opcode.INIT, Opcode.DESTROY):
            server.forget_guest()
            return (lib.fs_py_init,) if q.opcode == Opcode.INIT else (lib.fs_py_fail, 0)
        if q.opcode == Opcode.INTERRUPT:
            return (lib.fs_py_none,)
        return (lib.fs_py_fail, errno.ENOSYS)

    def _unable(self, opcode: int) -> Reply:
        if opcode == Opcode.OPEN and not lib.fs_py_flags(self._server.ptr) & InitFlag.NO_OPEN_SUPPORT:
            return lib.fs_py_opened, 0, 0  # an older guest takes ENOSYS for an error
        return (lib.fs_py_fail, errno.ENOSYS)

    def _forget_many(self, slot: _Slot) -> Reply:
        inode, times = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        index = 0
        while lib.fs_py_forget(slot.q, index, inode, times):
            self._server.inodes.forget(inode[0], times[0])
            index += 1
        return (lib.fs_py_none,)

    async def _task(self, slot: _Slot, chain: ring.Chain, operation: Operation) -> None:
        try:
            reply = await self._answer(slot, operation)
        except trio.Cancelled:
            self._end(slot, chain, (lib.fs_py_fail, errno.EIO))
            raise
        finally:
            self.busy -= 1
            if self._room is not None:
                self._room.set()
                self._room = None
        self._end(slot, chain, reply)

    async def _wait(self, slot: _Slot, chain: ring.Chain, operation: Operation) -> None:
        """A lock may be held for ever, a queue must be able to stop: who still waits then is told to try again."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            if len(self._waiting) == 1:
                self._nursery.start_soon(self._watch)
            reply: Reply = (lib.fs_py_fail, errno.EAGAIN)
            try:
                reply = await self._answer(slot, operation)
            except trio.Cancelled:
                if not scope.cancel_called:
                    self._end(slot, chain, (lib.fs_py_fail, errno.EIO))
                raise
            finally:
                self._waiting.discard(scope)
        self._end(slot, chain, reply)

    def leave(self) -> None:
        """The guest is gone."""
        if not self._leaving:
            self._leaving = True
            self._nursery.start_soon(self._leave)

    async def _leave(self) -> None:
        await trio.sleep(_GRACE)
        self._gone = True
        self._nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        while self._waiting:
            await trio.sleep(_LOOK)
            if self._queue.paused:
                for scope in tuple(self._waiting):
                    scope.cancel()

    async def _answer(self, slot: _Slot, operation: Operation) -> Reply:
        server, q = self._server, slot.q
        _caller.set(Caller(q.uid, q.gid, q.pid, q.umask))
        _guest.set(server)
        try:
            inode = server.inodes.enter(q.nodeid)
            try:
                if not operation.handle or (operation.handle == "file" and not q.fh and "open" not in server.has):
                    return await operation.handler(server, q, inode, None)
                handle: Handle = server.handles.enter(q.fh, inode, folder=operation.handle == "folder")
                try:
                    return await operation.handler(server, q, inode, handle)
                finally:
                    server.handles.leave(handle)
            finally:
                server.inodes.leave(inode)
        except OSError as exc:
            return (lib.fs_py_fail, exc.errno or errno.EIO)
        except Exception as exc:
            return (lib.fs_py_fail, self._error(exc, q))

    def _error(self, exc: Exception, q: Any) -> int:
        """The errno of what is no `OSError`: alone in groups of nurseries, or else a mistake of the file system's."""
        inner: BaseException = exc
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        if isinstance(inner, OSError):
            return inner.errno or errno.EIO
        if self._server._complain():
            what = Opcode(q.opcode).name
            log.error("%s failed at %s of inode %d", type(self._server.fs).__name__, what, q.nodeid, exc_info=exc)
        return errno.EIO

    def _end(self, slot: _Slot, chain: ring.Chain, reply: Reply) -> None:
        """Write the reply and give the request back, unless its queue has stopped."""
        try:
            _ = chain.ptr
        except RuntimeError:  # not ours any more
            return
        opcode = slot.q.opcode
        if opcode not in _OPCODES:
            opcode = 0
        self._server.requests[opcode] += 1
        if reply[0] is lib.fs_py_fail and reply[1]:
            self._server.errors[opcode] += 1
        try:
            written = reply[0](slot.ptr, *reply[1:])
        except (OverflowError, TypeError, ValueError) as exc:  # a number that no field holds
            written = lib.fs_py_fail(slot.ptr, self._error(exc, slot.q))
        chain.complete(written)
        self._free.append(slot)

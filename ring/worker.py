"""A worker: a C loop on a thread of its own that polls the queues of any devices and VMs and never takes the GIL."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

import trio
from _cffi_backend import FFI

from ring._ring import ffi, lib
from ring.errors import check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["SourcePtr", "Worker", "WorkerPtr", "WorkerStats"]

WorkerPtr = NewType("WorkerPtr", FFI.CData)
SourcePtr = NewType("SourcePtr", FFI.CData)


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters since the worker was made; ``cpu_ns`` is thread CPU time."""

    loops: int
    sleeps: int
    wakeups: int
    submits: int
    parks: int
    cpu_ns: int


class Worker:
    """Runs sources: what a device in C makes of a queue.

    Args:
        poll_us: how long to poll after the last request, microseconds; -1 follows the load, 0 never polls.
        cpu: pin the thread to this CPU; None: do not.
        uring_entries: size of the io_uring submission queue, a power of two; 0: no io_uring.
        max_poll_us: upper end of the window when it follows the load, microseconds; 0: the default.
        coalesce_us: notifications of a driver with many requests under way are held back for so long at most, while the
            worker polls, microseconds, up to 100,000; 0: they are not. Needs EVENT_IDX and a split ring.

    Sources are added, removed and changed while the worker is parked or not running::

        async with worker.aparked():
            worker.add(source)
    """

    def __init__(
        self,
        *,
        poll_us: int = lib.RING_POLL_ADAPTIVE,
        cpu: int | None = None,
        uring_entries: int = 256,
        max_poll_us: int = 0,
        coalesce_us: int = 0,
    ) -> None:
        self._ptr: WorkerPtr | None = None
        self._running = False
        self._parks = 0
        self._sources: dict[int, SourcePtr] = {}
        options = ffi.new("struct ring_worker_options *")
        options.poll_us = poll_us
        options.cpu = -1 if cpu is None else cpu
        options.uring_entries = uring_entries
        options.max_poll_us = max_poll_us
        options.coalesce_us = coalesce_us
        ptr = lib.ring_worker_new(options)
        if ptr == ffi.NULL:
            raise MemoryError("no memory or file descriptors for a worker")
        self._ptr = WorkerPtr(ptr)
        # its thread and its parks never compete with other users of threads
        self._run_limiter = trio.CapacityLimiter(1)
        self._park_limiter = trio.CapacityLimiter(1)

    @property
    def ptr(self) -> WorkerPtr:
        """The ``struct ring_worker *``.

        Raises:
            RuntimeError: the worker was closed.
        """
        if self._ptr is None:
            raise RuntimeError("this worker is closed")
        return self._ptr

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the loop on a thread, until `stop` or cancellation; may be run again.

        Cancellation: stops the loop and waits for the thread: when this returns, or raises, the thread is back.

        Raises:
            RingError: the loop could not be set up.
            RuntimeError: it runs already.
        """
        ptr = self.ptr
        if self._running:
            raise RuntimeError("this worker runs already")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._running = True
        result = 0
        back = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_cancelled, back)
                task_status.started()
                # shielded: once asked for, the thread starts, and the stop is its alone
                with trio.CancelScope(shield=True):
                    result = await trio.to_thread.run_sync(lib.ring_worker_run, ptr, limiter=self._run_limiter)
                back.set()
                nursery.cancel_scope.cancel()
        finally:
            self._running = False
        check(result, "worker")

    async def _stop_when_cancelled(self, back: trio.Event) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not back.is_set():  # else the stop would be the next run's
                lib.ring_worker_stop(self.ptr)

    @property
    def running(self) -> bool:
        """The thread is there."""
        return self._running

    def stop(self) -> None:
        """End the loop soon; `run` returns then. A worker that does not run is left alone."""
        if self._running:
            lib.ring_worker_stop(self.ptr)

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Hold the worker at a safe point, outside of every source. Parks nest.

        Waits with the GIL released. That takes microseconds, unless the guest's memory is on its way from another
        host (postcopy): use `aparked` where the event loop must not wait.
        """
        lib.ring_worker_park(self.ptr)
        self._parks += 1
        try:
            yield
        finally:
            self._parks -= 1
            lib.ring_worker_resume(self.ptr)

    @asynccontextmanager
    async def aparked(self) -> AsyncIterator[None]:
        """As `parked`, but the event loop runs on while the worker is being waited for.

        Cancellation: before the park is asked for; once it is, the wait is carried through.
        """
        await trio.to_thread.run_sync(lib.ring_worker_park, self.ptr, limiter=self._park_limiter)
        self._parks += 1
        try:
            yield
        finally:
            self._parks -= 1
            lib.ring_worker_resume(self.ptr)

    def _at_rest(self) -> WorkerPtr:
        if self._running and not self._parks:
            raise RuntimeError("park the worker first: it runs")
        return self.ptr

    def add(self, source: SourcePtr) -> None:
        """Run ``source`` (a ``struct ring_source *``, as devices make it) too; it stays its owner's. While parked.

        Raises:
            RingError: it is there already, or the kick fd cannot be waited for.
            RuntimeError: the worker runs and is not parked.
        """
        check(lib.ring_worker_add(self._at_rest(), source), "adding a queue to a worker")
        self._sources[_address(source)] = source

    def remove(self, source: SourcePtr) -> None:
        """Forget ``source``. While parked.

        Raises:
            RingError: it is not here.
            RuntimeError: the worker runs and is not parked.
        """
        check(lib.ring_worker_remove(self._at_rest(), source), "removing a queue from a worker")
        self._sources.pop(_address(source), None)

    def pause(self, source: SourcePtr, paused: bool = True) -> None:
        """Let ``source`` take nothing new; what it has still completes. While parked.

        The queue's ``news_fd`` is written when nothing is in flight any more.
        """
        self._at_rest()
        lib.ring_source_pause(source, paused)

    def wake(self, source: SourcePtr) -> None:
        """Look at the source's queue once even without a kick: after start, resume, IOTLB update. While parked."""
        self._at_rest()
        lib.ring_source_wake(source)

    def set_kick(self, source: SourcePtr, fd: int | None) -> None:
        """Wait for kicks on ``fd`` (not owned); None or -1: look every millisecond. While parked.

        Raises:
            RingError: the fd cannot be waited for.
        """
        self._at_rest()
        check(lib.ring_source_set_kick(source, -1 if fd is None else fd), f"kick fd {fd} of a queue")

    @property
    def sources(self) -> int:
        """How many sources it runs."""
        return len(self._sources)

    @property
    def stats(self) -> WorkerStats:
        """Counters; may be read while it runs."""
        out = ffi.new("struct ring_worker_stats *")
        lib.ring_worker_stats(self.ptr, out)
        return WorkerStats(out.loops, out.sleeps, out.wakeups, out.submits, out.parks, out.cpu_ns)

    @property
    def has_uring(self) -> bool:
        """io_uring was asked for and works on this machine."""
        return bool(lib.ring_worker_has_uring(self.ptr))

    def close(self) -> None:
        """Free it. May be called again.

        Raises:
            RuntimeError: it runs, or has sources.
        """
        if self._ptr is None:
            return
        if self._running or self._sources:
            raise RuntimeError("a worker is closed after it was stopped and its sources were removed")
        ptr, self._ptr = self._ptr, None
        lib.ring_worker_free(ptr)

    def __del__(self) -> None:
        if getattr(self, "_ptr", None) is not None and not self._running and not self._sources:
            self.close()


def _address(ptr: SourcePtr) -> int:
    return int(ffi.cast("uintptr_t", ptr))

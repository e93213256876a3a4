"""One queue of a front-end: a driver ring, its eventfds, and requests that can be awaited."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from vhost.errors import QueueBroken, VhostError
from vhost.frontend.memory import Memory
from vhost.frontend.rings import Buffer, DriverRing, Used


@dataclass(eq=False)
class _Waiter:
    out: list[Buffer]
    in_: list[Buffer]
    event: trio.Event = field(default_factory=trio.Event)
    used: Used | None = None


class Queue:
    """A queue as the driver sees it.

    `request` is the easy way; `ring` gives raw access to descriptors (then do not use `request` at the same time).

    Attributes:
        index, size: as negotiated.
        ring: the driver ring.
        call, kick, err: eventfds, owned by the queue; -1 where there is none.
        started, enabled: what the back-end was told.
        error: why it takes no more requests.
    """

    def __init__(
        self, memory: Memory, index: int, ring: DriverRing, *, notify: bool = True, timeout: float = 10
    ) -> None:
        """Args: notify: False to poll instead of being called; timeout: seconds that requests may take."""
        self.memory = memory
        self.index = index
        self.ring = ring
        self.size = ring.size
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if notify else -1
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.started = False
        self.enabled = False
        self.error: VhostError | None = None
        self.calls = 0
        """Notifications the back-end sent."""
        self.kicks = 0
        """Kicks we sent."""
        self._timeout = timeout
        self._waiters: dict[int, _Waiter] = {}
        self._token = 0

    # Requests

    async def request(
        self,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        indirect: bool = False,
        timeout: float | None = None,
    ) -> tuple[int, list[bytes]]:
        """Send one request and wait until it comes back.

        Args:
            out: contents of the readable buffers, each in memory of its own.
            in_: lengths of the writable buffers, bytes.
            indirect: describe the buffers in an indirect table.
            timeout: seconds; None: as the front-end was told.

        Returns: the bytes the device says it wrote, and the writable buffers.

        Raises:
            QueueBroken: the ring is broken, or the device did not answer in time.
            ConnectionClosed: the back-end went away.
            BlockingIOError: the ring is full.

        Cancellation: the buffers stay reserved until the request comes back.
        """
        if self.error is not None:
            raise self.error
        timeout = self._timeout if timeout is None else timeout
        waiter = _Waiter([], [])
        for data in out:
            at = self.memory.alloc(len(data))
            self.memory.write(at, data)
            waiter.out.append((at, len(data)))
        waiter.in_ += [(self.memory.alloc(length), length) for length in in_]
        self._token += 1
        token = self._token
        try:
            self.ring.add(waiter.out, waiter.in_, token, indirect=indirect)
        except BaseException:
            self._free(waiter)
            raise
        self._waiters[token] = waiter
        if self.ring.publish():
            self.kick()
        try:
            with trio.fail_after(timeout):
                await self._wait(waiter)
        except trio.TooSlowError:
            raise QueueBroken(self.index, f"a request was not answered within {timeout:g} s") from None
        if waiter.used is None:
            raise QueueBroken(self.index, "it ended with the request in flight") from self.error
        result = [self.memory.read(at, length) for at, length in waiter.in_]
        self._free(waiter)
        del self._waiters[token]
        return waiter.used.length, result

    async def _wait(self, waiter: _Waiter) -> None:
        if self.call_fd >= 0:
            await waiter.event.wait()
            return
        while not waiter.event.is_set():
            self.reap()
            await trio.sleep(0.0002)

    def _free(self, waiter: _Waiter) -> None:
        for at, _ in (*waiter.out, *waiter.in_):
            self.memory.free(at)

    def reap(self) -> int:
        """Take what came back and wake those who wait for it; returns how many."""
        count = 0
        try:
            while True:
                for used in self.ring.poll():
                    count += 1
                    if (waiter := self._waiters.get(used.token)) is not None:
                        waiter.used = used
                        waiter.event.set()
                if not self.ring.calls_on():
                    return count
        except QueueBroken as error:
            self.fail(QueueBroken(self.index, error.reason))
            return count

    def kick(self) -> None:
        """Tell the back-end to look."""
        self.kicks += 1
        os.eventfd_write(self.kick_fd, 1)

    def fail(self, error: VhostError) -> None:
        """Waiting requests and all later ones raise `error`."""
        self.error = self.error or error
        for waiter in self._waiters.values():
            waiter.event.set()

    @property
    def in_flight(self) -> int:
        """Requests made by `request` that have not come back."""
        return sum(1 for waiter in self._waiters.values() if waiter.used is None)

    # Tasks

    async def serve_calls(self) -> None:
        """Reap whenever the back-end notifies."""
        while self.call_fd >= 0:
            try:
                await trio.lowlevel.wait_readable(self.call_fd)
            except trio.ClosedResourceError:
                return  # another queue took this one's place
            try:
                self.calls += os.eventfd_read(self.call_fd)
            except BlockingIOError:
                continue
            self.reap()

    async def serve_errors(self) -> None:
        """Watch the err eventfd."""
        try:
            await trio.lowlevel.wait_readable(self.err_fd)
        except trio.ClosedResourceError:
            return
        self.fail(QueueBroken(self.index, "the back-end reported an error on this ring"))

    def close(self) -> None:
        """Close the eventfds and free the ring; a second call does nothing."""
        if self.kick_fd < 0:
            return
        self.fail(QueueBroken(self.index, "it was closed"))
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            if fd >= 0:
                trio.lowlevel.notify_closing(fd)
                os.close(fd)
        self.kick_fd = self.call_fd = self.err_fd = -1
        self.ring.close()

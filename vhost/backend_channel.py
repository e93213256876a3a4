"""The back-end's own channel: what a device says to the front-end without being asked.

Theory of operation. The front-end may be waiting on the main channel for our answer while we would wait here for its
answer (QEMU handles both in one thread; for an IOTLB miss it even sends the update on the main channel before it
answers here). So nothing on the main channel's path ever waits for this one: `post` queues and returns, and only tasks
of their own (a device's) use `call`. Answers come in the order of the requests.

Messages that say "look again" (configuration changed, call a ring) are queued once until sent, so the queue is bounded
by their number of kinds however slowly the front-end reads. [rst "Back-end communication", "Back-end message types"]
"""

import logging
import socket
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

import trio

from vhost import wire
from vhost.channel import Channel
from vhost.constants import FLAGS_REQUEST, BackendRequest, HeaderFlag
from vhost.errors import ConnectionClosed, DeviceError, ProtocolError
from vhost.fds import Fds, OwnedFd
from vhost.messages import Message, Payload

__all__ = ["BackendChannel"]

log = logging.getLogger(__name__)

_ALWAYS_ANSWERED: Final = frozenset({BackendRequest.SHARED_OBJECT_LOOKUP})
MAX_QUEUED: Final = 1024
"""Messages waiting to be sent; only a front-end that stopped reading gets us there, further posts are dropped."""

Answered = Callable[[Message | None], None]
"""Called with the answer, or None when the channel closed before it came; it takes over the answer's descriptors."""


class _Outgoing:
    __slots__ = ("answered", "key", "message")

    def __init__(self, message: Message, key: Hashable, answered: Answered | None) -> None:
        self.message = message
        self.key = key
        self.answered = answered


class BackendChannel:
    """Requests to the front-end, and its answers.

    Resource handling: owns the socket; `run` closes it at its end.
    """

    def __init__(self, fd: OwnedFd, *, reply_ack: bool) -> None:
        """Take over the socket of SET_BACKEND_REQ_FD.

        Args:
            fd: connected Unix stream socket.
            reply_ack: REPLY_ACK was negotiated: requests are answered where we ask for it.

        Raises:
            ProtocolError: it is no such socket (then it is closed).
        """
        number = fd.take()
        try:
            sock = socket.socket(fileno=number)
        except OSError as error:
            OwnedFd(number).close()
            raise ProtocolError(f"the descriptor is not a socket: {error.strerror}", 21) from error
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            sock.close()
            raise ProtocolError("the descriptor is not a Unix stream socket", 21)
        self._channel = Channel(trio.socket.from_stdlib_socket(sock), wire.decode_backend_reply)
        self._reply_ack = reply_ack
        self._outbox: deque[_Outgoing] = deque()
        self._queued: set[Hashable] = set()
        self._waiting: deque[_Outgoing] = deque()
        self._wake = trio.Event()
        self._closed = False
        self.sent = 0
        self.dropped = 0

    @property
    def closed(self) -> bool:
        """Nothing can be sent any more."""
        return self._closed

    async def run(self) -> None:
        """Send and receive until the front-end closes the channel or this is cancelled; closes the socket."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._writer, nursery.cancel_scope)
                await self._reader()
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket and tell everybody who waits; a second call does nothing."""
        self._closed = True
        self._channel.close()
        lost = [*self._waiting, *self._outbox]
        self._waiting.clear()
        self._outbox.clear()
        self._queued.clear()
        for entry in lost:
            entry.message.close()
            if entry.answered is not None:
                entry.answered(None)

    def post(
        self,
        request: BackendRequest,
        payload: Payload = None,
        *,
        fds: Fds | None = None,
        key: Hashable = None,
        answered: Answered | None = None,
    ) -> bool:
        """Queue a request; returns at once.

        Args:
            request, payload: what to say.
            fds: descriptors that go along; taken over, also when dropped.
            key: a request with the same key that is still queued makes this one unnecessary.
            answered: called with the answer; makes the request ask for one.

        Returns: False if it was dropped: channel closed, or a front-end that has stopped reading.
        """
        owned = Fds() if fds is None else fds
        if self._closed or len(self._outbox) >= MAX_QUEUED:
            owned.close()
            self.dropped += 1
            return False
        if key is not None:
            if key in self._queued:
                owned.close()
                return True
            self._queued.add(key)
        flags = FLAGS_REQUEST
        if answered is not None and self._reply_ack and request not in _ALWAYS_ANSWERED:
            flags |= HeaderFlag.NEED_REPLY
        self._outbox.append(_Outgoing(Message(request, payload, flags, owned), key, answered))
        self._wake.set()
        return True

    async def call(self, request: BackendRequest, payload: Payload = None, *, fds: Fds | None = None) -> Message | None:
        """Send a request and wait for its answer; not for the task that serves the main channel.

        Returns: the answer, whose descriptors the caller owns; None if none is due (REPLY_ACK not negotiated).

        Raises:
            ConnectionClosed: the channel closed before the answer came.
            DeviceError: the front-end said no.

        Cancellation: the request may have been sent all the same; its answer is dropped.
        """
        if not self._reply_ack and request not in _ALWAYS_ANSWERED:
            if not self.post(request, payload, fds=fds):
                raise ConnectionClosed(f"{request.name}: the front-end takes no messages on the back-end channel")
            await trio.lowlevel.checkpoint()
            return None
        done = trio.Event()
        answers: list[Message | None] = []
        abandoned = False

        def answered(message: Message | None) -> None:
            if abandoned:
                if message is not None:
                    message.close()
                return
            answers.append(message)
            done.set()

        if not self.post(request, payload, fds=fds, answered=answered):
            raise ConnectionClosed(f"{request.name}: the front-end takes no messages on the back-end channel")
        try:
            await done.wait()
        except BaseException:
            abandoned = True
            for message in answers:
                if message is not None:
                    message.close()
            raise
        answer = answers[0]
        if answer is None:
            raise ConnectionClosed(f"{request.name}: the front-end closed the back-end channel")
        if request not in _ALWAYS_ANSWERED and answer.payload != 0:
            answer.close()
            raise DeviceError(f"{request.name}: the front-end refused it ({answer.payload!r})")
        return answer

    async def _writer(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                while not self._outbox:
                    self._wake = trio.Event()
                    await self._wake.wait()
                entry = self._outbox.popleft()
                self._queued.discard(entry.key)
                # Before sending: the answer may be read before this task runs again.
                if entry.message.need_reply or entry.message.request in _ALWAYS_ANSWERED:
                    self._waiting.append(entry)
                await self._channel.send(entry.message)
                self.sent += 1
        except (OSError, trio.ClosedResourceError) as error:
            log.debug("back-end channel: %s", error)
            scope.cancel()

    async def _reader(self) -> None:
        try:
            while (answer := await self._channel.receive()) is not None:
                if not self._waiting or self._waiting[0].message.request != answer.request:
                    answer.close()
                    raise ProtocolError("an answer to nothing that was asked", answer.request)
                entry = self._waiting.popleft()
                if entry.answered is None:
                    answer.close()
                else:
                    entry.answered(answer)
        except ProtocolError as error:
            log.warning("back-end channel closed: %s", error)
        except (OSError, trio.ClosedResourceError) as error:
            log.debug("back-end channel: %s", error)

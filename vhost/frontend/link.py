"""The two sockets of a front-end: requests with their answers, and the back-end's own channel."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import trio

from vhost import wire
from vhost.channel import Channel
from vhost.constants import FLAGS_REQUEST, HeaderFlag
from vhost.errors import ConnectionClosed, ProtocolError, VhostError, request_name
from vhost.fds import Fds, OwnedFd
from vhost.messages import FRONTEND_SPECS, Answer, Message, Payload


class Refused(VhostError):
    """The back-end answered a request with an error.

    Attributes:
        request: message number.
        code: what it answered, 0 where the answer has no number.
    """

    def __init__(self, request: int, code: int, detail: str = "") -> None:
        """Args: detail: one sentence more, if there is something to add."""
        self.request, self.code = request, code
        said = f" with {code}" if code else ""
        super().__init__(f"the back-end refused {request_name(request)}{said}{': ' if detail else ''}{detail}")


class Link:
    """Requests on the front-end's socket, one at a time.

    A task must run `read` meanwhile. Resource handling: owns the socket.
    """

    def __init__(self, sock: trio.socket.SocketType, timeout: float) -> None:
        """Args: sock: connected; timeout: seconds an answer may take."""
        self._channel = Channel(sock, wire.decode_reply)
        self.timeout = timeout
        self._lock = trio.Lock()
        self._waiting: int | None = None
        self._answer: Message | None = None
        self._event = trio.Event()
        self.error: VhostError | None = None
        """Why the connection is of no more use."""
        self.gone = trio.Event()
        """Set once it is."""
        self.reply_ack = False
        """REPLY_ACK is negotiated."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, owned by the link."""
        return self._channel.socket

    async def read(self) -> None:
        """Receive answers until the connection ends; never raises but for cancellation."""
        try:
            while True:
                message = await self._channel.receive()
                if message is None:
                    raise ConnectionClosed("the back-end closed the connection")
                if message.request != self._waiting:
                    message.close()
                    raise ProtocolError("an answer nobody asked for", message.request)
                self._answer, self._waiting = message, None
                self._event.set()
        except VhostError as error:
            self.fail(error)
        except ConnectionResetError:
            self.fail(ConnectionClosed("the back-end closed the connection"))
        except OSError as error:
            self.fail(ConnectionClosed(f"the connection to the back-end failed: {error.strerror}"))

    def fail(self, error: VhostError) -> None:
        """The connection is dead: waiting calls and all later ones raise `error`."""
        self.error = self.error or error
        self._event.set()
        self.gone.set()

    def check(self) -> None:
        """Raises: VhostError: the connection is dead."""
        if self.error is not None:
            raise type(self.error)(*self.error.args) if type(self.error) is ConnectionClosed else self.error

    async def call(
        self, request: int, payload: Payload = None, *, fds: Sequence[int] = (), need_reply: bool = False,
        answer: bool | None = None,
    ) -> Message | None:  # fmt: skip
        """Send a request and, where one is due, wait for its answer.

        Args:
            fds: descriptors to go along; they stay the caller's.
            need_reply: set NEED_REPLY (only with REPLY_ACK, except where QEMU does so anyway).
            answer: whether an answer will come, if not as the message table says.

        Returns: the answer, whose descriptors the caller owns, or None if none was due.

        Raises:
            ConnectionClosed: the back-end went away.
            ProtocolError: it answered something else.
            VhostError: it did not answer in time.

        Cancellation: the connection is dead afterwards if an answer was due.
        """
        async with self._lock:
            self.check()
            spec = FRONTEND_SPECS.get(request)
            always = spec is not None and spec.answer is Answer.ALWAYS
            flags = FLAGS_REQUEST | (HeaderFlag.NEED_REPLY if need_reply and (self.reply_ack or always) else 0)
            due = always or bool(flags & HeaderFlag.NEED_REPLY)
            if answer is not None:
                due = answer
            self._event = trio.Event()
            self._waiting = request if due else None
            copies = Fds(OwnedFd(os.dup(fd)) for fd in fds)
            try:
                await self._channel.send(Message(request, payload, flags, copies))
            except OSError as error:
                self.fail(ConnectionClosed(f"{request_name(request)}: the back-end closed the connection"))
                raise ConnectionClosed(str(self.error)) from error
            return await self._wait(request) if due else None

    async def _wait(self, request: int) -> Message:
        name = request_name(request)
        try:
            with trio.fail_after(self.timeout):
                await self._event.wait()
        except trio.TooSlowError:
            error = ConnectionClosed(f"{name}: the back-end did not answer within {self.timeout:g} s")
            self.fail(error)
            raise error from None
        except trio.Cancelled:
            self.fail(ConnectionClosed(f"{name} was cancelled before its answer came"))
            raise
        if self._answer is None:
            if isinstance(self.error, ConnectionClosed):
                raise ConnectionClosed(f"{name}: {self.error}")
            self.check()
        answer, self._answer = self._answer, None
        assert answer is not None
        return answer

    async def acked(self, request: int, payload: Payload = None, *, fds: Sequence[int] = (), wait: bool = True) -> None:
        """Send a request without answer of its own; with `wait` and REPLY_ACK, learn whether it worked.

        Raises: Refused: it did not; and as `call`.
        """
        answer = await self.call(request, payload, fds=fds, need_reply=wait)
        if answer is not None:
            answer.close()
            if answer.payload != 0:
                raise Refused(request, answer.payload if isinstance(answer.payload, int) else 0)

    async def ask(self, request: int, payload: Payload = None, *, need_reply: bool = False) -> Message:
        """Send a request that has an answer of its own. The caller owns the answer's descriptors."""
        answer = await self.call(request, payload, need_reply=need_reply)
        assert answer is not None
        return answer

    async def ask_u64(self, request: int, payload: Payload = None, *, need_reply: bool = False) -> int:
        """Send a request whose answer is one number. Raises: ProtocolError: it is something else."""
        answer = await self.ask(request, payload, need_reply=need_reply)
        answer.close()
        if not isinstance(answer.payload, int):
            raise ProtocolError(f"answered {answer.payload!r} instead of a number", request)
        return answer.payload

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self.fail(ConnectionClosed("this front-end was closed"))
        self._channel.close()


def channel_pair() -> tuple[trio.socket.SocketType, socket.socket]:
    """Our end and the back-end's end of a fresh back-end channel."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return trio.socket.from_stdlib_socket(ours), theirs

"""Framing of a vhost-user stream: bytes and descriptors in, whole messages out.

Theory of operation. A Unix stream socket keeps descriptors beside the byte they were sent with, but recvmsg does not
say which byte that was. So a reader never asks for bytes beyond the message it is in (`Framer.wanted`): descriptors
that come with a read then belong to that message. The kernel itself ends a read after bytes that carried descriptors.

`Framer` is pure (no socket), `Channel` puts trio around it, `BlockingChannel` a plain socket. Rules: every descriptor
is owned from the moment recvmsg returns; on any error all of them are closed; truncated ancillary data (MSG_CTRUNC) is
an error, since a descriptor may be lost. [rst "Communication", "Message Specification"]
"""

import array
import socket
from collections.abc import Callable, Iterable
from typing import Final, Self

import trio

from vhost import wire
from vhost.constants import HEADER_SIZE, MAX_FDS
from vhost.errors import ConnectionClosed, ProtocolError, request_name
from vhost.fds import Fds
from vhost.messages import Message, RawMessage

_FD_BYTES: Final = array.array("i").itemsize
_ANCILLARY_FDS: Final = MAX_FDS * 2
"""Room for descriptors in one read: twice what a real message carries; more is MSG_CTRUNC and ends the connection."""

ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_ANCILLARY_FDS * _FD_BYTES)
RECV_FLAGS: Final = socket.MSG_CMSG_CLOEXEC


class Framer:
    """Cuts a byte stream with descriptors into messages.

    Feed it reads of at most `wanted` bytes. More is accepted too, then the read's descriptors go to the message of its
    first byte. After a ProtocolError it holds no descriptors and takes no more.
    """

    __slots__ = ("_broken", "_buffer", "_fds", "_header")

    def __init__(self) -> None:
        """Start between two messages."""
        self._buffer = bytearray()
        self._header: wire.Header | None = None
        self._fds = Fds()
        self._broken = False

    @property
    def wanted(self) -> int:
        """Bytes still missing from the header or, once that is known, from the payload (>= 1)."""
        return HEADER_SIZE + (self._header.size if self._header else 0) - len(self._buffer)

    @property
    def in_message(self) -> bool:
        """True between the first byte of a message and its last."""
        return bool(self._buffer)

    def feed(self, data: bytes, fds: Fds | None = None) -> list[RawMessage]:
        """Take what one read brought; returns the messages it completed (mostly none or one).

        Args:
            data: at least one byte; b"" is the end of the stream, see `end`.
            fds: descriptors that came with it; they move here.

        Raises:
            ProtocolError: bad header, or more than MAX_FDS * 2 descriptors with one message; everything held is closed.
        """
        done: list[RawMessage] = []
        if fds is not None:
            self._fds.extend(fds)
        try:
            if self._broken:
                raise ProtocolError("the stream was already broken")
            if len(self._fds) > _ANCILLARY_FDS:
                raise ProtocolError(f"{len(self._fds)} file descriptors with one message, {MAX_FDS} are the most")
            self._buffer += data
            while (message := self._cut()) is not None:
                done.append(message)
        except BaseException:
            self._broken = True
            self.close()
            for message in done:
                message.fds.close()
            raise
        return done

    def _cut(self) -> RawMessage | None:
        if self._header is None and len(self._buffer) >= HEADER_SIZE:
            self._header = wire.parse_header(bytes(self._buffer[:HEADER_SIZE]))
        if self._header is None or len(self._buffer) < HEADER_SIZE + self._header.size:
            return None
        header, end = self._header, HEADER_SIZE + self._header.size
        message = RawMessage(header.request, header.flags, bytes(self._buffer[HEADER_SIZE:end]), self._fds)
        del self._buffer[:end]
        self._header, self._fds = None, Fds()
        return message

    def end(self) -> None:
        """The peer closed the stream; descriptors of an unfinished message are closed.

        Raises:
            ProtocolError: in the middle of a message.
        """
        missing, header, inside = self.wanted, self._header, self.in_message
        self.close()
        if inside:
            where = request_name(header.request) if header else "a header"
            raise ProtocolError(f"the peer closed the connection inside {where}, {missing} bytes before its end")

    def close(self) -> None:
        """Close the descriptors of an unfinished message; a second call does nothing."""
        self._fds.close()
        self._buffer.clear()
        self._header = None


def take_fds(ancillary: Iterable[tuple[int, int, bytes]], flags: int) -> Fds:
    """Own the descriptors of one recvmsg.

    Args:
        ancillary, flags: second and third of recvmsg's result.

    Raises:
        ProtocolError: the kernel cut the ancillary data short; what arrived is closed.
    """
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    fds = Fds(numbers)
    if flags & socket.MSG_CTRUNC:
        fds.close()
        raise ProtocolError(
            f"file descriptors were lost on the way: more than {_ANCILLARY_FDS} with one message, "
            "or this process may open no more (see ulimit -n)"
        )
    return fds


def _ancillary(fds: Fds) -> "list[tuple[int, int, array.array[int]]]":
    if not len(fds):
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds.filenos()))]


Decoder = Callable[[RawMessage], Message]
"""One of wire.decode_request, decode_reply, decode_backend_request, decode_backend_reply."""


class Channel:
    """Messages over a trio socket.

    Resource handling: owns the socket; `close` closes it and the descriptors of an unfinished message.
    """

    def __init__(self, sock: trio.socket.SocketType, decode: Decoder = wire.decode_request) -> None:
        """Args: sock: connected AF_UNIX stream socket; decode: what the peer's messages are."""
        self._socket = sock
        self._decode = decode
        self._framer = Framer()
        self._send_lock = trio.Lock()

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, still owned by the channel."""
        return self._socket

    async def receive_raw(self) -> RawMessage | None:
        """Next message undecoded, None at the end of the stream. As `receive`."""
        while True:
            data, ancillary, flags, _ = await self._socket.recvmsg(self._framer.wanted, ANCILLARY_SIZE, RECV_FLAGS)
            fds = take_fds(ancillary, flags)
            if not data:
                fds.close()
                self._framer.end()
                return None
            messages = self._framer.feed(data, fds)
            if messages:
                return messages[0]

    async def receive(self, decode: Decoder | None = None) -> Message | None:
        """Next message of the peer, None when it closed the connection between two messages.

        Args:
            decode: overrides the decoder for this message.

        Returns: a message whose descriptors the caller now owns.

        Raises:
            ProtocolError: the peer broke the protocol; the connection is of no more use.
            OSError: the socket failed (a peer that died may be ECONNRESET).

        Cancellation: safe; a partly read message is kept and finished by the next call.
        """
        raw = await self.receive_raw()
        return None if raw is None else (decode or self._decode)(raw)

    async def send(self, message: Message) -> None:
        """Send one message; messages of several tasks do not mix.

        Resource handling: closes the message's descriptors, sent or not.

        Raises:
            OSError: the socket failed (BrokenPipeError: the peer is gone).

        Cancellation: may leave half a message on the wire; close the channel then.
        """
        with message.fds:
            data = memoryview(wire.encode(message))
            async with self._send_lock:
                sent = await self._socket.sendmsg([data], _ancillary(message.fds))
                while sent < len(data):
                    sent += await self._socket.send(data[sent:])

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._framer.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class BlockingChannel:
    """Messages over a plain blocking socket, for threads, scripts and tests.

    Resource handling: owns the socket, as Channel.
    """

    def __init__(self, sock: socket.socket, decode: Decoder = wire.decode_request) -> None:
        """Args: sock: connected AF_UNIX stream socket; decode: what the peer's messages are."""
        self.socket = sock
        self._decode = decode
        self._framer = Framer()

    def receive(self, decode: Decoder | None = None) -> Message | None:
        """As Channel.receive, blocking."""
        while True:
            data, ancillary, flags, _ = self.socket.recvmsg(self._framer.wanted, ANCILLARY_SIZE, RECV_FLAGS)
            fds = take_fds(ancillary, flags)
            if not data:
                fds.close()
                self._framer.end()
                return None
            messages = self._framer.feed(data, fds)
            if messages:
                return (decode or self._decode)(messages[0])

    def send(self, message: Message) -> None:
        """As Channel.send, blocking."""
        with message.fds:
            data = memoryview(wire.encode(message))
            sent = self.socket.sendmsg([data], _ancillary(message.fds))
            if sent < len(data):
                self.socket.sendall(data[sent:])

    def call(self, message: Message) -> Message:
        """Send a request and wait for the next message, decoded as a reply.

        Raises:
            ConnectionClosed: the peer went away instead of answering.
        """
        self.send(message)
        reply = self.receive(wire.decode_reply)
        if reply is None:
            raise ConnectionClosed(f"{message.name}: the peer closed the connection instead of answering")
        return reply

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._framer.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

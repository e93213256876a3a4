"""A little HTTP: requests by h11, web sockets by wsproto, for one page and one socket on loopback.

Pages of other sites are kept out twice: by the token in the path, and by Host and Origin, which have to name this
machine.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from devices.gpu.clients import ClientError

__all__ = ["Answer", "Asked", "Socket", "WebError", "answer", "read_request", "upgrade"]

_READ: Final = 16 << 10
#: bytes of one message of a page; the longest is a tenth of it
_MESSAGE_MAX: Final = 4096
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", _POLICY),
    ("Connection", "close"),
]


class WebError(ClientError):
    """The other side does not keep to HTTP or to our messages: one sentence."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        name: what is asked for behind the token; None: without the right token, or from elsewhere.
        upgrade: it asks for a web socket.
    """

    connection: h11.Connection
    request: h11.Request
    name: str | None
    upgrade: bool


def _host_is_ours(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _LOOPBACK
    except ValueError:
        return False


def _name(request: h11.Request, headers: Mapping[bytes, bytes], token: str) -> str | None:
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin")
    given, slash, name = request.target.decode("latin-1").partition("?")[0].removeprefix("/").partition("/")
    right = hmac.compare_digest(given.encode(), token.encode())
    from_elsewhere = origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}")
    return name if right and slash and _host_is_ours(host) and not from_elsewhere else None


async def read_request(stream: trio.SocketStream, token: str) -> Asked | None:
    """The one request of a connection; None: it was closed instead.

    Raises:
        WebError: what comes is not HTTP.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_READ)
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_READ))
    except h11.RemoteProtocolError as exc:
        raise WebError(f"no HTTP: {exc}") from exc
    if not isinstance(event, h11.Request):
        return None
    headers = dict(event.headers)
    upgrade = headers.get(b"upgrade", b"").lower() == b"websocket"
    # browsers say where a socket's page comes from; nobody else has to be let in
    name = None if upgrade and b"origin" not in headers else _name(event, headers, token)
    return Asked(connection, event, name, upgrade)


async def answer(stream: trio.SocketStream, asked: Asked, with_: Answer) -> None:
    """Send the answer; the connection is to be closed then."""
    headers = [*_HEADERS, ("Content-Type", with_.kind), ("Content-Length", str(len(with_.body)))]
    connection = asked.connection
    response = h11.Response(status_code=with_.status, headers=headers, reason=b"")
    data = connection.send(response) or b""
    if asked.request.method != b"HEAD":
        data += connection.send(h11.Data(data=with_.body)) or b""
    await stream.send_all(data)


class Socket:
    """A web socket: messages to and from a page."""

    def __init__(self, stream: trio.SocketStream, ws: WSConnection) -> None:
        self._stream = stream
        self._ws = ws
        self._sending = trio.Lock()

    async def send(self, message: str | bytes) -> None:
        """Send one message.

        Raises:
            trio.BrokenResourceError: the page is gone.
        """
        event = TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)
        async with self._sending:
            try:
                data = self._ws.send(event)
            except LocalProtocolError:
                raise trio.BrokenResourceError from None
            await self._stream.send_all(data)

    async def _reply(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)

    async def text(self) -> str | None:
        """The page's next message; None: it has closed.

        Raises:
            WebError: what comes is no web socket's, or too long.
        """
        text = ""
        try:
            while True:
                for event in self._ws.events():
                    if isinstance(event, TextMessage):
                        text += event.data
                        if len(text) > _MESSAGE_MAX:
                            raise WebError(f"a message of more than {_MESSAGE_MAX} characters")
                        if event.message_finished:
                            return text
                    elif isinstance(event, Ping):
                        await self._reply(self._ws.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        if self._ws.state is ConnectionState.REMOTE_CLOSING:
                            await self._reply(self._ws.send(event.response()))
                        return None
                    elif isinstance(event, BytesMessage):
                        raise WebError("a binary message")
                data = await self._stream.receive_some(_READ)
                self._ws.receive_data(data or None)
        except (RemoteProtocolError, LocalProtocolError) as exc:
            raise WebError(str(exc)) from exc


async def upgrade(stream: trio.SocketStream, asked: Asked) -> Socket | None:
    """Make a web socket of a connection; None: it does not ask for one in the right way."""
    ws = WSConnection(ConnectionType.SERVER)
    try:
        ws.initiate_upgrade_connection(list(asked.request.headers), asked.request.target)
        event = next(ws.events())
        assert isinstance(event, Request)
    except (RemoteProtocolError, StopIteration):
        return None
    if asked.name is None:
        await stream.send_all(ws.send(RejectConnection(status_code=403)))
        return None
    await stream.send_all(ws.send(AcceptConnection()))
    ws.receive_data(asked.connection.trailing_data[0] or b"")
    return Socket(stream, ws)

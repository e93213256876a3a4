"""A Unix socket that leads on to a TCP service: libslirp knows how to connect only to the former."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
from pathlib import Path

import trio

from devices.net.links.forwards import Address

__all__ = ["Relay"]

log = logging.getLogger(__name__)

_CHUNK = 65536
_BACKLOG = 64


class Relay:
    """Listens at a socket of its own, in a folder that only this user may enter.

    Args:
        target: where each connection is led to.
    """

    def __init__(self, target: tuple[Address, int]) -> None:
        self._target = target
        self._folder = tempfile.mkdtemp(prefix="vhost-forward-")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(self.path)
            self._socket.listen(_BACKLOG)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """Where it listens."""
        return str(Path(self._folder) / "socket")

    async def run(self) -> None:
        """Serve connections. Cancellation: ends them."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket.dup()))
        async with trio.open_nursery() as nursery, listener:
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, inner: trio.SocketStream) -> None:
        address, port = self._target
        async with inner:
            try:
                outer = await trio.open_tcp_stream(str(address), port)
            except OSError as exc:
                log.warning("guest forward: no connection to %s port %d: %s", address, port, exc)
                return
            async with outer, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, inner, outer)
                nursery.start_soon(_pump, outer, inner)

    def close(self) -> None:
        """Take its socket away. May be called again."""
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        while data := await source.receive_some(_CHUNK):
            await sink.send_all(data)
        await sink.send_eof()
    except trio.BrokenResourceError:
        await sink.aclose()
        await source.aclose()
    except trio.ClosedResourceError:
        return  # by the other direction

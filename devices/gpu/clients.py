"""Clients of viewers that listen: so many at a time, and what one of them does costs the others nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

__all__ = ["CLIENTS_MAX", "ClientError", "serve_clients"]

_LOG: Final = logging.getLogger("vhost.gpu")
#: at a time, of one socket
CLIENTS_MAX: Final = 16


class ClientError(Exception):
    """A client does what it may not, or knows not what it is to know: one sentence for the log."""


async def serve_clients(
    sock: trio.socket.SocketType, serve: Callable[[trio.SocketStream], Awaitable[None]], what: str
) -> None:
    """Accept clients until cancelled.

    Args:
        sock: listening; stays the caller's.
        serve: speaks with one, whose stream is closed afterwards. It may raise `ClientError`.
        what: begins log lines.
    """
    slots = trio.CapacityLimiter(CLIENTS_MAX)

    async def client(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                slots.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                _LOG.warning("%s: a client is refused: %d are there already", what, CLIENTS_MAX)
                return
            try:
                await serve(stream)
            except* ClientError as group:
                _LOG.warning("%s: a client is let go: %s", what, _first(group))
            except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError) as group:
                _LOG.debug("%s: a client is gone: %s", what, _first(group))
            except* Exception:  # others, and the guest, go on
                _LOG.exception("%s: a client is let go", what)
            finally:
                slots.release_on_behalf_of(stream)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                accepted, _ = await sock.accept()
            except OSError as exc:
                _LOG.warning("%s: %s", what, exc.strerror)
                await trio.sleep(1)
                continue
            nursery.start_soon(client, trio.SocketStream(accepted))


def _first(group: BaseExceptionGroup) -> BaseException:
    """The reason, where nurseries have put groups into groups."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found

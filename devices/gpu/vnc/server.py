"""A scanout over VNC.

Each client has a thread in C that speaks to it (`csrc/vnc.c`); here somebody looks at the display for it, whenever it
has asked and something has changed, and puts what it types where it belongs.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from devices.gpu._vnc import ffi, lib
from devices.gpu.clients import serve_clients
from devices.gpu.picture import Mode
from devices.gpu.view import Cursor, Look, Rect, View
from devices.gpu.vnc.handshake import Encrypted, Security, shake_hands

if TYPE_CHECKING:
    from devices.gpu.device import Gpu

__all__ = ["VncServer"]

_LOG: Final = logging.getLogger("vhost.gpu")
_HANDSHAKE_SECONDS: Final = 20
_EVENTS: Final = 64
_RELAY_BYTES: Final = 64 << 10


class VncServer:
    """A viewer of a display: VNC clients on one socket.

    Args:
        gpu: the display.
        sock: listening; stays the caller's.
        scanout: what is shown.
        security: who may look.
        where: for log lines.
    """

    def __init__(
        self, gpu: Gpu, sock: trio.socket.SocketType, *, scanout: int = 0, security: Security, where: str
    ) -> None:
        self._gpu = gpu
        self._sock = sock
        self.scanout = scanout
        self._security = security
        self._where = where

    async def run(self) -> None:
        """Serve until cancelled."""
        await serve_clients(self._sock, self._let_in, f"vnc on {self._where}")

    async def _let_in(self, stream: trio.SocketStream) -> None:
        with trio.fail_after(_HANDSHAKE_SECONDS):
            on, minor = await shake_hands(stream, self._security)
        _LOG.info("vnc on %s: a client looks at scanout %d", self._where, self.scanout)
        if isinstance(on, trio.SocketStream):
            await self._show(os.dup(on.socket.fileno()), minor)
        else:
            await self._relay(on, minor)
        _LOG.info("vnc on %s: a client has left", self._where)

    async def _relay(self, encrypted: Encrypted, minor: int) -> None:
        """What is encrypted passes through here."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        inner = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with inner, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, encrypted, inner, partial(inner.socket.shutdown, socket.SHUT_WR))
            nursery.start_soon(_pump, inner, encrypted, partial(inner.socket.shutdown, socket.SHUT_RD))
            await self._show(theirs.detach(), minor)  # which takes to its end what has come, also of who has gone
            nursery.cancel_scope.cancel()

    async def _show(self, fd: int, minor: int) -> None:
        async with self._gpu.changes() as view:
            await _Client(self._gpu, view, self.scanout, fd, minor).run()


async def _pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, hang_up: Callable[[], None]) -> None:
    """Until one of them ends; the inner one hears of it."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(_RELAY_BYTES):
            await sink.send_all(data)
    with suppress(OSError):
        hang_up()


class _Client:
    """Looks at the display for one client.

    Args:
        fd: the client's socket; ours.
    """

    def __init__(self, gpu: Gpu, view: View, scanout: int, fd: int, minor: int) -> None:
        self._gpu = gpu
        self._view = view
        self._scanout = scanout
        self._size = gpu.size(scanout)
        self._dark = True
        self._cursor: Cursor | None = None
        self._changed = True
        self._news = trio.Event()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        name = f"vhostkit scanout {scanout}".encode()
        self._ptr = lib.vnc_new(fd, self._fd, minor, *self._size, name, 1)
        if self._ptr == ffi.NULL:
            os.close(self._fd)
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    async def run(self) -> None:
        """Until it has gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear_display)
                nursery.start_soon(self._hear_client)
                await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            self._gpu.seat.release()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lib.vnc_free, self._ptr)
            os.close(self._fd)

    async def _hear_display(self) -> None:
        async for _ in self._view:
            self._changed = True
            self._news.set()

    async def _hear_client(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            os.eventfd_read(self._fd)
            self._news.set()

    async def _serve(self) -> None:
        asks = False
        while True:
            self._news = trio.Event()
            state = lib.vnc_state(self._ptr)
            self._take_events()
            if state & lib.VNC_ENDED:
                return
            asks = asks or bool(state & lib.VNC_ASKS)
            if state & lib.VNC_ROOM and (asks or (state & lib.VNC_WAITS and self._changed)):
                self._changed = False
                self._post(asks)
                asks = False
            await self._news.wait()

    def _take_events(self) -> None:
        events = ffi.new("struct vnc_event[]", _EVENTS)
        while count := lib.vnc_events(self._ptr, events, _EVENTS):
            for event in events[0:count]:
                if event.kind == lib.VNC_KEY:
                    self._gpu.seat.keysym(event.a, bool(event.b), place=event.c)
                elif event.kind == lib.VNC_POINTER:
                    self._gpu.seat.point(self._scanout, event.a, event.b, event.c)
                elif event.kind == lib.VNC_RESIZE:
                    self._gpu.seat.resize(self._scanout, Mode(event.a, event.b))

    def _post(self, asked: bool) -> None:
        look = self._view.look(self._scanout)
        damage = look.damage
        if look.width:
            self._size, self._dark = (look.width, look.height), False
        elif not self._dark:
            self._dark, damage = True, Rect(0, 0, *self._size)
        cursor = self._new_cursor(look)
        if damage is not None:
            room = lib.vnc_room(self._ptr, damage.width, damage.height)
            if room == ffi.NULL:
                raise OSError("no memory for a picture")
            to = ffi.buffer(room, damage.width * damage.height * 4)
            with memoryview(to) as pixels:
                if self._dark:
                    pixels[:] = bytes(len(pixels))
                elif not self._gpu.read(self._scanout, damage, pixels):
                    damage = None  # it shows something else by now: that is a change, and comes next
        if damage is None and cursor is None and not asked:
            return
        where = (damage.x, damage.y, damage.width, damage.height) if damage is not None else (0, 0, 0, 0)
        lib.vnc_post(self._ptr, *self._size, *where, ffi.NULL if cursor is None else cursor)

    def _new_cursor(self, look: Look) -> Any:
        """The ``struct vnc_cursor`` where it has changed."""
        now, before = look.cursor, self._cursor
        if before == now or (before is None and not now.shown):
            return None
        self._cursor = now
        made = ffi.new("struct vnc_cursor *")
        made.shown, made.hot_x, made.hot_y = now.shown, min(now.hot_x, 63), min(now.hot_y, 63)
        made.x, made.y = _signed(now.x), _signed(now.y)
        ffi.memmove(made.image, self._gpu.cursor_image(self._scanout), len(made.image))
        return made


def _signed(value: int) -> int:
    """A place that the guest gives as unsigned, and means otherwise left of the picture."""
    return min(max(value - (1 << 32) if value >> 31 else value, -(1 << 15)), 1 << 15)

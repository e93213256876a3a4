"""QEMU's display: what a guest shows is sent to the socket that QEMU hands over with GPU_SET_SOCKET, and QEMU says
what is plugged in. Spec: vhost-user-gpu.

Three tasks on one socket: one reads replies and sees its end; one asks for the modes, whenever the guest does; one
sends pixels, as a viewer like any other. What QEMU does not read yet piles up as damage, one rectangle for each
scanout, so that a slow reader costs nobody anything but sees less often, and then the newest.

Pixels are sent in C, from the image itself: what fits at once by the event loop, what does not by a thread of its own.
The worker is parked for the moment that it takes to see what is damaged and to hold on to the image. QEMU draws its
screen some thirty times a second: it gets sixty pictures at most, and no more than it reads.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, Final

import trio

from devices.gpu._gpu import lib
from devices.gpu.edid import edid_of
from devices.gpu.picture import Mode, Monitor
from devices.gpu.view import Cursor, Rect, View

if TYPE_CHECKING:
    from devices.gpu.device import Gpu

__all__ = ["GpuRequest", "QemuDisplay"]

_LOG: Final = logging.getLogger("vhost.gpu")
_REPLY: Final = 1 << 2
_SIDE_MIN: Final = 16
_SIDE_MAX: Final = 16384
_CURSOR_SIDE: Final = 64
#: bytes of pixels in one message, at most
_BAND: Final = 16 << 20
#: bytes of pixels that may be sent without a thread
_SOON: Final = 64 << 10
#: seconds from one look at what has changed to the next; and at most so many for what takes longer to send
_FRAME: Final = 1 / 60
_FRAME_MAX: Final = 0.04
#: seconds that a guest waits for QEMU to tell the modes; then it gets those that are known
PATIENCE: Final = 1.0

#: request, flags, bytes that follow
_HEADER: Final = struct.Struct("=3I")
_FEATURES: Final = struct.Struct("=Q")
_ID: Final = struct.Struct("=I")
#: scanout, width, height
_SCANOUT: Final = struct.Struct("=3I")
#: scanout, x, y
_POSITION: Final = struct.Struct("=3I")
#: the same, hot spot's x and y, pixels
_SHAPE: Final = struct.Struct(f"=5I{_CURSOR_SIDE * _CURSOR_SIDE * 4}s")
#: x, y, width, height, enabled, flags
_MODE: Final = struct.Struct("=6I")
_DISPLAY_INFO: Final = struct.Struct(f"=24x{16 * _MODE.size}s")
#: bytes, EDID
_EDID: Final = struct.Struct("=24xI4x1024s")


class GpuRequest(IntEnum):
    """Messages that are used here."""

    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    GET_EDID = 11


class _Feature(IntFlag):
    EDID = 1 << 0


class _ProtocolError(Exception):
    """QEMU does not keep to the protocol: one sentence."""


class QemuDisplay:
    """One display socket.

    Args:
        gpu: whose display it is.
        fd: the socket; ours from now on.

    Raises:
        ValueError: it is no stream socket; `fd` stays the caller's.
    """

    def __init__(self, gpu: Gpu, fd: int) -> None:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ValueError("what came as the display's socket is none")
        sock = socket.socket(fileno=fd)
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            sock.detach()
            raise ValueError("the display's socket is no Unix stream socket")
        sock.setblocking(False)
        self._gpu = gpu
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._scope = trio.CancelScope()
        self._running = self._closed = self._given_up = False
        self._features = _Feature(0)
        self._sending = trio.Lock()
        self._one = trio.CapacityLimiter(1)
        self._expected: tuple[int, int] | None = None
        self._tell_reply, self._replies = trio.open_memory_channel[bytes](1)
        #: written by the device when a guest asks for its modes
        self.asked: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: written when the thread that sends is to end
        self._stop: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self) -> None:
        """End it, whatever it is at; the socket is closed, now or when `run` has ended."""
        self._scope.cancel()
        if not self._running and not self._closed:
            self._closed = True
            self._stream.socket.close()
            os.close(self.asked)
            os.close(self._stop)

    async def run(self) -> None:
        """Serve it until QEMU closes it, or `close` is called."""
        if self._closed:
            return
        self._running = True
        try:
            with self._scope:
                async with self._gpu.changes() as view, trio.open_nursery() as nursery:
                    nursery.start_soon(self._stop_when_cancelled)
                    nursery.start_soon(self._until_it_ends, self._read)
                    negotiated = trio.Event()
                    nursery.start_soon(self._until_it_ends, self._keep_modes, negotiated)
                    await negotiated.wait()
                    nursery.start_soon(self._until_it_ends, self._show, view)
        finally:
            self._running = False
            self._gpu.ask_nobody(self)
            self.close()

    async def _until_it_ends(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """A task; when it ends, all is over."""
        try:
            await task(*args)
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            pass  # QEMU has closed it, as it does whenever the driver stops
        except _ProtocolError as exc:
            _LOG.warning("QEMU's display is let go: %s", exc)
        self._scope.cancel()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            os.eventfd_write(self._stop, 1)

    # Messages

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(message)

    async def _tell(self, request: GpuRequest, payload: bytes = b"") -> None:
        await self._send(_HEADER.pack(request, 0, len(payload)) + payload)

    async def _call(self, request: GpuRequest, reply: struct.Struct, payload: bytes = b"") -> tuple[Any, ...]:
        """Ask, and wait for the answer; only `_keep_modes` does."""
        self._expected = (request, reply.size)
        await self._tell(request, payload)
        return reply.unpack(await self._replies.receive())

    async def _read(self) -> None:
        while True:
            request, flags, size = _HEADER.unpack(await self._exactly(_HEADER.size))
            expected, self._expected = self._expected, None
            if expected != (request, size) or not flags & _REPLY:
                raise _ProtocolError(f"message {request} of {size} bytes is no reply to what was asked")
            self._tell_reply.send_nowait(await self._exactly(size))

    async def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = await self._stream.receive_some(size - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

    # What is plugged in

    async def _keep_modes(self, negotiated: trio.Event) -> None:
        async with self._patience():
            (offered,) = await self._call(GpuRequest.GET_PROTOCOL_FEATURES, _FEATURES)
            self._features = _Feature.EDID & offered
            await self._tell(GpuRequest.SET_PROTOCOL_FEATURES, _FEATURES.pack(self._features))
            negotiated.set()
            await self._learn_modes()
        while True:
            await trio.lowlevel.wait_readable(self.asked)
            async with self._patience():
                await self._learn_modes()

    async def _learn_modes(self) -> None:
        """A guest that asked is told what QEMU said after that."""
        self._take_ask()
        while True:
            self._gpu.take_monitors(await self._monitors())
            if self._gpu.answer(unless=self._take_ask):
                return

    def _take_ask(self) -> bool:
        try:
            return os.eventfd_read(self.asked) > 0
        except BlockingIOError:
            return False

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Guests wait for what is done in the block, but not for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up)
            yield
            nursery.cancel_scope.cancel()
        if self._given_up:
            self._given_up = False
            self._gpu.ask_again(self)

    async def _give_up(self) -> None:
        await trio.sleep(PATIENCE)
        _LOG.warning("QEMU does not tell its modes; the guest gets those that are known")
        self._given_up = True
        self._gpu.ask_nobody(self)

    async def _monitors(self) -> list[Monitor]:
        (info,) = await self._call(GpuRequest.GET_DISPLAY_INFO, _DISPLAY_INFO)
        modes, scanouts = list(_MODE.iter_unpack(info)), self._gpu.scanouts
        missing = [number for number, mode in enumerate(modes) if mode[4] and number >= scanouts]
        if missing:
            _LOG.warning("QEMU has a scanout %d, this display has %d; start it with --scanouts", missing[0], scanouts)
        return [await self._monitor(number, *mode) for number, mode in enumerate(modes[:scanouts])]

    async def _monitor(self, number: int, x: int, y: int, width: int, height: int, enabled: int, _: int) -> Monitor:
        if not enabled or not all(_SIDE_MIN <= side <= _SIDE_MAX for side in (width, height)):
            return Monitor(None, x, y, b"")
        if self._features & _Feature.EDID:
            size, data = await self._call(GpuRequest.GET_EDID, _EDID, _ID.pack(number))
            edid = data[:size]
        else:
            edid = edid_of(width, height, serial=number + 1)
        return Monitor(Mode(width, height), x, y, edid)

    # What is shown

    async def _show(self, view: View) -> None:
        sizes = [(0, 0)] * self._gpu.scanouts
        cursors: list[Cursor | None] = [None] * self._gpu.scanouts
        while True:
            began = trio.current_time()
            for number in range(self._gpu.scanouts):
                look = view.look(number)
                if (look.width, look.height) != sizes[number]:
                    sizes[number] = look.width, look.height
                    await self._tell(GpuRequest.SCANOUT, _SCANOUT.pack(number, look.width, look.height))
                if look.damage is not None:
                    await self._update(number, look.damage)
                await self._move(number, look.cursor, cursors[number])
                cursors[number] = look.cursor
            now = trio.current_time()
            await trio.sleep_until(max(began + _FRAME, min(now + (now - began), began + _FRAME_MAX)))
            await anext(view)

    async def _update(self, scanout: int, damage: Rect) -> None:
        rows = max(1, _BAND // (damage.width * 4))
        for y in range(0, damage.height, rows):
            band = Rect(damage.x, damage.y + y, damage.width, min(rows, damage.height - y))
            async with self._sending:
                shot = self._gpu.shot(scanout, band)
                if shot is None:
                    return  # it shows something else by now: that is a change, and comes next
                try:
                    await self._send_shot(shot, band.width * band.height * 4)
                finally:
                    lib.gpu_shot_free(shot)

    async def _send_shot(self, shot: Any, size: int) -> None:
        fd = self._stream.socket.fileno()
        rc = lib.gpu_shot_send(shot, fd, -1) if size <= _SOON else -errno.EAGAIN
        if rc == -errno.EAGAIN:
            rc = await trio.to_thread.run_sync(lib.gpu_shot_send, shot, fd, self._stop, limiter=self._one)
        if rc == -errno.EPIPE:
            raise trio.BrokenResourceError

    async def _move(self, scanout: int, cursor: Cursor, before: Cursor | None) -> None:
        at = scanout, cursor.x, cursor.y
        was_shown = before is not None and before.shown
        if before is not None and (cursor.changes, cursor.shown) == (before.changes, was_shown):
            return
        if not cursor.shown:
            if was_shown:
                await self._tell(GpuRequest.CURSOR_POS_HIDE, _POSITION.pack(*at))
        elif was_shown and before is not None and cursor.shapes == before.shapes:
            await self._tell(GpuRequest.CURSOR_POS, _POSITION.pack(*at))
        else:
            side = _CURSOR_SIDE - 1
            hot = min(cursor.hot_x, side), min(cursor.hot_y, side)
            shape = _SHAPE.pack(*at, *hot, self._gpu.cursor_image(scanout))
            await self._tell(GpuRequest.CURSOR_UPDATE, shape)

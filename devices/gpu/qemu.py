"""QEMU's display: what a guest shows is sent to the socket that QEMU hands over with GPU_SET_SOCKET, and QEMU says
what is plugged in. Spec: vhost-user-gpu.

Three tasks on one socket: one reads replies and sees its end; one asks for the modes, whenever the guest does; one
sends pixels, as a viewer like any other. What QEMU does not read yet piles up as damage, one rectangle for each
scanout, so that a slow reader costs nobody anything but sees less often, and then the newest.

What a renderer draws is QEMU's to look at, too, where it lies: as a dma-buf, if renderer and QEMU know how. QEMU then
says when it has seen what is new, and is told of no more before.

Other pixels are sent in C, from the image itself: what fits at once by the event loop, what does not by a thread of
its own. The worker is parked for the moment that it takes to see what is damaged and to hold on to the image. QEMU
draws its screen some thirty times a second: it gets sixty pictures at most, and no more than it reads.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from array import array
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from devices.gpu import qemu_wire as wire
from devices.gpu._gpu import lib
from devices.gpu.edid import edid_of
from devices.gpu.export import Buffer
from devices.gpu.picture import Mode, Monitor, PictureError
from devices.gpu.qemu_wire import Feature, GpuRequest
from devices.gpu.view import Cursor, Rect, View
from vhost._shelter import bare_errors

if TYPE_CHECKING:
    from devices.gpu.device import Gpu

__all__ = ["QemuDisplay"]

_LOG: Final = logging.getLogger("vhost.gpu")
_SIDE_MIN: Final = 16
_SIDE_MAX: Final = 16384
#: bytes of pixels in one message, at most
_BAND: Final = 16 << 20
#: bytes of pixels that may be sent without a thread
_SOON: Final = 64 << 10
#: seconds from one look at what has changed to the next; and at most so many for what takes longer to send
_FRAME: Final = 1 / 60
_FRAME_MAX: Final = 0.04
#: seconds that a guest waits for QEMU to tell the modes; then it gets those that are known
PATIENCE: Final = 1.0


class _ProtocolError(Exception):
    """QEMU does not keep to the protocol: one sentence."""


@dataclass(eq=False, slots=True)
class _Call:
    """A message whose answer is waited for."""

    request: GpuRequest
    size: int
    data: bytes = b""
    answered: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Shown:
    """A scanout as QEMU has it.

    Attributes:
        size: 0, 0: nothing.
        cursor: None: not told yet.
        owed: what has changed and was not told yet.
        buffer: the dma-buf that is shown; None: pixels.
    """

    size: tuple[int, int] = (0, 0)
    cursor: Cursor | None = None
    owed: Rect | None = None
    buffer: Buffer | None = None


class QemuDisplay:
    """One display socket.

    Args:
        gpu: whose display it is.
        fd: the socket; ours from now on.
        dmabufs: of 3D, where it can be; otherwise pixels of all.

    Raises:
        ValueError: it is no stream socket; `fd` stays the caller's.
    """

    def __init__(self, gpu: Gpu, fd: int, *, dmabufs: bool) -> None:
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
        self._features = Feature(0)
        self._dmabufs: Final = Feature.DMABUF2 if dmabufs else Feature(0)
        self._sending = trio.Lock()
        self._one = trio.CapacityLimiter(1)
        self._calls: deque[_Call] = deque()
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
                async with self._gpu.changes(pixels=not self._dmabufs) as view, trio.open_nursery() as nursery:
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
        await self._send(wire.HEADER.pack(request, 0, len(payload)) + payload)

    async def _call(self, request: GpuRequest, reply: struct.Struct, payload: bytes = b"") -> tuple[Any, ...]:
        """Ask, and wait for the answer."""
        call = _Call(request, reply.size)
        async with self._sending:
            self._calls.append(call)
            await self._stream.send_all(wire.HEADER.pack(request, 0, len(payload)) + payload)
        await call.answered.wait()
        return reply.unpack(call.data)

    async def _read(self) -> None:
        while True:
            request, flags, size = wire.HEADER.unpack(await self._exactly(wire.HEADER.size))
            call = self._calls.popleft() if self._calls else None
            if call is None or (call.request, call.size) != (request, size) or not flags & wire.REPLY:
                raise _ProtocolError(f"message {request} of {size} bytes is no reply to what was asked")
            call.data = await self._exactly(size)
            call.answered.set()

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
            (offered,) = await self._call(GpuRequest.GET_PROTOCOL_FEATURES, wire.FEATURES)
            self._features = (Feature.EDID | self._dmabufs) & offered
            await self._tell(GpuRequest.SET_PROTOCOL_FEATURES, wire.FEATURES.pack(self._features))
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
        with bare_errors():
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
        (info,) = await self._call(GpuRequest.GET_DISPLAY_INFO, wire.DISPLAY_INFO)
        modes, scanouts = list(wire.MODE.iter_unpack(info)), self._gpu.scanouts
        missing = [number for number, mode in enumerate(modes) if mode[4] and number >= scanouts]
        if missing:
            _LOG.warning("QEMU has a scanout %d, this display has %d; start it with --scanouts", missing[0], scanouts)
        return [await self._monitor(number, *mode) for number, mode in enumerate(modes[:scanouts])]

    async def _monitor(self, number: int, x: int, y: int, width: int, height: int, enabled: int, _: int) -> Monitor:
        if not enabled or not all(_SIDE_MIN <= side <= _SIDE_MAX for side in (width, height)):
            return Monitor(None, x, y, b"")
        if self._features & Feature.EDID:
            size, data = await self._call(GpuRequest.GET_EDID, wire.EDID, wire.ID.pack(number))
            edid = data[:size]
        else:
            edid = edid_of(width, height, serial=number + 1)
        return Monitor(Mode(width, height), x, y, edid)

    # What is shown

    async def _show(self, view: View) -> None:
        shown = [_Shown() for _ in range(self._gpu.scanouts)]
        while True:
            began = trio.current_time()
            later = [number for number, was in enumerate(shown) if not await self._show_one(view, number, was)]
            now = trio.current_time()
            await trio.sleep_until(max(began + _FRAME, min(now + (now - began), began + _FRAME_MAX)))
            if not later:
                await anext(view)

    async def _show_one(self, view: View, number: int, was: _Shown) -> bool:
        """Tell what of a scanout is new; False: some of it later."""
        look = view.look(number)
        if look.damage is not None:
            was.owed = was.owed.union(look.damage) if was.owed is not None else look.damage
        await self._move(number, look.cursor, was.cursor)
        was.cursor = look.cursor
        try:
            buffer = self._buffer(view, number)
        except BlockingIOError:
            return False
        if buffer is not None:
            await self._show_buffer(number, buffer, was)
            return True
        if was.buffer is not None:
            await self._tell(GpuRequest.DMABUF_SCANOUT, wire.DMABUF.pack(number, *[0] * 9))  # none any more
            was.buffer, was.size = None, (-1, -1)  # neither its size nor its pixels are known there
            was.owed = Rect(0, 0, look.width, look.height)
        if (look.width, look.height) != was.size:
            was.size = look.width, look.height
            await self._tell(GpuRequest.SCANOUT, wire.SCANOUT.pack(number, look.width, look.height))
        owed, was.owed = was.owed, None
        if owed is not None and look.width:
            await self._update(number, owed)
        return True

    # dma-bufs

    def _buffer(self, view: View, scanout: int) -> Buffer | None:
        """What a renderer draws there, if QEMU can look at it; None: pixels are sent.

        Raises:
            BlockingIOError: it is being asked for.
        """
        if view.pixels:
            return None
        try:
            buffer = self._gpu.buffer(scanout)
        except PictureError as exc:
            why = str(exc)
        else:
            if buffer is None or not self._unfit(buffer):
                return buffer
            why = self._unfit(buffer)
        _LOG.info("QEMU gets pixels of 3D, not dma-bufs: %s", why)
        self._gpu.want_pixels(view, True)
        return None

    async def _show_buffer(self, scanout: int, buffer: Buffer, was: _Shown) -> None:
        if buffer != was.buffer:
            if not await self._share(scanout, buffer):
                return  # it shows something else by now: that is a change, and comes next
            was.buffer, was.owed = buffer, Rect(0, 0, buffer.rect.width, buffer.rect.height)
        owed, was.owed = was.owed, None
        if owed is not None:
            area = wire.AREA.pack(scanout, owed.x, owed.y, owed.width, owed.height)
            await self._call(GpuRequest.DMABUF_UPDATE, wire.EMPTY, area)

    async def _share(self, scanout: int, buffer: Buffer) -> bool:
        """Let QEMU look at a buffer; False: it is not shown any more."""
        rect = buffer.rect
        shown = rect.x, rect.y, rect.width, rect.height
        what = buffer.width, buffer.height, buffer.stride, buffer.flags, buffer.fourcc
        payload = wire.DMABUF.pack(scanout, *shown, *what)
        request = GpuRequest.DMABUF_SCANOUT
        if buffer.modifier is not None:
            request, payload = GpuRequest.DMABUF_SCANOUT2, payload + wire.MODIFIER.pack(buffer.modifier)
        message = wire.HEADER.pack(request, 0, len(payload)) + payload
        async with self._sending:
            fd = self._gpu.buffer_fd(scanout, buffer)
            if fd is None:
                return False
            with fd:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd.fileno()]))
                sent = await self._stream.socket.sendmsg([message], [rights])
            await self._stream.send_all(message[sent:])
        return True

    def _unfit(self, buffer: Buffer) -> str:
        """Why QEMU cannot look at it; nothing: it can."""
        if buffer.modifier is not None and not self._features & Feature.DMABUF2:
            return "QEMU before 8.2 does not know its layout"
        return "it does not begin with its first pixel" if buffer.offset else ""

    # Pixels and cursors

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
                await self._tell(GpuRequest.CURSOR_POS_HIDE, wire.POSITION.pack(*at))
        elif was_shown and before is not None and cursor.shapes == before.shapes:
            await self._tell(GpuRequest.CURSOR_POS, wire.POSITION.pack(*at))
        else:
            side = wire.CURSOR_SIDE - 1
            hot = min(cursor.hot_x, side), min(cursor.hot_y, side)
            shape = wire.SHAPE.pack(*at, *hot, self._gpu.cursor_image(scanout))
            await self._tell(GpuRequest.CURSOR_UPDATE, shape)

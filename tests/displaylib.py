"""QEMU's end of its display socket: we play QEMU, and draw what comes."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from gpurig import Guest, Rect

from devices.gpu import edid_of
from devices.gpu.qemu_wire import GpuRequest
from vhost.constants import FrontendRequest

MODE = struct.Struct("<6I")
SHAPE = 64 * 64 * 4


@dataclass
class Screen:
    """What QEMU would show."""

    width: int = 0
    height: int = 0
    pixels: bytearray = field(default_factory=bytearray)
    cursor: tuple[int, int] = (0, 0)
    hot: tuple[int, int] = (0, 0)
    shape: bytes = b""
    cursor_shown: bool = False
    buffer: int = -1  # a dma-buf that is shown
    stride: int = 0
    modifier: int | None = None


class Qemu:
    """The other end."""

    def __init__(self, stream: trio.SocketStream, modes: list[tuple[int, ...]], features: int = 3) -> None:
        self.stream = stream
        self.modes = modes
        self.features = features
        self.taken = -1
        self.screens = [Screen() for _ in range(16)]
        self.seen: list[GpuRequest] = []
        self.updates: list[tuple[int, Rect]] = []
        self.mute = False  # replies are not sent
        self.changed = trio.Event()
        self.closed = trio.Event()
        self.fds: list[int] = []  # that came and belong to nothing yet
        self.seen_buffers: list[tuple[int, Rect]] = []

    async def until(self, done: object) -> None:
        """Read on until that is so."""
        assert callable(done)
        with trio.fail_after(60):
            while not done():
                await self.changed.wait()

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more, rights, _, _ = await self.stream.socket.recvmsg(size - len(data), socket.CMSG_SPACE(4))
            for level, kind, fds in rights:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                self.fds += array.array("i", fds)
            if not more:
                raise EOFError
            data += more
        return data

    async def run(self) -> None:
        try:
            while True:
                request, flags, size = struct.unpack("<3I", await self.exactly(12))
                assert flags == 0
                await self.handle(GpuRequest(request), await self.exactly(size))
                self.seen.append(GpuRequest(request))
                self.changed.set()
                self.changed = trio.Event()
        except (EOFError, ConnectionResetError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.closed.set()

    async def reply(self, request: GpuRequest, payload: bytes) -> None:
        if not self.mute:
            await self.stream.send_all(struct.pack("<3I", request, 4, len(payload)) + payload)

    async def handle(self, request: GpuRequest, data: bytes) -> None:
        if request == GpuRequest.GET_PROTOCOL_FEATURES:
            await self.reply(request, struct.pack("<Q", self.features))
        elif request == GpuRequest.SET_PROTOCOL_FEATURES:
            (self.taken,) = struct.unpack("<Q", data)
        elif request == GpuRequest.GET_DISPLAY_INFO:
            modes = [*self.modes, *[(0,) * 6] * (16 - len(self.modes))]
            await self.reply(request, bytes(24) + b"".join(MODE.pack(*mode) for mode in modes))
        elif request == GpuRequest.GET_EDID:
            (number,) = struct.unpack("<I", data)
            assert number < len(self.modes), "QEMU does not answer for others"
            await self.reply(request, bytes(24) + struct.pack("<II", 128, 0) + edid(number).ljust(1024, b"\0"))
        elif request == GpuRequest.SCANOUT:
            number, width, height = struct.unpack("<3I", data)
            screen = self.screens[number]
            screen.width, screen.height, screen.pixels = width, height, bytearray(width * height * 4)
        elif request == GpuRequest.UPDATE:
            number, *numbers = struct.unpack_from("<5I", data)
            self.update(number, Rect(*numbers), data[20:])
        elif request in (GpuRequest.DMABUF_SCANOUT, GpuRequest.DMABUF_SCANOUT2):
            self.take_buffer(data)
        elif request == GpuRequest.DMABUF_UPDATE:
            number, *numbers = struct.unpack("<5I", data)
            assert self.screens[number].buffer >= 0
            self.seen_buffers.append((number, Rect(*numbers)))
            await self.reply(request, b"")
        else:
            number, x, y = struct.unpack_from("<3I", data)
            screen = self.screens[number]
            screen.cursor, screen.cursor_shown = (x, y), request != GpuRequest.CURSOR_POS_HIDE
            if request == GpuRequest.CURSOR_UPDATE:
                screen.hot, screen.shape = struct.unpack_from("<2I", data, 12), data[20:]
                assert len(screen.shape) == SHAPE

    def take_buffer(self, data: bytes) -> None:
        number, x, y, width, height, _, whole, stride, _, fourcc = struct.unpack_from("<9Ii", data)
        screen = self.screens[number]
        if screen.buffer >= 0:
            os.close(screen.buffer)
            screen.buffer = -1
        if not self.fds:
            assert not any((x, y, width, height, stride, fourcc))
            return
        (screen.buffer,), self.fds = self.fds, []
        screen.width, screen.height, screen.stride = width, height, stride
        screen.modifier = struct.unpack_from("<Q", data, 40)[0] if len(data) > 40 else None
        assert fourcc == int.from_bytes(b"XR24", "little")
        assert y + height <= whole

    def of_buffer(self, number: int) -> bytes:
        """What lies in it."""
        screen = self.screens[number]
        with mmap.mmap(screen.buffer, screen.stride * screen.height, prot=mmap.PROT_READ) as memory:
            return memory[:]

    def close(self) -> None:
        for fd in (*self.fds, *(screen.buffer for screen in self.screens)):
            if fd >= 0:
                os.close(fd)

    def update(self, number: int, rect: Rect, data: bytes | bytearray) -> None:
        screen = self.screens[number]
        assert rect.x + rect.width <= screen.width
        assert rect.y + rect.height <= screen.height
        assert len(data) == rect.width * rect.height * 4
        data = bytearray(data)
        data[3::4] = b"\xff" * (rect.width * rect.height)  # QEMU does not look at it
        for y in range(rect.height):
            at = ((rect.y + y) * screen.width + rect.x) * 4
            screen.pixels[at : at + rect.width * 4] = data[y * rect.width * 4 :][: rect.width * 4]
        self.updates.append((number, rect))


def edid(number: int) -> bytes:
    """Of QEMU's: none of ours."""
    return edid_of(640, 480, name="of QEMU", serial=77 + number)


async def hand_over(guest: Guest, *modes: tuple[int, ...], features: int = 3) -> Qemu:
    """Give the device a socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        await guest.fe.send(FrontendRequest.GPU_SET_SOCKET, fds=[theirs.fileno()])
    await guest.fe.get_config(0, 4)  # it has arrived
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    return Qemu(stream, list(modes) or [(0, 0, 1024, 768, 1, 0)], features)


@asynccontextmanager
async def shown(guest: Guest, *modes: tuple[int, ...], features: int = 3) -> AsyncIterator[Qemu]:
    """A device whose QEMU reads all that comes."""
    qemu = await hand_over(guest, *modes, features=features)
    async with qemu.stream, trio.open_nursery() as nursery:
        nursery.start_soon(qemu.run)
        yield qemu
        nursery.cancel_scope.cancel()
    qemu.close()

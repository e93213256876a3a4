"""QEMU's display socket: we play QEMU at its other end, and draw what comes."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from gpurig import BGRA, Cmd, Guest, Rect, display, driver, plugged

from devices.gpu import Gpu, Mode, PictureError, edid_of
from devices.gpu import qemu as module
from devices.gpu.qemu import GpuRequest
from vhost.constants import FrontendRequest
from vhost.frontend import Refused

GRADIENT = bytes(v for y in range(64) for x in range(64) for v in (x * 4, y * 4, 128, 255))
_MODE = struct.Struct("<6I")
_SHAPE = 64 * 64 * 4


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

    async def until(self, done: object) -> None:
        """Read on until that is so."""
        assert callable(done)
        with trio.fail_after(10):
            while not done():
                await self.changed.wait()

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.stream.receive_some(size - len(data))
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
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
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
            await self.reply(request, bytes(24) + b"".join(_MODE.pack(*mode) for mode in modes))
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
        else:
            number, x, y = struct.unpack_from("<3I", data)
            screen = self.screens[number]
            screen.cursor, screen.cursor_shown = (x, y), request != GpuRequest.CURSOR_POS_HIDE
            if request == GpuRequest.CURSOR_UPDATE:
                screen.hot, screen.shape = struct.unpack_from("<2I", data, 12), data[20:]
                assert len(screen.shape) == _SHAPE

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


async def modes_of(guest: Guest) -> list[tuple[int, ...]]:
    """As the driver learns them: place, size, whether enabled."""
    info = await guest.do(Cmd.GET_DISPLAY_INFO)
    return [_MODE.unpack_from(info, i * 24)[:5] for i in range(16)]


async def test_what_is_drawn_is_shown() -> None:
    async with display(Gpu()) as guest, shown(guest) as qemu:
        await guest.paint(0, 1, 64, 64, GRADIENT)
        await qemu.until(lambda: bytes(qemu.screens[0].pixels) == GRADIENT)
        assert (qemu.screens[0].width, qemu.screens[0].height) == (64, 64)
        # only what changed is sent
        await trio.testing.wait_all_tasks_blocked(0.05)
        qemu.updates.clear()
        guest.draw(1, bytes(64 * 4 * 8))
        await guest.transfer(1, Rect(3, 2, 10, 4), offset=(2 * 64 + 3) * 4)
        await guest.flush(1, Rect(3, 2, 10, 4))
        await qemu.until(lambda: qemu.updates)
        assert qemu.updates == [(0, Rect(3, 2, 10, 4))]
        assert qemu.screens[0].pixels[(3 * 64 + 12) * 4 :][:8] == b"\0\0\0\xff" + GRADIENT[(3 * 64 + 13) * 4 :][:4]
        # another size, then nothing
        await guest.show(0, 1, 32, 16)
        await qemu.until(lambda: qemu.screens[0].width == 32 and qemu.updates[-1] == (0, Rect(0, 0, 32, 16)))
        await guest.show(0, 0, 0, 0)
        await qemu.until(lambda: qemu.screens[0].width == 0)
        assert qemu.taken == 1, "EDID, of what we can"


async def test_a_picture_taken_meanwhile_takes_nothing_away() -> None:
    gpu = Gpu()
    async with display(gpu) as guest, shown(guest) as first, gpu.changes() as view:
        await guest.paint(0, 1, 64, 64, GRADIENT)
        gpu.picture()
        await first.until(lambda: bytes(first.screens[0].pixels) == GRADIENT)
        with trio.fail_after(5):
            await anext(view)
        look = view.look(0)
        assert look.damage is not None
        assert (look.width, look.damage.width, look.damage.height) == (64, 64, 64)
        assert view.look(0).damage is None
        await guest.flush(1, Rect(1, 2, 3, 4))
        await guest.flush(1, Rect(10, 20, 2, 2))
        damage = view.look(0).damage
        assert damage is not None
        assert (damage.x, damage.y, damage.width, damage.height) == (1, 2, 11, 20)


async def test_several_scanouts_and_formats() -> None:
    async with display(Gpu(scanouts=3)) as guest, shown(guest) as qemu:
        red = bytes([0, 0, 255, 255]) * 1024
        await guest.paint(0, 1, 64, 64, GRADIENT)
        await guest.paint(2, 2, 32, 32, red)
        await qemu.until(lambda: bytes(qemu.screens[0].pixels) == GRADIENT and bytes(qemu.screens[2].pixels) == red)
        # a blob of another order, read where it lies
        await guest.blob(3, 4096)
        guest.draw(3, bytes([255, 0, 0, 9]) * 1024)
        await guest.show_blob(1, 3, 32, 32, kind=67)
        await qemu.until(lambda: bytes(qemu.screens[1].pixels) == red)


async def test_cursor() -> None:
    async with display(Gpu()) as guest, shown(guest) as qemu:
        screen = qemu.screens[0]
        shape = bytes(range(256)) * 64
        await guest.create(2, 64, 64, BGRA)
        await guest.attach(2, _SHAPE)
        guest.draw(2, shape)
        await guest.transfer(2, Rect(0, 0, 64, 64))
        await guest.cursor(2, 60, 10, hot=(1, 0xFFFFFFFF))
        await qemu.until(lambda: screen.cursor_shown)
        assert (screen.cursor, screen.hot, screen.shape) == ((60, 10), (1, 63), shape)
        await guest.cursor(0, 3, 0xFFFFFFFE, move=True)
        await qemu.until(lambda: screen.cursor == (3, 0xFFFFFFFE))
        assert qemu.seen.count(GpuRequest.CURSOR_UPDATE) == 1
        await guest.cursor(0, 0, 0)
        await qemu.until(lambda: not screen.cursor_shown)
        assert qemu.seen[-1] == GpuRequest.CURSOR_POS_HIDE


async def test_modes_are_those_of_qemu() -> None:
    gpu = Gpu(scanouts=2, modes=[Mode(640, 480)])
    async with display(gpu) as guest:
        assert (await modes_of(guest))[0] == (0, 0, 640, 480, 1)
        async with shown(guest, (0, 0, 1024, 768, 1, 0), (1024, 5, 800, 600, 1, 0)) as qemu:
            answer = await guest.do(Cmd.GET_EDID, struct.pack("<II", 0, 0))  # as Linux does, before the modes
            assert answer[8 : 8 + 128] == edid(0)
            modes = await modes_of(guest)
            assert modes[:3] == [(0, 0, 1024, 768, 1), (1024, 5, 800, 600, 1), (0,) * 5]
            answer = await guest.do(Cmd.GET_EDID, struct.pack("<II", 1, 0))
            assert answer[8 : 8 + 128] == edid(1)
            assert gpu.modes == (Mode(1024, 768), Mode(800, 600))
            with pytest.raises(PictureError, match="QEMU decides"):
                gpu.set_mode(0, Mode(320, 200))
            # its window is resized: the guest asks again, and learns it at once
            for width in (1111, 1222, 1333):
                qemu.modes[0] = (0, 0, width, 700, 1, 0)
                qemu.modes[1] = (0,) * 6
                assert (await modes_of(guest))[:2] == [(0, 0, width, 700, 1), (0,) * 5]
            qemu.modes[0] = (0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 1, 0)
            assert (await modes_of(guest))[0] == (0,) * 5
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await modes_of(guest))[0] == (0, 0, 640, 480, 1), "ours again"
        gpu.set_mode(0, Mode(320, 200))


async def test_qemu_without_edid() -> None:
    async with display(Gpu()) as guest, shown(guest, features=0) as qemu:
        assert (await modes_of(guest))[0] == (0, 0, 1024, 768, 1)
        answer = await guest.do(Cmd.GET_EDID, struct.pack("<II", 0, 0))
        assert answer[8 : 8 + 128] == edid_of(1024, 768, serial=1)
        assert qemu.taken == 0
        assert GpuRequest.GET_EDID not in qemu.seen


async def test_each_start_of_the_driver_has_its_own_socket() -> None:
    gpu = Gpu()
    async with plugged(gpu) as path:
        for width in (500, 600):
            async with driver(path) as guest, shown(guest, (0, 0, width, 300, 1, 0)) as first:
                await guest.paint(0, 1, 64, 64, GRADIENT)
                await first.until(lambda first=first: bytes(first.screens[0].pixels) == GRADIENT)
                async with shown(guest, (0, 0, width + 1, 300, 1, 0)) as second:
                    with trio.fail_after(5):
                        await first.closed.wait()
                    assert (await modes_of(guest))[0] == (0, 0, width + 1, 300, 1)
                    await second.until(lambda second=second: bytes(second.screens[0].pixels) == GRADIENT)


async def test_a_reader_that_sleeps_blocks_nobody() -> None:
    side = 1024
    gpu = Gpu()
    async with display(gpu) as guest:
        qemu = await hand_over(guest)
        async with qemu.stream, trio.open_nursery() as nursery:
            await guest.paint(0, 1, side, side, bytes([1, 1, 1, 255]) * (side * side))
            with trio.fail_after(20):
                for number in range(2, 60):  # 240 MB, of which nothing is read
                    guest.draw(1, bytes([number, 1, 1, 255]) * (side * 4), at=number * side * 4)
                    await guest.transfer(1, Rect(0, 0, side, side))
                    await guest.flush(1, Rect(0, number, side, 4))
            nursery.start_soon(qemu.run)
            await qemu.until(lambda: bytes(qemu.screens[0].pixels) == gpu.picture().pixels)
            assert len(qemu.updates) < 10, "what came meanwhile is one"
            nursery.cancel_scope.cancel()


async def sleepy(guest: Guest, colour: int) -> Qemu:
    """A QEMU that has answered and then reads no more, while a picture is on its way."""
    qemu = await hand_over(guest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(qemu.run)
        await qemu.until(lambda: GpuRequest.GET_DISPLAY_INFO in qemu.seen)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await guest.paint(0, 1, 1024, 1024, bytes([colour, 1, 1, 255]) * (1024 * 1024))
    await trio.testing.wait_all_tasks_blocked(0.1)  # the socket is full
    return qemu


async def test_what_is_sent_is_taken_away_meanwhile() -> None:
    """A guest that destroys what it is being shown: all of it still comes, then what is shown now."""
    async with display(Gpu()) as guest:
        qemu = await sleepy(guest, 9)
        async with qemu.stream, trio.open_nursery() as nursery:
            await guest.unref(1)
            await guest.paint(0, 2, 32, 32, bytes(32 * 32 * 4))
            nursery.start_soon(qemu.run)
            await qemu.until(lambda: qemu.updates and qemu.updates[-1] == (0, Rect(0, 0, 32, 32)))
            assert qemu.updates[0] == (0, Rect(0, 0, 1024, 1024))
            nursery.cancel_scope.cancel()


async def test_the_device_goes_while_the_display_is_stuck() -> None:
    """The thread that sends ends, too: otherwise this never does."""
    with trio.fail_after(20):
        async with display(Gpu()) as guest:
            qemu = await sleepy(guest, 8)
        await qemu.stream.aclose()


async def test_a_qemu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    async with display(Gpu(modes=[Mode(640, 480)])) as guest, shown(guest, (0, 0, 900, 500, 1, 0)) as qemu:
        assert (await modes_of(guest))[0] == (0, 0, 900, 500, 1)
        qemu.mute = True
        qemu.modes[0] = (0, 0, 901, 500, 1, 0)
        with trio.fail_after(5):
            assert (await modes_of(guest))[0] == (0, 0, 900, 500, 1), "what is known"
            assert (await modes_of(guest))[0] == (0, 0, 900, 500, 1), "not asked again"
        assert "does not tell its modes" in caplog.text
        await guest.paint(0, 1, 64, 64, GRADIENT)
        await qemu.until(lambda: bytes(qemu.screens[0].pixels) == GRADIENT)


async def test_the_queue_stops_while_qemu_is_asked() -> None:
    """QEMU cannot answer while it waits for the queue to stop."""
    async with display(Gpu(modes=[Mode(640, 480)])) as guest, shown(guest) as qemu:
        assert (await modes_of(guest))[0] == (0, 0, 1024, 768, 1)
        qemu.mute = True
        asked = qemu.seen.count(GpuRequest.GET_DISPLAY_INFO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.do, Cmd.GET_DISPLAY_INFO)
            await qemu.until(lambda: qemu.seen.count(GpuRequest.GET_DISPLAY_INFO) > asked)
            with trio.fail_after(module.PATIENCE / 2):
                await guest.fe.stop_queue(guest.fe.queues[0])


@pytest.mark.parametrize("said", [struct.pack("<3I", 1, 4, 9) + bytes(9), struct.pack("<3I", 8, 0, 0), bytes(12)])
async def test_nonsense_ends_the_display_alone(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with display(Gpu(modes=[Mode(640, 480)])) as guest:
        qemu = await hand_over(guest)
        async with qemu.stream, trio.open_nursery() as nursery:
            qemu.mute = True
            nursery.start_soon(qemu.run)
            await qemu.stream.send_all(said)
            with trio.fail_after(5):
                await qemu.closed.wait()
            assert "is no reply to what was asked" in caplog.text
            assert (await modes_of(guest))[0] == (0, 0, 640, 480, 1)
            nursery.cancel_scope.cancel()


async def test_what_is_no_socket_is_refused() -> None:
    async with display(Gpu()) as guest:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            for fd in (guest.fe.queues[0].kick_fd, datagrams.fileno()):
                with pytest.raises(Refused):
                    await guest.fe.send(FrontendRequest.GPU_SET_SOCKET, fds=[fd])
        await guest.paint(0, 1, 64, 64, GRADIENT)

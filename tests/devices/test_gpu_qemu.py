"""QEMU's display socket: we play QEMU at its other end, and draw what comes."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing
from displaylib import MODE, SHAPE, Qemu, edid, hand_over, shown
from gpurig import BGRA, Cmd, Guest, Rect, display, driver, plugged

from devices.gpu import Gpu, Mode, PictureError, edid_of
from devices.gpu import qemu as module
from devices.gpu.qemu_wire import GpuRequest
from vhost.constants import FrontendRequest
from vhost.frontend import Refused

GRADIENT = bytes(v for y in range(64) for x in range(64) for v in (x * 4, y * 4, 128, 255))


async def modes_of(guest: Guest) -> list[tuple[int, ...]]:
    """As the driver learns them: place, size, whether enabled."""
    info = await guest.do(Cmd.GET_DISPLAY_INFO)
    return [MODE.unpack_from(info, i * 24)[:5] for i in range(16)]


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
        with trio.fail_after(60):
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
        await guest.attach(2, SHAPE)
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
                    with trio.fail_after(60):
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
            with trio.fail_after(60):
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
    with trio.fail_after(60):
        async with display(Gpu()) as guest:
            qemu = await sleepy(guest, 8)
        await qemu.stream.aclose()


async def test_a_qemu_that_goes_while_it_is_asked() -> None:
    async with display(Gpu()) as guest:
        for _ in range(3):
            qemu = await hand_over(guest)
            await qemu.exactly(12)
            await qemu.reply(GpuRequest.GET_PROTOCOL_FEATURES, struct.pack("<Q", 3))
            await qemu.stream.aclose()
        assert (await modes_of(guest))[0] == (0, 0, 1280, 800, 1)


async def test_a_qemu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    async with display(Gpu(modes=[Mode(640, 480)])) as guest, shown(guest, (0, 0, 900, 500, 1, 0)) as qemu:
        assert (await modes_of(guest))[0] == (0, 0, 900, 500, 1)
        qemu.mute = True
        qemu.modes[0] = (0, 0, 901, 500, 1, 0)
        with trio.fail_after(60):
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
            with trio.fail_after(60):
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

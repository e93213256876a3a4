"""3D for QEMU's display where it is drawn: dma-bufs, or pixels where there are none.

With the renderer that draws nothing, whose dma-bufs are plain shared memory.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from displaylib import Qemu, shown
from gpurig import Cmd, Guest, Rect, Resp, display

from devices.gpu import Gpu
from devices.gpu.qemu_wire import GpuRequest
from devices.gpu.render import Kind, RendererError, open_renderer

FILL = 1
SIDE = 64
ALL = Rect(0, 0, SIDE, SIDE)
GREY = b"\x60\x50\x40\x00" * (SIDE * SIDE)
SHARES = {GpuRequest.DMABUF_SCANOUT, GpuRequest.DMABUF_SCANOUT2, GpuRequest.DMABUF_UPDATE}


@asynccontextmanager
async def watched(
    *, kind: Kind = "null", features: int = 3, dmabufs: bool = True, scanouts: int = 1
) -> AsyncIterator[tuple[Gpu, Guest, Qemu]]:
    """A display with 3D, its driver with something to draw to, and QEMU."""
    async with open_renderer(kind) as renderer:
        gpu = Gpu(renderer=renderer, dmabufs=dmabufs, scanouts=scanouts)
        async with display(gpu, features=7) as guest, shown(guest, features=features) as qemu:
            await guest.context(1)
            for number in (5, 6):
                await guest.create_3d(number, SIDE, SIDE)
                await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", number, 0), context=1)
            yield gpu, guest, qemu


async def test_qemu_looks_where_it_is_drawn() -> None:
    async with watched() as (gpu, guest, qemu):
        screen = qemu.screens[0]
        await guest.show(0, 5, SIDE, SIDE)
        await qemu.until(lambda: qemu.seen_buffers)
        assert (screen.width, screen.stride, screen.modifier) == (SIDE, SIDE * 4, 0)
        assert qemu.seen_buffers == [(0, ALL)]
        assert (await guest.submit(1, [FILL, 5, 0x00405060])).type == Resp.OK_NODATA
        await guest.flush(5, Rect(1, 2, 3, 4))
        await qemu.until(lambda: len(qemu.seen_buffers) == 2)
        assert qemu.seen_buffers[1] == (0, Rect(1, 2, 3, 4))
        assert qemu.of_buffer(0) == GREY
        # another one, which is shown in part; each is shared once
        await guest.show(0, 6, 32, 16, x=8)
        await qemu.until(lambda: len(qemu.seen_buffers) == 3)
        assert (screen.width, screen.height) == (32, 16)
        assert qemu.seen_buffers[2] == (0, Rect(0, 0, 32, 16))
        await guest.show(0, 5, SIDE, SIDE)
        await qemu.until(lambda: len(qemu.seen_buffers) == 4)
        assert qemu.of_buffer(0) == GREY
        assert qemu.seen.count(GpuRequest.DMABUF_SCANOUT2) == 3
        assert gpu.stats.reads == 0, "no pixel came here"
        # and a picture for somebody else takes nothing away
        await gpu.fetch()
        assert gpu.picture().pixel(9, 9) == (0x40, 0x50, 0x60)
        await guest.flush(5, ALL)
        await qemu.until(lambda: len(qemu.seen_buffers) == 5)


async def test_from_3d_to_2d_and_back() -> None:
    async with watched() as (_, guest, qemu):
        await guest.show(0, 5, SIDE, SIDE)
        await qemu.until(lambda: qemu.seen_buffers)
        plain = bytes([1, 2, 3, 255]) * (SIDE * SIDE)
        await guest.paint(0, 9, SIDE, SIDE, plain)
        await qemu.until(lambda: bytes(qemu.screens[0].pixels) == plain)
        assert qemu.screens[0].buffer == -1, "let go"
        await guest.show(0, 5, SIDE, SIDE)
        await qemu.until(lambda: len(qemu.seen_buffers) == 2)
        await guest.show(0, 0, 0, 0)
        await qemu.until(lambda: qemu.screens[0].buffer == -1 and qemu.screens[0].width == 0)


async def test_flow_control() -> None:
    """QEMU is told no more until it has seen what it was told of; the guest does not wait."""
    async with watched() as (_, guest, qemu):
        await guest.show(0, 5, SIDE, SIDE)
        await qemu.until(lambda: qemu.seen_buffers)
        qemu.mute = True
        await guest.flush(5, Rect(0, 0, 1, 1))
        await qemu.until(lambda: len(qemu.seen_buffers) == 2)
        for at in (3, 20):
            await guest.flush(5, Rect(at, at, 2, 2))
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(qemu.seen_buffers) == 2
        qemu.mute = False
        await qemu.reply(GpuRequest.DMABUF_UPDATE, b"")
        await qemu.until(lambda: len(qemu.seen_buffers) == 3)
        assert qemu.seen_buffers[2] == (0, Rect(3, 3, 19, 19)), "one for both"


async def test_several_scanouts() -> None:
    async with watched(scanouts=2) as (_, guest, qemu):
        await guest.show(0, 5, SIDE, SIDE)
        await guest.show(1, 6, SIDE, SIDE)
        await guest.submit(1, [FILL, 6, 0x00405060])
        await guest.flush(6, ALL)
        await qemu.until(lambda: min(screen.buffer for screen in qemu.screens[:2]) >= 0 and qemu.of_buffer(1) == GREY)
        assert qemu.of_buffer(0) == bytes(len(GREY))


@pytest.mark.parametrize("why", ["an old QEMU", "not wanted"])
async def test_pixels_instead(why: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    features, dmabufs = (1, True) if why == "an old QEMU" else (3, False)
    async with watched(features=features, dmabufs=dmabufs) as (_, guest, qemu):
        assert (await guest.submit(1, [FILL, 5, 0x00405060])).type == Resp.OK_NODATA
        await guest.show(0, 5, SIDE, SIDE)
        await qemu.until(lambda: bytes(qemu.screens[0].pixels[:3]) == GREY[:3])
        assert (await guest.submit(1, [FILL, 5, 0])).type == Resp.OK_NODATA
        await guest.flush(5, ALL)
        await qemu.until(lambda: bytes(qemu.screens[0].pixels[:3]) == bytes(3))
        assert not SHARES & set(qemu.seen)
    said = caplog.text.count("QEMU gets pixels of 3D, not dma-bufs: QEMU before 8.2 does not know its layout")
    assert said == (1 if dmabufs else 0)


async def test_an_opengl_that_shares_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Mesa's software renderer: QEMU gets pixels, and one line says why."""
    pytest.importorskip("devices.gpu.render._virgl", reason="not built: install libvirglrenderer-dev")
    caplog.set_level("INFO")
    try:
        async with watched(kind="virgl") as (_, guest, qemu):
            for number in (5, 6):
                await guest.attach(number, SIDE * SIDE * 4)
                guest.draw(number, bytes([number, 2, 3, 255]) * (SIDE * SIDE))
                await guest.transfer_3d(Cmd.TO_HOST_3D, number, ALL, context=1)
                await guest.show(0, number, SIDE, SIDE)
                want = bytes([number, 2, 3, 255]) * (SIDE * SIDE)
                await qemu.until(lambda want=want: bytes(qemu.screens[0].pixels) == want)
            assert not SHARES & set(qemu.seen)
    except RendererError as error:
        pytest.skip(str(error))
    assert caplog.text.count("the renderer's OpenGL does not share what it draws; that takes a GPU") == 1

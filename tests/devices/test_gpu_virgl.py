"""3D by libvirglrenderer: virgl's commands through our front-end, drawn by Mesa with the CPU, pixels compared."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from gpurig import Cmd, Guest, Rect, Resp, display

from devices.gpu import Gpu
from devices.gpu.render import RendererError, open_renderer

pytest.importorskip("devices.gpu.render._virgl", reason="not built: install libvirglrenderer-dev")

VIRGL = 0x17  # and EDID, UUID, CONTEXT_INIT
BGRA = 1
SIDE = 64
ALL = Rect(0, 0, SIDE, SIDE)
BYTES = SIDE * SIDE * 4

# what a context is told, as virgl numbers it
CREATE, SET_FRAMEBUFFER, CLEAR, SET_SCISSOR = 1, 5, 7, 15
SURFACE = 8
COLOUR_0 = 4


def word(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def command(number: int, *words: int, what: int = 0) -> list[int]:
    return [number | what << 8 | len(words) << 16, *words]


def clear(resource: int, red: float, green: float, blue: float) -> list[int]:
    """All of a resource in one colour."""
    return [
        *command(CREATE, 100, resource, BGRA, 0, 0, what=SURFACE),
        *command(SET_FRAMEBUFFER, 1, 0, 100),
        *command(CLEAR, COLOUR_0, word(red), word(green), word(blue), word(1), 0, 0, 0),
    ]


@asynccontextmanager
async def rendered() -> AsyncIterator[tuple[Gpu, Guest]]:
    try:
        async with open_renderer("virgl") as renderer:
            gpu = Gpu(renderer=renderer)
            async with display(gpu, features=VIRGL) as guest:
                await guest.context(1)
                await guest.create_3d(5, SIDE, SIDE, kind=BGRA)
                await guest.attach(5, BYTES, [4096, 100, BYTES - 4196])
                await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", 5, 0), context=1)
                yield gpu, guest
    except RendererError as error:
        pytest.skip(str(error))


async def test_a_clear_is_seen() -> None:
    async with rendered() as (gpu, guest):
        assert (await guest.submit(1, clear(5, 1.0, 0.5, 0.25), fence=1)).type == Resp.OK_NODATA
        await guest.show(0, 5, SIDE, SIDE)
        await gpu.fetch()
        assert gpu.picture().pixels == b"\x40\x80\xff\xff" * SIDE * SIDE
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, ALL, context=1, fence=2)
        assert guest.pixels(5, BYTES) == b"\x40\x80\xff\xff" * SIDE * SIDE
        # the guest's pixels, and what is flushed of them, row by row where they belong
        rows = b"".join(bytes([y, 255 - y, 7, 255]) * SIDE for y in range(SIDE))
        guest.draw(5, rows)
        await guest.transfer_3d(Cmd.TO_HOST_3D, 5, ALL, context=1)
        await guest.flush(5, Rect(8, 16, 10, 4))
        await gpu.fetch()
        picture = gpu.picture()
        assert picture.pixel(8, 16) == (7, 239, 16)
        assert picture.pixel(17, 19) == (7, 236, 19)
        assert {picture.pixel(7, 16), picture.pixel(18, 19), picture.pixel(8, 15), picture.pixel(8, 20)} == {
            (255, 128, 64)
        }
        await guest.flush(5, ALL)
        await gpu.fetch()
        assert gpu.picture().pixels == rows


@pytest.mark.parametrize("processors", [1, None])
async def test_fences_say_that_it_is_drawn(processors: int | None) -> None:
    """Mesa draws at once where it has one processor, and by threads elsewhere."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:processors])
    try:
        async with rendered() as (_, guest), trio.open_nursery() as nursery:
            side = 1024
            await guest.create_3d(6, side, side, kind=BGRA)
            await guest.attach(6, 4 * side * side)
            await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", 6, 0), context=1)

            async def drawn(number: int) -> None:
                reply = await guest.submit(1, clear(5 + number % 2, 0, 1, 0), fence=number)
                assert (reply.type, reply.fence) == (Resp.OK_NODATA, number)
                await guest.do(Cmd.GET_DISPLAY_INFO, fence=number)
                await guest.transfer_3d(
                    Cmd.FROM_HOST_3D, 5 + number % 2, Rect(9, 9, 1, 1), context=1, offset=16 * number
                )
                assert guest.pixels(5 + number % 2, BYTES)[16 * number :][:4] == b"\x00\xff\x00\xff"

            for number in range(20):
                nursery.start_soon(drawn, number)
    finally:
        os.sched_setaffinity(0, before)


async def test_capsets() -> None:
    async with rendered() as (_, guest):
        found = {}
        (number,) = struct.unpack("<I", await guest.fe.get_config(12, 4))
        for index in range(number):
            data = await guest.do(Cmd.GET_CAPSET_INFO, struct.pack("<II", index, 0))
            kind, version, size, _ = struct.unpack("<4I", data)
            caps = await guest.do(Cmd.GET_CAPSET, struct.pack("<II", kind, version))
            assert len(caps) == size
            assert any(caps)
            found[kind] = version
        assert set(found) == {1, 2}, "virgl, virgl2"


async def test_contexts_of_a_capset() -> None:
    async with rendered() as (_, guest):

        async def create(number: int, capset: int) -> Resp:
            body = struct.pack("<II64s", 1, capset, b"x")
            return (await guest.command(Cmd.CTX_CREATE, body, context=number)).type

        assert await create(2, 1) == Resp.OK_NODATA
        assert await create(3, 2) == Resp.OK_NODATA
        for capset in (3, 4, 0x102, 1 << 31):
            assert await create(4, capset) == Resp.ERR_INVALID_PARAMETER
        await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", 5, 0), context=3)
        # a fence of a ring
        words = clear(5, 0, 1, 0)
        body = struct.pack("<II", 4 * len(words), 0) + struct.pack(f"<{len(words)}I", *words)
        head = struct.pack("<IIQIB3x", Cmd.SUBMIT_3D, 3, 77, 3, 1)
        used, (back, *_) = await guest.fe.queues[0].request([head + body], [24])
        assert used == 24
        assert struct.unpack("<IIQIB3x", back) == (Resp.OK_NODATA, 3, 77, 3, 1)
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, Rect(0, 0, 1, 1), context=3)
        assert guest.pixels(5, 4) == b"\x00\xff\x00\xff"


async def test_words_of_a_guest_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """A context's name is text on the library's own line, whatever is in it, and there are few such lines."""
    async with rendered() as (_, guest):
        for number in range(2, 40):
            await guest.context(number, b"\x1b[2Jname\nvhost: error: all is lost\xff")
            await guest.submit(number, clear(99, 1, 1, 1))
    said = capfd.readouterr().err
    assert "?[2Jname?vhost: error: all is lost?" in said
    assert "\x1b" not in said
    assert 1 <= len(said.splitlines()) <= 16
    assert all(line.startswith("renderer: ") for line in said.splitlines())


async def test_mistakes_cost_the_context_alone() -> None:
    async with rendered() as (_, guest):
        await guest.context(2)
        assert (await guest.submit(2, clear(99, 1, 1, 1))).type != Resp.OK_NODATA  # no such resource
        await guest.submit(2, [0x00FFFF01, 1, 2])  # longer than it is: the context is told nothing more
        assert (
            await guest.command(Cmd.CREATE_3D, Guest.in_3d(6, 64, 64, kind=4000))
        ).type == Resp.ERR_INVALID_PARAMETER
        await guest.create_3d(6, 64, 64)  # the number is free
        assert (await guest.submit(1, clear(5, 0, 1, 0), fence=1)).type == Resp.OK_NODATA
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, Rect(0, 0, 1, 1), context=1)
        assert guest.pixels(5, 4) == b"\x00\xff\x00\xff"


async def test_noise() -> None:
    """Whatever a context is told, the display goes on; should its renderer end, a reset brings the next."""
    chance = random.Random(7)
    async with rendered() as (gpu, guest):
        for _ in range(300):
            words: list[int] = []
            for _ in range(chance.randint(1, 6)):
                operands = [chance.choice((0, 1, 5, 100, chance.getrandbits(32))) for _ in range(chance.randint(0, 12))]
                words += command(chance.randint(0, 60), *operands, what=chance.randint(0, 12))
            await guest.submit(1, words, fence=chance.choice((None, 3)))
        assert (await guest.command(Cmd.GET_DISPLAY_INFO)).type == Resp.OK_DISPLAY_INFO
        gpu.reset()
        await guest.context(1)
        await guest.create_3d(5, SIDE, SIDE, kind=BGRA)
        await guest.attach(5, BYTES)
        await guest.do(Cmd.CTX_ATTACH, struct.pack("<II", 5, 0), context=1)
        assert (await guest.submit(1, clear(5, 0, 0, 1), fence=1)).type == Resp.OK_NODATA
        await guest.transfer_3d(Cmd.FROM_HOST_3D, 5, ALL, context=1)
        assert guest.pixels(5, 4) == b"\xff\x00\x00\xff"

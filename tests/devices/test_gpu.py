"""A display: every command and its errors, what is seen of it, limits, life."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import gpurig
import pytest
import trio
from gpurig import BGRX, FORMATS, Cmd, Guest, Rect, Resp, display, driver, plugged

from devices.gpu import Gpu, Limits, Mode, PictureError, edid_of, parse_mode
from devices.gpu.picture import save

GRADIENT = bytes(v for y in range(64) for x in range(64) for v in (x * 4, y * 4, 128, 0))


def crop(data: bytes, width: int, rect: Rect) -> bytes:
    """The rows of a rectangle, of 4 bytes a pixel."""
    rows = range(rect.y, rect.y + rect.height)
    return b"".join(data[(y * width + rect.x) * 4 :][: rect.width * 4] for y in rows)


def opaque(data: bytes) -> bytes:
    """As pictures have it: the fourth byte is 255."""
    out = bytearray(data)
    out[3::4] = b"\xff" * (len(data) // 4)
    return bytes(out)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_what_is_drawn_is_seen(packed: bool) -> None:
    gpu = Gpu()
    async with display(gpu, packed=packed) as guest:
        with pytest.raises(PictureError, match="shows nothing"):
            gpu.picture()
        await guest.paint(0, 1, 64, 64, GRADIENT)
        assert gpu.picture().pixels == opaque(GRADIENT)
        # nothing moves without a transfer
        guest.draw(1, bytes(64 * 64 * 4))
        await guest.flush(1, Rect(0, 0, 64, 64))
        assert gpu.picture().pixels == opaque(GRADIENT)
        # a part: rows of the pages are as long as those of the resource
        rect = Rect(10, 20, 30, 7)
        await guest.transfer(1, rect, offset=(20 * 64 + 10) * 4)
        expected = bytearray(opaque(GRADIENT))
        for y in range(20, 27):
            expected[(y * 64 + 10) * 4 : (y * 64 + 40) * 4] = b"\0\0\0\xff" * 30
        assert gpu.picture().pixels == bytes(expected)
        # a scanout of a part of the resource
        await guest.show(0, 1, 32, 16, x=8, y=12)
        part = gpu.picture()
        assert (part.width, part.height) == (32, 16)
        assert part.pixels == crop(bytes(expected), 64, Rect(8, 12, 32, 16))
        await guest.show(0, 0, 0, 0)
        with pytest.raises(PictureError, match="shows nothing"):
            gpu.picture()


@pytest.mark.parametrize("kind", FORMATS)
async def test_formats(kind: int) -> None:
    places = {
        1: (2, 1, 0),
        2: (2, 1, 0),
        3: (1, 2, 3),
        4: (1, 2, 3),
        67: (0, 1, 2),
        134: (0, 1, 2),
        121: (3, 2, 1),
        68: (3, 2, 1),
    }
    red, green, blue = places[kind]
    pixel = bytearray(4)
    pixel[red], pixel[green], pixel[blue] = 10, 20, 30
    gpu = Gpu()
    async with display(gpu) as guest:
        await guest.create(5, 16, 16, kind)
        await guest.attach(5, 16 * 16 * 4)
        guest.draw(5, bytes(pixel) * 256)
        await guest.transfer(5, Rect(0, 0, 16, 16))
        await guest.show(0, 5, 16, 16)
        assert gpu.picture().pixel(3, 4) == (10, 20, 30)
        await guest.blob(6, 1024)
        guest.draw(6, bytes(pixel) * 256)
        await guest.show_blob(0, 6, 16, 16, kind=kind)
        assert gpu.picture().pixel(15, 15) == (10, 20, 30)


async def test_pages_of_any_size() -> None:
    chance = random.Random(4)
    size = 100 * 50 * 4
    cuts = sorted(chance.sample(range(1, size), 40))
    pieces = [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    data = chance.randbytes(size)
    gpu = Gpu()
    async with display(gpu) as guest:
        await guest.create(1, 100, 50)
        await guest.attach(1, size, pieces)
        guest.draw(1, data)
        await guest.show(0, 1, 100, 50)
        for _ in range(30):
            x, y = chance.randrange(100), chance.randrange(50)
            rect = Rect(x, y, chance.randint(1, 100 - x), chance.randint(1, 50 - y))
            await guest.transfer(1, rect, offset=(y * 100 + x) * 4)
        await guest.transfer(1, Rect(0, 0, 100, 50))
        assert gpu.picture().pixels == opaque(data)
        await guest.do(Cmd.DETACH_BACKING, struct.pack("<II", 1, 0))
        reply = await guest.command(Cmd.TRANSFER_TO_HOST_2D, Rect(0, 0, 1, 1).pack() + struct.pack("<QII", 0, 1, 0))
        assert reply.type == Resp.ERR_UNSPEC


async def test_blobs_are_read_where_they_lie() -> None:
    gpu = Gpu()
    async with display(gpu) as guest:
        stride, offset = 320, 4096
        await guest.blob(9, 32768, [4096] * 8)
        rows = [bytes([y] * 256) for y in range(64)]
        for y, row in enumerate(rows):
            guest.draw(9, row, offset + y * stride)
        await guest.show_blob(0, 9, 64, 64, offset=offset, stride=stride)
        assert gpu.picture().pixels == opaque(b"".join(rows))
        guest.draw(9, b"\x99" * 256, offset)  # no transfer, no flush
        assert gpu.picture().pixel(5, 0) == (0x99, 0x99, 0x99)
        assert gpu.stats.transfers == 0
        assert gpu.stats.bytes < 4096, "only what describes it"
        before = gpu.flushes()
        await guest.flush(9, Rect(0, 0, 64, 64))
        assert gpu.flushes() == before + 1
        await guest.unref(9)
        with pytest.raises(PictureError, match="shows nothing"):
            gpu.picture()


async def test_monitors() -> None:
    gpu = Gpu(scanouts=3, modes=[Mode(1024, 768), Mode(800, 600, 75)])
    async with display(gpu) as guest:
        modes = [struct.unpack_from("<6I", await guest.do(Cmd.GET_DISPLAY_INFO), i * 24) for i in range(16)]
        assert modes[0][:5] == (0, 0, 1024, 768, 1)
        assert modes[1][:5] == (1024, 0, 800, 600, 1)
        assert all(mode == (0,) * 6 for mode in modes[3:])
        assert modes[2][2:5] == (0, 0, 0)
        assert await guest.fe.get_config(0, 16) == struct.pack("<4I", 0, 0, 3, 0)
        gpu.set_mode(2, Mode(640, 480))
        await guest.fe.config_changed()
        assert await guest.fe.get_config(0, 4) == b"\1\0\0\0"
        await guest.fe.set_config(4, b"\1\0\0\0")
        assert await guest.fe.get_config(0, 4) == b"\0\0\0\0"
        info = await guest.do(Cmd.GET_DISPLAY_INFO)
        assert struct.unpack_from("<6I", info, 48)[:5] == (1824, 0, 640, 480, 1)
        size, _ = struct.unpack_from("<II", edid := await guest.do(Cmd.GET_EDID, struct.pack("<II", 1, 0)))
        assert edid[8 : 8 + size] == edid_of(800, 600, 75, serial=2)
        assert not any(edid[8 + size :])
        # each shows its own
        for number, size_ in enumerate([(64, 64), (32, 32), (16, 16)]):
            width, height = size_
            await guest.paint(number, number + 1, width, height, bytes([number + 1]) * (width * height * 4))
        for number, side in enumerate([64, 32, 16]):
            shown = gpu.picture(number)
            assert (shown.width, shown.pixel(0, 0)) == (side, (number + 1,) * 3)
        # one resource on two
        await guest.show(1, 1, 64, 64)
        before = gpu.flushes(0), gpu.flushes(1), gpu.flushes(2)
        await guest.flush(1, Rect(0, 0, 8, 8))
        assert (gpu.flushes(0), gpu.flushes(1), gpu.flushes(2)) == (before[0] + 1, before[1] + 1, before[2])
    with pytest.raises(PictureError, match="no scanout 3"):
        gpu.picture(3)


async def test_damage_wakes_whoever_looks() -> None:
    gpu = Gpu()
    async with display(gpu) as guest, gpu.changes() as changes:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.paint, 0, 1, 64, 64, GRADIENT)
                await anext(changes)
            await guest.flush(1, Rect(0, 0, 1, 1))
            await anext(changes)
            await guest.cursor(0, 3, 4)
            await anext(changes)
        with trio.move_on_after(0.1) as scope:
            await anext(changes)
        assert scope.cancelled_caught


async def test_cursor() -> None:
    gpu = Gpu()
    shape = bytearray(64 * 64 * 4)
    shape[: 10 * 4] = b"\x20\x40\x60\xff" * 10
    shape[64 * 4 : 64 * 4 + 4] = b"\x10\x10\x10\x80"
    async with display(gpu) as guest:
        await guest.paint(0, 1, 64, 64, bytes([100]) * 16384)
        await guest.create(2, 64, 64, gpurig.BGRA)
        await guest.attach(2, 16384)
        guest.draw(2, bytes(shape))
        await guest.transfer(2, Rect(0, 0, 64, 64))
        await guest.cursor(2, 60, 10, hot=(1, 2))
        shown = gpu.picture()
        assert shown.pixel(63, 10) == (0x60, 0x40, 0x20)
        assert shown.pixel(60, 11) == (0x10 + 100 * 127 // 255,) * 3
        assert shown.pixel(59, 10) == (100, 100, 100)
        assert gpu.picture(cursor=False).pixel(63, 10) == (100, 100, 100)
        await guest.cursor(0, 0, 0, move=True)
        assert gpu.picture().pixel(0, 0) == (0x60, 0x40, 0x20)
        await guest.cursor(2, 0xFFFFFFF0, 0xFFFFFFF0, move=True)  # outside
        assert gpu.picture().pixel(0, 0) == (100, 100, 100)
        await guest.cursor(0, 0, 0)
        assert gpu.picture().pixel(0, 0) == (100, 100, 100)
        await guest.cursor(77, 0, 0)  # no such resource: hidden
        await guest.cursor(1, 0, 0, scanout=5)  # no such scanout: nothing
        assert gpu.picture().pixel(0, 0) == (100, 100, 100)


async def test_fences() -> None:
    async with display(Gpu()) as guest:
        reply = await guest.command(Cmd.GET_DISPLAY_INFO, fence=0x1122334455667788)
        assert (reply.flags, reply.fence) == (1, 0x1122334455667788)
        reply = await guest.command(Cmd.RESOURCE_UNREF, bytes(8), fence=7)
        assert (reply.type, reply.flags, reply.fence) == (Resp.ERR_INVALID_RESOURCE_ID, 1, 7)
        reply = await guest.command(Cmd.GET_DISPLAY_INFO)
        assert (reply.flags, reply.fence) == (0, 0)


async def test_uuids() -> None:
    async with display(Gpu()) as guest:
        await guest.create(1, 16, 16)
        await guest.create(2, 16, 16)
        ask = [await guest.do(Cmd.ASSIGN_UUID, struct.pack("<II", n, 0)) for n in (1, 1, 2)]
        assert ask[0] == ask[1] != ask[2]
        assert len(ask[0]) == 16


U32 = struct.Struct("<I")


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def rect_of(*numbers: int) -> bytes:
    return words(*numbers)


def shown_blob(scanout: int, resource: int, *, kind: int = BGRX, stride: int = 256, offset: int = 0) -> bytes:
    """Of 64 x 64 pixels."""
    return rect_of(0, 0, 64, 64) + words(scanout, resource, 64, 64, kind, 0, stride, 0, 0, 0, offset, 0, 0, 0)


#: command, body, error; resource 1 is 64 x 64 with pages, 2 is 32 x 32 without, 3 a blob of 16 KiB
ERRORS = [
    (0x99, b"", Resp.ERR_UNSPEC),
    (0xFFFFFFFF, b"", Resp.ERR_UNSPEC),
    (Cmd.GET_CAPSET_INFO, words(0, 0), Resp.ERR_UNSPEC),
    (Cmd.CTX_CREATE, bytes(72), Resp.ERR_UNSPEC),
    (Cmd.SUBMIT_3D, words(0, 0), Resp.ERR_UNSPEC),
    (Cmd.RESOURCE_CREATE_2D, words(1, BGRX, 16, 16), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.RESOURCE_CREATE_2D, words(0, BGRX, 16, 16), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.RESOURCE_CREATE_2D, words(9, 5, 16, 16), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_CREATE_2D, words(9, BGRX, 0, 16), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_CREATE_2D, words(9, BGRX, 16385, 1), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_CREATE_2D, words(9, BGRX, 0xFFFFFFFF, 0xFFFFFFFF), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_CREATE_2D, words(9, BGRX, 16384, 16384), Resp.ERR_OUT_OF_MEMORY),
    (Cmd.RESOURCE_UNREF, words(0, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.RESOURCE_UNREF, words(99, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.SET_SCANOUT, rect_of(0, 0, 64, 64) + words(1, 1), Resp.ERR_INVALID_SCANOUT_ID),
    (Cmd.SET_SCANOUT, rect_of(0, 0, 64, 64) + words(0, 99), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.SET_SCANOUT, rect_of(0, 0, 64, 64) + words(0, 3), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.SET_SCANOUT, rect_of(0, 0, 65, 64) + words(0, 1), Resp.ERR_INVALID_PARAMETER),
    (Cmd.SET_SCANOUT, rect_of(0, 0, 15, 64) + words(0, 1), Resp.ERR_INVALID_PARAMETER),
    (Cmd.SET_SCANOUT, rect_of(0xFFFFFFF0, 0, 32, 32) + words(0, 1), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_FLUSH, rect_of(0, 0, 64, 65) + words(1, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_FLUSH, rect_of(0, 0, 0, 0) + words(1, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_FLUSH, rect_of(0xFFFFFFFF, 1, 0xFFFFFFFF, 1) + words(3, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.RESOURCE_FLUSH, rect_of(0, 0, 64, 64) + words(99, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.TRANSFER_TO_HOST_2D, rect_of(1, 0, 64, 64) + words(0, 0, 1, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.TRANSFER_TO_HOST_2D, rect_of(0, 0, 64, 64) + words(4, 0, 1, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.TRANSFER_TO_HOST_2D, rect_of(0, 0, 64, 64) + words(0, 0xFFFFFFFF, 1, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.TRANSFER_TO_HOST_2D, rect_of(0, 0, 32, 32) + words(0, 0, 2, 0), Resp.ERR_UNSPEC),
    (Cmd.TRANSFER_TO_HOST_2D, rect_of(0, 0, 32, 32) + words(0, 0, 99, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.ATTACH_BACKING, words(99, 1) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.ATTACH_BACKING, words(3, 1) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.ATTACH_BACKING, words(1, 1) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_UNSPEC),
    (Cmd.ATTACH_BACKING, words(2, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.ATTACH_BACKING, words(2, 2) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.ATTACH_BACKING, words(2, 0xFFFFFFFF) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.ATTACH_BACKING, words(2, 1) + struct.pack("<QII", 0, 0, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.ATTACH_BACKING, words(2, 1) + struct.pack("<QII", (1 << 64) - 1, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.DETACH_BACKING, words(2, 0), Resp.ERR_UNSPEC),
    (Cmd.DETACH_BACKING, words(99, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.GET_EDID, words(1, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.ASSIGN_UUID, words(99, 0), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.CREATE_BLOB, words(9, 2, 1, 0, 0, 0, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.CREATE_BLOB, words(9, 1, 8, 1, 0, 0, 4096, 0) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.CREATE_BLOB, words(9, 1, 1, 1, 0, 0, 4097, 0) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.CREATE_BLOB, words(9, 1, 1, 1, 0, 0, 0, 0) + struct.pack("<QII", 0, 4096, 0), Resp.ERR_INVALID_PARAMETER),
    (Cmd.SET_SCANOUT_BLOB, shown_blob(0, 1), Resp.ERR_INVALID_RESOURCE_ID),
    (Cmd.SET_SCANOUT_BLOB, shown_blob(0, 3, stride=252), Resp.ERR_INVALID_PARAMETER),
    (Cmd.SET_SCANOUT_BLOB, shown_blob(0, 3, offset=4), Resp.ERR_INVALID_PARAMETER),
    (Cmd.SET_SCANOUT_BLOB, shown_blob(0, 3, kind=7), Resp.ERR_INVALID_PARAMETER),
    (Cmd.SET_SCANOUT_BLOB, shown_blob(3, 3), Resp.ERR_INVALID_SCANOUT_ID),
]  # fmt: skip


async def _three(guest: Guest) -> None:
    await guest.create(1, 64, 64)
    await guest.attach(1, 16384)
    await guest.create(2, 32, 32)
    await guest.blob(3, 16384)


async def test_errors_are_exact() -> None:
    gpu = Gpu(limits=Limits(bytes=64 << 20))
    async with display(gpu) as guest:
        await _three(guest)
        before = gpu.stats
        for kind, body, error in ERRORS:
            reply = await guest.command(kind, body)
            assert (reply.type, reply.data) == (error, b""), (hex(kind), body.hex(), reply.type.name, error.name)
        after = gpu.stats
        assert (after.resources, after.bytes) == (before.resources, before.bytes)
        assert sum(after.errors.values()) == len(ERRORS)
        await guest.show(0, 1, 64, 64)  # it still works


async def test_every_command_with_every_length() -> None:
    gpu = Gpu(limits=Limits(resources=16, bytes=1 << 20))
    chance = random.Random(6)
    async with display(gpu) as guest:
        await _three(guest)
        for kind in [*range(0x100, 0x112), 0x200, 0x209, 0x300, 0x301]:
            for length in (*range(0, 120, 3), 4000):
                body = bytes(length) if length % 2 else chance.randbytes(length)
                await guest.command(kind, body, room=chance.choice((24, 40, 1100)))
        for length in range(24):
            used, _ = await guest.fe.queues[0].request([bytes([1] * (length + 1))], [24])
            assert used == 24
            used, _ = await guest.fe.queues[1].request([bytes(length + 1)])
            assert used == 0
        used, _ = await guest.fe.queues[0].request([struct.pack("<6I", 0x100, 0, 0, 0, 0, 0)], [8])
        assert used == 0, "no room for a reply"
        used, _ = await guest.fe.queues[0].request([struct.pack("<6I", 0x100, 0, 0, 0, 0, 0)], [24, 30])
        assert used == 54, "as much of it as there is room"
        assert gpu.stats.bytes <= 1 << 20


async def test_features_that_were_not_taken() -> None:
    async with display(Gpu(), features=0) as guest:
        assert (await guest.command(Cmd.GET_EDID, words(0, 0))).type == Resp.ERR_UNSPEC
        assert (await guest.command(Cmd.ASSIGN_UUID, words(1, 0))).type == Resp.ERR_UNSPEC
        assert (await guest.command(Cmd.CREATE_BLOB, bytes(56))).type == Resp.ERR_UNSPEC
        assert (await guest.command(Cmd.SET_SCANOUT_BLOB, bytes(80))).type == Resp.ERR_UNSPEC


async def test_limits() -> None:
    gpu = Gpu(limits=Limits(resources=8, bytes=100 << 10))
    async with display(gpu) as guest:
        for _ in range(50):  # a storm leaves nothing behind
            made = 0
            while (await guest.command(Cmd.RESOURCE_CREATE_2D, words(made + 1, BGRX, 64, 64))).type == Resp.OK_NODATA:
                made += 1
            assert made == 6
            entries = struct.pack("<QII", 0x1000, 1, 0) * 200
            reply = await guest.command(Cmd.ATTACH_BACKING, words(1, 200) + entries)
            assert reply.type == Resp.ERR_OUT_OF_MEMORY
            for number in range(made):
                await guest.unref(number + 1)
            assert (gpu.stats.resources, gpu.stats.bytes) == (0, 0)


async def test_pages_that_are_not_there() -> None:
    gpu = Gpu()
    async with display(gpu) as guest:
        await guest.create(1, 64, 64)
        await guest.do(Cmd.ATTACH_BACKING, words(1, 1) + struct.pack("<QII", 1 << 50, 16384, 0))
        reply = await guest.command(Cmd.TRANSFER_TO_HOST_2D, rect_of(0, 0, 64, 64) + words(0, 0, 1, 0))
        assert reply.type == Resp.ERR_INVALID_PARAMETER
        await guest.do(
            Cmd.CREATE_BLOB, struct.pack("<4IQQ", 2, 1, 1, 1, 0, 16384) + struct.pack("<QII", 1 << 50, 16384, 0)
        )
        await guest.show_blob(0, 2, 64, 64)
        with pytest.raises(PictureError, match="does not have"):
            gpu.picture()


async def test_the_next_guest_starts_afresh() -> None:
    gpu = Gpu()
    async with plugged(gpu) as path:
        for _ in range(3):
            async with driver(path) as guest:
                assert gpu.stats.resources == 0
                await guest.paint(0, 1, 64, 64, GRADIENT)
                await guest.blob(2, 4096)
                assert gpu.picture().pixel(1, 0) == (128, 0, 4)
            with trio.fail_after(60):
                while gpu.stats.resources:
                    await trio.sleep(0.001)
            with pytest.raises(PictureError, match="shows nothing"):
                gpu.picture()


async def test_blob_of_a_guest_that_has_gone() -> None:
    """Rings stop, the guest's memory goes: whoever looks is told so, and reads nothing."""
    gpu = Gpu()
    async with display(gpu) as guest:
        await guest.blob(1, 16384)
        await guest.show_blob(0, 1, 64, 64)
        assert gpu.picture().width == 64
        for index in (0, 1):
            await guest.fe.stop_queue(guest.fe.queues[index])
        with pytest.raises(PictureError, match="does not have"):
            gpu.picture()


async def test_pictures_as_files(tmp_path: Path) -> None:
    gpu = Gpu()
    async with display(gpu) as guest:
        controls = gpu.controls()
        await guest.paint(0, 1, 64, 64, GRADIENT)
        shot = await controls["screenshot"](path="a.png")
        assert shot.result == "64x64"
        (tmp_path / "a.png").write_bytes(shot.data)
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                for x in range(8):
                    await trio.sleep(0.05)
                    guest.draw(1, bytes([x]) * 256)
                    await guest.transfer(1, Rect(0, 0, 64, 1))
                    await guest.flush(1, Rect(0, 0, 64, 1))

            nursery.start_soon(move)
            frames = await controls["record"](path="a.gif", seconds=0.6, per_second=20)
        assert frames.result > 3
        (tmp_path / "a.gif").write_bytes(frames.data)
        with pytest.raises(PictureError, match=r"ends in none of \.png"):
            await controls["screenshot"](path=str(tmp_path / "a.jpeg2000"))
        with pytest.raises(PictureError, match="cannot be written"):
            await gpu.record("/nowhere/a.png", 0.1)
        assert controls["displays"]()[0]["shows"] == "64x64"
    from PIL import Image

    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (64, 64)
        assert image.getpixel((10, 20)) == (128, 80, 40)
    with Image.open(tmp_path / "a.gif") as image:
        assert 3 < image.n_frames <= frames.result, "equal ones become one"


def test_edid_is_understood(tmp_path: Path) -> None:
    """By itself; by edid-decode where it is installed."""
    for width, height, refresh in [(1280, 800, 60), (1920, 1080, 144), (5120, 2880, 60), (640, 480, 60), (4095, 16, 1)]:
        data = edid_of(width, height, refresh, name="monitor", serial=3)
        assert len(data) == 128 * (1 + data[126])
        assert all(sum(data[i : i + 128]) % 256 == 0 for i in range(0, len(data), 128))
        if not data[126]:
            assert data[56] | (data[58] & 0xF0) << 4 == width
            assert data[59] | (data[61] & 0xF0) << 4 == height
        else:
            at = data.index(bytes([3, 0, 20]), 128) + 3
            assert struct.unpack_from("<H", data, at + 4)[0] + 1 == width
            assert struct.unpack_from("<H", data, at + 12)[0] + 1 == height
        if decode := shutil.which("edid-decode"):
            (tmp_path / "edid").write_bytes(data)
            done = subprocess.run([decode, "--check", tmp_path / "edid"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
    for bad in [(15, 100), (100, 16385)]:
        with pytest.raises(ValueError, match="no mode"):
            edid_of(*bad)


def test_modes() -> None:
    assert parse_mode("1920x1080") == Mode(1920, 1080, 60)
    assert parse_mode(" 800 x 600 @ 75 ") == Mode(800, 600, 75)
    for bad in ("", "1920", "1920x", "axb", "1x1@"):
        with pytest.raises(ValueError, match="not a mode"):
            parse_mode(bad)
    with pytest.raises(ValueError, match="2 modes for 1"):
        Gpu(modes=[Mode(64, 64)] * 2)
    with pytest.raises(ValueError, match="1 to 16"):
        Gpu(scanouts=17)


def test_saving_needs_a_known_name(tmp_path: Path) -> None:
    from devices.gpu import Picture

    with pytest.raises(PictureError, match="ends in none"):
        save(Picture(1, 1, bytes(4)), tmp_path / "x")
    assert not os.listdir(tmp_path)

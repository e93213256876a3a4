"""Memory of a renderer's that the guest maps: commands, what the front-end is asked, and what guests get wrong."""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from gpurig import Cmd, Guest, Rect, Resp, display

from devices.gpu import Gpu, Limits
from devices.gpu.render import open_renderer
from vhost.constants import ShmemFlag
from vhost.frontend.backchannel import BackChannel
from vhost.messages import ShmemMap

FEATURES = 0x1F
FILL, CRASH = 1, 2
PAGE = 4096
WINDOW = 16 << 20
SIZE = 64 * 64 * 4
HOST3D = 2
SHMID = 1


@asynccontextmanager
async def windowed(
    limits: Limits | None = None, *, packed: bool = False
) -> AsyncIterator[tuple[Gpu, Guest, BackChannel]]:
    """A display whose renderer has memory to map, its driver with a context, and who maps."""
    async with open_renderer("null") as renderer:
        gpu = Gpu(renderer=renderer, host_memory=WINDOW, limits=limits)
        async with display(gpu, features=FEATURES, packed=packed) as guest:
            await guest.context(1)
            back = guest.fe.backchannel
            assert back is not None
            yield gpu, guest, back


def in_blob(resource: int, size: int = SIZE, *, blob: int = 7, flags: int = 1, kind: int = HOST3D) -> bytes:
    return struct.pack("<4IQQ", resource, kind, flags, 0, blob, size)


async def make(guest: Guest, resource: int, size: int = SIZE) -> None:
    await guest.do(Cmd.CREATE_BLOB, in_blob(resource, size), context=1)


async def map_at(guest: Guest, resource: int, at: int) -> Resp:
    return (await guest.command(Cmd.MAP_BLOB, struct.pack("<IIQ", resource, 0, at))).type


async def unmap(guest: Guest, resource: int) -> Resp:
    return (await guest.command(Cmd.UNMAP_BLOB, struct.pack("<II", resource, 0))).type


def places(back: BackChannel) -> list[int]:
    assert all(shmid == SHMID for shmid, _ in back.shmem)
    return sorted(at for _, at in back.shmem)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_memory_of_the_renderer_in_the_guest(packed: bool) -> None:
    async with windowed(packed=packed) as (gpu, guest, back):
        assert gpu.shmem_sizes == {SHMID: WINDOW}
        await make(guest, 5)
        reply = await guest.command(Cmd.MAP_BLOB, struct.pack("<IIQ", 5, 0, 3 * PAGE), fence=9)
        assert (reply.type, reply.fence, reply.data) == (Resp.OK_MAP_INFO, 9, struct.pack("<II", 1, 0)), "cached"
        told = back.shmem[SHMID, 3 * PAGE]
        assert (told.length, told.fd_offset, told.flags) == (SIZE, 0, ShmemFlag.READ_WRITE)
        with mmap.mmap(back.shmem_fds[SHMID, 3 * PAGE].fileno(), SIZE) as window:
            assert (await guest.submit(1, [FILL, 5, 0x00405060])).type == Resp.OK_NODATA
            assert window[:4] == b"\x60\x50\x40\x00"
            # and shown from there, without a copy
            await guest.show_blob(0, 5, 64, 64)
            assert gpu.picture().pixel(63, 63) == (0x40, 0x50, 0x60)
            window[:4] = b"\1\2\3\4"
            await guest.flush(5, Rect(0, 0, 64, 64))
            assert gpu.picture().pixel(0, 0) == (3, 2, 1)
            assert gpu.stats.reads == gpu.stats.transfers == 0
        assert await unmap(guest, 5) == Resp.OK_NODATA
        assert places(back) == []
        assert await map_at(guest, 5, 0) == Resp.OK_MAP_INFO, "once more, elsewhere"
        # what goes is mapped no longer; its place is free at once
        await guest.unref(5)
        await make(guest, 6)
        assert await map_at(guest, 6, 0) == Resp.OK_MAP_INFO
        assert places(back) == [0]
        assert gpu.stats.resources == 1
        # blobs of the guest's own pages beside them
        await guest.blob(8, SIZE)
        assert await map_at(guest, 8, WINDOW // 2) == Resp.ERR_INVALID_RESOURCE_ID
        gpu.reset()
        with trio.fail_after(60):
            while places(back):
                await trio.sleep(0.005)


async def test_errors() -> None:
    async with windowed() as (gpu, guest, back):
        wrong = Resp.ERR_INVALID_PARAMETER

        async def refused(body: bytes, context: int, expected: Resp) -> None:
            assert (await guest.command(Cmd.CREATE_BLOB, body, context=context)).type == expected

        await refused(in_blob(5), 2, Resp.ERR_INVALID_CONTEXT_ID)
        await refused(in_blob(0), 1, Resp.ERR_INVALID_RESOURCE_ID)
        await refused(in_blob(5, SIZE + 1), 1, wrong)
        await refused(in_blob(5, 0), 1, wrong)
        await refused(in_blob(5, flags=8), 1, wrong)
        await refused(in_blob(5, kind=3), 1, wrong)  # of both: the renderer has none
        await refused(in_blob(5, blob=0), 1, wrong)  # the renderer knows of none
        await refused(in_blob(5, 1 << 40), 1, Resp.ERR_OUT_OF_MEMORY)
        assert gpu.stats.resources == 0
        await make(guest, 5)
        await guest.do(Cmd.CREATE_BLOB, in_blob(6, flags=0), context=1)
        await make(guest, 7, WINDOW)
        assert await map_at(guest, 9, 0) == Resp.ERR_INVALID_RESOURCE_ID
        assert await map_at(guest, 6, 0) == wrong, "not made to be mapped"
        for at in (1, PAGE - 1, WINDOW, WINDOW - SIZE + PAGE, 1 << 63, (1 << 64) - PAGE):
            assert await map_at(guest, 5, at) == wrong
        assert await map_at(guest, 7, PAGE) == wrong
        assert await unmap(guest, 5) == Resp.ERR_UNSPEC
        assert await map_at(guest, 5, 2 * PAGE) == Resp.OK_MAP_INFO
        assert await map_at(guest, 5, 2 * PAGE) == Resp.ERR_UNSPEC, "twice"
        assert await map_at(guest, 5, 0) == Resp.ERR_UNSPEC
        await make(guest, 8)
        for at in (0, PAGE, 2 * PAGE, 5 * PAGE):
            assert await map_at(guest, 8, at) == wrong, "overlaps"
        assert await map_at(guest, 7, 0) == wrong
        assert await map_at(guest, 8, 6 * PAGE) == Resp.OK_MAP_INFO, "beside it"
        assert places(back) == [2 * PAGE, 6 * PAGE]
        # without its renderer: what is mapped stays
        await guest.submit(1, [CRASH])
        assert await unmap(guest, 5) == Resp.OK_NODATA
        assert await map_at(guest, 5, 0) == Resp.OK_MAP_INFO, "its memory is known"
        await guest.unref(5)


async def test_a_front_end_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async with windowed() as (_, guest, back):
        await make(guest, 5)
        back.shmem[SHMID, 0] = ShmemMap(SHMID, 0, 0, PAGE, 0)  # something of its own is there
        assert await map_at(guest, 5, 0) == Resp.ERR_UNSPEC
        assert caplog.text.count("memory of the 3D renderer cannot be mapped for the guest") == 1
        assert await map_at(guest, 5, PAGE) == Resp.OK_MAP_INFO
        del back.shmem[SHMID, 0]


async def test_storms() -> None:
    """Anything in any order, from a guest that does not wait: it goes with the reset."""
    chance = random.Random(5)
    async with windowed(Limits(resources=32, bytes=4 << 20)) as (gpu, guest, back):

        async def one() -> None:
            for _ in range(60):
                number = chance.randint(1, 6)
                kind = chance.choice((Cmd.CREATE_BLOB, Cmd.MAP_BLOB, Cmd.MAP_BLOB, Cmd.UNMAP_BLOB, Cmd.RESOURCE_UNREF))
                if kind == Cmd.CREATE_BLOB:
                    await guest.command(kind, in_blob(number, chance.choice((PAGE, SIZE, 1 << 20))), context=1)
                elif kind == Cmd.MAP_BLOB:
                    await map_at(guest, number, chance.choice((0, PAGE, SIZE, 1 << 20, WINDOW - PAGE, 1 << 62)))
                else:
                    await guest.command(kind, struct.pack("<II", number, 0))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one)
        assert (await guest.command(Cmd.GET_DISPLAY_INFO)).type == Resp.OK_DISPLAY_INFO
        gpu.reset()
        with trio.fail_after(60):
            while places(back):
                await trio.sleep(0.005)
        assert (gpu.stats.resources, gpu.stats.bytes) == (0, 0)

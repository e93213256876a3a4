"""A guest that sends anything to a display: nothing breaks, nothing is kept, nothing of ours gets out."""

from __future__ import annotations

import random
import struct
import time
from contextlib import suppress
from pathlib import Path

import peerlib
import pytest
import trio
from gpurig import FORMATS, Cmd, Guest, Rect, Resp, display, driver

from devices.gpu import Gpu, Limits

NUMBERS = (0, 1, 2, 3, 15, 16, 64, 100, 4095, 4096, 16384, 16385, 1 << 16, 1 << 31, (1 << 32) - 1, 0xFFFFFFC0)
LONG = (*NUMBERS, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4, (1 << 64) - 1)
KINDS = (*Cmd, 0, 0x0FF, 0x10E, 0x200, 0x1100, 0xFFFFFFFF)
_HEADER = struct.Struct("<IIQIB3x")


class Storm:
    """Commands mostly of a command's shape, with numbers that are mostly wrong."""

    def __init__(self, guest: Guest, seed: int) -> None:
        self.guest = guest
        self.choose = random.Random(seed)
        self.page = guest.fe.memory.alloc(1 << 16)

    def rect(self) -> bytes:
        choose = self.choose
        if choose.random() < 0.5:
            return Rect(0, 0, 64, 64).pack()
        return struct.pack("<4I", *choose.choices(NUMBERS, k=4))

    def resource(self) -> int:
        return self.choose.choice((1, 2, 3, 1, 2, 3, *NUMBERS))

    def entries(self) -> bytes:
        choose = self.choose
        where = (self.page, self.page, self.page + 4096, *LONG)
        pieces = (64 * 64 * 4, 4096, 1, *NUMBERS)
        return b"".join(
            struct.pack("<QII", choose.choice(where), choose.choice(pieces), 0) for _ in range(choose.randrange(6))
        )

    def body(self, kind: int) -> bytes:
        choose, resource = self.choose, self.resource()
        entries = self.entries()
        count = choose.choice((len(entries) // 16, *NUMBERS[:4], 1 << 28))
        match kind:
            case Cmd.RESOURCE_CREATE_2D:
                sides = choose.choice(((64, 64), (64, 64), tuple(choose.choices(NUMBERS, k=2))))
                return struct.pack("<4I", resource, choose.choice((*FORMATS, 0, 5)), *sides)
            case Cmd.SET_SCANOUT:
                return self.rect() + struct.pack("<II", choose.choice((0, 0, 1, *NUMBERS)), resource)
            case Cmd.RESOURCE_FLUSH:
                return self.rect() + struct.pack("<II", resource, 0)
            case Cmd.TRANSFER_TO_HOST_2D:
                return self.rect() + struct.pack("<QII", choose.choice((0, 0, *LONG)), resource, 0)
            case Cmd.ATTACH_BACKING:
                return struct.pack("<II", resource, count) + entries
            case Cmd.CREATE_BLOB:
                size = choose.choice((64 * 64 * 4, *LONG))
                return struct.pack("<4IQQ", resource, choose.choice((1, 1, 2, 9)), 3, count, 0, size) + entries
            case Cmd.SET_SCANOUT_BLOB:
                head = struct.pack("<6I", 0, resource, 64, 64, choose.choice((*FORMATS, 0)), 0)
                planes = (choose.choice((256, *NUMBERS)), 0, 0, 0, choose.choice((0, *NUMBERS)), 0, 0, 0)
                return self.rect() + head + struct.pack("<8I", *planes)
            case Cmd.UPDATE_CURSOR | Cmd.MOVE_CURSOR:
                return struct.pack("<8I", *choose.choices((0, 1, *NUMBERS), k=8))
        return struct.pack("<4I", *choose.choices(NUMBERS, k=4))

    async def rage(self, count: int) -> None:
        choose, queues = self.choose, self.guest.fe.queues
        for _ in range(count):
            kind = choose.choice(KINDS)
            data = _HEADER.pack(kind, choose.choice((0, 1, 3, 0xFFFFFFFF)), choose.choice(LONG), 0, 0) + self.body(kind)
            if choose.random() < 0.1:
                data = data[: choose.randrange(1, len(data))]
            room = choose.choice(((), (1,), (24,), (24,), (24, 8), (3, 2048), (2048,)))
            queue = queues[1] if kind in (Cmd.UPDATE_CURSOR, Cmd.MOVE_CURSOR) or choose.random() < 0.02 else queues[0]
            used, back = await queue.request([data], list(room))
            assert used <= sum(room)
            if used >= _HEADER.size and room[0] >= _HEADER.size:
                assert 0x1100 <= int.from_bytes(back[0][:4], "little") <= 0x1205
                assert back[0][21:24] == bytes(3), "padding that holds something"


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_anything(packed: bool) -> None:
    """From a guest that is looked at meanwhile; the next one finds everything in order."""
    gpu = Gpu(scanouts=2, limits=Limits(resources=64, bytes=8 << 20))
    async with display(gpu, packed=packed) as guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, gpu)
            await Storm(guest, 5 + packed).rage(4000)
            nursery.cancel_scope.cancel()
        stats = gpu.stats
        assert stats.bytes <= 8 << 20
        assert stats.resources <= 64
        assert set(stats.errors) >= {"unspec", "invalid_resource_id", "invalid_parameter", "invalid_scanout_id"}
        gpu.reset()
        assert (gpu.stats.resources, gpu.stats.bytes) == (0, 0)
        pixels = bytes([7, 8, 9, 255]) * (32 * 32)
        await guest.paint(1, 9, 32, 32, pixels)
        assert gpu.picture(1, cursor=False).pixels == pixels


async def look(gpu: Gpu) -> None:
    """As viewers do."""
    async with gpu.changes() as view:
        async for _ in view:
            for number in range(gpu.scanouts):
                shown = view.look(number)
                if shown.damage is not None:
                    gpu.read(number, shown.damage, memoryview(bytearray(shown.width * shown.height * 4)), cursor=True)
                with suppress(Exception):
                    gpu.picture(number)


async def test_every_length_of_every_command() -> None:
    gpu = Gpu(scanouts=2)
    async with display(gpu) as guest:
        await guest.paint(0, 1, 64, 64, bytes(64 * 64 * 4))
        for kind in Cmd:
            for fill in (b"\0", b"\xff", b"\1"):
                for length in range(100):
                    reply = await guest.command(kind, fill * length, room=1500)
                    assert reply.type in Resp
                    assert len(reply.data) <= 1500 - 24
        assert gpu.stats.resources <= 200


async def test_replies_hold_nothing_of_ours() -> None:
    """What is not told is zeroes: an EDID's rest, modes of scanouts that there are not, padding."""
    async with display(Gpu(scanouts=2)) as guest:
        info = await guest.do(Cmd.GET_DISPLAY_INFO)
        assert not any(info[24:]), "one monitor is plugged in, of two scanouts"
        edid = await guest.do(Cmd.GET_EDID, struct.pack("<II", 1, 0))
        assert edid == bytes(len(edid))
        edid = await guest.do(Cmd.GET_EDID, struct.pack("<II", 0, 0))
        (size,) = struct.unpack_from("<I", edid)
        assert not any(edid[8 + size :])
        reply = await guest.command(Cmd.GET_EDID, b"")
        assert (reply.type, reply.data) == (Resp.ERR_UNSPEC, b"")


async def test_fresh_images_are_black() -> None:
    """A new resource does not show what another one held."""
    gpu = Gpu()
    async with display(gpu) as guest:
        for number in range(1, 5):
            await guest.paint(0, number, 512, 512, b"\xaa" * (512 * 512 * 4))
            await guest.unref(number)
        await guest.create(9, 512, 512)
        await guest.show(0, 9, 512, 512)
        picture = gpu.picture()
        assert set(picture.pixels[0::4]) == {0}


def test_storms_leave_nothing_behind() -> None:
    """Resources made and dropped, guests that come and go with all they may have: memory and descriptors go."""
    with peerlib.vhost_gpu("--max-memory", "64M") as backend:
        idle = backend.settled_fds(0, seconds=0)
        trio.run(_storm, backend.path, 1)  # what is allocated once
        fds, memory = backend.settled_fds(idle), settled_rss(backend, 0, seconds=0.5)
        trio.run(_storm, backend.path, 4)
        assert backend.settled_fds(fds) <= fds
        assert settled_rss(backend, memory + (8 << 20)) < memory + (8 << 20)
        assert backend.deaths == 0


def settled_rss(backend: peerlib.Backend, most: int, seconds: float = 10) -> int:
    """Resident memory once it is at most `most`, or after `seconds`: a guest's goes a moment after it."""
    end = time.monotonic() + seconds
    while (size := backend.rss()) > most and time.monotonic() < end:
        time.sleep(0.02)
    return size


async def _storm(path: Path, guests: int) -> None:
    for _ in range(guests):
        async with driver(str(path)) as guest:
            pages = guest.allocate(1 << 20)
            entry = struct.pack("<II", 1, 1) + guest.entries(pages)
            for _ in range(300):
                await guest.create(1, 512, 512)
                await guest.do(Cmd.ATTACH_BACKING, entry)
                await guest.transfer(1, Rect(0, 0, 512, 512))
                await guest.show(0, 1, 512, 512)
                await guest.unref(1)
            for number in range(100, 140):  # and leaves with these, when it may have no more
                body = struct.pack("<4I", number, FORMATS[0], 1024, 1024)
                reply = await guest.command(Cmd.RESOURCE_CREATE_2D, body)
            assert reply.type is Resp.ERR_OUT_OF_MEMORY


async def test_a_list_of_pages_longer_than_the_limit() -> None:
    """4096 entries cost memory, too."""
    gpu = Gpu(limits=Limits(bytes=96 << 10))
    async with display(gpu) as guest:
        await guest.create(1, 64, 64)
        page = guest.fe.memory.alloc(4096)
        entries = b"".join(struct.pack("<QII", page + 8 * (n % 2), 8, 0) for n in range(4000))
        reply = await guest.command(Cmd.ATTACH_BACKING, struct.pack("<II", 1, 4000) + entries)
        assert reply.type is Resp.ERR_OUT_OF_MEMORY
        before = gpu.stats.bytes
        reply = await guest.command(Cmd.ATTACH_BACKING, struct.pack("<II", 1, 400) + entries[: 400 * 16])
        assert reply.type is Resp.OK_NODATA
        await guest.do(Cmd.DETACH_BACKING, struct.pack("<II", 1, 0))
        assert gpu.stats.bytes == before

"""Every rule of a block request: framing, ranges, flags, features, status and used length."""

from __future__ import annotations

import itertools

import pytest
from blkrig import (
    DISCARD,
    EVENT_IDX,
    FLUSH,
    GET_ID,
    GET_LIFETIME,
    IN,
    INDIRECT,
    IOERR,
    OK,
    OUT,
    PACKED,
    SECURE_ERASE,
    UNSET,
    UNSUPP,
    VERSION_1,
    WRITE_ZEROES,
    Queue,
    header,
    rig,
    segment,
    until,
)

import ring
from devices.blk import Blk, BlkFeature, FaultStore, MemoryStore, NullStore

SECTORS = 2048
SIZE = SECTORS * 512


@pytest.fixture(params=["inline", "slots"])
def store(request):
    """A memory store, served on the spot and by way of request slots."""
    with MemoryStore(SIZE) as inner:
        if request.param == "inline":
            yield inner
        else:
            with FaultStore(inner) as filtered:
                yield filtered


def pattern(n: int, seed: int = 1) -> bytes:
    return bytes((i * 7 + i // 256 * 13 + seed) & 0xFF for i in range(n))


@pytest.mark.parametrize(
    "ring_features",
    [VERSION_1, VERSION_1 | INDIRECT | EVENT_IDX, VERSION_1 | PACKED | INDIRECT, VERSION_1 | PACKED | EVENT_IDX],
    ids=["split", "split-all", "packed", "packed-event"],
)
async def test_read_back(store, ring_features):
    async with rig(Blk(store), ring_features=ring_features) as r:
        q = r.queues[0]
        for i in range(100):
            data = pattern(4096, i)
            await q.write(8 * i, data)
            assert await q.read(8 * i, 4096, indirect=bool(ring_features & INDIRECT)) == data


def cuts(total: int, *where: int) -> list[tuple[int, int]]:
    edges = [0, *sorted(set(where)), total]
    return list(itertools.pairwise(edges))


@pytest.mark.parametrize(
    ("out_cut", "in_cut"),
    [
        ((), ()),  # one descriptor each way: header and data in one, data and status in one
        ((16,), (1024,)),
        ((4, 8), (1, 1023)),
        ((15, 17, 500), (512, 513, 1024)),
        ((1, 2, 3, 4, 5, 6, 7, 8), (1020, 1021, 1022, 1023)),
    ],
)
async def test_any_framing(store, out_cut, in_cut):
    """Descriptors may begin and end anywhere (VERSION_1)."""
    async with rig(Blk(store)) as r:
        q = r.queues[0]
        data = pattern(1024)
        request = header(OUT, 2) + data
        used, back = await q.raw([request[a:b] for a, b in cuts(len(request), *out_cut)], [1])
        assert (used, back) == (1, [b"\0"])
        pieces = [b - a for a, b in cuts(1025, *in_cut)]
        head = header(IN, 2)
        used, back = await q.raw([head[a:b] for a, b in cuts(16, *[c for c in out_cut if c < 16])], pieces)
        assert used == 1025
        assert b"".join(back) == data + b"\0"


async def test_ranges(store):
    async with rig(Blk(store)) as r:
        q = r.queues[0]
        assert await q.status(IN, SECTORS - 1, length=512) == OK
        assert await q.status(IN, SECTORS, length=0) == OK
        beyond = ((SECTORS, 512), (SECTORS - 1, 1024), (1 << 55, 512), ((1 << 64) - 1, 512), (SECTORS + 1, 0))
        for sector, length in beyond:
            assert await q.status(IN, sector, length=length) == IOERR, sector
            assert await q.status(OUT, sector, bytes(length)) == IOERR, sector
        for length in (1, 511, 513, 1000):
            assert await q.status(IN, 0, length=length) == IOERR
            assert await q.status(OUT, 0, bytes(length)) == IOERR


async def test_failed_read_leaves_the_buffer_alone(store):
    async with rig(Blk(store)) as r:
        status, data = await r.queues[0].ask(IN, SECTORS, length=512)
        assert (status, set(data)) == (IOERR, {UNSET})


async def test_unknown_types(store):
    async with rig(Blk(store)) as r:
        for kind in (2, 3, 5, 6, 7, 9, 12, 15, 16, 18, 26, 0x80000000, 0xFFFFFFFF):
            assert await r.queues[0].status(kind, length=512) == UNSUPP, kind


async def test_four_kib_blocks(store):
    async with rig(Blk(store, blk_size=4096)) as r:
        q = r.queues[0]
        assert await q.status(IN, 8, length=4096) == OK
        assert await q.status(IN, 1, length=4096) == IOERR
        assert await q.status(OUT, 8, bytes(512)) == IOERR
        assert await q.status(WRITE_ZEROES, data=segment(0, 8)) == OK
        assert await q.status(WRITE_ZEROES, data=segment(0, 7)) == IOERR


async def test_read_only(store):
    disk = Blk(store, read_only=True)
    assert disk.features & BlkFeature.RO
    async with rig(disk) as r:
        q = r.queues[0]
        assert await q.status(OUT, 0, bytes(512)) == IOERR
        assert await q.status(IN, 0, length=512) == OK
        for kind in (DISCARD, WRITE_ZEROES, SECURE_ERASE):
            assert await q.status(kind, data=segment(0, 8)) == UNSUPP  # not offered
        assert await q.status(FLUSH) == OK


async def test_read_only_with_a_driver_that_acks_what_was_not_offered(store):
    disk = Blk(store, read_only=True)
    async with rig(disk) as r:
        disk.features_acked(0x1FFFF)
        for kind in (DISCARD, WRITE_ZEROES, SECURE_ERASE):
            assert await r.queues[0].status(kind, data=segment(0, 8)) == IOERR


@pytest.mark.parametrize(
    ("kind", "feature", "data"),
    [
        (FLUSH, BlkFeature.FLUSH, b""),
        (DISCARD, BlkFeature.DISCARD, segment(0, 8)),
        (WRITE_ZEROES, BlkFeature.WRITE_ZEROES, segment(0, 8)),
        (SECURE_ERASE, BlkFeature.SECURE_ERASE, segment(0, 8)),
        (GET_LIFETIME, BlkFeature.LIFETIME, b""),
    ],
)
async def test_features_that_were_not_acked_are_refused(store, kind, feature, data):
    length = 6 if kind == GET_LIFETIME else 0
    async with rig(Blk(store), features=~feature) as r:
        assert await r.queues[0].status(kind, data=data, length=length) == UNSUPP
        r.disk.features_acked(r.disk.features)
        assert await r.queues[0].status(kind, data=data, length=length) == OK


async def test_segments(store):
    disk = Blk(store)
    async with rig(disk) as r:
        q = r.queues[0]
        for kind in (DISCARD, WRITE_ZEROES, SECURE_ERASE):
            ones = b"\xff" * 16384
            await q.write(0, ones)
            assert await q.status(kind, data=segment(8, 8) + segment(24, 4)) == OK
            got = await q.read(0, 16384)
            assert got == ones[: 8 * 512] + bytes(8 * 512) + ones[: 8 * 512] + bytes(4 * 512) + ones[: 4 * 512]
            sixteen = b"".join(segment(i, 1) for i in range(16))
            assert await q.status(kind, data=sixteen) == OK
            for bad in (b"", sixteen + segment(0, 1), segment(0, 1)[:15], segment(0, 1) + b"x"):
                assert await q.status(kind, data=bad) == IOERR, (kind, bad)
            for bad in (segment(SECTORS, 1), segment(SECTORS - 1, 2), segment((1 << 64) - 8, 16), segment(1 << 55, 1)):
                assert await q.status(kind, data=bad) == IOERR
            assert await q.status(kind, data=segment(0, 0xFFFFFFFF)) == IOERR
            for flags in (2, 0x80000000, 3):
                assert await q.status(kind, data=segment(0, 8, flags)) == UNSUPP
            assert await q.status(kind, data=segment(0, 8, 1)) == (OK if kind == WRITE_ZEROES else UNSUPP)


async def test_a_bad_segment_spoils_the_request_before_any_is_done(store):
    async with rig(Blk(store)) as r:
        q = r.queues[0]
        await q.write(0, b"\xff" * 4096)
        assert await q.status(WRITE_ZEROES, data=segment(0, 8) + segment(SECTORS, 1)) == IOERR
        assert await q.read(0, 4096) == b"\xff" * 4096


async def test_get_id(store):
    async with rig(Blk(store, serial="abc")) as r:
        q = r.queues[0]
        used, back = await q.raw([header(GET_ID)], [20, 1])
        assert (used, back) == (21, [b"abc" + bytes(17), b"\0"])
        used, back = await q.raw([header(GET_ID)], [2, 1])
        assert (used, back) == (3, [b"ab", b"\0"])
        used, back = await q.raw([header(GET_ID)], [1])
        assert (used, back) == (1, [b"\0"])
        used, back = await q.raw([header(GET_ID)], [512, 1])
        assert (used, back[0][:20], set(back[0][20:])) == (21, b"abc" + bytes(17), {UNSET})


async def test_get_lifetime(store):
    async with rig(Blk(store)) as r:
        q = r.queues[0]
        assert await q.ask(GET_LIFETIME, length=6) == (OK, bytes(6))
        assert await q.status(GET_LIFETIME, length=5) == IOERR


async def test_flush_has_no_data(store):
    async with rig(Blk(store)) as r:
        assert await r.queues[0].status(FLUSH, data=bytes(512)) == IOERR
        assert await r.queues[0].status(FLUSH, length=512) == IOERR


@pytest.mark.parametrize("short", [b"", b"x" * 15])
async def test_short_header_with_a_status(store, short):
    async with rig(Blk(store)) as r:
        used, back = await r.queues[0].raw([short] if short else [], [1])
        assert (used, back) == (1, [bytes([IOERR])])


@pytest.mark.parametrize("kind", [IN, OUT, FLUSH, 99])
async def test_no_room_for_a_status_breaks_the_queue_and_no_other(store, kind):
    async with rig(Blk(store, num_queues=2), queues=2) as r:
        bad, good = r.queues
        bad.send([bad.put(header(kind) + bytes(512))], [], False)
        bad.publish()
        await until(lambda: bad.vq.state is ring.QueueState.BROKEN)
        assert bad.vq.error == (ring.ErrorCode.DEVICE, 0)
        await good.write(0, pattern(512))


async def test_many_in_flight(store):
    """A full ring of requests of different sizes, all at once, again and again."""
    async with rig(Blk(store), size=128) as r:
        q: Queue = r.queues[0]
        for turn in range(20):
            wanted = {}
            for i in range(60):
                data = pattern(512 * (1 + i % 5), turn + i)
                head = q.put(header(OUT, 16 * i))
                at = q.put(data)
                wanted[q.send([head, at], [q.put(b"\xee")], True)] = (16 * i, data)
            q.publish()
            for token in wanted:
                assert await q.wait(token) == 1
            for sector, data in wanted.values():
                assert await q.read(sector, len(data)) == data


async def test_null_store_touches_no_data():
    with NullStore(SIZE) as store:
        async with rig(Blk(store)) as r:
            status, data = await r.queues[0].ask(IN, 0, length=4096)
            assert (status, set(data)) == (OK, {UNSET})
            assert await r.queues[0].status(OUT, 0, bytes(4096)) == OK
            assert await r.queues[0].status(FLUSH) == OK
            assert await r.queues[0].status(DISCARD, data=segment(0, 8)) == OK


async def test_counters(store):
    disk = Blk(store)
    async with rig(disk) as r:
        q = r.queues[0]
        for _ in range(5):
            await q.write(0, bytes(1024))
        await q.read(0, 2048)
        await q.status(IN, SECTORS, length=512)
        await q.status(99)
        stats = disk.stats
        assert stats.requests[:2] == [2, 5]
        assert stats.bytes[:2] == [2048, 5120]
        assert stats.errors[0] == 1
        assert (stats.requests[6], stats.errors[6]) == (1, 1)
    assert disk.stats.requests == stats.requests  # kept when the queue is gone

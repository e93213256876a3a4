"""Guest memory registered with io_uring: what is pinned, when it is given back, and what goes on without."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

import pytest
import trio
from blkrig import IN, MEMORY, OK, Queue, Rig, header, rig, until

import devices.blk.device
import ring
from devices.blk import Blk, FileStore, StoreError

SIZE = 4 << 20
CHUNK = 128 << 20  # what is registered in one go
FAR = 1 << 32

pytestmark = pytest.mark.skipif(
    tuple(int(n) for n in os.uname().release.split(".")[:2]) < (5, 19) or not ring.Worker().has_uring,
    reason="needs io_uring with tables of buffers that start empty (Linux 5.19)",
)


def pinned() -> int:
    """Bytes of this process's memory that the kernel holds in place."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmPin:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmPin")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(params=[False, True], ids=["cached", "direct"])
def store(request, image):
    try:
        opened = FileStore.open(image, direct=request.param, at_once=False)
    except StoreError as exc:
        pytest.skip(str(exc))
    with opened:
        yield opened


async def read_at(q: Queue, sector: int, gpa: int, length: int) -> None:
    """Read to the guest address ``gpa``."""
    head = q.put(header(IN, sector))
    status = q.put(b"\xee")
    token = q.send([head], [(gpa, length), status], False)
    q.publish()
    assert await q.wait(token) == length + 1
    assert q.rig.map[status[0]] == OK


async def test_reads_and_writes(store, image):
    before = pinned()
    content = bytearray(image.read_bytes())
    async with rig(Blk(store, register_buffers=True), queues=2) as r:
        assert pinned() == before, "nothing is pinned before it is used"
        for q in r.queues:
            data = os.urandom(65536)
            await q.write(64, data, align=4096)
            content[64 * 512 : 64 * 512 + 65536] = data
            assert await q.read(0, 131072, align=4096) == content[:131072]
        assert r.disk.stats.fixed == 4
        assert pinned() == before + MEMORY, "queues of one guest share what is registered"
        # through a buffer of ours where O_DIRECT wants one, and in several pieces: not with registered buffers
        assert await r.queues[0].read(8, 4096, align=4096, skew=1) == content[4096:8192]
        used, back = await r.queues[0].raw([header(IN, 0)], [4096, 4096, 1], align=4096)
        assert (used, b"".join(back)) == (8193, content[:8192] + b"\0")
        assert r.disk.stats.fixed == (4 if store.direct else 5)
        assert r.disk.stats.fixed_error == 0
    assert pinned() == before
    assert image.read_bytes() == content


async def test_not_asked_for(image):
    before = pinned()
    with FileStore.open(image, at_once=False) as store:
        async with rig(Blk(store)) as r:
            await r.queues[0].read(0, 4096)
            assert (r.disk.stats.fixed, pinned()) == (0, before)


async def test_memory_comes_and_goes_while_it_runs(store, image):
    content = image.read_bytes()
    before = pinned()
    async with rig(Blk(store, register_buffers=True)) as r:
        q = r.queues[0]
        await q.read(0, 4096, align=4096)
        for turn in range(3):
            size = 1 << 20
            fd = os.memfd_create("more")
            os.ftruncate(fd, size)
            with mmap.mmap(fd, size) as more:
                with r.worker.parked():
                    r.memory.add_region(fd, gpa=FAR, size=size)
                    q.vq.remap()
                os.close(fd)
                await until(lambda: pinned() == before)  # of the table that was
                await read_at(q, 8 * turn, FAR + 8192, 16384)
                assert more[8192 : 8192 + 16384] == content[4096 * turn :][:16384]
                assert pinned() == before + size
                assert await q.read(0, 4096, align=4096) == content[:4096]
                assert pinned() == before + size + MEMORY
                with r.worker.parked():
                    r.memory.remove_region(gpa=FAR, size=size, uaddr=FAR)
                    q.vq.remap()
                await until(lambda: pinned() == before)  # at once, not when the next request comes
                assert await q.read(0, 4096, align=4096) == content[:4096]
        assert r.disk.stats.fixed == 10
        assert r.disk.stats.fixed_error == 0
    assert pinned() == before


async def test_big_regions_go_in_pieces(image):
    content = image.read_bytes()
    before = pinned()
    size = CHUNK + (1 << 20)
    with FileStore.open(image, at_once=False) as store:
        async with rig(Blk(store, register_buffers=True)) as r:
            q = r.queues[0]
            fd = os.memfd_create("big")
            os.ftruncate(fd, size)
            with mmap.mmap(fd, size) as big:
                with r.worker.parked():
                    r.memory.add_region(fd, gpa=FAR, size=size)
                    q.vq.remap()
                os.close(fd)
                for at, fixed in ((CHUNK, 1), (CHUNK - 4096, 1), (size - 8192, 2)):
                    await read_at(q, 16, FAR + at, 8192)
                    assert big[at : at + 8192] == content[8192:16384]
                    assert r.disk.stats.fixed == fixed, f"at {at:#x}"
                assert pinned() == before + (1 << 20), "only what was used"


async def test_several_guests_on_one_worker(image, tmp_path):
    other_image = tmp_path / "other.img"
    other_image.write_bytes(os.urandom(SIZE))
    before = pinned()
    with FileStore.open(image, at_once=False) as store, FileStore.open(other_image, at_once=False) as other_store:
        async with rig(Blk(store, register_buffers=True)) as r:
            disk = Blk(other_store, register_buffers=True)
            disk.features_acked(r.features)
            other = Rig(disk, r.features, r.size, r.worker)
            q = other.add_queue()
            for _ in range(2):
                assert await q.read(8, 8192) == other_image.read_bytes()[4096:12288]
                assert await r.queues[0].read(8, 8192) == image.read_bytes()[4096:12288]
            assert pinned() == before + 2 * MEMORY
            with r.worker.parked():
                r.worker.remove(q.source.ptr)
            assert pinned() == before + MEMORY
            q.close()
            other.memory.close()
            other.map.close()
            assert await r.queues[0].read(8, 8192) == image.read_bytes()[4096:12288]
            assert disk.stats.fixed == 2
            assert r.disk.stats.fixed == 3


async def test_read_only_memory_is_used_without(image):
    """What is mapped for reading cannot be pinned by the kernel; guests may still write from it to the disk."""
    with FileStore.open(image, at_once=False) as store:
        async with rig(Blk(store, register_buffers=True)) as r:
            q = r.queues[0]
            fd = os.memfd_create("rom")
            os.write(fd, b"\xab" * 8192)
            with r.worker.parked():
                r.memory.add_region(fd, gpa=FAR, size=8192, read_only=True)
                q.vq.remap()
            os.close(fd)
            head = q.put(header(1, 8))
            token = q.send([head, (FAR, 8192)], [q.put(b"\xee")], False)
            q.publish()
            assert await q.wait(token) == 1
            assert (r.disk.stats.fixed, r.disk.stats.fixed_error) == (0, 0)
    assert image.read_bytes()[4096:12288] == b"\xab" * 8192


async def test_a_refusal_is_told_once_and_requests_go_on(image, tmp_path, caplog, monkeypatch):
    """Pages of a file system that writes them back cannot be pinned for long."""
    monkeypatch.setattr(devices.blk.device, "_WATCH_SECONDS", 0.01)
    with FileStore.open(image, at_once=False) as store:
        async with rig(Blk(store, register_buffers=True), guest_file=str(tmp_path / "memory")) as r:
            for _ in range(3):
                assert await r.queues[0].read(8, 8192) == image.read_bytes()[4096:12288]
            if r.disk.stats.fixed:
                pytest.skip("temporary files are on a file system that lives in memory")
            assert r.disk.stats.fixed_error
            with caplog.at_level(logging.WARNING), trio.fail_after(60):
                await r.disk.background()
    told = [record.getMessage() for record in caplog.records if "registered" in record.getMessage()]
    assert len(told) == 1
    assert "goes on without; raise the limit of locked memory" in told[0]

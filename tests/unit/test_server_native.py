"""The server with queues that C workers run: start, stop, drain, abandon, change memory under requests in flight."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import Any

import pytest
import trio
from serverlib import serving

import ring
import vhost
from devices.blk._blk import ffi, lib
from ring._ring import lib as rings
from vhost import Frontend, Options, WorkerOptions
from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.messages import MemTable, VringState

SIZE = 1 << 20
both_layouts = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class _Source:
    def __init__(self, disk: Disk, ptr: Any) -> None:
        self._disk = disk
        self.ptr = ptr

    def close(self) -> None:
        assert lib.blk_queue_free(self.ptr) == 0, "freed with requests in flight"
        self._disk.freed += 1


class Disk(vhost.Device):
    """A memory disk in C whose requests can be made slow."""

    device_id = 2
    queue_sizes = (128,) * 4

    def __init__(self) -> None:
        self.inner = lib.blk_memory_new(SIZE)
        self.store = lib.blk_fault_new(self.inner)
        config = ffi.new("struct blk_config *")
        config.blk_size, config.max_segments = 512, 1
        self.blk = lib.blk_new(self.store, config, SIZE)
        self.made = self.freed = 0

    def delay(self, ms: int) -> None:
        lib.blk_fault_delay(self.store, 0xFF, ms * 1000)

    @property
    def seen(self) -> int:
        return lib.blk_fault_seen(self.store)

    def features_acked(self, features: int) -> None:
        lib.blk_set_features(self.blk, features)

    def make_source(self, queue: ring.Virtqueue, worker: ring.Worker) -> _Source:
        self.made += 1
        return _Source(self, lib.blk_queue_new(self.blk, queue.ptr, queue.size))

    def close(self) -> None:
        assert self.made == self.freed
        lib.blk_free(self.blk)
        lib.blk_store_free(self.store)


@pytest.fixture
def disk():
    device = Disk()
    yield device
    device.close()


def read(sector: int) -> bytes:
    return struct.pack("<IIQ", 0, 0, sector)


async def request(fe: Frontend, queue: int = 0, sector: int = 0) -> None:
    _, (_data, status) = await fe.queues[queue].request([read(sector)], [512, 1])
    assert status == b"\0"


@both_layouts
async def test_requests_and_restarts(disk: Disk, packed: bool) -> None:
    async with serving(disk, workers=WorkerOptions(count=2)) as (path, server), Frontend.connect(path) as fe:
        await fe.start(queues=4, size=16, packed=packed)
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(request, fe, number % 4, number)
            await fe.start_queues(await fe.stop())
        assert len(server.pool.workers) == 2
    assert disk.made == disk.freed == 44


async def test_stop_drains(disk: Disk) -> None:
    async with serving(disk) as (path, _), Frontend.connect(path) as fe:
        await fe.start(size=64)
        disk.delay(150)
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(request, fe, 0, number)
            with trio.fail_after(60):
                while disk.seen < 16:
                    await trio.sleep(0.002)
            before = trio.current_time()
            assert await fe.stop_queue(fe.queues[0]) == 16
            assert trio.current_time() - before > 0.05


async def test_a_slow_store_holds_up_nobody_else(disk: Disk) -> None:
    other = Disk()
    async with serving(disk) as (path, server):
        await server.listen(other, path + "2")
        async with Frontend.connect(path) as fe, Frontend.connect(path + "2") as fe2, trio.open_nursery() as nursery:
            await fe.start()
            await fe2.start()
            disk.delay(400)
            nursery.start_soon(request, fe)
            with trio.fail_after(60):
                while disk.seen < 1:
                    await trio.sleep(0.002)
            stopped = trio.Event()

            async def stop() -> None:
                await fe.stop_queue(fe.queues[0])
                stopped.set()

            nursery.start_soon(stop)
            for number in range(50):
                await request(fe2, 0, number)
            assert not stopped.is_set()
    other.close()


async def test_disconnect_with_requests_in_flight(disk: Disk) -> None:
    async with serving(disk) as (path, _):
        for _ in range(5):
            disk.delay(60)
            with trio.CancelScope() as scope:
                async with Frontend.connect(path) as fe:
                    await fe.start(size=32)
                    async with trio.open_nursery() as nursery:
                        before = disk.seen
                        for number in range(10):
                            nursery.start_soon(request, fe, 0, number)
                        with trio.fail_after(60):
                            while disk.seen < before + 10:
                                await trio.sleep(0.002)
                        scope.cancel()
        disk.delay(0)
        async with Frontend.connect(path) as fe:
            await fe.start()
            await request(fe)
    assert disk.made == disk.freed


async def test_cancelling_the_server_drains_and_frees(disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        async with serving(disk) as (path, _):
            done = trio.Event()

            async def client() -> None:
                async with Frontend.connect(path) as fe:
                    await fe.start()
                    disk.delay(200)
                    await request(fe)
                    done.set()

            nursery.start_soon(client)
            with trio.fail_after(60):
                while disk.seen < 1:
                    await trio.sleep(0.002)
        assert disk.made == disk.freed == 1
        with trio.fail_after(60):
            await done.wait()


async def test_quiesce(disk: Disk) -> None:
    async with serving(disk) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=2)
        disk.delay(50)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request, fe, 0)
            nursery.start_soon(request, fe, 1)
            with trio.fail_after(60):
                while disk.seen < 2:
                    await trio.sleep(0.002)
            await disk.quiesce()
            assert fe.queues[0].ring.poll() is not None
            nursery.start_soon(request, fe, 0, 7)
            await trio.sleep(0.1)
            assert disk.seen == 2
            await disk.resume()
        assert disk.seen == 3


async def test_memory_changes_under_load(disk: Disk) -> None:
    async with serving(disk, workers=WorkerOptions(count=2)) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=2, size=64)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def load(queue: int) -> None:
                    while not scope.cancel_called:
                        with trio.CancelScope(shield=True):
                            await request(fe, queue)

                for number in range(8):
                    nursery.start_soon(load, number % 2)
                for number in range(20):
                    region = fe.memory.add((1 << 40) + (number << 24), 1 << 20)
                    await fe.share(region)
                    await fe.unshare(region)
                    fe.memory.remove(region)
                scope.cancel()
        assert await fe.stop()


async def test_dirty_log_of_reads(disk: Disk) -> None:
    async with serving(disk) as (path, _), Frontend.connect(path) as fe:
        await fe.start()
        log = await fe.start_log()
        await request(fe)
        await fe.stop()
        assert log.pages()
        assert log.is_dirty(fe.queues[0].ring.used)


async def test_a_broken_ring_parks_its_queue(disk: Disk, caplog) -> None:
    async with serving(disk) as (path, _), Frontend.connect(path) as fe:
        await fe.start(queues=2, size=16, native=False, indirect=False)
        bad = fe.queues[0]
        bad.ring.write_desc(0, 1 << 60, 16)
        bad.ring.offer(0)
        bad.ring.publish()
        bad.kick()
        with trio.fail_after(60):
            while bad.error is None or "broke queue 0" not in caplog.text:
                await trio.sleep(0.005)
        await request(fe, 1)
        await fe.stop()
    caplog.clear()


async def test_stopping_without_draining_leaves_requests_in_the_record(disk: Disk) -> None:
    """GET_VRING_BASE_INFLIGHT: the base is told at once; the next start finds the request in the inflight region."""
    options = Options(inflight_migration=True)
    async with serving(disk, options=options) as (path, _), Frontend.connect(path, handshake=False) as fe:
        offered = ProtocolFeature(await fe.ask_u64(F.GET_PROTOCOL_FEATURES))
        assert ProtocolFeature.GET_VRING_BASE_INFLIGHT in offered
        fe.features_offered = await fe.ask_u64(F.GET_FEATURES)
        await fe.send(F.SET_PROTOCOL_FEATURES, int(offered))
        fe.protocol, fe.link.reply_ack = offered, True
        await fe.start(size=16, queues=0, native=False)
        region = await fe.get_inflight(1, 16)
        await fe.set_inflight(region)
        queue = fe.make_queue(0, 16, native=False)
        await fe.start_queues()
        disk.delay(1500)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request, fe)
            with trio.fail_after(60):
                while disk.seen < 1:
                    await trio.sleep(0.002)
            before = trio.current_time()
            answer = await fe.ask(F.GET_VRING_BASE, VringState(0, 0))
            assert trio.current_time() - before < 1.4
            base = answer.payload.num
            assert base == 1
            disk.delay(0)
            await fe.set_inflight(region)
            queue.started = False
            await fe.start_queues({0: base})
        assert disk.seen == 2, "replayed"
        region.close()


async def test_pages_that_never_come_hold_up_nobody_else(disk: Disk) -> None:
    """Postcopy, and the front-end brings no page: another guest is served, and when it goes all is well again."""
    if (probe := rings.ring_uffd_open()) < 0:
        pytest.skip("this machine does not allow userfaultfd")
    os.close(probe)
    protocol = ~(ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.LOG_SHMFD)
    other = Disk()
    async with serving(disk, workers=WorkerOptions(count=1)) as (path, server):
        await server.listen(other, path + "2")
        async with (
            Frontend.connect(path + "2") as good,
            Frontend.connect(path, protocol=protocol, memory_size=1 << 20) as fe,
        ):
            await good.start()
            await fe.negotiate(VirtioFeature.VERSION_1)
            advise = await fe.ask(F.POSTCOPY_ADVISE)
            with advise.fds.pop():
                assert await fe.ask_u64(F.POSTCOPY_LISTEN) == 0
                table = MemTable(fe.memory.messages())
                answer = await fe.link.call(F.SET_MEM_TABLE, table, fds=fe.memory.filenos(), answer=True)
                answer.close()
                await fe.link.acked(F.SET_MEM_TABLE, MemTable(()), wait=False)
                queue = fe.make_queue(0, 16, native=False)
                await fe.start_queues()
                header, data = fe.memory.alloc(4096, 4096), fe.memory.alloc(4096, 4096)
                region = fe.memory.regions[0]
                region.map.madvise(mmap.MADV_REMOVE, header - region.gpa, 4096)
                queue.ring.add([(header, 16)], [(data, 512), (data + 512, 1)], 1)
                queue.ring.publish()
                queue.kick()
                await trio.sleep(0.1)
                async with trio.open_nursery() as nursery:

                    async def stop() -> None:
                        with pytest.raises(vhost.VhostError):
                            await fe.stop_queue(queue)

                    nursery.start_soon(stop)
                    for number in range(50):
                        await request(good, 0, number)
                    fe.link.socket.shutdown(socket.SHUT_RDWR)
        with trio.fail_after(60):
            while server.status()["disk"]["connected"]:
                await trio.sleep(0.01)
        async with Frontend.connect(path) as fe:
            await fe.start()
            await request(fe)
        assert len(server.pool.workers) == 1
    other.close()

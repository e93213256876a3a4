"""Changes while a disk runs: limits, quiesce, several queues and workers, stop with requests in flight, counters."""

from __future__ import annotations

import os
import time

import pytest
import trio
from blkrig import FLUSH, IN, INDIRECT, OK, OUT, VERSION_1, rig, until

from devices.blk import Blk, FaultStore, FileStore, Limits, MemoryStore, NullStore

SIZE = 4 << 20


async def burst(queue, requests: int, *, length: int = 512, write: bool = False) -> float:
    """Keep up to 16 requests in flight until so many are done; the seconds it took."""
    start = time.monotonic()
    sent = done = 0
    waiting: list[int] = []
    while done < requests:
        while sent < requests and len(waiting) < 16:
            head = queue.put((b"\1" if write else b"\0") + bytes(15))
            data = queue.put(bytes(length))
            out, into = ([head, data], [queue.put(b"\xee")]) if write else ([head], [data, queue.put(b"\xee")])
            waiting.append(queue.send(out, into, True))
            sent += 1
        queue.publish()
        await queue.wait(waiting.pop(0))
        done += 1
    return time.monotonic() - start


@pytest.fixture(params=["inline", "slots"])
def store(request):
    with MemoryStore(SIZE) as inner:
        if request.param == "inline":
            yield inner
        else:
            with FaultStore(inner) as filtered:
                yield filtered


async def test_iops(store):
    disk = Blk(store, limits=Limits(iops=500))
    async with rig(disk) as r:
        took = await burst(r.queues[0], 150)
        assert 0.2 < took < 2  # 150 / 500 s
        assert disk.stats.throttled > 0
        disk.set_limits_to(Limits())
        assert await burst(r.queues[0], 150) < 0.2


async def test_bytes_and_directions(store):
    disk = Blk(store, limits=Limits(write_bps=2_000_000))
    async with rig(disk) as r:
        q = r.queues[0]
        assert await burst(q, 60, length=16384) < 0.3  # reads are free
        assert 0.3 < await burst(q, 60, length=16384, write=True) < 3  # 0.98 MB at 2 MB/s
        disk.set_limits_to(Limits(read_iops=300))
        assert await burst(q, 60, write=True) < 0.2
        assert 0.1 < await burst(q, 60) < 2


async def test_burst(store):
    disk = Blk(store, limits=Limits(iops=100, burst_ms=1000))
    async with rig(disk) as r:
        assert await burst(r.queues[0], 90) < 0.4  # a second's worth was saved up
        assert 0.1 < await burst(r.queues[0], 40) < 3


async def test_a_throttled_queue_sleeps():
    with NullStore(SIZE) as store:
        async with rig(Blk(store, limits=Limits(iops=50))) as r:
            before = r.worker.stats.cpu_ns
            await burst(r.queues[0], 25)
            assert (r.worker.stats.cpu_ns - before) < 100e6


async def test_limits_are_one_for_all_queues(store):
    disk = Blk(store, num_queues=2, limits=Limits(iops=400))
    async with rig(disk, queues=2) as r:
        start = time.monotonic()
        async with trio.open_nursery() as nursery:
            for queue in r.queues:
                nursery.start_soon(burst, queue, 80)
        assert time.monotonic() - start > 0.25


async def test_a_limit_that_is_lifted_counts_at_once(store):
    disk = Blk(store, limits=Limits(bps=1000))
    async with rig(disk) as r:
        q = r.queues[0]
        await burst(q, 1, length=65536)  # a minute's worth
        token = q.send([q.put(bytes(16))], [q.put(bytes(512)), q.put(b"\xee")], False)
        q.publish()
        await trio.sleep(0.1)
        q.poll()
        assert not q.done
        disk.set_limits_to(Limits())
        assert await q.wait(token, 2) == 513


def test_bad_limits():
    with pytest.raises(ValueError, match="limit iops is -1"):
        Limits(iops=-1)


async def test_requests_wait_out_a_pause_and_complete_after_it(store):
    async with rig(Blk(store)) as r:
        q = r.queues[0]
        with r.worker.parked():
            r.worker.pause(q.source.ptr)
        token = q.send([q.put(bytes(16))], [q.put(bytes(512)), q.put(b"\xee")], False)
        q.publish()
        await trio.sleep(0.05)
        q.poll()
        assert not q.done
        with r.worker.parked():
            r.worker.pause(q.source.ptr, False)
        assert await q.wait(token) == 513


async def test_drain_news():
    """The queue's news fd is written when what was in flight has ended, not before."""
    with MemoryStore(SIZE) as inner, FaultStore(inner) as store:
        store.delay(seconds=0.1)
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            q.send([q.put(bytes(16))], [q.put(bytes(512)), q.put(b"\xee")], False)
            q.publish()
            await until(lambda: q.vq.in_flight == 1)
            with r.worker.parked():
                r.worker.pause(q.source.ptr)
            with pytest.raises(BlockingIOError):
                os.read(q.news, 8)
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(q.news)
            assert q.vq.in_flight == 0


async def test_stop_waits_for_what_is_in_flight():
    with MemoryStore(SIZE) as inner, FaultStore(inner) as store:
        store.delay(seconds=0.1)
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            token = q.send([q.put(bytes(16))], [q.put(bytes(512)), q.put(b"\xee")], False)
            q.publish()
            await until(lambda: q.vq.in_flight == 1)
            r.worker.stop()
            await until(lambda: not r.worker.running)
            assert q.vq.in_flight == 0
            assert await q.wait(token) == 513


async def test_a_worker_runs_again_on_another_thread(tmp_path):
    """io_uring is bound to a thread: a second run has a new one, with new fixed files."""
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(SIZE))
    with FileStore.open(image) as store:
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            assert await q.read(0, 512) == image.read_bytes()[:512]
            for sector in (8, 16):
                r.worker.stop()
                await until(lambda: not r.worker.running)
                await r.start()
                assert await q.read(sector, 512) == image.read_bytes()[512 * sector :][:512]


async def test_quiesce_makes_durable(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    with FileStore.open(image) as store:
        disk = Blk(store)
        await disk.quiesce()
        assert disk.quiesced
        await disk.quiesce()
        await disk.resume()
        assert disk.quiesced
        await disk.resume()
        assert not disk.quiesced
        with pytest.raises(RuntimeError, match="is not quiesced"):
            await disk.resume()


@pytest.mark.parametrize("poll_us", [-1, 0, 20, 2147483647], ids=["adaptive", "never", "20us", "always"])
async def test_poll_modes(poll_us):
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store), poll_us=poll_us, ring_features=INDIRECT | VERSION_1 | 1 << 29) as r:
            for _ in range(20):
                await burst(r.queues[0], 50)
                await trio.sleep(0.002)


async def test_without_a_kick_fd_the_queue_is_looked_at_every_millisecond():
    with MemoryStore(SIZE) as store:
        async with rig(Blk(store)) as r:
            q = r.queues[0]
            with r.worker.parked():
                r.worker.set_kick(q.source.ptr, None)
            for _ in range(5):
                await trio.sleep(0.01)
                assert await q.status(IN, 0, length=512) == OK


async def test_controls_and_metrics(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    with FileStore.open(image) as store:
        disk = Blk(store, serial="s1")
        controls = disk.controls()
        async with rig(disk) as r:
            q = r.queues[0]
            assert await q.status(OUT, 0, bytes(4096)) == OK
            assert await q.status(FLUSH) == OK
            assert await controls["resize"]("8M") == 8 << 20
            assert controls["set_limits"](iops="5k", read_bps="10M", burst_ms=100)["read_bps"] == 10_000_000
            assert controls["limits"]()["iops"] == 5000
            assert controls["stats"]()["ops"]["write"] == {"requests": 1, "bytes": 4096, "errors": 0}
            assert controls["info"]()["size"] == 8 << 20
            found = {(m.name, m.labels.get("op")): m for m in disk.metrics()}
            assert found["blk_requests_total", "write"].value == 1
            assert found["blk_capacity_bytes", None].value == 8 << 20
            latency = found["blk_latency_seconds", None]
            assert latency.buckets[-1] == (float("inf"), 2)
            assert [count for _, count in latency.buckets] == sorted(count for _, count in latency.buckets)
            assert 0 < latency.value < 10

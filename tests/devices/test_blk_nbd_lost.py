"""NBD servers that are killed and come back, are gone for good, or come back as something else."""

from __future__ import annotations

import logging
import os
import signal
import time

import pytest
import trio
from blkrig import FLUSH, IN, IOERR, OK, OUT, WRITE_ZEROES, header, rig, segment, until
from nbdlib import SIZE, pattern, raw_image
from trio.testing import wait_all_tasks_blocked

pytest.importorskip("devices.blk._nbd", reason="built without libnbd")

from devices.blk import Blk
from devices.blk.stores.nbd import NbdStore


async def load(q, seconds: float, written: dict[int, bytes], start: int) -> None:
    """Write one block after the other for some time, each must succeed. Block numbers from `start` on."""
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sector = 8 * (start + count % 1000)
        data = pattern(4096, count)
        status, _ = await q.ask(OUT, sector, data)
        assert status == OK
        written[sector] = data
        count += 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_server_killed_under_load(tmp_path, nbdkit, caplog, number):
    """Nothing fails and nothing is lost; the log tells it once."""
    caplog.set_level(logging.INFO, logger="devices.blk.stores.nbd")
    image = raw_image(tmp_path)
    server = nbdkit("--filter=delay", "file", f"file={image}", "delay-write=2ms")
    written: dict[int, bytes] = {}
    with NbdStore.open(server.uri, connections=2, reconnect=20) as store:
        async with rig(Blk(store, num_queues=2), queues=2) as r, trio.open_nursery() as nursery:
            nursery.start_soon(store.watch)
            async with trio.open_nursery() as loads:
                loads.start_soon(load, r.queues[0], 1.2, written, 0)
                loads.start_soon(load, r.queues[1], 1.2, written, 1000)
                await trio.sleep(0.3)
                for _ in range(2):
                    await trio.to_thread.run_sync(server.stop, number)
                    await trio.sleep(0.15)
                    assert not store.status.up
                    server.start()
                    await until(lambda: store.status.up)
            for sector, data in written.items():
                assert await r.queues[0].read(sector, 4096) == data
            nursery.cancel_scope.cancel()
        status = store.status
        assert status.losses == 4
        assert status.reconnects == 4
        assert status.failed == 0
        assert {metric.name: metric.value for metric in store.metrics()}["nbd_connected"] == 1
    assert len(written) > 20
    lost = [record for record in caplog.records if "connection lost" in record.message]
    back = [record for record in caplog.records if "connected again" in record.message]
    assert (len(lost), len(back)) == (2, 2)
    assert lost[0].levelno == logging.WARNING


async def test_requests_under_way_are_sent_again(tmp_path, nbdkit):
    """A server that is stopped has taken requests it has not answered when it is killed."""
    image = raw_image(tmp_path)
    server = nbdkit("file", f"file={image}")
    with NbdStore.open(server.uri, connections=1, reconnect=20) as store:
        disk = Blk(store, writeback=False)
        async with rig(disk) as r:
            q = r.queues[0]
            await q.write(0, bytes(4096))
            server.send(signal.SIGSTOP)
            tokens = []
            for i in range(10):
                data = pattern(8192, i)
                tokens.append(
                    q.send(
                        [q.put(header(OUT, 16 * i)), q.put(data[:100], 1), q.put(data[100:], 1)], [q.put(b"\xee")], True
                    )
                )
            tokens.append(q.send([q.put(header(FLUSH))], [q.put(b"\xee")], True))
            tokens.append(q.send([q.put(header(WRITE_ZEROES)), q.put(segment(4096, 64))], [q.put(b"\xee")], True))
            tokens.append(q.send([q.put(header(IN, 0))], [q.put(bytes(65536)), q.put(b"\xee")], True))
            q.publish()
            await trio.sleep(0.2)
            q.poll()
            assert not q.done
            server.stop(signal.SIGKILL)
            await trio.sleep(0.1)
            server.start()
            for token in tokens:
                await q.wait(token)
            for i in range(10):
                assert await q.read(16 * i, 8192) == pattern(8192, i)
        assert store.status.replayed >= 13
        assert store.status.failed == 0
        assert sum(disk.stats.errors) == 0


async def test_server_gone_for_good(tmp_path, nbdkit, caplog):
    """Requests wait, then fail; later ones fail at once; a server that comes back is used again."""
    server = nbdkit("file", f"file={raw_image(tmp_path)}")
    with NbdStore.open(server.uri, connections=1, reconnect=0.5) as store:
        async with rig(Blk(store)) as r, trio.open_nursery() as nursery:
            nursery.start_soon(store.watch)
            await wait_all_tasks_blocked()  # it sees a connection that stands
            q = r.queues[0]
            await q.write(0, b"x" * 512)
            server.stop(signal.SIGKILL)
            started = time.monotonic()
            assert await q.status(IN, 0, length=512) == IOERR
            assert 0.3 < time.monotonic() - started < 3
            started = time.monotonic()
            for kind in (IN, OUT, FLUSH):
                data, length = (bytes(512), 0) if kind == OUT else (b"", 512 if kind == IN else 0)
                assert await q.status(kind, 0, data, length) == IOERR
            assert time.monotonic() - started < 1.4
            with pytest.raises(OSError, match="Input/output"):
                await store.sync()
            assert store.status.given_up == 1
            assert store.status.failed >= 4
            values = {metric.name: metric.value for metric in store.metrics()}
            assert values["nbd_connected"] == 0
            server.start()
            await until(lambda: store.status.up, 6)
            assert store.status.given_up == 0
            assert await q.read(0, 512) == b"x" * 512
            nursery.cancel_scope.cancel()
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert "no server for 0.5 s" in caplog.records[1].message


async def test_another_image_is_not_taken_for_ours(tmp_path, nbdkit):
    image = raw_image(tmp_path)
    server = nbdkit("file", f"file={image}")
    with NbdStore.open(server.uri, connections=1, reconnect=0.5) as store:
        async with rig(Blk(store)) as r:
            server.stop()
            os.truncate(image, SIZE // 2)
            server.start()
            assert await r.queues[0].status(OUT, 0, bytes(512)) == IOERR
            assert "smaller than it was" in store.status.reason
            server.stop()
            os.truncate(image, SIZE)
            server.start()
            await until(lambda: store.status.up, 6)
            await r.queues[0].write(0, bytes(512))


def test_closed_while_the_server_is_stopped(nbdkit):
    """Closing takes no longer than the goodbye may."""
    server = nbdkit("memory", str(SIZE))
    store = NbdStore.open(server.uri)
    server.send(signal.SIGSTOP)
    started = time.monotonic()
    store.close()
    store.close()
    assert time.monotonic() - started < 3

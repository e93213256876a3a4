"""Our front-end half on qemu-storage-daemon: every manner, both kinds of ring code, all it can be asked to do."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import peerlib
import pytest
import trio

import vhost
from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.errors import ConnectionClosed, QueueBroken, VhostError
from vhost.frontend import CLOUD_HYPERVISOR, PERSONALITIES, Frontend, Memory, Personality, Refused
from vhost.testing import connect_to

SECTOR = 512


@pytest.fixture(scope="module")
def disk() -> Iterator[peerlib.Backend]:
    with peerlib.storage_daemon() as backend:
        yield backend


def header(kind: int, sector: int) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


async def write(queue: vhost.frontend.Queue, sector: int, data: bytes, **how: bool) -> None:
    length, (status,) = await queue.request([header(1, sector), data], [1], **how)
    assert (length, status) == (1, b"\0")


async def read(queue: vhost.frontend.Queue, sector: int, size: int, **how: bool) -> bytes:
    length, (data, status) = await queue.request([header(0, sector)], [size, 1], **how)
    assert (length, status) == (size + 1, b"\0")
    return data


@pytest.fixture(scope="module")
def our_disk() -> Iterator[peerlib.Backend]:
    with peerlib.vhost_blk() as backend:
        yield backend


@pytest.fixture(scope="module", params=[peerlib.storage_daemon, peerlib.vhost_blk], ids=["storage-daemon", "vhost"])
def any_disk(request: pytest.FixtureRequest) -> Iterator[peerlib.Backend]:
    with request.param() as backend:
        yield backend


@pytest.mark.parametrize("personality", PERSONALITIES, ids=lambda who: who.name)
@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
async def test_every_personality(any_disk: peerlib.Backend, personality: Personality, native: bool) -> None:
    async with Frontend.connect(any_disk.path, personality=personality) as frontend:
        await frontend.start(queues=min(2, frontend.num_queues), size=64, native=native)
        for index, queue in frontend.queues.items():
            data = os.urandom(4096)
            await write(queue, 8 * index, data)
            assert await read(queue, 8 * index, 4096) == data
        capacity = int.from_bytes(await frontend.get_config(0, 8), "little")
        assert capacity == 64 << 11
        bases = await frontend.stop()
        assert bases[0] == 2
        await frontend.start_queues(bases)
        assert len(await read(frontend.queues[0], 0, SECTOR)) == SECTOR


async def test_personality_masks(disk: peerlib.Backend) -> None:
    async with Frontend.connect(disk.path, personality=CLOUD_HYPERVISOR) as frontend:
        assert not frontend.protocol & ~CLOUD_HYPERVISOR.protocol
        assert ProtocolFeature.PAGEFAULT in frontend.protocol_offered
        assert frontend.max_mem_slots == 0, "cloud-hypervisor never asks"


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
async def test_packed(our_disk: peerlib.Backend, native: bool) -> None:
    async with Frontend.connect(our_disk.path) as frontend:
        await frontend.start(queues=4, size=50, packed=True, native=native)
        for _ in range(3):
            for index, queue in frontend.queues.items():
                for at in range(30):
                    data = os.urandom(SECTOR)
                    await write(queue, 8 * index + at % 8, data, indirect=at % 2 == 0)
                    assert await read(queue, 8 * index + at % 8, SECTOR, indirect=at % 3 == 0) == data
            await frontend.start_queues(await frontend.stop())


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
async def test_many_at_once(any_disk: peerlib.Backend, event_idx: bool, indirect: bool) -> None:
    async with Frontend.connect(any_disk.path) as frontend:
        await frontend.start(size=256, event_idx=event_idx, indirect=indirect)
        assert bool(frontend.features & VirtioFeature.EVENT_IDX) is event_idx
        queue = frontend.queues[0]
        blocks = [os.urandom(SECTOR) for _ in range(60)]
        async with trio.open_nursery() as nursery:
            for at, block in enumerate(blocks):
                nursery.start_soon(partial(write, queue, at, block, indirect=indirect))
        assert await read(queue, 0, 60 * SECTOR) == b"".join(blocks)
        assert queue.in_flight == 0


async def test_polling() -> None:
    """Without a call eventfd the front-end looks by itself."""
    with peerlib.example("rng") as backend:
        async with Frontend.connect(backend.path) as frontend:
            await frontend.start(notify=False)
            queue = frontend.queues[0]
            assert queue.call_fd == -1
            length, (data,) = await queue.request([], [64])
            assert length == 64
            assert data != bytes(64)


async def test_regions_and_hot_plug(disk: peerlib.Backend) -> None:
    with Memory(16 << 20, regions=4) as memory:
        async with Frontend.connect(disk.path, memory=memory) as frontend:
            await frontend.start()
            queue = frontend.queues[0]
            await read(queue, 0, SECTOR)
            region = memory.add(1 << 33, 4 << 20)
            await frontend.share(region)
            at = memory.alloc(SECTOR + 1, region=region)
            out = memory.alloc(16)
            memory.write(out, header(0, 0))
            memory.write(at + SECTOR, b"\xff")
            queue.ring.add([(out, 16)], [(at, SECTOR), (at + SECTOR, 1)], 1 << 40)
            queue.ring.publish()
            queue.kick()
            with trio.fail_after(60):
                while memory.load(at + SECTOR, 1) == 0xFF:
                    await trio.sleep(0.01)
            await read(queue, 0, SECTOR)  # it is done with the one before, too
            await frontend.unshare(region)
            await read(queue, 0, SECTOR)


async def test_dirty_log(disk: peerlib.Backend) -> None:
    async with Frontend.connect(disk.path) as frontend:
        await frontend.start()
        queue = frontend.queues[0]
        log = await frontend.start_log()
        await read(queue, 0, 4096)
        assert log.is_dirty(queue.ring.used)
        await frontend.stop_log()
        await read(queue, 0, SECTOR)
        log.clear()
        await read(queue, 0, SECTOR)
        assert not log.pages()


async def test_words_for_mistakes(disk: peerlib.Backend, tmp_path: Path) -> None:
    with pytest.raises(ConnectionClosed, match="no such socket; is the back-end running"):
        async with Frontend.connect(tmp_path / "nobody", socket_timeout=0.1):
            pass
    with pytest.raises(ValueError, match="at most 107 bytes"):
        async with Frontend.connect("/" + "x" * 200):
            pass
    async with Frontend.connect(disk.path) as frontend:
        with pytest.raises(VhostError, match="does not offer packed rings"):
            await frontend.start(packed=True)
        with pytest.raises(VhostError, match="does not offer INFLIGHT_SHMFD"):
            await frontend.get_inflight(1, 128)
        with pytest.raises(VhostError, match="does not offer DEVICE_STATE"):
            await frontend.save_state()


async def test_backend_goes_away() -> None:
    """What waits for an answer hears of it at once."""
    ours, theirs = socket.socketpair()

    async def leave() -> None:
        await trio.sleep(0.05)
        theirs.close()

    async def stay() -> None:
        with pytest.raises(ConnectionClosed, match="GET_FEATURES: the back-end closed the connection"):
            async with Frontend.connect(ours):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        nursery.start_soon(stay)


async def test_backend_dies_with_a_request_in_flight() -> None:
    with peerlib.example("rng") as backend:
        async with Frontend.connect(backend.path) as frontend:
            await frontend.start()
            backend.process.kill()
            with pytest.raises(QueueBroken, match="queue 0: it ended with the request in flight"):
                await frontend.queues[0].request([], [64])
            backend.process.wait()


async def test_waits_for_a_socket_as_long_as_it_is_told_to(disk: peerlib.Backend) -> None:
    """A back-end takes a while to start; without a word it has two seconds."""
    with peerlib.short_folder() as path:

        async def late() -> None:
            await trio.sleep(2.3)
            (path / "s").symlink_to(disk.path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            with trio.fail_after(60):
                async with Frontend.connect(path / "s", socket_timeout=60) as frontend:
                    await frontend.start()


async def test_silence_is_named() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ConnectionClosed, match=r"GET_FEATURES: the back-end did not answer within 0\.1 s"):
        async with Frontend.connect(ours, timeout=0.1):
            raise AssertionError("unreachable")


async def test_accepts_a_backend_that_connects(disk: peerlib.Backend) -> None:
    """Client mode: we listen, the back-end comes; here a plain relay between two sockets plays it."""
    with peerlib.short_folder() as path:
        done = trio.Event()

        async def backend() -> None:
            end = trio.current_time() + 5
            while not (path / "s").exists() and trio.current_time() < end:
                await trio.sleep(0.01)
            with await trio.to_thread.run_sync(connect_to(path / "s")):
                done.set()
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend)
            with pytest.raises(ConnectionClosed):
                async with Frontend.accept(path / "s"):
                    pass
            assert done.is_set()
            assert not (path / "s").exists()


async def test_refusal_is_named(disk: peerlib.Backend) -> None:
    refused = Refused(18, 22, "ring 9 does not exist")
    assert str(refused) == "the back-end refused SET_VRING_ENABLE with 22: ring 9 does not exist"
    assert (refused.request, refused.code) == (18, 22)

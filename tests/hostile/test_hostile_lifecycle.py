"""Group 4: what goes on while things end, restart and move (class K)."""

from __future__ import annotations

import os
import struct
import threading
import time
from contextlib import suppress

import peerlib
import pytest
import trio
from hostilelib import PACKED, SPLIT, Stand

from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.constants import VirtioFeature as V
from vhost.errors import VhostError
from vhost.frontend import Frontend, Mapping, Memory
from vhost.frontend.core import DEVICE_FEATURES, RING_FEATURES
from vhost.frontend.log import DirtyLog
from vhost.messages import Inflight, Iotlb, RingBase, VringFd
from vhost.testing import Failure, Peer, Ring
from vhost.testing.check_blk import IN, OUT, header

SECTOR = 512
#: cards are attacked too, not only devices in Python and disks
CARDS = True

LAYOUTS = pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])


def write_request(ring: Ring, sector: int, data: bytes) -> int:
    """A write; the address of its status byte."""
    peer = ring.peer
    status = peer.room(1)
    ring.submit([peer.put(header(OUT, sector)), peer.put(data)], [status], kick=False)
    return status[0]


def leave(peer: Peer) -> None:
    """Close a peer, but not the memory it shares with the next one."""
    peer._memory = None
    peer.close()


def adopt(peer: Peer, ring: Ring) -> Ring:
    """The same driver ring, in the same memory, on another connection."""
    other = Ring(peer, ring.index, ring.driver)
    other.token = ring.token
    peer.rings[ring.index] = other
    return other


@LAYOUTS
@pytest.mark.parametrize("rounds", [1, 3])
def test_killed_under_load(features: int, rounds: int) -> None:
    """SIGKILL with writes in flight, restart, replay: every request comes back exactly once, and did its work."""
    wanted = features | V.VERSION_1 | V.PROTOCOL_FEATURES
    with peerlib.vhost_blk("--iops", "400", queues=1) as backend, Memory(16 << 20) as memory:
        first = Peer(backend.connect(), memory=memory)
        first.handshake()
        first.set_features(int(wanted) & first.features)
        first.share_memory()
        answer = first.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 256))
        size, offset, _, _ = struct.unpack_from("=QQHH", answer.payload)
        record = answer.take_fd()
        message = Inflight(size, offset, 1, 256)
        first.ok(F.SET_INFLIGHT_FD, message, fds=[record])
        ring = first.start(first.ring(0, 256))
        data = [os.urandom(SECTOR) for _ in range(60)]
        statuses = [write_request(ring, 8 * at, block) for at, block in enumerate(data)]
        back = 0
        ring.kick()
        peer = first
        for _ in range(rounds):
            back += len(ring.wait(5))
            backend.process.kill()
            backend.process.wait()
            back += len(ring.driver.poll())
            leave(peer)
            peer = Peer(backend.connect(), memory=memory, timeout=10)
            peer.handshake()
            peer.set_features(int(wanted) & peer.features)
            peer.share_memory()
            peer.ok(F.SET_INFLIGHT_FD, message, fds=[record])
            ring = adopt(peer, ring)
            # what QEMU sends: the last base it knows of; the record says better
            peer.start(ring, base=ring.driver.base())
            ring.kick()
        back += len(ring.wait(60 - back, timeout=30))
        assert back == 60
        assert not ring.driver.tokens, "something is still in flight"
        time.sleep(0.05)
        assert not ring.driver.poll(), "something came back twice"
        assert {memory.load(at, 1) for at in statuses} == {0}
        for at, block in enumerate(data):
            there = peer.room(SECTOR)
            ring.submit([peer.put(header(IN, 8 * at))], [there, peer.room(1)])
            ring.wait(timeout=10)
            assert memory.read(*there) == block
        assert backend.deaths == rounds
        os.close(record)
        peer._memory = None
        peer.close()
        first._memory = None
        first.close()


def test_stale_inflight_after_reset(stand: Stand) -> None:
    """A guest resets with an old record still set: nothing of the time before is replayed."""
    if stand.kind.startswith("net"):
        return  # frames are lost, not sent again
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & (V.VERSION_1 | V.PROTOCOL_FEATURES))
        peer.share_memory()
        answer = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64))
        size, offset, _, _ = struct.unpack_from("=QQHH", answer.payload)
        peer.ok(F.SET_INFLIGHT_FD, Inflight(size, offset, 1, 64), fds=[answer.fds[0]])
        ring = peer.start(peer.ring(0, 64))
        stand.works(ring, 10)
        for _ in range(3):
            peer.ok(F.RESET_DEVICE)
            peer.set_features(peer.features & (V.VERSION_1 | V.PROTOCOL_FEATURES))
            ring = peer.start(peer.ring(0, 64))
            ring.kick()
            ring.nothing(0.05)
            stand.works(ring, 5)


@LAYOUTS
def test_reset_under_load(stand: Stand, features: int) -> None:
    """RESET_DEVICE with requests in flight; then a new life. Nothing is written into the buffers of the old one."""
    (ring,) = stand.up(features, size=256)
    with ring.peer as peer:
        for _ in range(10):
            buffers = [at for _ in range(40) for at in stand.trial.request(ring, kick=False)]
            ring.kick()
            peer.ok(F.RESET_DEVICE)
            image = [peer.memory.read(*piece) for piece in buffers]
            peer.set_features(peer.acked_features)
            ring = peer.start(peer.ring(stand.index, 256))
            stand.works(ring, 3)
            assert [peer.memory.read(*piece) for piece in buffers] == image


@LAYOUTS
def test_stopped_under_load(stand: Stand, features: int) -> None:
    """GET_VRING_BASE with requests in flight, restart from its answer, again and again: none lost, none twice."""
    (ring,) = stand.up(features, size=256)
    with ring.peer as peer:
        sent = back = 0
        for _ in range(30):
            for _ in range(20):
                stand.trial.request(ring, kick=False)
            sent += 20
            ring.kick()
            base = peer.stop(ring)
            back += len(ring.driver.poll(256))
            taken = RingBase.decode(base, packed=bool(features))
            if features:
                assert (taken.avail, taken.avail_wrap) == (taken.used, taken.used_wrap), "requests were left in flight"
            peer.start(ring, base=base)
            ring.kick()
            if sent - back > 120:
                back += len(ring.wait(sent - back))
        back += len(ring.wait(sent - back)) if sent > back else 0
        assert back == sent
        assert not ring.driver.poll()


@LAYOUTS
def test_migration_under_load(stand: Stand, features: int) -> None:
    """The log is switched on and off while requests run; every buffer written meanwhile is marked."""
    (ring,) = stand.up(features, size=256)
    with ring.peer as peer:
        peer.need(P.LOG_SHMFD)
        log = DirtyLog(peer.memory.regions[0].size)
        try:
            for _ in range(10):
                peer.ask(F.SET_LOG_BASE, log.message(), fds=[log.fd])
                peer.ok(F.SET_FEATURES, peer.acked_features | V.LOG_ALL)
                peer.ok(F.SET_VRING_ADDR, peer.address(ring, log=True))
                log.clear()
                buffers = [at for _ in range(20) for at in stand.trial.request(ring, kick=False)]
                ring.kick()
                base = peer.stop(ring)
                ring.driver.poll(256)
                if not ring.driver.tokens and stand.kind != "net-transmit":  # nothing is written to what is sent
                    assert all(log.is_dirty(at, length) for at, length in buffers)
                peer.ok(F.SET_FEATURES, peer.acked_features)
                peer.start(ring, base=base)
                ring.kick()
                if ring.driver.tokens:
                    ring.wait(len(ring.driver.tokens))
        finally:
            log.close()


@pytest.mark.parametrize("store", [None, "memory:64M"], ids=["file", "memory"])
def test_terminated_under_load(store: str | None) -> None:
    """SIGTERM with a busy front-end connected: requests taken are finished, exit status 0 (peerlib checks it)."""
    for _ in range(3):
        with peerlib.vhost_blk(store=store) as backend, backend.peer() as peer:
            rings = peer.bring_up(0, queues=4, size=256)
            stop = threading.Event()

            def load(rings: list[Ring] = rings, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    for ring in rings:
                        with suppress(BlockingIOError):
                            out = [ring.peer.put(header(IN, 0))]
                            ring.submit(out, [ring.peer.room(4096), ring.peer.room(1)])
                        ring.driver.poll()
                    if rings[0].peer.memory._free[0][1] < 1 << 20:
                        return

            thread = threading.Thread(target=load)
            thread.start()
            time.sleep(0.05)
            started = time.monotonic()
            assert backend.end() == 0
            assert time.monotonic() - started < 8
            stop.set()
            thread.join()
            for ring in rings:
                ring.driver.poll(256)


def test_connection_storm(stand: Stand) -> None:
    """Two hundred front-ends, one after the other, some of them gone before they said a word."""
    for at in range(200):
        with stand.peer() as peer:
            if at % 3 == 0:
                peer.send(F.GET_FEATURES)
            elif at % 3 == 1:
                peer.handshake()


async def test_iotlb_race(stand: Stand) -> None:
    """Mappings are taken away while requests use them: each is served after a miss, none is lost."""
    if stand.kind != "blk":
        return
    sock = stand.connect()
    async with Frontend.connect(sock) as frontend:
        assert frontend.features_offered & V.ACCESS_PLATFORM
        await frontend.negotiate(RING_FEATURES | DEVICE_FEATURES | V.ACCESS_PLATFORM)
        channel = frontend.backchannel
        assert channel is not None
        region = frontend.memory.regions[0]
        page = 1 << 16
        channel.iommu = [
            Mapping(at, page, region.uaddr + at) for at in range(0, region.size, page)
        ]  # fmt: skip
        await frontend.share_memory()
        queue = frontend.make_queue(0, 64)
        await frontend.start_queues()

        async def invalidate() -> None:
            while True:
                for have in channel.iommu[:4]:
                    await frontend.iotlb(Iotlb(have.iova, have.size, 0, 0, 3))
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(invalidate)
            with trio.fail_after(60):
                served = 0
                while served < 300 or len(channel.misses) < 20:
                    length, (_data, status) = await queue.request([header(IN, 0)], [4096, 1], timeout=10)
                    assert (length, status) == (4097, b"\0")
                    served += 1
            nursery.cancel_scope.cancel()
        assert channel.error is None


async def test_iotlb_miss_that_nobody_answers(stand: Stand) -> None:
    """The ring waits; other devices do not, and the connection can be ended."""
    if stand.kind != "blk":
        return
    async with Frontend.connect(stand.connect()) as frontend:
        await frontend.negotiate(RING_FEATURES | V.ACCESS_PLATFORM)
        await frontend.share_memory()
        frontend.make_queue(0, 64)
        with suppress(VhostError):
            await frontend.start_queues()
        await trio.to_thread.run_sync(stand.well)


def test_second_kick_descriptor(stand: Stand) -> None:
    """Kick descriptors are exchanged under load, also for ones that are no eventfds."""
    (ring,) = stand.up()
    with ring.peer as peer, suppress(Failure):
        read, write = os.pipe()
        try:
            for _ in range(20):
                stand.trial.request(ring)
                peer.code(F.SET_VRING_KICK, VringFd(0, True), fds=[ring.kick_fd])
            ring.wait(20)
            peer.code(F.SET_VRING_KICK, VringFd(0, True), fds=[read])
            os.write(write, b"x" * 8)
            peer.code(F.SET_VRING_CALL, VringFd(0, True), fds=[write])
            peer.closed(0.05)
        finally:
            os.close(read)
            os.close(write)

"""Hostile guests on live rings (classes A to E and K): the queue is parked in words, everything else goes on."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hostilelib import EVENT_IDX, INDIRECT, PACKED, SPLIT, Stand

from vhost.constants import FrontendRequest as F
from vhost.errors import QueueBroken
from vhost.frontend import Memory
from vhost.messages import MemTable
from vhost.testing import Failure, Gone, Ring, packed_desc, split_desc

#: cards are attacked too, not only devices in Python and disks
CARDS = True

NEXT, WRITE, TABLE = 1, 2, 4
FAR = 0xFFFF_FFFF_FFFF_F000
Attack = Callable[[Ring], None]


def raw_split(ring: Ring, *chain: tuple[int, int, int, int], head: int = 10) -> None:
    """Descriptors (addr, length, flags, next) from slot `head` on, made available."""
    for at, desc in enumerate(chain):
        ring.split.write_desc(head + at, *desc)
    ring.split.offer(head)
    ring.split.publish()


def raw_packed(ring: Ring, *chain: tuple[int, int, int, int]) -> None:
    """Descriptors (addr, length, id, flags) at the next slots, made available."""
    for desc in chain:
        ring.packed.offer(*desc)
    ring.packed.publish()


def at(ring: Ring, size: int = 4096) -> int:
    """Good memory."""
    return ring.peer.memory.alloc(size, 16)


def split_table(ring: Ring, *entries: tuple[int, int, int, int]) -> int:
    return ring.split.table([split_desc(*entry) for entry in entries])


def packed_table(ring: Ring, *entries: tuple[int, int, int, int]) -> int:
    return ring.packed.table([packed_desc(*entry) for entry in entries])


def avail_jump(ring: Ring) -> None:
    ring.split.set_avail_idx((ring.split.avail_idx + 65) & 0xFFFF)


def long_split(ring: Ring) -> None:
    size = ring.peer.memory.regions[0].size
    table = split_table(ring, *[(0, size, WRITE | NEXT, n + 1) for n in range(399)], (0, size, WRITE, 0))
    raw_split(ring, (table, 400 * 16, TABLE, 0))


def long_packed(ring: Ring) -> None:
    size = ring.peer.memory.regions[0].size
    raw_packed(ring, (packed_table(ring, *[(0, size, 0, WRITE)] * 400), 400 * 16, 1, TABLE))


def table_over_the_edge(ring: Ring) -> None:
    """A table that begins in the last 16 bytes of memory and claims to be 4 GiB long."""
    edge = ring.peer.memory.regions[0].size - 16
    ring.peer.memory.write(edge, split_desc(0, 16, WRITE | NEXT, 1))
    raw_split(ring, (edge, 0xFFFF_FFF0, TABLE, 0))


def nested(ring: Ring) -> None:
    inner = split_table(ring, (0, 1, 2, 0))
    raw_split(ring, (split_table(ring, (inner, 16, TABLE, 0)), 16, TABLE, 0))


BEYOND = "beyond|larger than|not less|queue size|out of range"
ADDRESS = "outside guest memory"
LONG = "endless|too long"
BAD_TABLE = "indirect"

SPLIT_ATTACKS: dict[str, tuple[Attack, str]] = {
    "head-beyond-ring": (lambda ring: (ring.split.offer(64), ring.split.publish(), None)[-1], BEYOND),
    "head-65535": (lambda ring: (ring.split.offer(65535), ring.split.publish(), None)[-1], BEYOND),
    "available-jump": (avail_jump, "more made available"),
    "next-beyond-ring": (lambda ring: raw_split(ring, (at(ring), 16, NEXT, 64)), "next|" + BEYOND),
    "loop-of-one": (lambda ring: raw_split(ring, (at(ring), 16, NEXT | WRITE, 10)), LONG),
    "loop-of-two": (lambda ring: raw_split(ring, (at(ring), 16, NEXT | WRITE, 11), (at(ring), 16, 3, 10)), LONG),
    "indirect-and-next": (
        lambda ring: raw_split(ring, (split_table(ring, (0, 1, 2, 0)), 16, TABLE | NEXT, 11)), BAD_TABLE,
    ),
    "indirect-nested": (nested, BAD_TABLE),
    "indirect-empty": (lambda ring: raw_split(ring, (at(ring), 0, TABLE, 0)), BAD_TABLE),
    "indirect-odd-length": (lambda ring: raw_split(ring, (at(ring), 17, TABLE, 0)), BAD_TABLE),
    "indirect-over-the-edge": (table_over_the_edge, f"{BAD_TABLE}|{ADDRESS}|{LONG}"),
    "indirect-outside": (lambda ring: raw_split(ring, (FAR, 16, TABLE, 0)), ADDRESS),
    "indirect-next-beyond-table": (
        lambda ring: raw_split(ring, (split_table(ring, (0, 1, NEXT, 1)), 16, TABLE, 0)), "next|" + BEYOND,
    ),
    "indirect-loop": (lambda ring: raw_split(ring, (split_table(ring, (0, 1, 1, 0)), 16, TABLE, 0)), LONG),
    "indirect-misaligned": (
        lambda ring: raw_split(ring, (split_table(ring, (FAR, 8, 2, 0), (0, 8, 2, 0)) + 1, 16, TABLE, 0)), ".",
    ),
    "readable-after-writable": (
        lambda ring: raw_split(ring, (at(ring), 16, WRITE | NEXT, 11), (at(ring), 16, 0, 0)), "readable|order|after",
    ),
    "outside": (lambda ring: raw_split(ring, (FAR, 16, WRITE, 0)), ADDRESS),
    "address-wraps": (lambda ring: raw_split(ring, (FAR, 0x2000, WRITE, 0)), ADDRESS),
    "over-the-edge": (
        lambda ring: raw_split(ring, (ring.peer.memory.regions[0].size - 8, 16, WRITE, 0)), ADDRESS,
    ),
    "chain-of-4-GiB": (long_split, "4 GiB|2\\^32|long"),
}  # fmt: skip

PACKED_ATTACKS: dict[str, tuple[Attack, str]] = {
    "id-beyond-ring": (lambda ring: raw_packed(ring, (at(ring), 16, 64, WRITE)), BEYOND + "|id"),
    "id-65535": (lambda ring: raw_packed(ring, (at(ring), 16, 65535, WRITE)), BEYOND + "|id"),
    "endless": (lambda ring: raw_packed(ring, *[(0, 16, 1, NEXT | WRITE)] * 64), LONG),
    "indirect-and-next": (
        lambda ring: raw_packed(ring, (packed_table(ring, (0, 1, 0, 2)), 16, 1, TABLE | NEXT), (0, 16, 1, WRITE)),
        BAD_TABLE,
    ),
    "indirect-nested": (
        lambda ring: raw_packed(ring, (packed_table(ring, (at(ring), 16, 0, TABLE)), 16, 1, TABLE)), BAD_TABLE,
    ),
    "indirect-empty": (lambda ring: raw_packed(ring, (at(ring), 0, 1, TABLE)), BAD_TABLE),
    "indirect-odd-length": (lambda ring: raw_packed(ring, (at(ring), 31, 1, TABLE)), BAD_TABLE),
    "indirect-outside": (lambda ring: raw_packed(ring, (FAR, 16, 1, TABLE)), ADDRESS),
    "readable-after-writable": (
        lambda ring: raw_packed(ring, (at(ring), 16, 1, WRITE | NEXT), (at(ring), 16, 1, 0)), "readable|order|after",
    ),
    "outside": (lambda ring: raw_packed(ring, (FAR, 16, 1, WRITE)), ADDRESS),
    "address-wraps": (lambda ring: raw_packed(ring, (FAR, 0x2000, 1, WRITE)), ADDRESS),
    "same-id-twice": (
        lambda ring: raw_packed(ring, (at(ring), 2048, 1, NEXT | WRITE), (0, 16, 1, WRITE), (FAR, 16, 1, WRITE)), ".",
    ),
    "chain-of-4-GiB": (long_packed, "4 GiB|2\\^32|long"),
}  # fmt: skip


def _parked(stand: Stand, features: int, attack: Attack, words: str) -> None:
    attacked, other = stand.up(features | INDIRECT, queues=2)
    with attacked.peer as peer:
        attacked.errors()
        attack(attacked)
        attacked.kick()
        end = time.monotonic() + 60
        while not attacked.errors():
            assert time.monotonic() < end, "the err descriptor was not signalled"
            time.sleep(0.005)
        stand.says(f"queue {attacked.index}.*({words})")
        # the other queue of the same device does not notice, and neither does another device
        stand.works(other, 3)
        stand.well()
        # parked: no more kicks are followed
        attacked.kick()
        attacked.nothing(0.05)
        # the guest resets: the same queue starts again with a new ring
        peer.enable(attacked, False)
        peer.stop(attacked)
        stand.works(peer.start(peer.ring(attacked.index, 64)), 2)


@pytest.mark.parametrize("name", SPLIT_ATTACKS)
def test_split(stand: Stand, name: str) -> None:
    _parked(stand, SPLIT, *SPLIT_ATTACKS[name])


@pytest.mark.parametrize("name", PACKED_ATTACKS)
def test_packed(stand: Stand, name: str) -> None:
    _parked(stand, PACKED, *PACKED_ATTACKS[name])


@pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])
def test_indirect_without_the_feature(stand: Stand, features: int) -> None:
    (ring,) = stand.up(features)
    with ring.peer:
        if features:
            raw_packed(ring, (packed_table(ring, (at(ring), 16, 0, 2)), 16, 1, TABLE))
        else:
            raw_split(ring, (split_table(ring, (at(ring), 16, 2, 0)), 16, TABLE, 0))
        ring.kick()
        stand.says("indirect")


def test_same_head_twice(stand: Stand) -> None:
    """CVE-2026-45782: a head that is in flight is made available again."""
    (ring,) = stand.up()
    with ring.peer:
        out, in_ = stand.trial.probe.make(ring.peer)  # type: ignore[union-attr]
        head = ring.split.add(out, in_, 1)
        for _ in range(20):
            ring.split.offer(head)
        ring.split.publish()
        ring.kick()
        ring.peer.closed(0.1)


def test_packed_flags_that_lie(stand: Stand) -> None:
    """Descriptors marked used, or available in the wrong round, are no descriptors."""
    (ring,) = stand.up(PACKED)
    with ring.peer:
        for flags in (0x8080, 0x8000, 0, 0x80FF & ~0x80):
            at_ = ring.packed.slot
            ring.packed.write_desc(at_, 0, 16, 1, flags)
            ring.kick()
            time.sleep(0.01)
        stand.works(ring, 3)


@pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("length", [0, 1])
def test_zero_length_buffers(stand: Stand, features: int, length: int) -> None:
    """CVE-2020-10725, CVE-2016-6490: a zero-length descriptor with a bad address; many of them."""
    (ring,) = stand.up(features)
    with ring.peer as peer, suppress(Failure):
        at_ = peer.memory.alloc(16)
        ring.submit([(FAR, 0)] * 3 + [(at_, length)] * 10, [(at_, 0)] * 20)
        ring.wait(timeout=0.3)
        peer.check_alive()


def test_random_descriptors(stand: Stand) -> None:
    """Two seconds of noise in every field the guest owns."""
    rng = random.Random(7)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        features = rng.choice([SPLIT, PACKED]) | INDIRECT | EVENT_IDX
        (ring,) = stand.up(features)
        with ring.peer as peer, suppress(Failure, Gone):
            memory = peer.memory
            for _ in range(30):
                for base, size in ((ring.driver.desc, 64 * 16), (ring.driver.avail, 6 + 2 * 64)):
                    if features & PACKED and base == ring.driver.avail:
                        size = 4
                    where = base + rng.randrange(size)
                    memory.write(where, rng.randbytes(min(rng.randrange(1, 17), base + size - where)))
                ring.kick()
                time.sleep(0.0005)


@pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])
def test_mutator(stand: Stand, features: int) -> None:
    """A thread rewrites descriptors, tables and request headers while they are being processed (double fetches)."""
    image = stand.bystander.memory.read(1 << 20, 1 << 20)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        (ring,) = stand.up(features | INDIRECT, size=64)
        with ring.peer as peer:
            memory, stop = peer.memory, threading.Event()

            def mutate(memory: Memory = memory, ring: Ring = ring, stop: threading.Event = stop) -> None:
                rng = random.Random(3)
                desc = memory.view(ring.driver.desc, 64 * 16)
                while not stop.is_set():
                    slot = rng.randrange(64) * 16
                    address = rng.choice([0, 4096, FAR, 1 << 23, 1 << 40])
                    desc[slot : slot + 12] = struct.pack("<QI", address, rng.choice([0, 1, 16, 4096, 0xFFFF_FFFF]))
                del desc

            thread = threading.Thread(target=mutate)
            thread.start()
            try:
                # what comes back may make no sense to our own ring either
                with suppress(Failure, Gone, BlockingIOError, QueueBroken):
                    for at_ in range(200):
                        stand.trial.request(ring, indirect=at_ % 2 == 0)
                        ring.driver.poll()
                        ring.calls()
            finally:
                stop.set()
                thread.join()
    assert stand.bystander.memory.read(1 << 20, 1 << 20) == image, "another guest's memory was written"


def test_region_removed_under_the_ring(stand: Stand) -> None:
    """The memory of a running ring goes away: that device is parked, or was stopped; nothing else happens."""
    for _ in range(3):
        (ring,) = stand.up(size=256)
        with ring.peer as peer, suppress(Failure):
            for _ in range(60):
                stand.trial.request(ring, kick=False)
            ring.kick()
            peer.code(F.REM_MEM_REG, peer.memory.regions[0].message())
            ring.kick()
            peer.stop(ring)
        stand.well()


def test_region_of_buffers_removed(stand: Stand) -> None:
    """Buffers in a region that is removed while they are in flight; the ring itself stays."""
    memory = Memory(4 << 20)
    memory.add(1 << 32, 4 << 20)
    (ring,) = stand.up(memory=memory, size=256)
    with ring.peer as peer:
        far = memory.regions[1]
        for round_ in range(10):
            with suppress(Failure, BlockingIOError):
                out, in_ = stand.trial.probe.make(peer)  # type: ignore[union-attr]
                moved = [(far.gpa + 4096 * (round_ * 4 + n), length) for n, (_, length) in enumerate(in_)]
                for _ in range(20):
                    ring.submit(out, moved, kick=False)
                ring.kick()
                peer.code(F.REM_MEM_REG, far.message())
                ring.driver.poll()
                peer.code(F.ADD_MEM_REG, far.message(), fds=[far.fd])
                ring.kick()
        stand.well()


def test_table_replaced_by_nothing(stand: Stand) -> None:
    with stand.peer() as peer:
        peer.handshake(~(1 << 15))
        peer.set_features(peer.features & (1 << 30 | 1 << 32))
        peer.mem_table()
        ring = peer.start(peer.ring(stand.index, 64))
        stand.works(ring)
        with suppress(Failure):
            peer.code(F.SET_MEM_TABLE, MemTable(()))
            stand.trial.request(ring)
            peer.mem_table()
            ring.kick()
            peer.stop(ring)


def test_event_fields_that_lie(stand: Stand) -> None:
    """used_event and the packed suppression words at random: at worst a notification too many or too few."""
    rng = random.Random(1)
    for features in (SPLIT | EVENT_IDX, PACKED | EVENT_IDX, SPLIT, PACKED):
        (ring,) = stand.up(features)
        with ring.peer as peer:
            for _ in range(50):
                if features & PACKED:
                    peer.memory.store(ring.driver.avail, 4, rng.getrandbits(32))
                else:
                    peer.memory.store(ring.driver.avail + 4 + 2 * 64, 2, rng.getrandbits(16))
                    peer.memory.store(ring.driver.avail, 2, rng.getrandbits(16))
                stand.works(ring)

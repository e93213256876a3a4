"""Hostile front-ends on the control channel (classes A, B, C, F and H): one process, alive to the end."""

from __future__ import annotations

import array
import os
import random
import socket
import struct
import time
from contextlib import suppress

import pytest
from hostilelib import NO_SLOTS, Stand

from vhost import wire
from vhost.constants import FrontendRequest as F
from vhost.constants import IotlbType
from vhost.constants import ProtocolFeature as P
from vhost.constants import VirtioFeature as V
from vhost.frontend import Memory
from vhost.messages import Config, Inflight, Iotlb, LogBase, MemRegion, MemTable, VringAddr, VringFd, VringState
from vhost.testing import Failure, Gone, Peer

U64 = (1 << 64) - 1
MODERN = V.VERSION_1 | V.PROTOCOL_FEATURES


def header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("=III", request, flags, size)


def refuses(peer: Peer, request: int, payload: object = None, fds: tuple[int, ...] = ()) -> None:
    """The back-end says no: a non-zero acknowledgement, or the end of the connection."""
    try:
        assert peer.code(request, payload, fds=fds) != 0, f"{F(request).name} {payload} was taken"  # type: ignore[arg-type]
    except Gone:
        pass


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(F.GET_FEATURES, 0, 0), "do not say protocol version 1"),
        (header(F.GET_FEATURES, 2, 0), "do not say protocol version 1"),
        (header(F.GET_FEATURES, 0x8000_0001, 0), "reserved bits"),
        (header(F.GET_FEATURES, 5, 8) + bytes(8), "a reply where a request was due"),
        (header(F.SET_FEATURES, 1, 0xFFFF_FFFF), "payload of 4294967295 bytes"),
        (header(F.SET_FEATURES, 1, 4097), "payload of 4097 bytes, at most 4096"),
        (header(F.SET_FEATURES, 1, 4) + bytes(4), "SET_FEATURES: payload has 4 bytes instead of 8"),
        (header(F.SET_VRING_ADDR, 1, 8) + bytes(8), "SET_VRING_ADDR: payload has 8 bytes instead of 40"),
        (header(F.SET_MEM_TABLE, 1, 8) + struct.pack("=II", 0xFFFF_FFFF, 0), "SET_MEM_TABLE: payload of 8 bytes ends"),
        (header(F.SET_MEM_TABLE, 1, 4096) + b"\xff" * 4096, "SET_MEM_TABLE"),
        (header(F.GET_CONFIG, 1, 3) + bytes(3), "GET_CONFIG: payload has 3 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "is the peer speaking vhost-user"),
    ],
)  # fmt: skip
def test_malformed(stand: Stand, data: bytes, words: str) -> None:
    """The connection ends, in words that name message and reason."""
    with stand.peer() as peer:
        peer.send_bytes(data)
        assert peer.closed()
    stand.says(words)


@pytest.mark.parametrize("length", [1, 6, 11, 12, 15])
def test_cut_off(stand: Stand, length: int) -> None:
    """The end of the stream inside a message; a descriptor was on its way with it."""
    whole = header(F.SET_VRING_CALL, 1, 8) + bytes(8)
    event = os.eventfd(0)
    try:
        for _ in range(20):
            with stand.peer() as peer:
                peer.send_bytes(whole[:length], [event])
    finally:
        os.close(event)
    stand.says("closed the connection inside")


def test_half_a_message_and_silence(stand: Stand) -> None:
    """A peer that stops in the middle holds up nobody but itself."""
    with stand.peer() as peer:
        peer.send_bytes(header(F.SET_FEATURES, 1, 8) + bytes(3))
        for _ in range(5):
            stand.well()
            time.sleep(0.02)


def test_unknown_requests(stand: Stand) -> None:
    with stand.peer().handshake() as peer:
        for request in (0, 46, 99, 1000, 0x7FFF_FFFF, 0xFFFF_FFFF):
            peer.raw(request, bytes(8), flags=9)
            assert peer.reply(request).u64() != 0
            peer.raw(request, bytes(8))
        peer.ask_u64(F.GET_FEATURES)


def test_too_many_descriptors(stand: Stand) -> None:
    """As many as the kernel carries at once (253): the connection ends, none is kept."""
    event = os.eventfd(0)
    try:
        for count in (33, 100, 253):
            with stand.peer() as peer, suppress(Gone):
                peer.send_bytes(header(F.GET_FEATURES, 1, 0), [event] * count)
                peer.closed(0.5)
    finally:
        os.close(event)


def test_descriptors_with_every_message(stand: Stand) -> None:
    """Messages that carry none, with some."""
    event = os.eventfd(0)
    try:
        for request in range(1, 46):
            with stand.peer() as peer, suppress(Failure):
                peer.handshake()
                peer.raw(request, bytes(8), flags=9, fds=[event] * 8)
                peer.reply(timeout=0.05)
    finally:
        os.close(event)


@pytest.mark.parametrize("request_", [F.SET_INFLIGHT_FD, F.SET_BACKEND_REQ_FD, F.ADD_MEM_REG, F.SET_LOG_BASE])
def test_missing_descriptor(stand: Stand, request_: F) -> None:
    payloads = {
        F.SET_INFLIGHT_FD: Inflight(65536, 0, 1, 64),
        F.ADD_MEM_REG: MemRegion(0, 4096, 0, 0),
        F.SET_LOG_BASE: LogBase(4096, 0),
    }
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        with suppress(Failure):
            peer.send(request_, payloads.get(request_), need_reply=True)
            answer = peer.reply(timeout=1)
            assert answer.payload != bytes(8), "was taken without a descriptor"
    stand.says(f"{request_.name}|descriptor")


def test_repeats(stand: Stand) -> None:
    """CVE-2019-14818, CVE-2020-10726, CVE-2022-0669: repeated messages must not pile up descriptors or memory."""
    (ring,) = stand.up()
    with ring.peer as peer, Memory(1 << 20) as other:
        log = os.memfd_create("log")
        os.ftruncate(log, 1 << 20)
        before = stand.backend.fds()
        try:
            for _ in range(100):
                for request, fd in (
                    (F.SET_VRING_CALL, ring.call_fd), (F.SET_VRING_ERR, ring.err_fd), (F.SET_VRING_KICK, ring.kick_fd)
                ):  # fmt: skip
                    peer.ok(request, VringFd(0, True), fds=[fd])
                peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 256)).close()
                peer.ask(F.SET_LOG_BASE, LogBase(1 << 20, 0), fds=[log])
                region = other.regions[0]
                far = MemRegion(1 << 40, region.size, 1 << 45, 0)
                peer.ok(F.ADD_MEM_REG, far, fds=[region.fd])
                peer.ok(F.REM_MEM_REG, far)
                ours, theirs = socket.socketpair()
                with ours, theirs:
                    peer.ok(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        finally:
            os.close(log)
        stand.works(ring)
        # one channel and one log may be held now that were not before
        assert stand.backend.settled_fds(before + 3) <= before + 3


def test_repeated_memory_tables(stand: Stand) -> None:
    with Memory(8 << 20, regions=8, hole=4096) as memory, stand.peer(memory) as peer:
        peer.handshake(int(NO_SLOTS))
        peer.set_features(peer.features & MODERN)
        for _ in range(100):
            peer.mem_table()


RING_MESSAGES = (F.SET_VRING_NUM, F.SET_VRING_BASE, F.GET_VRING_BASE, F.SET_VRING_ENABLE, F.SET_VRING_ENDIAN)


@pytest.mark.parametrize("index", [4, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x10001, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_ring_index(stand: Stand, index: int) -> None:
    """CVE-2020-10723: an index cut down to 16 bits names a ring that exists."""
    (ring,) = stand.up()
    with ring.peer as peer:
        for request in (*RING_MESSAGES, F.SET_VRING_ADDR):
            payload = VringAddr(index, 0, 0, 0, 0, 0) if request is F.SET_VRING_ADDR else VringState(index, 1)
            with suppress(Gone, Failure):
                refuses(peer, request, payload)
            if peer.sock.fileno() < 0 or peer.closed(0.01):
                return
        stand.works(ring)


@pytest.mark.parametrize("bits", [0x200, 1 << 9, 1 << 16, 1 << 32, 1 << 63, 0xFF, 4])
def test_ring_index_of_descriptors(stand: Stand, bits: int) -> None:
    (ring,) = stand.up()
    with ring.peer as peer, suppress(Gone):
        for request in (F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR):
            peer.raw(request, struct.pack("=Q", bits), flags=9, fds=[ring.call_fd])
            assert peer.reply(request).u64() != 0
        stand.works(ring)


@pytest.mark.parametrize("num", [0, 3, 100, 32769, 65536, 0x10040, 0xFFFF_FFFF])
def test_ring_size(stand: Stand, num: int) -> None:
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        peer.share_memory()
        ring = peer.ring(0, 64)
        with suppress(Gone):
            refused = peer.code(F.SET_VRING_NUM, VringState(0, num)) != 0
            peer.code(F.SET_VRING_ADDR, peer.address(ring))
            peer.code(F.SET_VRING_KICK, VringFd(0, True), fds=[ring.kick_fd])
            peer.code(F.SET_VRING_ENABLE, VringState(0, 1))
            ring.kick()
            assert refused or peer.closed(0.2) or stand.said


@pytest.mark.parametrize(
    "address",
    [
        lambda ring, good: VringAddr(0, 0, 0, 0, 0, 0),
        lambda ring, good: VringAddr(0, 0, U64 - 15, good.used, good.avail, 0),
        lambda ring, good: VringAddr(0, 0, good.desc + 1, good.used, good.avail, 0),
        lambda ring, good: VringAddr(0, 0, good.desc, good.used, U64 - 1, 0),
        lambda ring, good: VringAddr(0, 0, good.desc, U64 & ~3, good.avail, 0),
        lambda ring, good: VringAddr(
            0, 0, good.desc, ring.peer.memory.uaddr(0) + ring.peer.memory.regions[0].size - 4, good.avail, 0
        ),
        lambda ring, good: VringAddr(0, 0, 0xDEAD_0000_0000, 0xDEAD_0000_1000, 0xDEAD_0000_2000, 0),
        lambda ring, good: VringAddr(0, 0xFFFF_FFFF, good.desc, good.used, good.avail, U64),
    ],
    ids=["zero", "desc-wraps", "misaligned", "avail-wraps", "used-wraps", "used-over-the-edge", "nowhere", "flags"],
)
def test_ring_addresses(stand: Stand, address: object) -> None:
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        peer.share_memory()
        ring = peer.ring(0, 64)
        with suppress(Gone, Failure):
            peer.set_up(ring)
            peer.code(F.SET_VRING_ADDR, address(ring, peer.address(ring)))  # type: ignore[operator]
            peer.code(F.SET_VRING_KICK, VringFd(0, True), fds=[ring.kick_fd])
            peer.code(F.SET_VRING_ENABLE, VringState(0, 1))
            ring.kick()
            peer.closed(0.1)


def test_ring_before_memory(stand: Stand) -> None:
    """Rings set up with no memory table at all (a NULL dereference elsewhere)."""
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        ring = peer.ring(0, 64)
        with suppress(Gone, Failure):
            peer.start(ring)
            ring.kick()
            peer.closed(0.1)


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "table"])
@pytest.mark.parametrize(
    "region",
    [
        MemRegion(0, 0, 1 << 40, 0),
        MemRegion(0, U64, 1 << 40, 0),
        MemRegion(U64 - 4095, 8192, 1 << 40, 0),
        MemRegion(0, 8192, U64 - 4095, 0),
        MemRegion(0, 4096, 1 << 40, U64 - 4095),
        MemRegion(0, 4096, 1 << 40, 1 << 62),
        MemRegion(0, 64 << 20, 1 << 40, 0),
        MemRegion(0, 1 << 20, 1 << 40, 4096),
    ],
    ids=["empty", "all", "gpa-wraps", "uaddr-wraps", "offset-wraps", "far-offset", "short-fd", "short-by-a-page"],
)
def test_regions(stand: Stand, slots: bool, region: MemRegion) -> None:
    with Memory(1 << 20) as memory, stand.peer() as peer:
        peer.handshake(~0 if slots else int(NO_SLOTS))
        peer.set_features(peer.features & MODERN)
        fd = memory.regions[0].fd
        with suppress(Gone):
            if slots:
                refuses(peer, F.ADD_MEM_REG, region, (fd,))
            else:
                refuses(peer, F.SET_MEM_TABLE, MemTable((region,)), (fd,))
    stand.says("ADD_MEM_REG|SET_MEM_TABLE")


def test_regions_overlap(stand: Stand) -> None:
    with Memory(1 << 20) as memory, stand.peer() as peer:
        peer.handshake(int(NO_SLOTS))
        peer.set_features(peer.features & MODERN)
        fd = memory.regions[0].fd
        for other in (MemRegion(0x8000, 0x10000, 1 << 41, 0), MemRegion(1 << 40, 0x10000, (1 << 40) + 0x8000, 0)):
            with suppress(Gone):
                refuses(peer, F.SET_MEM_TABLE, MemTable((MemRegion(0, 0x10000, 1 << 40, 0), other)), (fd, fd))


def test_fewer_descriptors_than_regions(stand: Stand) -> None:
    with Memory(1 << 20) as memory, stand.peer() as peer:
        peer.handshake(int(NO_SLOTS))
        peer.set_features(peer.features & MODERN)
        fd = memory.regions[0].fd
        three = MemTable(tuple(MemRegion(at << 30, 4096, 1 << 40 | at << 30, 0) for at in range(3)))
        refuses(peer, F.SET_MEM_TABLE, three, (fd,))


@pytest.mark.parametrize("kind", ["socket", "pipe", "directory", "event"])
def test_memory_that_is_no_memory(stand: Stand, kind: str) -> None:
    one, other = socket.socketpair()
    read, write = os.pipe()
    event, folder = os.eventfd(0), os.open("/", os.O_RDONLY)
    fds = {"socket": one.fileno(), "pipe": read, "directory": folder, "event": event}
    try:
        with stand.peer().handshake() as peer:
            peer.set_features(peer.features & MODERN)
            refuses(peer, F.ADD_MEM_REG, MemRegion(0, 4096, 1 << 40, 0), (fds[kind],))
    finally:
        one.close()
        other.close()
        for fd in (read, write, event, folder):
            os.close(fd)


def test_more_regions_than_slots(stand: Stand) -> None:
    with Memory(1 << 20) as memory, stand.peer() as peer:
        peer.handshake()
        peer.set_features(peer.features & MODERN)
        fd = memory.regions[0].fd
        slots = peer.ask_u64(F.GET_MAX_MEM_SLOTS)
        with suppress(Gone):
            codes = [
                peer.code(F.ADD_MEM_REG, MemRegion(at << 20, 4096, 1 << 45 | at << 20, 0), fds=[fd])
                for at in range(slots + 8)
            ]
            assert any(codes)


def test_file_shrinks(stand: Stand) -> None:
    """SIGBUS: the front-end truncates its memory while rings run. Only its own device may suffer."""
    memory = Memory(4 << 20)
    (ring,) = stand.up(memory=memory)
    with ring.peer as peer:
        os.ftruncate(memory.regions[0].fd, 0)  # from here on nothing of it may be touched here, too
        for _ in range(3):
            ring.kick()
            stand.well()
            time.sleep(0.02)
        with suppress(Failure):
            peer.ask(F.GET_VRING_BASE, VringState(0, 0))
    stand.says("truncated|fault|shr(a|u)nk")


@pytest.mark.parametrize(
    ("log", "real"),
    [
        (LogBase(4096, U64 - 4095), 4096),
        (LogBase(U64, 0), 4096),
        (LogBase(U64 - 4095, 8192), 4096),
        (LogBase(1 << 40, 0), 4096),
        (LogBase(0, 0), 4096),
        (LogBase(4096, 0), 0),
    ],
    ids=["offset-wraps", "huge", "sum-wraps", "longer-than-file", "empty", "empty-file"],
)
def test_log_base(stand: Stand, log: LogBase, real: int) -> None:
    """CVE-2020-10722: mmap_size + mmap_offset overflowed."""
    (ring,) = stand.up()
    fd = os.memfd_create("log")
    os.ftruncate(fd, real)
    try:
        with ring.peer as peer:
            peer.need(P.LOG_SHMFD)
            with suppress(Failure):
                peer.ask(F.SET_LOG_BASE, log, fds=[fd])
                peer.code(F.SET_FEATURES, peer.acked_features | V.LOG_ALL)
                peer.code(F.SET_VRING_ADDR, peer.address(ring, log=True))
                stand.works(ring, 2)
    finally:
        os.close(fd)


def test_log_too_small(stand: Stand) -> None:
    """One byte of log for 16 MiB: pages beyond it are not logged, and nothing beyond it is written."""
    (ring,) = stand.up()
    fd = os.memfd_create("log")
    os.ftruncate(fd, 4096)
    try:
        with ring.peer as peer, suppress(Failure):
            peer.ask(F.SET_LOG_BASE, LogBase(1, 0), fds=[fd])
            peer.code(F.SET_FEATURES, peer.acked_features | V.LOG_ALL)
            address = peer.address(ring, log=True)
            peer.code(F.SET_VRING_ADDR, VringAddr(0, 1, address.desc, address.used, address.avail, U64 - 63))
            stand.works(ring, 2)
        assert not any(os.pread(fd, 4095, 1))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "region",
    [
        Inflight(4096, 0, 0xFFFF, 64),
        Inflight(4096, 0, 1, 0xFFFF),
        Inflight(16, 0, 1, 64),
        Inflight(4096, U64 - 4095, 1, 64),
        Inflight(U64, 0, 1, 64),
        Inflight(1 << 40, 0, 1, 64),
        Inflight(0, 0, 0, 0),
    ],
    ids=["queues", "size", "small", "offset-wraps", "huge", "longer-than-file", "nothing"],
)
def test_inflight(stand: Stand, region: Inflight) -> None:
    """CVE-2021-3839: num_queues beyond what the buffer holds."""
    fd = os.memfd_create("inflight")
    os.ftruncate(fd, 4096)
    try:
        with stand.peer().handshake() as peer:
            peer.set_features(peer.features & MODERN)
            peer.share_memory()
            with suppress(Failure):
                peer.code(F.SET_INFLIGHT_FD, region, fds=[fd])
                ring = peer.start(peer.ring(0, 64))
                ring.kick()
                peer.closed(0.05)
    finally:
        os.close(fd)


@pytest.mark.parametrize("queues", [0, 5, 0xFFFF])
@pytest.mark.parametrize("size", [0, 3, 0x8000, 0xFFFF])
def test_inflight_asked_for(stand: Stand, queues: int, size: int) -> None:
    """Absurd sizes are refused (no descriptor), not allocated."""
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        with suppress(Failure):
            answer = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
            if answer.fds:
                assert os.fstat(answer.fds[0]).st_size < 1 << 30


@pytest.mark.parametrize("packed", [False, True])
def test_inflight_contents(stand: Stand, packed: bool) -> None:
    """The record itself lies: every byte at random."""
    for seed in range(20):
        rng = random.Random(seed)
        with stand.peer().handshake() as peer, suppress(Failure):
            features = MODERN | (V.RING_PACKED if packed else 0)
            peer.set_features(peer.features & features)
            peer.share_memory()
            answer = peer.ask(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64))
            size, offset, _, _ = struct.unpack_from("=QQHH", answer.payload)
            noise = bytearray(rng.randbytes(size))
            if seed % 2:  # plausible at first sight
                struct.pack_into("=QHH", noise, 0, 0, 1, 64)
            os.pwrite(answer.fds[0], noise, offset)
            peer.ok(F.SET_INFLIGHT_FD, Inflight(size, offset, 1, 64), fds=[answer.fds[0]])
            ring = peer.start(peer.ring(0, 64))
            ring.kick()
            peer.closed(0.02)
        stand.well()


@pytest.mark.parametrize(
    "config",
    [
        Config(0, 0xFFFF_FFFF, 0, b""),
        Config(0xFFFF_FFFF, 1, 0, b"x"),
        Config(0xFFFF_FF00, 0x200, 0, bytes(0x200)),
        Config(0, 257, 0, bytes(257)),
        Config(256, 256, 0, bytes(256)),
        Config(0, 0, 0, b""),
        Config(0, 8, 0xFFFF_FFFF, bytes(8)),
        Config(0, 200, 0, b"short"),
    ],
)
def test_config(stand: Stand, config: Config) -> None:
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        for request in (F.GET_CONFIG, F.SET_CONFIG):
            with suppress(Failure):
                peer.send(request, config, need_reply=True)
                answer = peer.reply(timeout=1)
                if request is F.GET_CONFIG and len(answer.payload) >= 12:
                    assert len(answer.payload) == 12 + config.size, "bytes of somebody's memory?"


def test_features_not_offered(stand: Stand) -> None:
    """Un-acknowledged and never offered bits do not switch anything on."""
    with stand.peer().handshake() as peer, suppress(Failure):
        peer.code(F.SET_FEATURES, U64)
        peer.code(F.SET_PROTOCOL_FEATURES, U64)
        peer.share_memory()
        ring = peer.start(peer.ring(0, 64))
        ring.kick()


def test_device_state_of_noise(stand: Stand) -> None:
    with stand.peer().handshake() as peer:
        if P.DEVICE_STATE not in peer.acked_protocol:
            return
        read, write = os.pipe()
        os.close(write)
        with suppress(Failure):
            peer.raw(F.SET_DEVICE_STATE_FD, struct.pack("=II", 1, 0), fds=[read])
            peer.reply(timeout=1)
        os.close(read)


def test_iotlb_messages(stand: Stand) -> None:
    with stand.peer().handshake() as peer:
        bits = peer.features & (MODERN | V.ACCESS_PLATFORM)
        peer.set_features(bits)
        peer.share_memory()
        for iova, size, uaddr, perm, kind in (
            (U64, U64, U64, 3, IotlbType.UPDATE),
            (U64 - 4095, 8192, 0, 3, IotlbType.UPDATE),
            (0, 0, 0, 3, IotlbType.UPDATE),
            (0, 4096, 0xDEAD_0000, 255, IotlbType.UPDATE),
            (0, U64, 0, 0, IotlbType.INVALIDATE),
            (0, 4096, 0, 3, 77),
        ):
            with suppress(Gone):
                peer.ask(F.IOTLB_MSG, Iotlb(iova, size, uaddr, perm, kind))
            if peer.closed(0.01):
                break


def test_iotlb_entries_are_bounded(stand: Stand) -> None:
    """A front-end may not make us keep entries without end."""
    if stand.kind != "blk":
        return
    with stand.peer().handshake() as peer:
        peer.need_feature(V.ACCESS_PLATFORM)
        peer.set_features(peer.features & (MODERN | V.ACCESS_PLATFORM))
        peer.share_memory()
        base = peer.memory.uaddr(0)
        with suppress(Failure):
            for at in range(3000):
                update = Iotlb(at << 13, 4096, base + (at % 1000) * 4096, 3, IotlbType.UPDATE)
                peer.raw(F.IOTLB_MSG, wire.build_payload(update))
                peer.reply(F.IOTLB_MSG)


def test_base_twice_and_kick_before_enable(stand: Stand) -> None:
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        peer.share_memory()
        ring = peer.ring(0, 64)
        for _ in range(3):
            peer.stop(ring)
        ring.kick()
        peer.set_up(ring)
        peer.ok(F.SET_VRING_KICK, VringFd(0, True), fds=[ring.kick_fd])
        ring.kick()
        peer.enable(ring)
        stand.works(ring)
        assert peer.stop(ring) == peer.stop(ring)


def test_enable_with_odd_values(stand: Stand) -> None:
    (ring,) = stand.up()
    with ring.peer as peer:
        for value in (2, 0x8000_0000, 0xFFFF_FFFF):
            with suppress(Gone):
                peer.code(F.SET_VRING_ENABLE, VringState(0, value))


def test_leaves_mid_request(stand: Stand) -> None:
    """The connection ends with requests in flight, again and again."""
    for _ in range(20):
        (ring,) = stand.up(size=256)
        for _ in range(50):
            stand.trial.request(ring, kick=False)
        ring.kick()
        ring.peer.close()
        stand.well()


def test_never_reads_its_answers(stand: Stand) -> None:
    """Answers pile up in the socket, not in us; others are served meanwhile."""
    with stand.peer() as peer:
        peer.sock.setblocking(False)
        ask = header(F.GET_FEATURES, 1, 0) * 100
        with suppress(BlockingIOError):
            for _ in range(2000):
                peer.sock.send(ask)
        for _ in range(5):
            stand.well()
            time.sleep(0.01)


def test_half_open(stand: Stand) -> None:
    """Closed for writing, open for reading."""
    with stand.peer() as peer:
        peer.send(F.GET_FEATURES)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.reply(F.GET_FEATURES)
        assert peer.closed()


def test_two_front_ends_at_once(stand: Stand) -> None:
    """The second waits, or is refused; the first is not disturbed; once it has gone the next is served."""
    (ring,) = stand.up()
    with stand.peer() as second:
        with ring.peer:
            second.send(F.GET_FEATURES)
            stand.works(ring, 3)
        second.reply(F.GET_FEATURES)


def test_backend_channel_that_is_never_read(stand: Stand) -> None:
    (ring,) = stand.up()
    with ring.peer as peer:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            peer.ok(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            stand.works(ring, 3)


def test_backend_channel_that_talks_nonsense(stand: Stand) -> None:
    (ring,) = stand.up()
    with ring.peer as peer:
        for noise in (b"\xff" * 64, header(1, 5, 8) + bytes(8), header(2, 1, 0)):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                peer.ok(F.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
                with suppress(OSError):
                    ours.sendall(noise)
                stand.works(ring)


def test_noise(stand: Stand) -> None:
    """Two seconds of random messages with random descriptors."""
    end = time.monotonic() + 2
    rng = random.Random(4711)
    event = os.eventfd(0)
    memory = Memory(1 << 20)
    fds = [event, memory.regions[0].fd]
    numbers = [0, 1, 2, 3, 255, 256, 4096, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 63, U64]
    try:
        while time.monotonic() < end:
            with stand.peer() as peer, suppress(Failure, TimeoutError, OSError):
                peer.timeout = 0.2
                peer.handshake(rng.choice([~0, int(NO_SLOTS)]))
                peer.set_features(peer.features & rng.choice([U64, int(MODERN)]))
                for _ in range(40):
                    request = rng.randrange(1, 46)
                    size = rng.choice([0, 8, 12, 16, 20, 24, 32, 40, 72])
                    payload = b"".join(struct.pack("=Q", rng.choice(numbers)) for _ in range(size // 8 + 1))[:size]
                    sent = rng.choices(fds, k=rng.choice([0, 0, 1, 1, 2]))
                    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else []
                    peer.sock.sendmsg([header(request, rng.choice([1, 9]), size) + payload], ancillary)
    finally:
        os.close(event)
        memory.close()
    stand.well()


def test_log_flood(stand: Stand) -> None:
    """A front-end that errs without end does not fill the disk with our log."""
    with stand.peer().handshake() as peer:
        peer.set_features(peer.features & MODERN)
        for _ in range(2000):
            peer.send(F.SET_VRING_NUM, VringState(99, 64))
        peer.ask_u64(F.GET_FEATURES)
    assert len(stand.said) < 100_000
    assert stand.said.count("\n") < 200

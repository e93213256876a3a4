"""Clauses about virtio-blk: configuration space, requests, status codes, buffer layouts. [VIRTIO 1.3, 5.2]"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vhost.constants import FrontendRequest as F
from vhost.constants import ProtocolFeature as P
from vhost.frontend.rings import Buffer, Used
from vhost.messages import Config
from vhost.testing.check_messages import get_config, same
from vhost.testing.peer import Failure, NotOffered, Peer, Ring
from vhost.testing.report import Probe, Suite, Trial

BLK = Suite()

IN, OUT, FLUSH, GET_ID, LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE = 0, 1, 4, 8, 10, 11, 13, 14
OK, IOERR, UNSUPP = 0, 1, 2
SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, F_FLUSH, TOPOLOGY, WCE, MQ, F_DISCARD, F_WZ = (
    1 << bit for bit in (1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14)
)
SECTOR = 512
UNSET = 0xA5
ALL = (1 << 24) - 1


def header(kind: int, sector: int = 0) -> bytes:
    """A request header."""
    return struct.pack("<IIQ", kind, 0, sector)


BLOCK = 4096
"""What is read where any amount will do: whole blocks of every disk there is."""


def _probe(peer: Peer) -> tuple[list[Buffer], list[Buffer]]:
    return [peer.put(header(IN))], [peer.room(BLOCK), peer.room(1, UNSET)]


def _judge(peer: Peer, in_: list[Buffer], used: Used) -> None:
    status = peer.memory.load(in_[-1][0], 1)
    if status != OK:
        raise Failure(f"reading the first block ended with status {status}")
    if used.length != BLOCK + 1:
        raise Failure(f"{used.length} bytes are said to be written for {BLOCK} and a status")


PROBE = Probe(_probe, _judge)


class Disk:
    """A running disk."""

    def __init__(self, trial: Trial, features: int = ALL) -> None:
        """Connect and start one ring; device bits out of `features`."""
        self.peer = trial.peer()
        (self.ring,) = self.peer.bring_up(features, size=256)
        self.features = self.peer.acked_features
        self.sectors, self.block = 0, SECTOR
        if P.CONFIG in self.peer.acked_protocol:
            raw = get_config(self.peer, 0, 24)
            (self.sectors,) = struct.unpack_from("<Q", raw)
            if self.features & BLK_SIZE:
                (self.block,) = struct.unpack_from("<I", raw, 20)

    def need(self, bit: int, name: str) -> None:
        """Raises: NotOffered."""
        if not self.features & bit:
            raise NotOffered(name)

    def raw(self, out: Sequence[bytes], in_: Sequence[int], *, indirect: bool = False) -> tuple[Used, list[bytes]]:
        """One request of these buffers; what came back."""
        return request(self.ring, out, in_, indirect=indirect)

    def run(self, kind: int, sector: int = 0, *, data: bytes = b"", length: int = 0) -> tuple[int, bytes]:
        """One request in the usual layout: status and data."""
        out = [header(kind, sector), *([data] if data else [])]
        used, back = self.raw(out, [*([length] if length else []), 1])
        status = back[-1][0]
        if status == UNSET:
            raise Failure(f"request type {kind} came back without a status")
        if status == OK and used.length != length + 1:
            raise Failure(f"request type {kind}: {used.length} bytes are said to be written instead of {length + 1}")
        return status, b"".join(back[:-1])

    def ok(self, kind: int, sector: int = 0, *, data: bytes = b"", length: int = 0) -> bytes:
        """As `run`. Raises: Failure: the status is not OK."""
        status, back = self.run(kind, sector, data=data, length=length)
        if status != OK:
            raise Failure(f"request type {kind} at sector {sector} ended with status {status}")
        return back

    def refused(self, want: int | None, kind: int, sector: int = 0, *, data: bytes = b"", length: int = 0) -> None:
        """Raises: Failure: the status is not `want` (None: anything but OK)."""
        status, _ = self.run(kind, sector, data=data, length=length)
        if status == OK if want is None else status != want:
            name = "an error" if want is None else {IOERR: "IOERR", UNSUPP: "UNSUPP"}[want]
            raise Failure(f"request type {kind} at sector {sector} ended with status {status} instead of {name}")


def request(
    ring: Ring, out: Sequence[bytes], in_: Sequence[int], *, indirect: bool = False, timeout: float = 5
) -> tuple[Used, list[bytes]]:
    """One request of any buffers; what came back."""
    peer = ring.peer
    outs, ins = [peer.put(piece) for piece in out], [peer.room(length, UNSET) for length in in_]
    ring.submit(outs, ins, indirect=indirect)
    (used,) = ring.wait(timeout=timeout)
    back = [peer.memory.read(at, length) for at, length in ins]
    for at, _ in (*outs, *ins):
        peer.memory.free(at)
    return used, back


def pattern(sector: int, sectors: int = 1, seed: int = 0) -> bytes:
    """Bytes that differ from sector to sector."""
    return b"".join(struct.pack("<QQ", sector + at, seed) * 32 for at in range(sectors))


# Configuration space


@BLK("VIRTIO 5.2.4", "the configuration space can be read as front-ends do: 8, 57 and 60 bytes")
def _config_sizes(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    whole = get_config(peer, 0, 60)
    for size in (8, 36, 57):
        same(f"the first {size} bytes", get_config(peer, 0, size), whole[:size])
    if not struct.unpack_from("<Q", whole)[0]:
        raise Failure("the capacity is 0")


@BLK("VIRTIO 5.2.4", "fields of offered features make sense")
def _config_fields(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    raw = get_config(peer, 0, 60)
    features = peer.features
    blk_size, queues = struct.unpack_from("<I", raw, 20)[0], struct.unpack_from("<H", raw, 34)[0]
    if features & BLK_SIZE and (blk_size < SECTOR or blk_size & (blk_size - 1)):
        raise Failure(f"blk_size is {blk_size}")
    if features & SEG_MAX and not struct.unpack_from("<I", raw, 12)[0]:
        raise Failure("seg_max is 0")
    if features & MQ and not queues:
        raise Failure("num_queues is 0")
    if features & F_DISCARD and not all(struct.unpack_from("<II", raw, 36)):
        raise Failure("max_discard_sectors or max_discard_seg is 0")
    if features & F_WZ and not all(struct.unpack_from("<II", raw, 48)):
        raise Failure("max_write_zeroes_sectors or max_write_zeroes_seg is 0")
    if features & (RO | F_DISCARD) == RO | F_DISCARD:
        raise Failure("a read-only disk offers DISCARD")


@BLK("VIRTIO 5.2.6.3", "the driver may switch the write cache (writeback, offset 32)")
def _write_cache(trial: Trial) -> None:
    peer = trial.peer().handshake()
    peer.need(P.CONFIG)
    peer.need_feature(WCE, "CONFIG_WCE")
    peer.set_features(peer.features & (WCE | 1 << 30 | 1 << 32 | F_FLUSH))
    before = get_config(peer, 0, 33)[32:]
    for value in (b"\0", b"\1"):
        peer.ok(F.SET_CONFIG, Config(32, 1, 0, value))
        same("writeback after setting it", get_config(peer, 0, 33)[32:], value)
    peer.ok(F.SET_CONFIG, Config(32, 1, 0, before))


# Reading and writing


@BLK("VIRTIO 5.2.6", "IN reads, at the start and up to the last sector")
def _reads(trial: Trial) -> None:
    disk = Disk(trial)
    disk.ok(IN, 0, length=8 * SECTOR)
    if disk.sectors:
        disk.ok(IN, disk.sectors - disk.block // SECTOR, length=disk.block)


@BLK("VIRTIO 5.2.6", "OUT writes what IN reads back", writes=True)
def _writes_and_reads(trial: Trial) -> None:
    disk = Disk(trial)
    if disk.features & RO:
        raise NotOffered("a writable disk")
    unit = disk.block // SECTOR
    for sector, count in ((0, 8), (unit, unit), (disk.sectors - 2 * unit, 2 * unit), (64, 128)):
        data = pattern(sector, count, seed=count)
        disk.ok(OUT, sector, data=data)
        if trial.keeps:
            same(f"what was written to sector {sector}", disk.ok(IN, sector, length=len(data)) == data, True)


@BLK("VIRTIO 5.2.6", "data survives a flush and a reconnection", writes=True)
def _survives_reconnection(trial: Trial) -> None:
    disk = Disk(trial)
    if disk.features & RO or not trial.keeps:
        raise NotOffered("a writable disk that keeps its contents")
    data = pattern(16, 8, seed=99)
    disk.ok(OUT, 16, data=data)
    if disk.features & F_FLUSH:
        disk.ok(FLUSH)
    disk.peer.close()
    same("the data", Disk(trial).ok(IN, 16, length=len(data)) == data, True)


@BLK("VIRTIO 5.2.6", "FLUSH ends with OK")
def _flushes(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_FLUSH, "FLUSH")
    disk.ok(FLUSH)


@BLK("VIRTIO 5.2.6", "GET_ID fills 20 bytes")
def _get_id(trial: Trial) -> None:
    Disk(trial).ok(GET_ID, length=20)


@BLK("VIRTIO 5.2.6", "nothing is written but data and status")
def _writes_only_its_buffers(trial: Trial) -> None:
    disk = Disk(trial)
    peer = disk.peer
    fence = peer.memory.alloc(3 * 4096, 4096)
    peer.memory.write(fence, b"\xc3" * (3 * 4096))
    out = [peer.put(header(IN, 0))]
    disk.ring.submit(out, [(fence + 4096, disk.block), (fence + 2 * 4096, 1)])
    disk.ring.wait()
    around = (
        peer.memory.read(fence, 4096)
        + peer.memory.read(fence + 4096 + disk.block, 4096 - disk.block)
        + peer.memory.read(fence + 2 * 4096 + 1, 4095)
    )
    same("the memory around the buffers", set(around), {0xC3})


# Layouts


def _layout(title: str, out: Sequence[Sequence[int]], in_: Sequence[Sequence[int]]) -> None:
    """A check of 8 sectors, cut into the given pieces."""

    @BLK("VIRTIO 2.7.4, 5.2.6", title, writes=True)
    def check(trial: Trial) -> None:
        disk = Disk(trial)
        if disk.features & RO:
            raise NotOffered("a writable disk")
        data = pattern(0, 8, seed=len(title))
        for cuts in out:
            _, back = disk.raw(_cut(header(OUT, 0) + data, cuts), [1])
            same(f"the status of OUT cut into {cuts}", back[0][0], OK)
        for lengths in in_:
            used, back = disk.raw([header(IN, 0)], lengths)
            joined = b"".join(back)
            same(f"the status of IN cut into {lengths}", joined[-1], OK)
            same("the bytes said to be written", used.length, len(data) + 1)
            if trial.keeps:
                same(f"the data read into {lengths}", joined[:-1] == data, True)


def _cut(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    pieces, at = [], 0
    for length in lengths:
        pieces.append(data[at : at + length])
        at += length
    return [*pieces, data[at:]] if at < len(data) else pieces


_layout("header and data in one descriptor, status with the data", [[16 + 4096]], [[4097]])
_layout("header in several descriptors", [[1, 15], [8, 8], [1] * 16], [[4096, 1]])
_layout("data in many descriptors of odd lengths", [[16, 1, 511, 513, 1023]], [[1, 511, 513, 1023, 2048, 1]])
_layout("header split within the data's descriptor", [[10, 100]], [[4095, 2]])


@BLK("VIRTIO 5.2.6", "the header may be read through an indirect table in pieces")
def _indirect_layout(trial: Trial) -> None:
    disk = Disk(trial, ALL | 1 << 28)
    disk.need(1 << 28, "INDIRECT_DESC")
    head = header(IN, 0)
    _, back = disk.raw([head[:3], head[3:]], [BLOCK - 5, 5, 1], indirect=True)
    same("the status", back[-1][0], OK)


@BLK("VIRTIO 5.2.6", "64 requests in flight all come back")
def _many(trial: Trial) -> None:
    disk = Disk(trial)
    for at in range(64):
        disk.ring.submit(
            [disk.peer.put(header(IN, at % 4 * 8))], [disk.peer.room(BLOCK), disk.peer.room(1, UNSET)], kick=at % 5 == 0
        )
    disk.ring.kick()
    disk.ring.wait(64)


# What must be refused


@BLK("VIRTIO 5.2.6.2", "an unknown request type ends with UNSUPP")
def _unknown_type(trial: Trial) -> None:
    Disk(trial).refused(UNSUPP, 9999)


@BLK("VIRTIO 5.2.6", "reading beyond the end ends with IOERR")
def _read_beyond(trial: Trial) -> None:
    disk = Disk(trial)
    if not disk.sectors:
        raise NotOffered("CONFIG")
    unit = disk.block // SECTOR
    for sector, count in ((disk.sectors, 1), (disk.sectors - unit, 2), (1 << 55, 1), ((1 << 64) - unit, 1)):
        disk.refused(IOERR, IN, sector, length=count * disk.block)


@BLK("VIRTIO 5.2.6", "writing beyond the end ends with IOERR", writes=True)
def _write_beyond(trial: Trial) -> None:
    disk = Disk(trial)
    for sector in (disk.sectors, (1 << 64) - disk.block // SECTOR, 1 << 55):
        disk.refused(IOERR, OUT, sector, data=bytes(disk.block))


@BLK("VIRTIO 5.2.6.1", "a length that is no multiple of 512 is refused")
def _odd_length(trial: Trial) -> None:
    Disk(trial).refused(None, IN, 0, length=100)


@BLK("VIRTIO 5.2.6.2", "a read-only disk refuses to be written with IOERR")
def _read_only(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(RO, "RO")
    disk.refused(IOERR, OUT, 0, data=bytes(disk.block))


@BLK("VIRTIO 5.2.6", "GET_ID with a short buffer writes no more than fits")
def _short_id(trial: Trial) -> None:
    disk = Disk(trial)
    used, back = disk.raw([header(GET_ID)], [5, 1])
    if used.length > 6 or back[1][0] == UNSET:
        raise Failure(f"{used.length} bytes are said to be written to 6")


@BLK("robustness", "requests without room for a status, or without a header, do not end the service")
def _malformed(trial: Trial) -> None:
    for out, in_ in (
        ([header(IN)], []),
        ([b"abc"], [SECTOR, 1]),
        ([], [SECTOR]),
        ([header(OUT)], [1]),
        ([header(IN)], [1]),
    ):
        with Peer(trial.connect()) as peer:
            (ring,) = peer.bring_up(0)
            ring.submit([peer.put(piece) for piece in out], [peer.room(length) for length in in_])
            peer.closed(0.05)
    Disk(trial).ok(IN, length=BLOCK)


# Discard and write zeroes


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    """A segment of DISCARD, WRITE_ZEROES or SECURE_ERASE."""
    return struct.pack("<QII", sector, sectors, flags)


@BLK("VIRTIO 5.2.6", "DISCARD of whole blocks ends with OK", writes=True)
def _discards(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_DISCARD, "DISCARD")
    disk.ok(DISCARD, data=segment(0, 64))


@BLK("VIRTIO 5.2.6", "WRITE_ZEROES zeroes, with and without unmap, and nothing around", writes=True)
def _write_zeroes(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_WZ, "WRITE_ZEROES")
    for flags in (0, 1):
        disk.ok(OUT, 0, data=pattern(0, 32, seed=flags))
        disk.ok(WRITE_ZEROES, data=segment(8, 16, flags))
        if trial.keeps:
            want = pattern(0, 8, seed=flags) + bytes(16 * SECTOR) + pattern(24, 8, seed=flags)
            same("the disk around and in the zeroed part", disk.ok(IN, 0, length=32 * SECTOR) == want, True)


@BLK("VIRTIO 5.2.6.2", "DISCARD with unmap, and unknown flags, end with UNSUPP", writes=True)
def _discard_flags(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_DISCARD, "DISCARD")
    disk.refused(UNSUPP, DISCARD, data=segment(0, 8, 1))
    disk.refused(UNSUPP, DISCARD, data=segment(0, 8, 2))


@BLK("VIRTIO 5.2.6.2", "WRITE_ZEROES with unknown flags ends with UNSUPP", writes=True)
def _write_zeroes_flags(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_WZ, "WRITE_ZEROES")
    disk.refused(UNSUPP, WRITE_ZEROES, data=segment(0, 8, 2))


@BLK("VIRTIO 5.2.6", "DISCARD and WRITE_ZEROES beyond the end end with IOERR", writes=True)
def _discard_beyond(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_DISCARD, "DISCARD")
    for sector, count in ((disk.sectors, 8), (disk.sectors - 8, 16), ((1 << 64) - 8, 16)):
        disk.refused(IOERR, DISCARD, data=segment(sector, count))
        if disk.features & F_WZ:
            disk.refused(IOERR, WRITE_ZEROES, data=segment(sector, count))


@BLK("VIRTIO 5.2.6.1", "DISCARD with half a segment, or none, is refused", writes=True)
def _half_segment(trial: Trial) -> None:
    disk = Disk(trial)
    disk.need(F_DISCARD, "DISCARD")
    disk.refused(None, DISCARD, data=segment(0, 8)[:15])
    disk.refused(None, DISCARD, data=segment(0, 8) + b"x")
    disk.refused(None, DISCARD)

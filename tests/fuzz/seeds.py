"""Writes the seed corpus of ring_fuzz: rings as a good driver would leave them, and calls of a busy device.

    python tests/fuzz/seeds.py [FOLDER]

The fuzzer starts from states that random bytes do not reach. The layout of an input is at the head of ``ring_fuzz.c``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

PACKED, INDIRECT, EVENT_IDX, IN_ORDER, IOTLB, LOG, INFLIGHT, FROM_USED = (1 << i for i in range(8))
(
    POP, PUSH, PUSH_OLDEST, FLUSH, UNPOP, KICKS, POKE8, POKE16, POKE32, POKE64, AVAIL, TOUCH, RESTART, REMAP, REMOVE,
    ADD, LOGGING, TLB_ADD, TLB_DEL, BREAK, LOOK,
) = range(21)  # fmt: skip
NEXT, WRITE, TABLE = 1, 2, 4
F_AVAIL, F_USED = 1 << 7, 1 << 15

RING, TABLES, DATA, FAR = 0x0, 0x1000, 0x2000, 0x2400  # guest-physical; FAR follows DATA
DESC, AVAIL_AT, USED_AT = 0x0, 0x200, 0x280
RING_BYTES, TABLES_BYTES, DATA_BYTES, FAR_BYTES = 0x440, 0x80, 0x400, 0x80

LONG = 200  # entries of the long table
Call = tuple[int, int, int]
SERVE: list[Call] = [
    (POP, 8, 0), (TOUCH, 0, 0), (TOUCH, 1, 3), (PUSH, 1, 8), (PUSH, 0, 20), (FLUSH, 0, 0), (KICKS, 1, 0), (LOOK, 0, 0),
    (AVAIL, 1, 0), (POP, 1, 0), (KICKS, 0, 0), (PUSH, 0, 0), (FLUSH, 0, 0), (RESTART, 0, 0), (POP, 8, 0), (FLUSH, 0, 0),
]  # fmt: skip
TROUBLE: list[Call] = [
    (POP, 4, 0), (UNPOP, 1, 0), (POP, 4, 0), (REMOVE, 2, 0), (TOUCH, 0, 0), (PUSH, 0, 4), (FLUSH, 0, 0), (ADD, 2, 0),
    (REMAP, 0, 0), (LOGGING, 1, 0), (AVAIL, 2, 0), (POP, 9, 0), (PUSH_OLDEST, 0, 9), (FLUSH, 0, 0), (LOGGING, 0, 0),
    (TLB_DEL, 4, 0x200), (POP, 9, 0), (TLB_ADD, 16, 0x200), (POP, 9, 0), (POKE16, 3, 0x101), (POP, 9, 0),
    (BREAK, 0, 7), (PUSH, 0, 1), (RESTART, 0, 0), (POP, 9, 0),
]  # fmt: skip


def descriptor(flags: int, addr: int, length: int, flag: int, last: int) -> bytes:
    """Sixteen bytes in the order of the layout; ``last`` is next or id."""
    return struct.pack("<QIHH", addr, length, *((last, flag) if flags & PACKED else (flag, last)))


def long_ring(flags: int, size: int) -> bytes:
    """All of a ring of 64, each descriptor pointing at the same long table: more than there are blocks for."""
    ring = bytearray(0x900)
    for i in range(size):
        last = i if flags & PACKED else 0
        flag = TABLE | (F_AVAIL if flags & PACKED else 0)
        ring[16 * i : 16 * i + 16] = descriptor(flags, TABLES, 16 * LONG, flag, last)
    if not flags & PACKED:
        struct.pack_into(f"<HH{size}H", ring, 0x400, 0, size, *range(size))
    return bytes(ring)


def long_table(flags: int) -> bytes:
    """More pieces than the small blocks hold; each over the border of two regions."""
    out = b""
    for i in range(LONG):
        flag = WRITE | (NEXT if i + 1 < LONG and not flags & PACKED else 0)
        out += descriptor(flags, FAR - 1, 2, flag, 0 if flags & PACKED else i + 1)
    return out


def long_seed(flags: int) -> bytes:
    """One input that uses up the pools."""
    calls: list[Call] = [
        (POP, 250, 0),
        (LOOK, 0, 0),
        (KICKS, 1, 0),
        (PUSH, 3, 9),
        (POP, 250, 0),
        (PUSH, 0, 1),
        (FLUSH, 0, 0),
    ]
    out = struct.pack("<BBHIHHHH", flags, 3, 64, 0x80008000 if flags & PACKED else 0, 0, 0x400 // 2, 0x500 // 4, 0)
    for gpa, length in ((RING, 0x900), (TABLES, 16 * LONG), (DATA, DATA_BYTES), (FAR, FAR_BYTES)):
        out += struct.pack("<HHHH", gpa // 64, -(-length // 64) - 1, gpa // 64, 0)
    out += bytes([len(calls)]) + b"".join(struct.pack("<BBH", *call) for call in calls)
    return (out + long_ring(flags, 64) + long_table(flags)).rstrip(b"\0")


def split_ring(flags: int, size: int) -> bytes:
    """Head 0: two buffers, head 2: three, one over the border of two regions, head 5: a table if there may be one."""
    table = bytearray(RING_BYTES)
    rows = [
        (DATA, 16, NEXT, 1), (DATA + 64, 32, WRITE, 0),
        (DATA + 8, 8, NEXT, 3), (DATA + 0x3F0, 0x20, NEXT | WRITE, 4), (DATA + 100, 0, WRITE, 0),
        (TABLES, 64, TABLE, 0) if flags & INDIRECT else (DATA, 1, 0, 0),
    ]  # fmt: skip
    for i, row in enumerate(rows):
        table[DESC + 16 * i : DESC + 16 * i + 16] = descriptor(flags, *row)
    struct.pack_into("<HH3H", table, AVAIL_AT, 0, 3, 0, 2, 5)
    struct.pack_into("<H", table, AVAIL_AT + 4 + 2 * size, 1)
    return bytes(table)


def packed_ring(flags: int, size: int, first: int = 0) -> bytes:
    """The same requests from slot ``first`` of the first lap on."""
    ring = bytearray(RING_BYTES)
    rows = [
        (DATA, 16, NEXT, 3), (DATA + 64, 32, WRITE, 3),
        (DATA + 8, 8, NEXT, 0), (DATA + 0x3F0, 0x20, NEXT | WRITE, 0), (DATA + 100, 0, WRITE, 0),
        (TABLES, 64, TABLE, 1) if flags & INDIRECT else (DATA, 1, 0, 1),
    ]  # fmt: skip
    for i, (addr, length, flag, ident) in enumerate(rows):
        at = 16 * ((first + i) % size)
        lap = F_AVAIL if first + i < size else F_USED
        ring[at : at + 16] = descriptor(flags, addr, length, flag | lap, ident)
    struct.pack_into("<HH", ring, AVAIL_AT, (first + 1) % size | 0x8000, 2)
    return bytes(ring)


def tables(flags: int) -> bytes:
    """An indirect table: two readable, two writable entries."""
    out = b""
    for i, write in enumerate((0, 0, WRITE, WRITE)):
        flag = write | (NEXT if i < 3 and not flags & PACKED else 0)
        out += descriptor(flags, DATA + 0x40 * i, 0x40, flag, 0 if flags & PACKED else i + 1)
    return out.ljust(TABLES_BYTES, b"\0")


def seed(
    flags: int, size: int, base: int, calls: list[Call], *, read_only: int = 0, record_new: bytes = b"", first: int = 0
) -> bytes:
    """One input. ``first``: the ring slot that is first, packed."""
    record = 0
    if flags & INFLIGHT:
        record = 32 + 32 * size if flags & PACKED else 16 + 16 * size
    regions = [(RING, RING_BYTES, 0), (TABLES, TABLES_BYTES, 0), (DATA, DATA_BYTES, 0), (FAR, FAR_BYTES, read_only)]
    out = struct.pack("<BBHIHHHH", flags, 3, size, base, DESC // 16, AVAIL_AT // 2, USED_AT // 4, record)
    for gpa, length, flag in regions:
        out += struct.pack("<HHHH", gpa // 64, length // 64 - 1, gpa // 64, flag)
    out += bytes([len(calls)]) + b"".join(struct.pack("<BBH", *call) for call in calls)
    out += (packed_ring(flags, size, first) if flags & PACKED else split_ring(flags, size)) + tables(flags)
    if flags & INFLIGHT and not flags & FROM_USED:
        out += bytes(DATA_BYTES + FAR_BYTES) + (record_new or record_of(flags, size))
    return out.rstrip(b"\0")  # what is missing reads as zero


def record_of(flags: int, size: int) -> bytes:
    """An inflight record with the first request in flight. Without it (FROM_USED) the record is new."""
    if not flags & PACKED:
        entries = [struct.pack("<B5xHQ", i == 0, 0, i) for i in range(size)]
        return struct.pack("<QHHHH", 0, 1, size, 0, 0) + b"".join(entries)
    head = struct.pack("<QHHHHHHBB", 0, 1, size, 2, 2, 0, 0, 1, 1).ljust(32, b"\0")
    rows = [(DATA, 16, NEXT | F_AVAIL, 3), (DATA + 64, 32, WRITE | F_AVAIL, 3)]
    out = head
    for i in range(size):
        addr, length, flag, ident = rows[i] if i < 2 else (0, 0, 0, 0)
        last, num = (1, 2) if i == 0 else (0, 0)
        out += struct.pack("<BxHHHQHHIQ", i == 0, i + 1, last, num, 0, ident, flag, length, addr)
    return out


def unfinished(flags: int, size: int, *, published: bool) -> bytes:
    """A record whose last batch, the first request, was being published when the back-end died."""
    old = record_of(flags, size)
    if not flags & PACKED:
        # the ring's used index is 0: the record is one behind, or not
        return old[:12] + struct.pack("<HH", 0, 0xFFFF if published else 0) + old[16:]
    return old[:12] + struct.pack("<HHHHBB", 0, 2, 2 if published else 6, 0, 1, 1) + old[22:]


def seeds() -> dict[str, bytes]:
    """All, by name."""
    out = {}
    for packed in (0, PACKED):
        name = "packed" if packed else "split"
        base = 0x80008000 if packed else 0
        for words, flags in {
            "plain": 0,
            "indirect": INDIRECT,
            "event": INDIRECT | EVENT_IDX,
            "order": INDIRECT | IN_ORDER,
            "iotlb": INDIRECT | IOTLB,
            "log": INDIRECT | LOG,
            "record": INDIRECT | INFLIGHT,
            "new-record": INDIRECT | INFLIGHT | FROM_USED | EVENT_IDX,
            "all": INDIRECT | EVENT_IDX | IN_ORDER | IOTLB | LOG | INFLIGHT,
        }.items():
            out[f"{name}-{words}"] = seed(packed | flags, 8, base, SERVE)
            out[f"{name}-{words}-trouble"] = seed(packed | flags, 8, base, TROUBLE)
        for published in (True, False):
            words = f"{name}-unfinished-{'seen' if published else 'unseen'}"
            record = unfinished(packed, 8, published=published)
            out[words] = seed(packed | INFLIGHT, 8, base, SERVE, record_new=record)
        out[f"{name}-long"] = long_seed(packed | INDIRECT)
        out[f"{name}-wrap"] = seed(packed | INDIRECT | LOG, 8, 0x80058005 if packed else 0, SERVE, first=5)
        out[f"{name}-read-only"] = seed(packed, 8, base, SERVE, read_only=1)
        out[f"{name}-odd"] = seed(packed | INDIRECT, 7 if packed else 32, base, SERVE + TROUBLE)
    return out


def main(argv: list[str]) -> int:
    """See the module's text."""
    folder = Path(argv[0]) if argv else Path(__file__).parent / "corpus" / "ring"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

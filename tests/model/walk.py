"""From descriptors to a chain: the rules that both layouts share (VIRTIO 1.3, 2.7.4 and 2.7.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from model.memory import Bad, Memory
from ring import ErrorCode

CHAIN_MAX = 1024  # descriptors of a chain, ring.h
IOV_MAX = 1024  # pieces of a chain, ring.h

NEXT, WRITE, INDIRECT = 1, 2, 4


class Desc(NamedTuple):
    """Sixteen bytes; ``last`` is the next index (split) or the buffer id (packed, then before the flags)."""

    addr: int
    length: int
    flags: int
    last: int


@dataclass
class ModelChain:
    """A request: pieces of guest memory."""

    id: int
    slots: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]
    order: int = 0
    written: int | None = None
    resubmitted: bool = False

    @property
    def out_bytes(self) -> int:
        return sum(n for _, n in self.readable)

    @property
    def in_bytes(self) -> int:
        return sum(n for _, n in self.writable)


@dataclass
class Walk:
    """Collects the buffers of one chain."""

    memory: Memory
    readable: list[tuple[int, int]] = field(default_factory=list)
    writable: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    total: int = 0
    writing: bool = False

    def add(self, addr: int, length: int, write: bool, also: set[ErrorCode]) -> None:
        """One buffer. ``also``: what else is wrong with its descriptor."""
        wrong = set(also)
        self.count += 1
        if self.count > CHAIN_MAX:
            wrong.add(ErrorCode.LOOP)
        if self.writing and not write:
            wrong.add(ErrorCode.ORDER)
        self.writing |= write
        self.total += length
        if self.total >= 1 << 32:
            wrong.add(ErrorCode.LEN)
        side = self.writable if write else self.readable
        try:
            pieces = self.memory.pieces(addr, length)
        except Bad as bad:
            wrong |= bad.codes
            if len(self.readable) + len(self.writable) + len(self.memory.regions) > IOV_MAX:
                wrong.add(ErrorCode.IOVECS)  # the part that is mapped may be one piece too many already
            if write and self.memory.touches_read_only(addr, length):
                wrong.add(ErrorCode.PERM)
        else:
            if write and any(read_only for _, _, read_only in pieces):
                wrong.add(ErrorCode.PERM)
            side.extend((gpa, n) for gpa, n, _ in pieces)
        if len(self.readable) + len(self.writable) > IOV_MAX:
            wrong.add(ErrorCode.IOVECS)
        if wrong:
            raise Bad(*wrong)

    def chain(self, ident: int, slots: int) -> ModelChain:
        """What was collected."""
        return ModelChain(ident, slots, self.readable, self.writable)


def split_desc(memory: Memory, table: int, index: int) -> Desc:
    """Entry ``index`` of a split descriptor table; only what is looked at needs to be mapped."""
    addr, length, flags, following = struct.unpack("<QIHH", memory.read(table + 16 * index, 16))
    return Desc(addr, length, flags, following)


def packed_desc(memory: Memory, table: int, index: int) -> Desc:
    """Entry ``index`` of a packed ring or table."""
    addr, length, ident, flags = struct.unpack("<QIHH", memory.read(table + 16 * index, 16))
    return Desc(addr, length, flags, ident)

"""Packed lists whose last buffer id is not the first one's: what they hold must not be given back by a later walk."""

from __future__ import annotations

import struct

from model.link import BUFFERS, PACKED, Link

PIECES = 8  # more than a chain keeps beside itself, so that a block of the pool is taken
NEXT, AVAIL, USED = 1, 1 << 7, 1 << 15


def write_list(link: Link, pos: int, first_id: int, last_id: int, wrap: bool) -> None:
    """A list of PIECES one-byte buffers at ring slot ``pos``; the head is made available last."""
    marks = AVAIL if wrap else USED
    for i in reversed(range(PIECES)):
        ident = last_id if i == PIECES - 1 else first_id
        flags = marks | (NEXT if i < PIECES - 1 else 0)
        struct.pack_into("<QIHH", link.ram, link.config.desc + 16 * (pos + i), BUFFERS + 16 * i, 1, ident, flags)


def test_a_moved_chain_keeps_its_block() -> None:
    with Link(features=PACKED, size=64) as link:
        write_list(link, 0, first_id=1, last_id=2, wrap=True)  # walked into slot 1, moved to slot 2
        (moved,) = link.queue.pop_batch()
        assert moved.id == 2
        write_list(link, PIECES, first_id=1, last_id=1, wrap=True)  # walked into slot 1 again
        (second,) = link.queue.pop_batch()
        write_list(link, 2 * PIECES, first_id=3, last_id=3, wrap=True)
        (third,) = link.queue.pop_batch()
        for n, chain in enumerate((moved, second, third)):
            link.ram[BUFFERS : BUFFERS + 16 * PIECES : 16] = bytes([n]) * PIECES
            assert [bytes(view) for view in chain.readable] == [bytes([n])] * PIECES
        pieces = {chain.ptr.iov for chain in (moved, second, third)}
        assert len(pieces) == 3  # each has its own
        for chain in (third, second, moved):
            chain.complete()
        assert link.queue.in_flight == 0

"""A driver that keeps to no rule: C ring and model agree on what is accepted and on what is wrong with the rest.

Whatever descriptors, indexes and event fields say, no byte of guest memory changes but those of writable buffers, the
used ring and the device's event fields: the rig compares all of it after each step. ``VHOST_PROPERTY_EXAMPLES=N``
makes N times as many examples, at random.
"""

from __future__ import annotations

import os
import struct
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from model.rig import CONST, FAR, RINGS, TABLES, A, B, Pair, Rig, overlap

import ring

INDIRECT, EVENT_IDX, IN_ORDER = 1 << 28, 1 << 29, 1 << 35
NEXT, WRITE, TABLE = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15

#: most are fine, some lie at a border or beyond
addresses = st.one_of(
    st.integers(A.gpa, B.end - 0x100),
    st.sampled_from([A.gpa, A.gpa - 1, A.end - 1, B.end, B.end - 1, FAR.gpa, FAR.end - 16, CONST.gpa, CONST.end - 1]),
    st.sampled_from([TABLES.gpa, TABLES.gpa + 16, TABLES.gpa + 1, TABLES.end - 16, RINGS.gpa, RINGS.gpa + 0x1000]),
    st.sampled_from([0, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 16, (1 << 64) - 0x1000]),
)
lengths = st.one_of(
    st.integers(0, 64),
    st.sampled_from([16, 32, 48, 16 * 5, 16 * 1024, 16 * 1025, 0x1000, 0x2000, 0x3800, 0x3801]),
    st.sampled_from([0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF]),
)
#: bits that mean nothing must mean nothing
flags = st.one_of(
    st.sampled_from([0, WRITE, NEXT, NEXT | WRITE, NEXT | WRITE]),
    st.sampled_from([TABLE, TABLE, TABLE | WRITE, TABLE | NEXT]),
    st.builds(lambda known, unknown: known | unknown, st.integers(0, 7), st.sampled_from([8, 0x70, 0x7F00])),
)
good_addresses = st.integers(A.gpa, B.end - 64)
#: mostly with indirect tables: without, there is little to get wrong
FEATURES = [0, IN_ORDER | EVENT_IDX] + [INDIRECT | others for others in (0, IN_ORDER, EVENT_IDX, IN_ORDER | EVENT_IDX)]


class HostileDriver(RuleBasedStateMachine):
    """One queue, whose memory is written at random."""

    packed: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.pair: Pair | None = None

    @initialize(features=st.sampled_from(FEATURES), shape=st.data())
    def begin(self, features: int, shape: st.DataObject) -> None:
        self.size = size = shape.draw(st.sampled_from([1, 3, 4, 7, 12] if self.packed else [1, 2, 4, 8]), "size")
        self.desc = RINGS.gpa
        self.avail = RINGS.gpa + 0x1000
        self.used = RINGS.gpa + 0x2000
        self.rig.write(RINGS.gpa, bytes(0x3000))
        base = self.bases(shape) if shape.draw(st.booleans(), "odd base") else 0x80008000 if self.packed else 0
        self.pair = Pair(
            self.rig,
            packed=self.packed,
            size=size,
            features=features,
            desc=self.desc,
            avail=self.avail,
            used=self.used,
            base=base,
        )

    def bases(self, shape: st.DataObject) -> int:
        if not self.packed:
            return shape.draw(st.integers(0, 0xFFFF), "base")
        slots = st.integers(0, self.size - 1)
        wraps = st.sampled_from([0, 0x8000])
        avail = shape.draw(slots, "avail") | shape.draw(wraps, "avail wrap")
        # 0 is not taken at its word: see tests/unit/test_ring_base.py
        return avail | (shape.draw(slots, "used") | shape.draw(wraps, "used wrap")) << 16 or 0x80008000

    def write(self, gpa: int, data: bytes) -> None:
        """The guest writes; what C has prepared there for publication, it publishes first."""
        if self.pair is not None and overlap(self.pair.model.staging_area(), gpa, len(data)):
            self.pair.flush(exact=False)
        self.rig.write(gpa, data)

    def put(self, table: int, index: int, addr: int, length: int, flag: int, last: int) -> None:
        """One descriptor, in the order of the layout."""
        pair = (last, flag) if self.packed else (flag, last)
        self.write(table + 16 * index, struct.pack("<QIHH", addr, length, *pair))

    def going(self) -> Pair:
        """The queue; running."""
        assert self.pair is not None
        return self.pair

    @rule(
        addr=st.sampled_from([TABLES.gpa, TABLES.gpa + 16, TABLES.end - 64]),
        entries=st.lists(st.tuples(addresses, lengths, flags), min_size=1, max_size=8),
        following=st.lists(st.integers(0, 8), min_size=8, max_size=8),
    )
    def table(self, addr: int, entries: list[tuple[int, int, int]], following: list[int]) -> None:
        for i, (buffer, length, flag) in enumerate(entries):
            if addr + 16 * i + 16 <= TABLES.end:
                last = i + 1 if following[i] == 8 else following[i]
                self.put(addr, i, buffer, length, flag, last)

    @rule(
        count=st.sampled_from([2, 6, 7, 136, 137, 1023, 1024, 1025]),
        length=st.sampled_from([0, 1, 4, 0x3800]),
        write_from=st.integers(0, 1100),
        wrong=st.sampled_from([0, 0, 0, 0, 16, -16, 1]),
        crossing=st.booleans(),
        ids=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    )
    def long_table(self, count: int, length: int, write_from: int, wrong: int, crossing: bool, ids: list[int]) -> None:
        """A table at the limits of pieces, descriptors and bytes, made available right away."""
        table = b""
        for i in range(count):
            flag = WRITE if i >= write_from else 0
            if not self.packed and i + 1 < count:
                flag |= NEXT
            addr = A.end - 1 if crossing else A.gpa + i % 0x1000
            table += struct.pack("<QIHH", addr, length, *((0, flag) if self.packed else (flag, i + 1)))
        self.write(TABLES.gpa, table)
        self.offer([(TABLES.gpa, 16 * count + wrong, TABLE, ident) for ident in ids])
        self.pop(20)

    @rule(data=st.binary(min_size=16, max_size=64), at=st.integers(0, 64))
    def scribble_table(self, data: bytes, at: int) -> None:
        self.write(TABLES.gpa + at, data)

    @rule(
        chain=st.lists(st.tuples(addresses, lengths, flags, st.integers(0, 12)), min_size=1, max_size=6),
        wrong=st.sampled_from([0, 0, 0, 0, AVAIL, USED, AVAIL | USED]),
    )
    def make_available(self, chain: list[tuple[int, int, int, int]], wrong: int) -> None:
        self.offer(chain, wrong)
        self.pop(20)

    @rule(
        buffers=st.lists(st.tuples(good_addresses, st.integers(0, 64), st.sampled_from([0, WRITE])), max_size=4),
        serve=st.lists(st.integers(0, 31), max_size=4),
    )
    def good(self, buffers: list[tuple[int, int, int]], serve: list[int]) -> None:
        """Requests that are all right, so that hostile ones come late."""
        ids = [i for i in range(self.size) if i not in self.going().model.in_flight]
        self.offer([(*buffer, ident) for buffer, ident in zip(buffers, ids, strict=False)])
        self.pop(20)
        for which in serve:
            if self.going().held:
                self.complete(which, which, 1.0)
        if serve:
            self.flush()

    @rule(
        buffers=st.lists(
            st.tuples(good_addresses, st.integers(0, 64), st.sampled_from([0, 0, WRITE, WRITE])), min_size=1, max_size=5
        ),
        ordered=st.booleans(),
        spoil=st.sampled_from(["", "addr", "length", "flag", "last"]),
        which=st.integers(0, 4),
        addr=addresses,
        length=lengths,
        flag=flags,
        last=st.integers(0, 13),
        indirect=st.booleans(),
    )
    def almost(
        self,
        buffers: list[tuple[int, int, int]],
        ordered: bool,
        spoil: str,
        which: int,
        addr: int,
        length: int,
        flag: int,
        last: int,
        indirect: bool,
    ) -> None:
        """A list, in the ring or in a table, with one thing wrong with it, or none."""
        if ordered:
            buffers = sorted(buffers, key=lambda buffer: buffer[2])
        ident = next((i for i in range(self.size) if i not in self.going().model.in_flight), 0)
        if not indirect:
            buffers = buffers[: self.size]
        chain = []
        for i, (at, n, write) in enumerate(buffers):
            more = NEXT if i + 1 < len(buffers) and not (indirect and self.packed) else 0
            following = ident if self.packed else i + 1 if indirect else (ident + i + 1) % self.size
            chain.append([at, n, write | more, following])
        if spoil:
            field = ["addr", "length", "flag", "last"].index(spoil)
            chain[which % len(chain)][field] = (addr, length, flag, last)[field]
        if indirect:
            for i, (at, n, f, following) in enumerate(chain):
                self.put(TABLES.gpa, i, at, n, f, following)
            self.offer([(TABLES.gpa, 16 * len(chain), TABLE, ident)])
        elif self.packed:
            self.offer([(at, n, f, following) for at, n, f, following in chain])
        else:
            for i, (at, n, f, following) in enumerate(chain):
                self.put(self.desc, (ident + i) % self.size, at, n, f, following)
            old = self.going().model.base
            self.write(self.avail + 4 + 2 * (old % self.size), struct.pack("<H", ident))
            self.write(self.avail + 2, struct.pack("<H", (old + 1) & 0xFFFF))
        self.pop(20)

    def offer(self, chain: list[tuple[int, int, int, int]], wrong: int = 0) -> None:
        """Write descriptors where the device looks next, and make them available, more or less."""
        pair = self.going()
        model = pair.model
        if not self.packed:
            old = model.base
            for i, (addr, length, flag, last) in enumerate(chain):
                index = last % self.size
                self.put(self.desc, index, addr, length, flag, (last + 1) % (self.size + 1))
                self.write(self.avail + 4 + 2 * ((old + i) % self.size), struct.pack("<H", last % (self.size + 1)))
            self.write(self.avail + 2, struct.pack("<H", (old + len(chain)) & 0xFFFF))
            return
        slot, wrap = model.base & 0x7FFF, bool(model.base & 0x8000)
        for addr, length, flag, last in chain:
            self.put(self.desc, slot, addr, length, (flag | (AVAIL if wrap else USED)) ^ wrong, last)
            slot += 1
            if slot == self.size:
                slot, wrap = 0, not wrap

    @rule(ahead=st.integers(0, 20), heads=st.lists(st.integers(0, 9), max_size=8))
    def indexes(self, ahead: int, heads: list[int]) -> None:
        """Split: the available ring says anything."""
        if self.packed:
            return
        for i, head in enumerate(heads[: self.size]):
            self.write(self.avail + 4 + 2 * i, struct.pack("<H", head if head < 9 else 0xFFFF))
        self.write(self.avail + 2, struct.pack("<H", (self.going().model.base + ahead) & 0xFFFF))

    @rule(at=st.sampled_from(["used", "avail"]), offset=st.integers(0, 40), data=st.binary(min_size=1, max_size=8))
    def scribble(self, at: str, offset: int, data: bytes) -> None:
        """Event fields, and over what the device writes."""
        self.write((self.used if at == "used" else self.avail) + offset, data)

    @rule(limit=st.integers(1, 20))
    def pop(self, limit: int) -> None:
        self.going().pop(limit)
        self.mend()

    @precondition(lambda self: self.pair is not None and self.pair.held)
    @rule(which=st.integers(0, 31), fill=st.integers(0, 255), share=st.sampled_from([0.0, 0.5, 1.0]))
    def complete(self, which: int, fill: int, share: float) -> None:
        pair = self.going()
        pair.complete(which % len(pair.held), fill, share)

    @rule()
    def flush(self) -> None:
        self.going().flush(exact=False)

    @rule(on=st.booleans())
    def kicks(self, on: bool) -> None:
        pair = self.going()
        with pair.compared(events=True):
            if on:
                assert pair.queue.kicks_on() == pair.model.pending
            else:
                pair.queue.kicks_off()

    def mend(self) -> None:
        """A broken queue touches nothing, takes its chains back, and starts again when told to."""
        pair = self.going()
        if pair.queue.state != ring.QueueState.BROKEN:
            return
        error = pair.queue.error
        before = self.rig.ram[:]
        assert pair.queue.pop_batch() == []
        for chain, model in pair.held:
            chain.complete(model.in_bytes)
        pair.held.clear()
        assert not pair.queue.flush()
        assert not pair.queue.kicks_on()
        pair.queue.kicks_off()
        assert not pair.queue.ready
        assert pair.queue.error == error, "the first reason stays"
        assert pair.queue.in_flight == 0
        pair.queue.stop()
        assert self.rig.ram[:] == before
        assert self.rig.notified() == 0
        self.rig.write(RINGS.gpa, bytes(0x3000))
        pair.start(0x80008000 if self.packed else 0)

    def teardown(self) -> None:
        self.rig.close()


pytestmark = pytest.mark.timeout(0 if "VHOST_PROPERTY_EXAMPLES" in os.environ else 180)
EXAMPLES = int(os.environ.get("VHOST_PROPERTY_EXAMPLES", "1"))
SETTINGS = settings(
    max_examples=100 * EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    derandomize="VHOST_PROPERTY_EXAMPLES" not in os.environ,  # the suite is the same every time, a search is not
    phases=[phase for phase in Phase if phase is not Phase.explain],  # slow, and a machine's steps explain themselves
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Split(HostileDriver):
    packed = False


class Packed(HostileDriver):
    packed = True


TestSplit = Split.TestCase
TestSplit.settings = SETTINGS
TestPacked = Packed.TestCase
TestPacked.settings = SETTINGS

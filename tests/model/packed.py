"""The packed layout (VIRTIO 1.3, 2.8)."""

from __future__ import annotations

from model.memory import Bad, Memory
from model.walk import CHAIN_MAX, INDIRECT, NEXT, WRITE, ModelChain, Walk, packed_desc
from ring import ErrorCode

F_INDIRECT, F_EVENT_IDX, F_IN_ORDER = 1 << 28, 1 << 29, 1 << 35

AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, AT_DESC = 0, 1, 2


class PackedDevice:
    """The device's side of one packed ring. Positions count on without end; slot and wrap counter derive from them."""

    packed = True

    def __init__(
        self, memory: Memory, *, size: int, features: int, desc: int, avail: int, used: int, base: int = 0x80008000
    ) -> None:
        self.memory, self.size, self.features = memory, size, features
        self.desc, self.avail, self.used = desc, avail, used
        # lap 1 has wrap counter 1, lap 0 and 2 have 0
        self.avail_pos = (base & 0x7FFF) + (size if base & 0x8000 else 0)
        self.used_pos = (base >> 16 & 0x7FFF) + (size if base >> 31 else 0)
        if self.used_pos > self.avail_pos:
            self.avail_pos += 2 * size
        self.taken = 0  # slots popped since the start, not yet published
        self.in_flight: dict[int, ModelChain] = {}  # by buffer id, in pop order
        self.staged: list[ModelChain] = []
        self.popped = 0
        self.again: list[ModelChain] = []  # to be handed out once more, after a crash
        self.dirty: list[tuple[int, int]] = []

    def _wrap(self, pos: int) -> bool:
        return bool(pos // self.size & 1)

    @property
    def base(self) -> int:
        return (
            self.avail_pos % self.size
            | self._wrap(self.avail_pos) << 15
            | self.used_pos % self.size << 16
            | self._wrap(self.used_pos) << 31
        )

    def _available(self) -> bool:
        flags = self.memory.u16(self.desc + 16 * (self.avail_pos % self.size) + 14)
        wrap = self._wrap(self.avail_pos)
        return bool(flags & AVAIL) == wrap and bool(flags & USED) != wrap

    def pop(self, limit: int) -> tuple[list[ModelChain], Bad | None]:
        """Chains, and what ended the pop if that was an error."""
        if self.again:
            return [self._again() for _ in range(min(limit, len(self.again)))], None
        chains: list[ModelChain] = []
        try:
            while len(chains) < limit and self._available():
                chain = self._walk()
                wrong = set()
                if self.taken + chain.slots > self.size:
                    wrong.add(ErrorCode.AVAIL)  # slots made available again before they were used
                if chain.id >= self.size:
                    wrong.add(ErrorCode.ID)
                if chain.id in self.in_flight:
                    wrong.add(ErrorCode.DUP)
                if wrong:
                    raise Bad(*wrong)
                chain.order = self.popped
                self.popped += 1
                self.in_flight[chain.id] = chain
                self.avail_pos += chain.slots
                self.taken += chain.slots
                chains.append(chain)
        except Bad as bad:
            return chains, bad
        return chains, None

    def _walk(self) -> ModelChain:
        walk = Walk(self.memory)
        slots = 0
        while True:
            desc = packed_desc(self.memory, self.desc, (self.avail_pos + slots) % self.size)
            slots += 1
            more = desc.flags & NEXT
            if desc.flags & INDIRECT:
                # 2.8.19; that the table stands alone is a rule for drivers, a table after buffers does no harm
                if more or not self.features & F_INDIRECT or desc.length == 0 or desc.length % 16:
                    raise Bad(ErrorCode.INDIRECT)
                self._walk_table(walk, desc.addr, desc.length // 16)
                return walk.chain(desc.last, slots)
            wrong = {ErrorCode.LOOP} if more and slots == self.size else set()
            walk.add(desc.addr, desc.length, bool(desc.flags & WRITE), wrong)
            if not more:
                return walk.chain(desc.last, slots)

    def _walk_table(self, walk: Walk, addr: int, entries: int) -> None:
        """2.8.7: all entries, one after the other; of their flags WRITE counts, and no table may be in a table."""
        if entries > CHAIN_MAX:
            raise Bad(ErrorCode.LOOP)
        for i in range(entries):
            desc = packed_desc(self.memory, addr, i)
            wrong = {ErrorCode.INDIRECT} if desc.flags & INDIRECT else set()
            walk.add(desc.addr, desc.length, bool(desc.flags & WRITE), wrong)

    def recover(self) -> None:
        """Another process goes on: what was not published comes again, in the order of its first pop."""
        self.again = sorted([*self.in_flight.values(), *self.staged, *self.again], key=lambda chain: chain.order)
        self.in_flight, self.staged, self.popped = {}, [], 0

    def resume(self, again: list[ModelChain]) -> None:
        """A run begins that finds ``again`` in the record of an earlier one."""
        self.again = again
        self.taken = sum(chain.slots for chain in again)

    def _again(self) -> ModelChain:
        chain = self.again.pop(0)
        chain.written, chain.order, chain.resubmitted = None, self.popped, True
        self.popped += 1
        self.in_flight[chain.id] = chain
        return chain

    def unpop(self, count: int) -> None:
        """The newest ``count`` were never popped."""
        for _ in range(count):
            _, chain = self.in_flight.popitem()
            self.popped -= 1
            if chain.resubmitted:
                self.again.insert(0, chain)
                continue
            self.avail_pos -= chain.slots
            self.taken -= chain.slots

    def push(self, chain: ModelChain, written: int) -> None:
        """Completed; in order, it waits for those before it (2.8.4)."""
        chain.written = written
        if self.features & F_IN_ORDER:
            for first in list(self.in_flight.values()):
                if first.written is None:
                    break
                self._stage(first)
        else:
            self._stage(chain)

    def _stage(self, chain: ModelChain) -> None:
        del self.in_flight[chain.id]
        self.staged.append(chain)

    def flush(self) -> bool | None:
        """Publish. Does the driver want to hear of it? None: there was nothing to publish."""
        if not self.staged:
            return None
        old = self.used_pos
        for chain in self.staged:
            assert chain.written is not None
            at = self.desc + 16 * (self.used_pos % self.size)
            flags = AVAIL | USED if self._wrap(self.used_pos) else 0
            self.memory.put(at + 8, 4, chain.written)
            self.memory.put(at + 12, 2, chain.id)
            self.memory.put(at + 14, 2, flags | (WRITE if chain.written else 0))
            self.dirty.append((at, 16))
            self.used_pos += chain.slots
            self.taken -= chain.slots
        self.staged.clear()
        event, how = self.memory.u16(self.avail), self.memory.u16(self.avail + 2) & 3
        if how == AT_DESC and self.features & F_EVENT_IDX:
            return self._passed(event, old, self.used_pos)
        return how != DISABLE

    def _passed(self, event: int, old: int, new: int) -> bool:
        """One of the positions in ``[old, new)`` is the descriptor and lap that ``event`` names."""
        return any(
            pos % self.size == event & 0x7FFF and self._wrap(pos) == bool(event & 0x8000) for pos in range(old, new)
        )

    def kick_wanted(self, old: int, new: int) -> bool:
        """What a driver that fills the slots from ``old`` to ``new`` reads in the ring."""
        event, how = self.memory.u16(self.used), self.memory.u16(self.used + 2) & 3
        if how == AT_DESC and self.features & F_EVENT_IDX:
            return self._passed(event, old, new)
        return how != DISABLE

    def event_fields(self) -> list[tuple[int, int]]:
        """Where the device tells about kicks; how it does so is its own affair."""
        return [(self.used, 4)]

    def staging_area(self) -> list[tuple[int, int]]:
        """Where completions may be prepared before they are published: all but the first, the driver stops there."""
        out, pos = [], self.used_pos
        for chain in self.staged:
            if pos != self.used_pos:
                out.append((self.desc + 16 * (pos % self.size) + 8, 8))
            pos += chain.slots
        return out

    @property
    def pending(self) -> bool:
        """A pop would find something."""
        return bool(self.again) or self._available()

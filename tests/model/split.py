"""The split layout (VIRTIO 1.3, 2.7)."""

from __future__ import annotations

from model.memory import Bad, Memory
from model.walk import INDIRECT, NEXT, WRITE, ModelChain, Walk, split_desc
from ring import ErrorCode

F_INDIRECT, F_EVENT_IDX, F_IN_ORDER = 1 << 28, 1 << 29, 1 << 35


def need_event(event: int, new: int, old: int) -> bool:
    """Moving an index from ``old`` to ``new`` passes ``event`` (2.7.7.2), said without its arithmetic."""
    while old != new:
        if old == event:
            return True
        old = (old + 1) & 0xFFFF
    return False


class SplitDevice:
    """The device's side of one split ring."""

    packed = False

    def __init__(
        self, memory: Memory, *, size: int, features: int, desc: int, avail: int, used: int, base: int = 0
    ) -> None:
        self.memory, self.size, self.features = memory, size, features
        self.desc, self.avail, self.used = desc, avail, used
        self.last_avail = base
        self.used_idx = memory.u16(used + 2)
        self.in_flight: dict[int, ModelChain] = {}  # by head, in pop order
        self.staged: list[ModelChain] = []
        self.popped = 0
        self.again: list[ModelChain] = []  # to be handed out once more, after a crash
        self.dirty: list[tuple[int, int]] = []  # what flushes wrote to the used ring: gpa, bytes

    @property
    def base(self) -> int:
        return self.last_avail

    def pop(self, limit: int) -> tuple[list[ModelChain], Bad | None]:
        """Chains, and what ended the pop if that was an error."""
        if self.again:
            return [self._again() for _ in range(min(limit, len(self.again)))], None
        chains: list[ModelChain] = []
        waiting = (self.memory.u16(self.avail + 2) - self.last_avail) & 0xFFFF
        if waiting > self.size:
            return [], Bad(ErrorCode.AVAIL)
        try:
            for _ in range(min(waiting, limit)):
                head = self.memory.u16(self.avail + 4 + 2 * (self.last_avail % self.size))
                if head >= self.size:
                    raise Bad(ErrorCode.HEAD)
                if head in self.in_flight:
                    raise Bad(ErrorCode.DUP)
                chain = self._walk(head)
                chain.order = self.popped
                self.popped += 1
                self.in_flight[head] = chain
                self.last_avail = (self.last_avail + 1) & 0xFFFF
                chains.append(chain)
        except Bad as bad:
            return chains, bad
        return chains, None

    def _walk(self, head: int) -> ModelChain:
        walk = Walk(self.memory)
        table, entries, index, nested, followed = self.desc, self.size, head, False, 0
        while True:
            desc = split_desc(self.memory, table, index)
            followed += 1
            # 2.7.5.2: a list longer than its table is a loop
            wrong = {ErrorCode.LOOP} if followed > entries else set()
            if desc.flags & INDIRECT:
                # 2.7.5.3.1
                if nested or desc.flags & NEXT or not self.features & F_INDIRECT:
                    wrong.add(ErrorCode.INDIRECT)
                if desc.length == 0 or desc.length % 16:
                    wrong.add(ErrorCode.INDIRECT)
                if wrong:
                    raise Bad(*wrong)
                table, entries, index, nested, followed = desc.addr, desc.length // 16, 0, True, 0
                continue
            more = desc.flags & NEXT
            if more and desc.last >= entries:
                wrong.add(ErrorCode.NEXT)
            walk.add(desc.addr, desc.length, bool(desc.flags & WRITE), wrong)
            if not more:
                return walk.chain(head, 1)
            index = desc.last

    def recover(self) -> None:
        """Another process goes on: what was not published comes again, in the order of its first pop."""
        self.again = sorted([*self.in_flight.values(), *self.staged, *self.again], key=lambda chain: chain.order)
        self.in_flight, self.staged, self.popped = {}, [], 0

    def resume(self, again: list[ModelChain]) -> None:
        """A run begins that finds ``again`` in the record of an earlier one."""
        self.again = again

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
            self.last_avail = (self.last_avail - 1) & 0xFFFF

    def push(self, chain: ModelChain, written: int) -> None:
        """Completed; in order, it waits for those before it (2.7.9)."""
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
        old = self.used_idx
        for chain in self.staged:
            assert chain.written is not None
            at = self.used + 4 + 8 * (self.used_idx % self.size)
            self.memory.put(at, 4, chain.id)
            self.memory.put(at + 4, 4, chain.written)
            self.dirty.append((at, 8))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        self.memory.put(self.used + 2, 2, self.used_idx)
        self.dirty.append((self.used + 2, 2))
        self.staged.clear()
        if self.features & F_EVENT_IDX:
            return need_event(self.memory.u16(self.avail + 4 + 2 * self.size), self.used_idx, old)
        return not self.memory.u16(self.avail) & 1

    def kick_wanted(self, old: int, new: int) -> bool:
        """What a driver that moves the available index from ``old`` to ``new`` reads in the ring."""
        if self.features & F_EVENT_IDX:
            return need_event(self.memory.u16(self.used + 4 + 8 * self.size), new, old)
        return not self.memory.u16(self.used) & 1

    def event_fields(self) -> list[tuple[int, int]]:
        """Where the device tells about kicks; how it does so is its own affair."""
        return [(self.used, 2), (self.used + 4 + 8 * self.size, 2)]

    def staging_area(self) -> list[tuple[int, int]]:
        """Where completions may be prepared before they are published: the driver does not look there yet."""
        return [
            (self.used + 4 + 8 * ((self.used_idx + i) % self.size), 8) for i in range(min(len(self.staged), self.size))
        ]

    @property
    def pending(self) -> bool:
        """A pop would find something."""
        return bool(self.again) or self.memory.u16(self.avail + 2) != self.last_avail

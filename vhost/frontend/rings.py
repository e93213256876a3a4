"""The driver's side of a ring in plain Python, down to the single descriptor.

Slow and literal on purpose: it is what the conformance suite and the hostile tests write crafted rings with, and it
shares no code with the C rings it is used against. Each area is allocated on its own, so that nothing adjoins by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vhost.constants import VirtioFeature
from vhost.errors import QueueBroken
from vhost.frontend.memory import Memory

NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
AVAIL_PACKED: Final = 1 << 7
USED_PACKED: Final = 1 << 15
NO_INTERRUPT: Final = 1
"""Split: avail.flags; packed: the event suppression value "disable"."""
EVENT_DESC: Final = 2
"""Packed: notify at the given descriptor only."""

Buffer = tuple[int, int]
"""Guest-physical (or I/O) address and length, bytes."""


@dataclass(frozen=True, slots=True)
class Used:
    """A request that came back: its token, the bytes the device says it wrote, the id it came back under."""

    token: int
    length: int
    id: int


class DriverRing(Protocol):
    """What a front-end queue needs of a ring; `SplitRing`, `PackedRing` and `NativeRing` have it."""

    size: int
    desc: int
    avail: int
    used: int

    def add(self, out: Sequence[Buffer], in_: Sequence[Buffer], token: int, *, indirect: bool = False) -> int:
        """Add a request, not yet visible; returns its id. Raises: BlockingIOError: the ring is full."""

    def publish(self) -> bool:
        """Make added requests visible; True if the device wants a kick."""

    def poll(self, limit: int = 64) -> list[Used]:
        """Requests that came back. Raises: QueueBroken: the device returned nonsense."""

    def calls_on(self) -> bool:
        """Ask for notifications; True if requests came back already."""

    def calls_off(self) -> None:
        """Want no notifications."""

    def base(self) -> int:
        """SET_VRING_BASE's number for continuing when nothing is in flight."""

    def close(self) -> None:
        """Give its memory back."""


class _Ring:
    """What both layouts share."""

    def __init__(self, memory: Memory, size: int, features: int) -> None:
        self.memory = memory
        self.size = size
        self.features = features
        self.event_idx = bool(features & VirtioFeature.EVENT_IDX)
        self.tokens: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._tables: dict[int, int] = {}
        self._owned: list[int] = []

    def _area(self, size: int, align: int) -> int:
        at = self.memory.alloc(size, align)
        self._owned.append(at)
        return at

    def close(self) -> None:
        """Give its memory back."""
        for at in (*self._owned, *self._tables.values()):
            self.memory.free(at)
        self._owned, self._tables = [], {}

    def table(self, entries: Sequence[bytes]) -> int:
        """An indirect table of raw 16-byte descriptors in fresh memory; returns its address."""
        at = self.memory.alloc(16 * max(len(entries), 1), 16)
        self.memory.write(at, b"".join(entries))
        return at

    def _finish(self, number: int, length: int) -> Used:
        if number not in self.tokens:
            raise QueueBroken(0, f"the device returned id {number}, which is not in flight")
        if length > self._lengths.pop(number):
            raise QueueBroken(0, f"the device claims {length} bytes written to request {number}, more than it has room")
        if (table := self._tables.pop(number, None)) is not None:
            self.memory.free(table)
        return Used(self.tokens.pop(number), length, number)


def split_desc(addr: int, length: int, flags: int = 0, next_: int = 0) -> bytes:
    """A split descriptor [VIRTIO 1.3, 2.7.5]."""
    return (
        addr.to_bytes(8, "little")
        + length.to_bytes(4, "little")
        + flags.to_bytes(2, "little")
        + next_.to_bytes(2, "little")
    )


def packed_desc(addr: int, length: int, id_: int = 0, flags: int = 0) -> bytes:
    """A packed descriptor [VIRTIO 1.3, 2.8.13]."""
    return (
        addr.to_bytes(8, "little")
        + length.to_bytes(4, "little")
        + id_.to_bytes(2, "little")
        + flags.to_bytes(2, "little")
    )


def _directions(out: Sequence[Buffer], in_: Sequence[Buffer]) -> list[tuple[int, int, int]]:
    chain = [(addr, length, 0) for addr, length in out] + [(addr, length, WRITE) for addr, length in in_]
    last = len(chain) - 1
    return [(addr, length, flags | (NEXT if at < last else 0)) for at, (addr, length, flags) in enumerate(chain)]


class SplitRing(_Ring):
    """A split virtqueue [VIRTIO 1.3, 2.7]."""

    def __init__(self, memory: Memory, size: int, features: int = 0, *, base: int = 0) -> None:
        """Args: size: entries; features: negotiated (28, 29 matter); base: first available index."""
        super().__init__(memory, size, features)
        self.desc = self._area(16 * size, 16)
        self.avail = self._area(6 + 2 * size, 2)
        self.used = self._area(6 + 8 * size, 4)
        self.avail_idx = base
        self.used_seen = base
        memory.store(self.avail + 2, 2, base)
        memory.store(self.used + 2, 2, base)
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self._published = base
        self._calls = True
        self.calls_on()

    # Raw access

    def write_desc(self, index: int, addr: int, length: int, flags: int = 0, next_: int = 0) -> None:
        """Write descriptor `index` as given."""
        self.memory.write(self.desc + 16 * index, split_desc(addr, length, flags, next_))

    def offer(self, head: int) -> None:
        """Put `head` into the available ring; `publish` makes it visible."""
        self.memory.store(self.avail + 4 + 2 * (self.avail_idx % self.size), 2, head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def set_avail_idx(self, value: int) -> None:
        """Make the available index any value, at once."""
        self.avail_idx = self._published = value
        self.memory.store(self.avail + 2, 2, value)

    @property
    def used_idx(self) -> int:
        """The device's used index."""
        return self.memory.load(self.used + 2, 2)

    @property
    def used_flags(self) -> int:
        """The device's flags (1: no kicks wanted)."""
        return self.memory.load(self.used, 2)

    def used_entry(self, index: int) -> tuple[int, int]:
        """Id and length at used index `index`."""
        at = self.used + 4 + 8 * (index % self.size)
        return self.memory.load(at, 4), self.memory.load(at + 4, 4)

    # DriverRing

    def add(self, out: Sequence[Buffer], in_: Sequence[Buffer], token: int, *, indirect: bool = False) -> int:
        """See DriverRing."""
        chain = _directions(out, in_)
        need = 1 if indirect else len(chain)
        if need > len(self._free):
            raise BlockingIOError("the ring is full")
        slots = [self._free.pop(0) for _ in range(need)]
        head = slots[0]
        if indirect:
            table = self.table([split_desc(*entry, at + 1) for at, entry in enumerate(chain)])
            self._tables[head] = table
            self.write_desc(head, table, 16 * len(chain), INDIRECT)
        else:
            for at, (addr, length, flags) in enumerate(chain):
                self.write_desc(slots[at], addr, length, flags, slots[at + 1] if flags & NEXT else 0)
        self._chains[head] = slots
        self.tokens[head] = token
        self._lengths[head] = sum(length for _, length in in_)
        self.offer(head)
        return head

    def publish(self) -> bool:
        """See DriverRing. [VIRTIO 1.3, 2.7.13.4]"""
        old, self._published = self._published, self.avail_idx
        self.memory.store(self.avail + 2, 2, self.avail_idx)
        if self.event_idx:
            event = self.memory.load(self.used + 4 + 8 * self.size, 2)
            return (self.avail_idx - event - 1) & 0xFFFF < (self.avail_idx - old) & 0xFFFF
        return not self.used_flags & 1

    def poll(self, limit: int = 64) -> list[Used]:
        """See DriverRing."""
        done: list[Used] = []
        idx = self.used_idx
        while self.used_seen != idx and len(done) < limit:
            number, length = self.used_entry(self.used_seen)
            self.used_seen = (self.used_seen + 1) & 0xFFFF
            done.append(self._finish(number, length))
            self._free += self._chains.pop(number)
        if done and self._calls:
            self.calls_on()
        return done

    def calls_on(self) -> bool:
        """See DriverRing. [VIRTIO 1.3, 2.7.7]"""
        self._calls = True
        self.memory.store(self.avail, 2, 0)
        if self.event_idx:
            self.memory.store(self.avail + 4 + 2 * self.size, 2, self.used_seen)
        return self.used_idx != self.used_seen

    def calls_off(self) -> None:
        """See DriverRing."""
        self._calls = False
        if not self.event_idx:
            self.memory.store(self.avail, 2, NO_INTERRUPT)
        else:
            self.memory.store(self.avail + 4 + 2 * self.size, 2, (self.used_seen - 1) & 0xFFFF)

    def base(self) -> int:
        """See DriverRing."""
        return self.used_seen


class PackedRing(_Ring):
    """A packed virtqueue [VIRTIO 1.3, 2.8]."""

    def __init__(self, memory: Memory, size: int, features: int = 0, *, base: int = 0x8000_8000) -> None:
        """Args: size: entries (any number); base: as SET_VRING_BASE, both halves equal."""
        super().__init__(memory, size, features)
        self.desc = self._area(16 * size, 16)
        self.avail = self._area(4, 4)
        self.used = self._area(4, 4)
        self.slot = base & 0x7FFF
        self.wrap = bool(base & 0x8000)
        self.used_slot = base >> 16 & 0x7FFF
        self.used_wrap = bool(base >> 31 & 1)
        for at in range(size):  # what earlier rounds left: used in this round before the start, in the last one after
            past = self.wrap if at < self.slot else not self.wrap
            self.write_desc(at, 0, 0, 0, AVAIL_PACKED | USED_PACKED if past else 0)
        self._free = list(range(size))
        self._room = size
        self._counts: dict[int, int] = {}
        self._staged: list[tuple[int, int]] = []
        self._calls = True
        self.calls_on()

    # Raw access

    def write_desc(self, slot: int, addr: int, length: int, id_: int = 0, flags: int = 0) -> None:
        """Write descriptor `slot` as given, flags last and at once."""
        at = self.desc + 16 * slot
        self.memory.write(at, packed_desc(addr, length, id_, 0)[:14])
        self.memory.store(at + 14, 2, flags)

    def available(self, wrap: bool | None = None) -> int:
        """The flag bits that make a descriptor available in this round."""
        return AVAIL_PACKED if (self.wrap if wrap is None else wrap) else USED_PACKED

    def desc_at(self, slot: int) -> tuple[int, int, int, int]:
        """Address, length, id and flags of descriptor `slot` as they are now."""
        raw = self.memory.read(self.desc + 16 * slot, 16)
        return (
            int.from_bytes(raw[:8], "little"),
            int.from_bytes(raw[8:12], "little"),
            int.from_bytes(raw[12:14], "little"),
            int.from_bytes(raw[14:], "little"),
        )

    def offer(self, addr: int, length: int, id_: int, flags: int = 0) -> None:
        """Stage one raw descriptor at the next slot; `publish` makes all staged ones available, the first one last."""
        at = self.desc + 16 * self.slot
        self.memory.write(at, packed_desc(addr, length, id_, 0)[:14])
        self._staged.append((at + 14, flags | self.available()))
        self.slot += 1
        if self.slot == self.size:
            self.slot, self.wrap = 0, not self.wrap

    # DriverRing

    def add(self, out: Sequence[Buffer], in_: Sequence[Buffer], token: int, *, indirect: bool = False) -> int:
        """See DriverRing."""
        chain = _directions(out, in_)
        need = 1 if indirect else len(chain)
        if need > self._room or not self._free:
            raise BlockingIOError("the ring is full")
        number = self._free.pop(0)
        if indirect:
            table = self.table([packed_desc(addr, length, 0, flags & WRITE) for addr, length, flags in chain])
            self._tables[number] = table
            self.offer(table, 16 * len(chain), number, INDIRECT)
        else:
            for addr, length, flags in chain:
                self.offer(addr, length, number, flags)
        self._room -= need
        self._counts[number] = need
        self.tokens[number] = token
        self._lengths[number] = sum(length for _, length in in_)
        return number

    def publish(self) -> bool:
        """See DriverRing. [VIRTIO 1.3, 2.8.21]"""
        staged, self._staged = self._staged, []
        for at, flags in reversed(staged):
            self.memory.store(at, 2, flags)
        word = self.memory.load(self.used, 4)
        flags = word >> 16 & 3
        if flags != EVENT_DESC:
            return flags != NO_INTERRUPT
        event = word & 0x7FFF
        if bool(word & 0x8000) != self.wrap:
            event -= self.size
        return (self.slot - event - 1) & 0xFFFF < len(staged)

    def poll(self, limit: int = 64) -> list[Used]:
        """See DriverRing."""
        done: list[Used] = []
        while len(done) < limit and self._returned():
            _, length, number, flags = self.desc_at(self.used_slot)
            used = self._finish(number, length if flags & WRITE else 0)
            done.append(used)
            count = self._counts.pop(number)
            self._room += count
            self._free.append(number)
            self.used_slot += count
            if self.used_slot >= self.size:
                self.used_slot, self.used_wrap = self.used_slot - self.size, not self.used_wrap
        if done and self._calls:
            self.calls_on()
        return done

    def _returned(self) -> bool:
        flags = self.memory.load(self.desc + 16 * self.used_slot + 14, 2)
        return bool(flags & AVAIL_PACKED) == bool(flags & USED_PACKED) == self.used_wrap and bool(self.tokens)

    def calls_on(self) -> bool:
        """See DriverRing. [VIRTIO 1.3, 2.8.10]"""
        self._calls = True
        if self.event_idx:
            word = self.used_slot | self.used_wrap << 15 | EVENT_DESC << 16
            self.memory.store(self.avail, 4, word)
        else:
            self.memory.store(self.avail, 4, 0)
        return self._returned()

    def calls_off(self) -> None:
        """See DriverRing."""
        self._calls = False
        self.memory.store(self.avail, 4, NO_INTERRUPT << 16)

    def base(self) -> int:
        """See DriverRing."""
        half = self.used_slot | self.used_wrap << 15
        return half | half << 16


def make_ring(memory: Memory, size: int, features: int, base: int | None = None) -> SplitRing | PackedRing:
    """A Python ring of the negotiated layout; `base` None: from the very beginning."""
    if features & VirtioFeature.RING_PACKED:
        return PackedRing(memory, size, features, base=0x8000_8000 if base is None else base)
    return SplitRing(memory, size, features, base=base or 0)

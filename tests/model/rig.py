"""A guest's memory with holes, adjacent and far regions, seen by the C ring and, as a copy, by the model."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ring
from model.memory import Memory
from model.packed import PackedDevice
from model.split import SplitDevice
from model.walk import ModelChain
from ring._ring import ffi

UADDR = 0x7F00_0000_0000  # front-end addresses are guest-physical ones plus this


class Place(NamedTuple):
    """A region: where, in which part of the file, how long."""

    gpa: int
    offset: int
    size: int
    read_only: bool = False

    @property
    def end(self) -> int:
        return self.gpa + self.size


#: buffers; B follows A in guest-physical space but not in the file, and neither is page aligned there
A = Place(0x1000, 0x4000, 0x2000)
B = Place(0x3000, 0x2230, 0x1800)
#: room for indirect tables that are too long
TABLES = Place(0x10000, 0x10000, 0x5000)
#: the rings
RINGS = Place(0x100000, 0x18000, 0x6000)
CONST = Place(0x20000, 0x7000, 0x800, True)
FAR = Place(0x4000_0000, 0x8000, 0x1000)
PLACES = (A, B, TABLES, RINGS, CONST, FAR)
RAM_BYTES = 0x1E000
#: so that a stray zero is seen too
PATTERN = bytes((i * 7 + (i >> 8)) & 0xFF for i in range(RAM_BYTES))
#: a region that comes and goes
GUEST_PLUG = Place(0x50000, 0x9000, 0x1000)


def coalesce(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Adjacent pieces made one, empty ones left out: how a buffer is cut is nobody's business."""
    out: list[tuple[int, int]] = []
    for gpa, n in pieces:
        if n and out and out[-1][0] + out[-1][1] == gpa:
            out[-1] = (out[-1][0], out[-1][1] + n)
        elif n:
            out.append((gpa, n))
    return out


def overlap(pieces: list[tuple[int, int]], start: int, size: int) -> bool:
    """One of the pieces touches the range."""
    return any(gpa < start + size and start < gpa + n for gpa, n in pieces)


class Rig:
    """Both sides. ``places`` can be changed by the test."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, RAM_BYTES)
        self.ram = mmap.mmap(self.fd, RAM_BYTES)
        self.ram[:] = PATTERN
        self.memory = ring.GuestMemory()
        self.map()
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.log_fd = -1
        self.log: mmap.mmap | None = None

    def map(self, *, backwards: bool = False) -> None:
        """Map all places."""
        self.regions: tuple[ring.Region, ...] = ()  # looked up when needed
        for place in reversed(PLACES) if backwards else PLACES:
            self.memory.add_region(
                self.fd,
                gpa=place.gpa,
                size=place.size,
                uaddr=place.gpa + UADDR,
                offset=place.offset,
                read_only=place.read_only,
            )

    def close(self) -> None:
        """Let go of everything."""
        self.memory.close()
        self.stop_log()
        self.ram.close()
        for fd in (self.fd, self.call_fd, self.err_fd):
            os.close(fd)

    def snapshot(self) -> Memory:
        """A copy of guest memory for the model to work on."""
        return Memory(
            [(p.gpa, bytearray(self.ram[p.offset : p.offset + p.size]), p.read_only) for p in PLACES],
        )

    def difference(self, expected: Memory, loose: list[tuple[int, int]]) -> list[str]:
        """Where guest memory is not as expected; ``loose`` ranges may hold anything."""
        actual = self.snapshot()
        for gpa, n in loose:
            expected.write(gpa, actual.read(gpa, n))
        wrong = []
        for (gpa, want, _), (_, got, _) in zip(expected.regions, actual.regions, strict=True):
            if want != got:
                at = next(i for i in range(len(want)) if want[i] != got[i])
                wrong.append(f"{gpa + at:#x}: {got[at : at + 16].hex()}, expected {want[at : at + 16].hex()}")
        return wrong

    def write(self, gpa: int, data: bytes) -> None:
        """The guest writes."""
        for place in PLACES:
            if place.gpa <= gpa < place.end:
                n = min(len(data), place.end - gpa)
                at = place.offset + gpa - place.gpa
                self.ram[at : at + n] = data[:n]
                if n < len(data):
                    self.write(gpa + n, data[n:])
                return
        raise AssertionError(f"{gpa:#x} is not mapped")

    def pieces(self, chain: ring.Chain) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The readable and the writable pieces of a chain of the C ring, as guest-physical ranges."""
        if not self.regions:
            self.regions = self.memory.regions
        flat = []
        p: Any = chain.ptr
        for i in range(p.nr_out + p.nr_in):
            hva = int(ffi.cast("uintptr_t", p.iov[i].base))
            region = next(r for r in self.regions if r.hva <= hva < r.hva + r.size)
            assert hva + p.iov[i].len <= region.hva + region.size
            flat.append((region.gpa + hva - region.hva, p.iov[i].len))
        return flat[: p.nr_out], flat[p.nr_out :]

    def same(self, chain: ring.Chain, model: ModelChain) -> None:
        """Assert that a chain is what the model says."""
        readable, writable = self.pieces(chain)
        assert coalesce(readable) == coalesce(model.readable)
        assert coalesce(writable) == coalesce(model.writable)
        assert (chain.id, chain.out_bytes, chain.in_bytes) == (model.id, model.out_bytes, model.in_bytes)

    def notified(self) -> int:
        """Notifications since the last look."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    # --- dirty log

    def start_log(self) -> None:
        """Log from now on; the front-end's view is `dirty`."""
        size = FAR.end // 4096 // 8 + 1
        self.log_fd = os.memfd_create("log")
        os.ftruncate(self.log_fd, size)
        self.log = mmap.mmap(self.log_fd, size)
        self.memory.set_log(self.log_fd, size)

    def stop_log(self) -> None:
        """No more."""
        if self.log is not None:
            self.log.close()
            os.close(self.log_fd)
            self.log = None

    def dirty(self) -> set[int]:
        """Pages marked since the last call."""
        assert self.log is not None
        data = self.log[:]
        marked = (found.start() for found in re.finditer(rb"[^\0]", data))
        found = {8 * i + bit for i in marked for bit in range(8) if data[i] >> bit & 1}
        self.log[:] = bytes(len(data))
        return found


def pages(ranges: list[tuple[int, int]]) -> set[int]:
    """Pages that the ranges touch."""
    return {page for gpa, n in ranges if n for page in range(gpa // 4096, (gpa + n - 1) // 4096 + 1)}


class Pair:
    """One queue twice: in C and as the model. Every operation is done on both and guest memory compared."""

    model: SplitDevice | PackedDevice

    def __init__(
        self,
        rig: Rig,
        *,
        packed: bool,
        size: int,
        features: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        inflight: bool = False,
    ) -> None:
        self.rig = rig
        self.packed, self.size, self.features = packed, size, features | (1 << 34 if packed else 0)
        self.desc, self.avail, self.used = desc, avail, used
        self.event_idx = bool(features & 1 << 29)
        self.record = bytearray(ring.inflight_bytes(size, packed)) if inflight else None
        self.queue = ring.Virtqueue(rig.memory, 0)
        self.held: list[tuple[ring.Chain, ModelChain]] = []  # popped, not completed, oldest first
        self.lost: set[int] = set()  # orders of chains whose memory was taken away
        self.logging = False
        self.dirtied: list[tuple[int, int]] = []
        self.may_dirty: list[tuple[int, int]] = []
        self.start(base)

    def start(self, base: int) -> None:
        """Start both from ``base``."""
        cls = PackedDevice if self.packed else SplitDevice
        again = self.model.again if hasattr(self, "model") else []
        with self.compared(events=True) as memory:
            self.model = cls(
                memory,
                size=self.size,
                features=self.features,
                desc=self.desc,
                avail=self.avail,
                used=self.used,
                base=base,
            )
            self.model.resume(again)
            self.queue.start(self.config(base))
        self.evaluated = False  # a flush has looked at the driver's event index
        self.logging = False

    def config(self, base: int) -> ring.QueueConfig:
        return ring.QueueConfig(
            self.size,
            self.features,
            self.desc + UADDR,
            self.avail + UADDR,
            self.used + UADDR,
            base=base,
            call_fd=self.rig.call_fd,
            err_fd=self.rig.err_fd,
            inflight=None if self.record is None else memoryview(self.record),
        )

    @contextmanager
    def compared(self, *, events: bool = False) -> Iterator[Memory]:
        """Do something on both sides; afterwards guest memory must be what the model made of its copy."""
        memory = self.rig.snapshot()
        if hasattr(self, "model"):
            self.model.memory = memory
        yield memory
        loose = self.model.staging_area()
        if events:
            loose = loose + self.model.event_fields()
            self.may_dirty += self.model.event_fields()
        assert not self.rig.difference(memory, loose)

    def pop(self, limit: int) -> None:
        """One pop; what comes out, or which error, must be the same."""
        with self.compared():
            chains = self.queue.pop_batch(limit)
            models, bad = self.model.pop(limit)
            assert len(chains) == len(models), f"{chains} but {models}, {bad}"
            for chain, model in zip(chains, models, strict=True):
                self.rig.same(chain, model)
                readable = b"".join(self.model.memory.read(gpa, n) for gpa, n in model.readable)
                assert chain.read(0, chain.out_bytes + 1) == readable
            self.held += zip(chains, models, strict=True)
            self.lost -= {model.order for model in models}  # numbers of chains that were given back come again
            if bad is not None and not models:
                assert self.queue.state == ring.QueueState.BROKEN, f"C is content, the model says {bad}"
                error = self.queue.error
                assert error is not None
                assert error[0] in bad.codes, f"C says {ring.strerror(error[0])}, the model {bad}"
                assert os.eventfd_read(self.rig.err_fd) == 1
            else:
                assert self.queue.state == ring.QueueState.RUNNING, f"{self.queue.error}, the model is content"
            assert self.queue.in_flight == len(self.held)

    def complete(self, which: int, fill: int, share: float, *, write: bool = True) -> ModelChain:
        """Complete one of the chains held, after writing ``share`` of its bytes."""
        chain, model = self.held.pop(which)
        written = int(model.in_bytes * share)
        forbidden = overlap(model.writable, self.used, 6 + 8 * self.size) or overlap(
            model.writable, self.desc, 16 * self.size
        )
        with self.compared() as memory:
            if write and not forbidden and written <= 0x10000:
                data = bytes((fill + i) & 0xFF for i in range(written))
                assert chain.write(0, data) == written
                if model.order not in self.lost:
                    for gpa, n in model.writable:
                        memory.write(gpa, data[:n])
                        data = data[n:]
            chain.complete(written)
            self.model.push(model, written)
        if model.order not in self.lost:
            left = written
            for gpa, n in model.writable:
                self.dirtied.append((gpa, min(n, left)))
                left -= min(n, left)
            self.may_dirty += model.writable
        return model

    def flush(self, *, exact: bool = True) -> list[ModelChain]:
        """Publish on both; returns what became visible. ``exact``: a driver that keeps to the rules."""
        done = list(self.model.staged)
        with self.compared():
            told = self.queue.flush()
            wanted = self.model.flush()
        assert self.rig.notified() == told
        if wanted:
            assert told, "the driver waits for a notification"
        elif exact and not (wanted is not None and self.event_idx and not self.evaluated):
            # before the first look at the event index there is no old position: one too many is right
            assert not told, "the driver did not ask for a notification"
        if wanted is not None and self.event_idx:
            self.evaluated |= not self.packed or self.model.memory.u16(self.avail + 2) == 2
        self.check_log()
        return done

    def crash(self, stale: bool) -> None:
        """The process dies without a word; another one starts from the inflight record.

        What was staged or held comes again, in the order of its first pop; ``stale``: with a base of no use.
        """
        assert self.record is not None
        record = bytes(self.record)
        self.set_logging(False)
        with self.compared():
            self.queue._staged = False  # a process that dies publishes nothing
            self.queue.close()
            self.model.recover()
        self.record = bytearray(record)
        self.queue = ring.Virtqueue(self.rig.memory, 0)
        self.held.clear()
        self.lost.clear()
        # completions that nobody saw may have been written already
        with self.compared(events=True):
            self.queue.start(self.config(self.model.base if not stale else 0x80008000 if self.packed else 0))
        assert self.queue.base == self.model.base
        self.evaluated = False

    def set_logging(self, on: bool) -> None:
        """Switch the dirty log."""
        if on == self.logging:
            return
        self.logging = on
        if on:
            self.rig.start_log()
            self.dirtied, self.may_dirty, self.model.dirty = [], [], []
            # what is staged already may be marked when it is published
        else:
            self.rig.memory.clear_log()
            self.rig.stop_log()
        self.queue.set_logging(on, on, self.used)

    def check_log(self) -> None:
        """What was written is marked, and nothing that could not have been."""
        written, self.model.dirty = self.model.dirty, []
        if self.logging:
            marked = self.rig.dirty()
            assert pages(self.dirtied + written) <= marked
            assert marked <= pages(self.dirtied + written + self.may_dirty)
        self.dirtied, self.may_dirty = [], []

    def unpoppable(self) -> int:
        """How many of the newest chains may be given back."""
        n = 0
        for _, model in reversed(self.held):
            if model.order != self.model.popped - 1 - n:
                break
            n += 1
        return n

    def unpop(self, count: int) -> None:
        """Give back the newest."""
        with self.compared():
            self.queue.unpop(count)
            self.model.unpop(count)
        del self.held[len(self.held) - count :]

    def stop(self) -> int:
        """Stop; the base must be the model's."""
        self.set_logging(False)
        assert self.queue.stop() == self.model.base
        assert self.queue.state == ring.QueueState.STOPPED
        return self.model.base

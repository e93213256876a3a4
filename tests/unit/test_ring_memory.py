"""GuestMemory and Iotlb from Python; the C behind them has its own tests in tests/c."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator

import pytest
from model.link import Link

import ring
from ring import ErrorCode, RingError


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 0x10000)
    yield fd
    os.close(fd)


def code_of(error: pytest.ExceptionInfo[RingError]) -> int:
    return error.value.code


def test_regions_translate_and_copy(file: int) -> None:
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0x100000, size=0x4000, uaddr=0x7000_0000)
        memory.add_region(file, gpa=0x104000, size=0x1000, uaddr=0x9000_0000, offset=0x8000)
        assert [(r.gpa, r.size, r.uaddr, r.offset) for r in memory.regions] == [
            (0x100000, 0x4000, 0x7000_0000, 0),
            (0x104000, 0x1000, 0x9000_0000, 0x8000),
        ]
        memory.write(0x103FFE, b"across")
        assert memory.read(0x103FFE, 6) == b"across"
        assert os.pread(file, 2, 0x3FFE) + os.pread(file, 4, 0x8000) == b"across"
        pieces = memory.translate(0x103FFE, 6)
        assert [n for _, n in pieces] == [2, 4]
        assert memory.translate(0x7000_3FFE, 2, ring.AddressKind.UADDR) == [pieces[0]]
        assert memory.translate(0x100000, 0) == []
        assert memory.read(0x100000, 0) == b""
        first, second = memory.view(0x103FFE, 6, writable=True)
        first[:] = b"AC"
        assert bytes(second) == b"ross"
        assert memory.read(0x103FFE, 6) == b"ACross"


def test_views_are_read_only_unless_asked_for(file: int) -> None:
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0, size=0x1000)
        (view,) = memory.view(0, 16)
        assert view.readonly
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1


def test_views_end_with_their_region(file: int) -> None:
    memory = ring.GuestMemory()
    memory.add_region(file, gpa=0, size=0x1000)
    memory.add_region(file, gpa=0x1000, size=0x1000, offset=0x1000)
    (gone,) = memory.view(0x800, 16)
    (stays,) = memory.view(0x1800, 16)
    memory.remove_region(gpa=0, size=0x1000)
    with pytest.raises(ValueError, match="released"):
        gone[0]
    assert stays[0] == 0
    memory.close()
    with pytest.raises(ValueError, match="released"):
        stays[0]
    assert memory.closed
    memory.close()
    with pytest.raises(RuntimeError, match="closed"):
        memory.read(0, 1)


def test_forgotten_views_are_not_kept(file: int) -> None:
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0, size=0x1000)
        for _ in range(10):
            memory.view(0, 16)
        gc.collect()
        assert not memory._views


def test_errors_name_what_and_where(file: int) -> None:
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0x1000, size=0x1000)
        with pytest.raises(RingError, match="overlaps another") as error:
            memory.add_region(file, gpa=0x1800, size=0x1000)
        assert code_of(error) == ErrorCode.OVERLAP
        assert error.value.detail == 0x1800
        with pytest.raises(RingError, match="shorter than"):
            memory.add_region(file, gpa=0x10000, size=0x20000)
        with pytest.raises(RingError, match="wraps") as error:
            memory.add_region(file, gpa=(1 << 64) - 0x1000, size=0x2000)
        assert code_of(error) == ErrorCode.RANGE
        with pytest.raises(RingError, match="at guest-physical address 0x1ff0: buffer outside") as error:
            memory.read(0x1FF0, 0x20)
        assert (error.value.code, error.value.detail) == (ErrorCode.ADDR, 0x1FF0)
        with pytest.raises(RingError, match="no such memory region"):
            memory.remove_region(gpa=0x1000, size=0x800)
        with pytest.raises(RingError, match="Bad file descriptor") as error:
            memory.add_region(-1, gpa=0x10000, size=0x1000)
        assert code_of(error) == 9


def test_read_only_regions(file: int) -> None:
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0, size=0x1000, read_only=True)
        assert memory.regions[0].read_only
        assert memory.read(0, 1) == b"\0"
        with pytest.raises(RingError, match="read-only memory"):
            memory.write(0, b"x")
        with pytest.raises(RingError, match="read-only memory"):
            memory.view(0, 1, writable=True)


def test_memory_of_the_embedder() -> None:
    memory = ring.GuestMemory()
    own = mmap.mmap(-1, 0x2000)
    memory.add_buffer(own, gpa=0x5000)
    memory.write(0x5001, b"mine")
    assert own[1:5] == b"mine"
    memory.close()
    own.close()  # nothing holds it any more


def test_a_truncated_file_is_told_and_survived(file: int) -> None:
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0, size=0x4000)
        os.ftruncate(file, 0x1000)
        assert memory.read(0, 4) == bytes(4)
        with pytest.raises(RingError, match="truncated") as error:
            memory.read(0x2000, 4)
        assert code_of(error) == ErrorCode.FAULT
        assert memory.faulted


def test_dirty_log(file: int) -> None:
    log = os.memfd_create("log")
    os.ftruncate(log, 64)
    with ring.GuestMemory() as memory:
        memory.add_region(file, gpa=0x8000, size=0x8000)
        memory.write(0x8000, b"before there is a log")
        with pytest.raises(RingError, match="too small"):
            memory.set_log(log, 1)
        memory.set_log(log, 32, 32)
        memory.write(0x9FFF, b"xy")
        memory.log_gpa(0xF000, 1)
        memory.clear_log()
        memory.write(0x8000, b"after")
    assert os.pread(log, 64, 0) == bytes(33) + bytes([0b1000_0110]) + bytes(30)
    os.close(log)


def test_queues_go_with_their_memory() -> None:
    with Link() as link:
        link.send()
        (chain,) = link.queue.pop_batch()
        view = chain.readable[0]
        link.memory.close()
        with pytest.raises(ValueError, match="released"):
            view[0]
        with pytest.raises(RuntimeError, match="completed or its queue stopped"):
            chain.complete()
        with pytest.raises(RuntimeError, match="closed"):
            link.queue.start(link.config)
        assert link.queue.pop_batch() == []
        assert not link.queue.flush()
        link.queue.close()


def test_dropped_without_close(file: int) -> None:
    """A queue and its memory may die in any order, in a cycle too."""
    memory = ring.GuestMemory()
    memory.add_region(file, gpa=0, size=0x1000)
    queue = ring.Virtqueue(memory, 0)
    queue.cycle = queue  # type: ignore[attr-defined]
    del memory, queue
    gc.collect()


def test_iotlb() -> None:
    tlb = ring.Iotlb()
    with Link(start=False) as link:
        link.config.iotlb = tlb
        with pytest.raises(RingError, match="not in the IOTLB") as error:
            link.queue.start(link.config)
        assert code_of(error) == ErrorCode.MISS
        (miss,) = tlb.misses()
        assert (miss.iova, miss.queue) == (0, 3)
        assert miss.perm == ring.Perm.READ
        assert tlb.misses() == []
        tlb.update(0, 0x40000, 0, ring.Perm.READ | ring.Perm.WRITE)
        link.queue.start(link.config)
        link.send()
        assert link.queue.pop_batch() == []
        assert [hex(miss.iova) for miss in tlb.misses()] == ["0x40000"]
        tlb.update(0x40000, 0x1000, 0x40000, ring.Perm.READ | ring.Perm.WRITE)
        (chain,) = link.queue.pop_batch()
        assert chain.read(0, 10) == b"ping"
        chain.complete()
        tlb.invalidate(0x40000, 0x1000)
        tlb.clear()
        with pytest.raises(RingError, match="wraps"):
            tlb.update((1 << 64) - 1, 2, 0, ring.Perm.READ)


def test_errors_have_words_and_survive_pickling() -> None:
    import pickle

    for code in ErrorCode:
        assert ring.strerror(code)
        assert ring.strerror(-code) == ring.strerror(code)
        assert "Unknown" not in ring.strerror(code)
    error = RingError(ErrorCode.HEAD, 77, "queue 1")
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.detail, str(again)) == (ErrorCode.HEAD, 77, str(error))
    assert isinstance(error, ring.Error)

"""The driver side from Python."""

from __future__ import annotations

import mmap

import pytest
from model.link import BUFFERS, EVENT_IDX, INDIRECT, PACKED, Link

import ring


@pytest.mark.parametrize("features", [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX])
def test_requests_go_round(features: int) -> None:
    with Link(size=4, features=features) as link:
        for turn in range(10):
            link.driver.calls_off()
            link.send()
            link.send(kick=False)
            first, second = link.queue.pop_batch()
            second.write(0, b"two")
            second.complete(3)
            first.complete()
            link.queue.flush()
            assert link.calls() == (1 if turn == 0 and features & EVENT_IDX and not features & PACKED else 0)
            assert [(u.token, u.length) for u in link.driver.poll()] == [(2 * turn + 2, 3), (2 * turn + 1, 0)]
            assert link.driver.pending == 0
            assert link.driver.free_slots == 4
            assert not link.driver.calls_on()


def test_full_and_wrong(ram: mmap.mmap) -> None:
    with ring.Driver(ram, gpa=0, size=2, features=INDIRECT) as driver:
        driver.add([(BUFFERS, 1), (BUFFERS, 1)])
        with pytest.raises(ring.RingFull, match="no free descriptors"):
            driver.add([(BUFFERS, 1)])
        with pytest.raises(ring.RingError, match="100 readable and 0 writable"):
            driver.add([(BUFFERS, 1)] * 100)
        with pytest.raises(ring.RingError, match="0 readable"):
            driver.add()
    driver.close()
    with pytest.raises(RuntimeError, match="closed"):
        driver.publish()


def test_sizes_and_areas(ram: mmap.mmap) -> None:
    with pytest.raises(ring.RingError, match="driver ring of 3 entries: queue size"):
        ring.Driver(ram, gpa=0, size=3)
    with ring.Driver(ram, gpa=0x1000, size=3, features=PACKED) as driver:
        assert driver.desc == 0x1000
        assert driver.base == 0x80008000
        assert len({driver.desc, driver.avail, driver.used}) == 3
    with pytest.raises(ValueError, match="a ring of 256 entries needs"):
        ring.Driver(memoryview(ram)[:64], gpa=0, size=256)


@pytest.fixture
def ram() -> mmap.mmap:
    return mmap.mmap(-1, 0x10000)


def test_a_lying_device_is_told(ram: mmap.mmap) -> None:
    with ring.Driver(ram, gpa=0, size=4) as driver:
        driver.add([(BUFFERS, 1)])
        driver.publish()
        ram[driver.used + 4] = 3  # an id that is not out
        ram[driver.used + 2] = 1
        with pytest.raises(ring.RingError, match="completion from the device"):
            driver.poll()

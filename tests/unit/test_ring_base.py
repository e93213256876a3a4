"""Where a packed ring starts: base 0 of front-ends that know no wrap counters, and base 0 that is meant."""

from __future__ import annotations

import dataclasses

import pytest
from model.link import PACKED, Link

NEW = 0x80008000


@pytest.mark.parametrize("waiting", [0, 3])
def test_base_0_of_a_new_packed_ring(waiting: int) -> None:
    """User-mode Linux says 0 for a ring whose wrap counters are 1; requests may be there already."""
    with Link(features=PACKED, start=False) as link:
        for _ in range(waiting):
            link.send()
        link.queue.start(dataclasses.replace(link.config, base=0))
        assert link.queue.base == NEW
        link.send()
        chains = link.queue.pop_batch()
        assert len(chains) == waiting + 1
        for chain in chains:
            chain.complete()
        assert link.queue.flush()
        assert len(link.driver.poll()) == waiting + 1


@pytest.mark.parametrize("size", [1, 5, 16])
@pytest.mark.parametrize("waiting", [False, True])
def test_base_0_that_is_meant(size: int, waiting: bool) -> None:
    """One lap on, a ring stands at slot 0 with both wrap counters 0, and is stopped and started there."""
    with Link(features=PACKED, size=size) as link:
        for _ in range(size):
            link.send(room=0)
            (chain,) = link.queue.pop_batch()
            chain.complete()
            link.queue.flush()
            assert len(link.driver.poll()) == 1
        base = link.queue.stop()
        assert base == 0
        if waiting:
            link.send(room=0)
        link.queue.start(dataclasses.replace(link.config, base=base))
        assert link.queue.base == 0
        if not waiting:
            link.send(room=0)
        assert len(link.queue.pop_batch()) == 1


def test_base_0_in_the_middle_of_a_list() -> None:
    """A list that crosses the end leaves slot 0 looking like a new ring's first request; the last slot tells."""
    with Link(features=PACKED, size=4) as link:
        for _ in range(3):
            link.send(room=0)
            link.queue.pop_batch()[0].complete()
            link.queue.flush()
            link.driver.poll()
        for _ in range(2):  # slots 3 and 0, then 1 and 2; and again: 3 is a head, 0 never written by the device
            link.send()
            link.queue.pop_batch()[0].complete()
            link.queue.flush()
            link.driver.poll()
        base = link.queue.stop()
        link.queue.start(dataclasses.replace(link.config, base=base))
        assert link.queue.base == base
        link.send()
        assert len(link.queue.pop_batch()) == 1

"""A driver that keeps to the rules, the C ring and the reference model, in any order of events.

``VHOST_PROPERTY_EXAMPLES=N`` makes N times as many examples, at random.
"""

from __future__ import annotations

import os
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model.rig import CONST, FAR, GUEST_PLUG, RINGS, TABLES, UADDR, A, B, Pair, Rig

import ring

INDIRECT, EVENT_IDX, IN_ORDER = 1 << 28, 1 << 29, 1 << 35
INDIRECT_MAX = 4

#: buffers: anywhere in a region, over the border of two, empty
lengths = st.one_of(st.integers(0, 3), st.integers(0, 0x400))
writable_places = st.one_of(
    st.builds(lambda at, n: (A.gpa + at, n), st.integers(0, A.size - 0x400), lengths),
    st.builds(lambda before, n: (B.gpa - before, n), st.integers(0, 0x400), lengths),
    st.builds(lambda at, n: (FAR.gpa + at, n), st.integers(0, FAR.size - 0x400), lengths),
)
readable_places = st.one_of(
    writable_places,
    st.builds(lambda at, n: (CONST.gpa + at, n), st.integers(0, CONST.size - 0x400), lengths),
)
Request = tuple[list[tuple[int, int]], list[tuple[int, int]], bool]
requests = st.tuples(
    st.lists(readable_places, max_size=5), st.lists(writable_places, min_size=1, max_size=5), st.booleans()
)
completions = st.tuples(st.integers(0, 63), st.integers(0, 255), st.sampled_from([0.0, 0.3, 1.0, 1.0]))


class ValidDriver(RuleBasedStateMachine):
    """One queue and its driver."""

    packed: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.driver: ring.Driver | None = None

    @initialize(
        features=st.sets(st.sampled_from([INDIRECT, EVENT_IDX, IN_ORDER])).map(sum),
        shape=st.data(),
        inflight=st.booleans(),
    )
    def begin(self, features: int, shape: st.DataObject, inflight: bool) -> None:
        if self.packed:
            size = shape.draw(st.sampled_from([1, 2, 3, 5, 7, 16, 33]), "size")
            at = shape.draw(st.integers(0, size - 1), "position") | shape.draw(st.sampled_from([0, 0x8000]), "wrap")
            base = at | at << 16
            self.position = (at & 0x7FFF) + (size if at & 0x8000 else 0)
        else:
            size = shape.draw(st.sampled_from([1, 2, 4, 8, 16, 32]), "size")
            self.position = base = shape.draw(st.sampled_from([0, 1, 0x7FFE, 0xFFFD, 0xFFFF]), "base")
        where = RINGS.offset
        area = ring.Driver.layout(size, features | (1 << 34 if self.packed else 0), INDIRECT_MAX).size
        self.driver = ring.Driver(
            memoryview(self.rig.ram)[where : where + area],
            gpa=RINGS.gpa,
            size=size,
            features=features | (1 << 34 if self.packed else 0),
            base=base,
            indirect_max=INDIRECT_MAX,
        )
        self.size = size
        self.indirect = bool(features & INDIRECT)
        self.published = self.position
        self.pair = Pair(
            self.rig,
            packed=self.packed,
            size=size,
            features=features,
            desc=self.driver.desc,
            avail=self.driver.avail,
            used=self.driver.used,
            base=base,
            inflight=inflight,
        )
        self.token = 0
        self.tokens: dict[int, int] = {}  # of requests that have not come back, by id
        self.due: list[tuple[int, int, int]] = []  # token, length, id of what the driver is to find next
        self.armed = False  # kicks were asked for and nothing has been made available since

    # --- the driver

    @rule(requests=st.lists(requests, min_size=1, max_size=8), publish=st.sampled_from([True, True, True, False]))
    def submit(self, requests: list[Request], publish: bool) -> None:
        for out, writable, indirect in requests:
            self.add(out, writable, indirect and self.indirect)
        if publish:
            self.publish()

    def add(self, out: list[tuple[int, int]], writable: list[tuple[int, int]], indirect: bool) -> None:
        room = INDIRECT_MAX if indirect else self.size
        out = out[:room]
        writable = writable[: room - len(out)]
        assert self.driver is not None
        self.token += 1
        try:
            ident = self.driver.add(out, writable, token=self.token, indirect=indirect)
        except ring.RingFull:
            return
        self.tokens[ident] = self.token
        if self.packed:
            self.position += 1 if indirect else len(out) + len(writable)
        else:
            self.position = (self.position + 1) & 0xFFFF

    @rule()
    def publish(self) -> None:
        assert self.driver is not None
        fresh = self.position != self.published
        wanted = self.driver.publish()
        self.pair.model.memory = self.rig.snapshot()
        assert wanted == (fresh and self.pair.model.kick_wanted(self.published, self.position))
        if fresh and self.armed:
            assert wanted, "the device waits for a kick and the ring does not say so"
        if fresh:
            self.armed = False
        self.published = self.position

    def poll(self) -> None:
        assert self.driver is not None
        used = [tuple(entry) for entry in self.driver.poll()]
        assert used == self.due
        self.due.clear()

    @rule(on=st.booleans())
    def calls(self, on: bool) -> None:
        assert self.driver is not None
        if on:
            assert self.driver.calls_on() == bool(self.due)
        else:
            self.driver.calls_off()

    # --- the device

    @rule(limit=st.integers(1, 40))
    def pop(self, limit: int) -> None:
        self.pair.pop(limit)
        assert self.pair.queue.state == ring.QueueState.RUNNING

    @precondition(lambda self: self.pair.held)
    @rule(done=st.lists(completions, min_size=1, max_size=8))
    def complete(self, done: list[tuple[int, int, float]]) -> None:
        for which, fill, share in done:
            if self.pair.held:
                self.pair.complete(which % len(self.pair.held), fill, share)

    @rule(look=st.booleans())
    def flush(self, look: bool) -> None:
        for chain in self.pair.flush():
            assert chain.written is not None
            self.due.append((self.tokens.pop(chain.id), chain.written, chain.id))
        if look:
            self.poll()

    @rule(
        requests=st.lists(requests, min_size=1, max_size=8),
        rounds=st.lists(st.tuples(st.integers(1, 40), st.lists(completions, max_size=8)), min_size=1, max_size=3),
        calls=st.sampled_from([True, True, False, None]),
    )
    def traffic(
        self,
        requests: list[Request],
        rounds: list[tuple[int, list[tuple[int, int, float]]]],
        calls: bool | None,
    ) -> None:
        """What rings see most."""
        if calls is not None:
            self.calls(calls)
        self.submit(requests, True)
        for limit, done in rounds:
            self.pop(limit)
            if done:
                self.complete(done)
                self.flush(True)

    @rule(on=st.booleans())
    def kicks(self, on: bool) -> None:
        with self.pair.compared(events=True):
            if on:
                self.armed = not self.pair.queue.kicks_on()
                assert self.armed != self.pair.model.pending
            else:
                self.pair.queue.kicks_off()
                self.armed = False

    @precondition(lambda self: self.pair.unpoppable())
    @rule(share=st.sampled_from([0.4, 1.0, 1.0]))
    def unpop(self, share: float) -> None:
        self.pair.unpop(int(self.pair.unpoppable() * share))
        self.armed = False

    @precondition(lambda self: not self.pair.held)
    @rule()
    def restart(self) -> None:
        self.flush(False)
        assert self.pair.queue.in_flight == 0
        base = self.pair.stop()
        self.pair.start(base)
        self.armed = False

    @precondition(lambda self: self.pair.record is not None)
    @rule(stale=st.booleans())
    def crash(self, stale: bool) -> None:
        """The back-end dies and a new one takes up the record; the front-end may know the base or not."""
        self.pair.crash(stale)
        self.armed = False

    # --- the world

    @rule(what=st.sampled_from(["remap", "remap backwards", "plug", "log", "log"]))
    def world(self, what: str) -> None:
        if what == "plug":
            self.plug()
        elif what == "log":
            self.pair.set_logging(not self.pair.logging)
        else:
            self.remap(backwards=what.endswith("backwards"))

    def remap(self, backwards: bool) -> None:
        """A new memory table with the same contents. Chains in flight lose their memory."""
        self.rig.memory.clear()
        self.rig.map(backwards=backwards)
        self.pair.queue.remap()
        self.pair.lost |= {model.order for _, model in self.pair.held}

    def plug(self) -> None:
        """A region that nobody uses comes, and goes at the next call."""
        where = {"gpa": GUEST_PLUG.gpa, "size": GUEST_PLUG.size, "uaddr": GUEST_PLUG.gpa + UADDR}
        if any(region.gpa == GUEST_PLUG.gpa for region in self.rig.memory.regions):
            self.rig.memory.remove_region(**where)
        else:
            self.rig.memory.add_region(self.rig.fd, offset=GUEST_PLUG.offset, **where)

    @invariant()
    def healthy(self) -> None:
        if self.driver is not None:
            assert self.pair.queue.error is None
            assert self.pair.queue.base == self.pair.model.base

    def teardown(self) -> None:
        if self.driver is not None:
            self.driver.close()
        self.rig.close()


pytestmark = pytest.mark.timeout(0 if "VHOST_PROPERTY_EXAMPLES" in os.environ else 180)
EXAMPLES = int(os.environ.get("VHOST_PROPERTY_EXAMPLES", "1"))
SETTINGS = settings(
    max_examples=100 * EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    derandomize="VHOST_PROPERTY_EXAMPLES" not in os.environ,  # the suite is the same every time, a search is not
    phases=[phase for phase in Phase if phase is not Phase.explain],  # slow, and a machine's steps explain themselves
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Split(ValidDriver):
    packed = False


class Packed(ValidDriver):
    packed = True


TestSplit = Split.TestCase
TestSplit.settings = SETTINGS
TestPacked = Packed.TestCase
TestPacked.settings = SETTINGS


def test_layout_of_the_rig() -> None:
    """What the machines take for granted: B follows A, tables and rings lie apart."""
    assert A.end == B.gpa
    assert TABLES.end <= RINGS.gpa
    with pytest.raises(ring.RingError):
        ring.Driver.layout(3)

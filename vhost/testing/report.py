"""What the conformance suite found, clause by clause."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from vhost.constants import VirtioFeature
from vhost.frontend.rings import Buffer, Used
from vhost.testing.peer import Connect, NotOffered, Peer, Ring


class Verdict(Enum):
    """Outcome of one clause."""

    PASS = "pass"
    FAIL = "fail"
    NOT_OFFERED = "not offered"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One clause: where it stands, what it demands, what the back-end did."""

    clause: str
    title: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes of one back-end."""

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The clauses it fails."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is Verdict.FAIL)

    def count(self, verdict: Verdict) -> int:
        """How many clauses ended so."""
        return sum(1 for outcome in self.outcomes if outcome.verdict is verdict)

    def __str__(self) -> str:
        lines = [
            f"{outcome.verdict.value:11}  {outcome.clause}: {outcome.title}"
            + (f"\n             {outcome.detail}" if outcome.detail else "")
            for outcome in self.outcomes
        ]
        totals = ", ".join(f"{self.count(verdict)} {verdict.value}" for verdict in Verdict)
        return "\n".join([*lines, totals])


@dataclass(frozen=True, slots=True)
class Probe:
    """A harmless request of a device type, to try rings with.

    Attributes:
        make: buffers of one request, in fresh memory of the peer.
        judge: looks at what came back. Raises: Failure.
    """

    make: Callable[[Peer], tuple[list[Buffer], list[Buffer]]]
    judge: Callable[[Peer, list[Buffer], Used], None]


@dataclass
class Trial:
    """What a check works with.

    Attributes:
        connect: makes a connection.
        writable: the disk may be overwritten.
        keeps: what is written can be read back (not so for a null store).
        probe: of the device type, None where there is none.
    """

    connect: Connect
    probe: Probe | None = None
    writable: bool = False
    keeps: bool = True
    _peers: list[Peer] = field(default_factory=list)

    def peer(self) -> Peer:
        """A fresh connection, closed after the check; at most one is open at a time unless the check asks again."""
        peer = Peer(self.connect())
        self._peers.append(peer)
        return peer

    def request(self, ring: Ring, *, indirect: bool = False, kick: bool = True) -> list[Buffer]:
        """Put one harmless request into a ring; returns its writable buffers. Raises: NotOffered: none is known."""
        if self.probe is None:
            raise NotOffered("a request that is known to be harmless for this type of device")
        out, in_ = self.probe.make(ring.peer)
        ring.submit(out, in_, indirect=indirect, kick=kick)
        return in_

    def works(self, ring: Ring, count: int = 1, *, indirect: bool = False) -> None:
        """Send `count` harmless requests one after the other and look at the answers. Raises: Failure."""
        for _ in range(count):
            in_ = self.request(ring, indirect=indirect)
            (used,) = ring.wait()
            assert self.probe is not None
            self.probe.judge(ring.peer, in_, used)
            for at, _ in in_:
                ring.peer.memory.free(at)

    def close(self) -> None:
        """Close what the check opened."""
        while self._peers:
            self._peers.pop().close()


Body = Callable[[Trial], None]
Layouts = Callable[[Trial, int], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One clause and how it is tried."""

    clause: str
    title: str
    body: Body
    writes: bool = False


class Suite:
    """Checks in the order they were written."""

    def __init__(self, checks: Iterable[Check] = ()) -> None:
        """Args: checks: to begin with."""
        self.checks = list(checks)

    def __call__(self, clause: str, title: str, *, writes: bool = False) -> Callable[[Body], Body]:
        """Decorator: `clause` is the place in rst or VIRTIO, `title` what it demands; writes: overwrites the disk."""

        def add(body: Body) -> Body:
            self.checks.append(Check(clause, title, body, writes))
            return body

        return add

    def layouts(self, clause: str, title: str, features: int = 0) -> Callable[[Layouts], Layouts]:
        """Decorator: one check per ring layout; the body gets the features to negotiate, `features` among them."""

        def add(body: Layouts) -> Layouts:
            for name, bit in (("split", 0), ("packed", int(VirtioFeature.RING_PACKED))):

                @self(clause, f"{name}: {title}")
                def check(trial: Trial, wanted: int = features | bit) -> None:
                    with Peer(trial.connect()).handshake() as peer:
                        for need in VirtioFeature(wanted):
                            peer.need_feature(need)
                    body(trial, wanted)

            return body

        return add

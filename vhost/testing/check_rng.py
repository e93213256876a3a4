"""Clauses about virtio-rng. [VIRTIO 1.3, 5.4]"""

from __future__ import annotations

from vhost.frontend.rings import Buffer, Used
from vhost.testing.peer import Failure, Peer
from vhost.testing.report import Probe, Suite, Trial

RNG = Suite()

LENGTH = 64


def _probe(peer: Peer) -> tuple[list[Buffer], list[Buffer]]:
    return [], [peer.room(LENGTH, 0), peer.room(LENGTH, 0)]


def _judge(peer: Peer, in_: list[Buffer], used: Used) -> None:
    if not 1 <= used.length <= 2 * LENGTH:
        raise Failure(f"{used.length} bytes are said to be written to {2 * LENGTH}")


PROBE = Probe(_probe, _judge)


@RNG("VIRTIO 5.4.6", "buffers are filled, each time with something else")
def _fills(trial: Trial) -> None:
    peer = trial.peer()
    (ring,) = peer.bring_up(0)
    seen = set()
    for _ in range(4):
        at, length = peer.room(LENGTH, 0)
        ring.submit([], [(at, length)])
        (used,) = ring.wait()
        if not 1 <= used.length <= LENGTH:
            raise Failure(f"{used.length} bytes are said to be written to {LENGTH}")
        seen.add(peer.memory.read(at, used.length))
    if len(seen) != 4 or bytes(LENGTH) in seen:
        raise Failure("the same bytes come again")

"""What the hostile tests share: a process with a victim and a bystander, and the invariants after every attack.

Invariants: the process lives on and is the same; the bystander's ring, on another device of the same process, is served
while the attack lasts and after it; the victim serves the next front-end; neither descriptors nor memory grow; nothing
that the process says is a traceback; what it says about the attack names the reason.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import peerlib

from vhost.constants import ProtocolFeature, VirtioFeature
from vhost.frontend import Memory
from vhost.frontend.rings import Buffer, Used
from vhost.testing import DEVICES, Connect, Failure, Peer, Ring, connect_to
from vhost.testing.report import Probe, Trial

#: what the process may keep after an attack: an arena or two of the allocator, never a share of what was sent
RSS_SLACK = 12 << 20
FD_SLACK = 2
#: ASan keeps freed memory back on purpose
SANITIZED = "VHOST_SANITIZED" in os.environ
#: what a device says about its front-ends is rate-limited, so that each test wants a device that nobody annoyed yet
VICTIMS = 140


#: tables of a configuration: the device and what it needs
DEVICE_TABLES = {
    "blk": 'type = "blk"\nstore = "memory:1M"\nnum-queues = 4\niommu = true\n',
    "net-receive": 'type = "net"\nsource = 60\n',
    "net-transmit": 'type = "net"\nsource = 60\n',
}
HEADER, FRAME = 12, b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + bytes(46)


def _frame(peer: Peer) -> tuple[list[Buffer], list[Buffer]]:
    """For either ring of a pair: a frame to send, and room for one that comes."""
    return [peer.put(bytes(HEADER) + FRAME)], [peer.room(2048)]


def _came_or_went(peer: Peer, in_: list[Buffer], used: Used) -> None:
    """Receive rings fill the room with a frame, transmit rings leave it as it is."""
    if used.length not in (0, HEADER + len(FRAME)):
        raise Failure(f"{used.length} bytes are said to be written for a frame of {len(FRAME)}")


class Stand:
    """The process under attack.

    Attributes:
        kind: "rng" (devices in Python), "blk" (C workers), "net-receive" or "net-transmit" (cards that are sent frames
            all the time, and swallow what is sent).
        index: of the ring that is attacked; there is another beside it.
        trial: makes requests that are known to be harmless.
    """

    def __init__(self, kind: str, backend: peerlib.Backend, victims: Sequence[Path], bystander: Path) -> None:
        self.kind, self.backend = kind, backend
        self.index = 1 if kind == "net-transmit" else 0
        self._victims = cycle(victims)
        self.connect: Connect = connect_to(next(self._victims), timeout=60)
        probe = Probe(_frame, _came_or_went) if kind.startswith("net") else DEVICES[kind][1]
        self.trial = Trial(self.connect, probe)
        self.bystander = Peer(connect_to(bystander)(), timeout=30)
        (self.bystander_ring,) = self._rings(self.bystander, 0, 1, 64)
        self.well()
        self.pid = backend.pid
        self.heard = len(backend.words)
        self.fds = self.rss = 0

    def peer(self, memory: Memory | None = None) -> Peer:
        """A fresh connection to the victim; close it."""
        return Peer(self.connect(), memory=memory, timeout=30)

    def up(self, features: int = 0, *, queues: int = 1, size: int = 64, memory: Memory | None = None) -> list[Ring]:
        """Running rings on a fresh connection to the victim; close their peer."""
        peer = self.peer(memory)
        try:
            rings = self._rings(peer, features, queues, size)
            for ring in rings:
                self.trial.works(ring)
        except BaseException:
            peer.close()
            raise
        return rings

    def _rings(self, peer: Peer, features: int, queues: int, size: int) -> list[Ring]:
        """The one to be attacked is the first."""
        rings = peer.bring_up(features, queues=max(queues, self.index + 1), size=size)
        return [rings[self.index], *(ring for ring in rings if ring.index != self.index)][:queues]

    def works(self, ring: Ring, count: int = 1) -> None:
        """Harmless requests on `ring` are answered."""
        self.trial.works(ring, count)

    def well(self) -> None:
        """The bystander is served."""
        self.trial.works(self.bystander_ring, 2)

    @property
    def said(self) -> str:
        """What the process has said since the attack began."""
        return self.backend.words[self.heard :]

    def says(self, pattern: str, seconds: float = 5) -> None:
        """Wait until the process says something that matches."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.said):
            assert time.monotonic() < end, f"nothing like {pattern!r} in:\n{self.said[-3000:]}"
            time.sleep(0.01)

    def begin(self) -> None:
        """Take the next victim, and remember how things are."""
        self.connect = self.trial.connect = connect_to(next(self._victims), timeout=60)
        self.up()[0].peer.close()  # what is made once and kept has been made when counting begins
        self.heard = len(self.backend.words)
        self.fds = self.backend.fds()
        self.rss = self.backend.rss()

    def check(self) -> None:
        """The invariants. Raises: AssertionError."""
        assert self.backend.process.poll() is None, f"the process died:\n{self.backend.words[-3000:]}"
        self.well()
        rings = self.up()
        rings[0].peer.close()
        fds = self.backend.settled_fds(self.fds + FD_SLACK)
        assert fds <= self.fds + FD_SLACK, f"open descriptors grew from {self.fds} to {fds}"
        rss = self.backend.rss()
        assert SANITIZED or rss <= self.rss + RSS_SLACK, f"memory grew from {self.rss >> 10} to {rss >> 10} KiB"
        assert "Traceback" not in self.said, self.said[-3000:]

    def close(self) -> None:
        self.bystander.close()


@contextmanager
def stand(kind: str) -> Iterator[Stand]:
    """The process with two devices of `kind`, and the bystander on one of them."""
    with peerlib.short_folder() as path:
        victims, bystander = [path / f"v{at}" for at in range(VICTIMS)], path / "b"
        if kind == "rng":
            program = str(peerlib.ROOT / "tests" / "twodevices.py")
            command = [sys.executable, program, *map(str, victims), str(bystander)]
        else:
            config = path / "config.toml"
            config.write_text(
                "".join(
                    f'[[device]]\nname = "{sock.name}"\nsocket-path = "{sock}"\n{DEVICE_TABLES[kind]}'
                    for sock in (*victims, bystander)
                )
            )
            command = [str(Path(sys.executable).with_name("vhost")), "serve", str(config)]
        with peerlib.running(command, bystander, path / "log") as backend:
            here = Stand(kind, backend, victims, bystander)
            try:
                yield here
            finally:
                here.close()


SPLIT = 0
PACKED = int(VirtioFeature.RING_PACKED)
INDIRECT = int(VirtioFeature.INDIRECT_DESC)
EVENT_IDX = int(VirtioFeature.EVENT_IDX)
NO_SLOTS = ~ProtocolFeature.CONFIGURE_MEM_SLOTS

__all__ = ["EVENT_IDX", "INDIRECT", "NO_SLOTS", "PACKED", "SPLIT", "Failure", "Stand", "stand"]

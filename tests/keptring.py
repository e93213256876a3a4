"""A ring of a guest whose connection comes and goes."""

from __future__ import annotations

from collections.abc import Sequence

from vhost.frontend.rings import Buffer, DriverRing, Used


class Kept(DriverRing):
    """A ring that outlives its connection, and remembers what came back."""

    def __init__(self, ring: DriverRing) -> None:
        self.ring = ring
        self.size, self.desc, self.avail, self.used = ring.size, ring.desc, ring.avail, ring.used
        self.back: dict[int, Used] = {}

    def add(self, out: Sequence[Buffer], in_: Sequence[Buffer], token: int, *, indirect: bool = False) -> int:
        return self.ring.add(out, in_, token, indirect=indirect)

    def publish(self) -> bool:
        return self.ring.publish()

    def poll(self, limit: int = 64) -> list[Used]:
        found = self.ring.poll(limit)
        self.back.update((used.token, used) for used in found)
        return found

    def calls_on(self) -> bool:
        return self.ring.calls_on()

    def calls_off(self) -> None:
        self.ring.calls_off()

    def base(self) -> int:
        return self.ring.base()

    def close(self) -> None:
        """Its memory is the guest's."""

"""The driver's side of a ring in C, behind the same face as the Python rings."""

from __future__ import annotations

from collections.abc import Sequence

import ring
from ring.errors import RingFull
from vhost.constants import VirtioFeature
from vhost.errors import QueueBroken
from vhost.frontend.memory import PAGE, Memory
from vhost.frontend.rings import Buffer, Used


class NativeRing:
    """A `ring.Driver` in a front-end's memory."""

    def __init__(
        self, memory: Memory, size: int, features: int, *, base: int | None = None, indirect_max: int = 0
    ) -> None:
        """Args as ring.Driver; `base` None: from the very beginning."""
        self.memory = memory
        self.size = size
        self.features = features
        need = ring.Driver.layout(size, features, indirect_max).size
        self._gpa = memory.alloc(need, PAGE)
        self.driver = ring.Driver(
            memory.view(self._gpa, need),
            gpa=self._gpa,
            size=size,
            features=features,
            base=base,
            indirect_max=indirect_max,
        )
        self.desc, self.avail, self.used = self.driver.desc, self.driver.avail, self.driver.used
        self._start = self.driver.base

    def add(self, out: Sequence[Buffer], in_: Sequence[Buffer], token: int, *, indirect: bool = False) -> int:
        """See DriverRing."""
        try:
            return self.driver.add(out, in_, token=token, indirect=indirect)
        except RingFull as error:
            raise BlockingIOError("the ring is full") from error

    def publish(self) -> bool:
        """See DriverRing."""
        return self.driver.publish()

    def poll(self, limit: int = 64) -> list[Used]:
        """See DriverRing."""
        try:
            return [Used(*entry) for entry in self.driver.poll(limit)]
        except ring.RingError as error:
            raise QueueBroken(0, str(error)) from error

    def calls_on(self) -> bool:
        """See DriverRing."""
        return self.driver.calls_on()

    def calls_off(self) -> None:
        """See DriverRing."""
        self.driver.calls_off()

    def base(self) -> int:
        """See DriverRing; a packed ring in C keeps its position to itself, so only a fresh one can tell."""
        if self.features & VirtioFeature.RING_PACKED:
            return self._start
        return self.memory.load(self.used + 2, 2)

    def close(self) -> None:
        """See DriverRing."""
        self.driver.close()
        if self._gpa >= 0:
            self.memory.free(self._gpa)
            self._gpa = -1

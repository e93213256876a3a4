"""How a queue's task waits: when it goes on without the event loop, when it gives way, and what it reads kicks with."""

from __future__ import annotations

import errno
import os
from time import monotonic
from typing import TYPE_CHECKING

from ring._ring import lib

if TYPE_CHECKING:
    from ring.virtqueue import VqPtr

__all__ = ["Turn", "read_kicks"]

_SECONDS = 0.00025  # a turn: several batches long, since an event loop's round costs as much as half a batch
_LOOKS = 150  # at an empty ring, some 20 µs: what a driver that polls needs to come back with more
_SKIP_MAX = 127  # waits that look once only, after looking on was in vain again and again
_scratch = bytearray(4096)  # what kick fds are read into; nobody looks

_ready = lib.ring_vq_ready


class Turn:
    """The turn of one queue's task.

    Looking on at an empty ring pays where the driver polls on a core of its own, and is wasted where it sleeps or
    shares our core: each time it was in vain, twice as many waits go by before it is tried again.
    """

    __slots__ = ("_ends", "_skip", "_skips")

    def __init__(self) -> None:
        self._ends = 0.0  # the first wait gives way
        self._skip = 0  # waits still to go by
        self._skips = 0  # waits that went by after the last failure

    def begin(self) -> None:
        """Other tasks have had their turns."""
        self._ends = monotonic() + _SECONDS

    @property
    def over(self) -> bool:
        """Others are to have their turns."""
        return monotonic() >= self._ends

    def goes_on(self, ptr: VqPtr) -> bool:
        """There is work in the queue, and time to do it before others have their turn.

        May look for some 20 µs. To be called on a running queue that can be popped from.
        """
        if monotonic() >= self._ends:
            return False
        if _ready(ptr):
            return True
        if self._skip:
            self._skip -= 1
            return False
        for _ in range(_LOOKS):
            if _ready(ptr):
                self._skips = 0
                return True
        self._skip = self._skips = min(2 * self._skips + 1, _SKIP_MAX)
        return False


def read_kicks(fd: int) -> bool:
    """Read what is there, never blocking: the descriptor is shared with the other side. False: nothing will come."""
    try:
        return os.preadv(fd, [_scratch], -1, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return True  # somebody else was faster
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            return False
    # pipes of kernels before 6.5
    try:
        os.set_blocking(fd, False)
        return bool(os.read(fd, len(_scratch)))
    except BlockingIOError:
        return True
    except OSError:
        return False

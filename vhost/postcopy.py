"""Postcopy: running on memory whose pages are still on another host.

The userfaultfd goes to the front-end, which sees our page faults and brings the pages; a thread of ours that touches
such a page waits in the kernel meanwhile, so only worker threads may. [rst "Front-end message types", POSTCOPY_*]
"""

import mmap

from ring import GuestMemory
from ring.userfault import Userfault
from vhost.errors import DeviceError
from vhost.fds import OwnedFd

__all__ = ["Postcopy"]


class Postcopy:
    """From POSTCOPY_ADVISE to POSTCOPY_END on one connection."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._uffd: Userfault | None = None
        self._fresh: list[tuple[int, int]] = []
        self.listening = False

    def advise(self) -> OwnedFd:
        """Open a userfaultfd, in place of an earlier one; the result is the front-end's copy.

        Raises: DeviceError: this host does not allow it.
        """
        self.end()
        try:
            self._uffd = Userfault()
        except OSError as error:
            raise DeviceError(f"postcopy migration is not possible: {error.strerror}") from error
        with OwnedFd(self._uffd.fileno()) as ours:
            copy = ours.dup()
            ours.take()
        return copy

    def listen(self) -> None:
        """Regions that are added from now on are filled by page faults. Raises: DeviceError: not advised."""
        if self._uffd is None:
            raise DeviceError("POSTCOPY_LISTEN before POSTCOPY_ADVISE")
        self.listening = True

    def added(self, gpa: int) -> int:
        """The region at `gpa` was added: the address at which its first byte is mapped."""
        region = next(region for region in self._memory.regions if region.gpa == gpa)
        start = region.hva & ~(mmap.PAGESIZE - 1)
        end = (region.hva + region.size + mmap.PAGESIZE - 1) & ~(mmap.PAGESIZE - 1)
        self._fresh.append((start, end - start))
        return region.hva

    def register(self) -> None:
        """Catch accesses to the regions added last.

        Raises: DeviceError: the kernel refuses such memory.
        """
        if self._uffd is None:
            raise DeviceError("postcopy memory without POSTCOPY_ADVISE")
        fresh, self._fresh = self._fresh, []
        for start, size in fresh:
            try:
                self._uffd.register(start, size)
            except OSError as error:
                raise DeviceError(f"guest memory cannot be filled by postcopy: {error.strerror}") from error

    def end(self) -> None:
        """All pages are here, or nobody brings them any more; a second call does nothing."""
        self.listening = False
        self._fresh.clear()
        if self._uffd is not None:
            uffd, self._uffd = self._uffd, None
            uffd.close()

"""The dirty log as a front-end keeps it: one bit per page of 4 KiB [rst "Migration"]."""

from __future__ import annotations

import mmap
import os

from vhost.constants import LOG_PAGE_SIZE
from vhost.messages import LogBase


class DirtyLog:
    """A log in a memfd. Resource handling: owns it."""

    def __init__(self, end: int) -> None:
        """Args: end: first guest-physical address beyond what is logged."""
        self.size = (end // LOG_PAGE_SIZE // 8 + 8) & -8
        self.fd = os.memfd_create("vhost-log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)

    def message(self) -> LogBase:
        """As SET_LOG_BASE describes it."""
        return LogBase(self.size, 0)

    def pages(self) -> set[int]:
        """Numbers of the dirty pages."""
        return {8 * at + bit for at, byte in enumerate(self._map[:]) if byte for bit in range(8) if byte >> bit & 1}

    def is_dirty(self, gpa: int, size: int = 1) -> bool:
        """True if every page of the range is marked."""
        return set(range(gpa // LOG_PAGE_SIZE, (gpa + size - 1) // LOG_PAGE_SIZE + 1)) <= self.pages()

    def clear(self) -> None:
        """Mark all pages clean. Bits set meanwhile may be lost: for tests with nothing in flight."""
        self._map[:] = bytes(self.size)

    def close(self) -> None:
        """Unmap and close; a second call does nothing."""
        if self.fd >= 0:
            self._map.close()
            os.close(self.fd)
            self.fd = -1

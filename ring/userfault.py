"""userfaultfd: catching accesses to guest memory that has not arrived yet (postcopy migration)."""

from __future__ import annotations

import os

from ring._ring import lib

__all__ = ["Userfault"]


def _checked(result: int, doing: str) -> int:
    if result < 0:
        raise OSError(-result, f"{doing}: {os.strerror(-result)}")
    return result


class Userfault:
    """One userfaultfd and the ranges registered with it.

    Resource handling: owns the fd; `close` closes it, which wakes whoever waits for a page.
    """

    def __init__(self) -> None:
        """Open one.

        Raises:
            PermissionError: the host does not allow it; the message says what to change.
            OSError: the kernel has no userfaultfd.
        """
        result: int = lib.ring_uffd_open()
        if result < 0 and -result == 1:
            raise PermissionError(
                1,
                "userfaultfd is not allowed: run as root, set sysctl vm.unprivileged_userfaultfd=1 "
                "or give access to /dev/userfaultfd",
            )
        self._fd = _checked(result, "userfaultfd")
        self._ranges: list[tuple[int, int]] = []

    def fileno(self) -> int:
        """The fd, still owned by this object."""
        return self._fd

    def register(self, hva: int, length: int) -> None:
        """Report missing pages in `length` bytes of this process at address `hva` (both page-aligned).

        Raises: OSError: the kernel refuses such memory.
        """
        _checked(lib.ring_uffd_register(self._fd, hva, length), "UFFDIO_REGISTER")
        self._ranges.append((hva, length))

    def close(self) -> None:
        """Unregister everything and close; whoever waited goes on. A second call does nothing."""
        if self._fd < 0:
            return
        for hva, length in self._ranges:
            lib.ring_uffd_unregister(self._fd, hva, length)  # a range unmapped meanwhile is no error worth telling
        self._ranges.clear()
        os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

"""Ownership of file descriptors that came over a socket.

Rules: an fd is owned by exactly one object from the moment recvmsg returns; `take()` is the only way out; an owner that
is dropped with a live fd closes it and warns (ResourceWarning), so that a leak is a failing test and nothing worse.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Self


class OwnedFd:
    """One file descriptor and the duty to close it."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take over `fd` (>= 0)."""
        self._fd = -1
        if fd < 0:
            raise ValueError(f"not a file descriptor: {fd}")
        self._fd = fd

    @property
    def closed(self) -> bool:
        """True once closed or taken."""
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor, still owned by this object.

        Raises: ValueError: it was closed or taken.
        """
        if self._fd < 0:
            raise ValueError("file descriptor was closed or taken")
        return self._fd

    def take(self) -> int:
        """Hand the descriptor to the caller, who closes it.

        Raises: ValueError: it was closed or taken.
        """
        fd = self.fileno()
        self._fd = -1
        return fd

    def move(self) -> "OwnedFd":
        """A new owner for the same descriptor; this one becomes empty.

        Raises: ValueError: it was closed or taken.
        """
        return OwnedFd(self.take())

    def dup(self) -> "OwnedFd":
        """A second descriptor of the same file, close-on-exec, owned by the result."""
        return OwnedFd(os.dup(self.fileno()))

    def close(self) -> None:
        """Close; a second call does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OwnedFd({'closed' if self._fd < 0 else self._fd})"

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
            self.close()


class Fds:
    """The descriptors that came with one message, in order; owns those not taken out."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable["int | OwnedFd"] = ()) -> None:
        """Take over every descriptor of `fds`."""
        self._fds = [fd if isinstance(fd, OwnedFd) else OwnedFd(fd) for fd in fds]

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[OwnedFd]:
        return iter(self._fds)

    def filenos(self) -> list[int]:
        """Descriptor numbers, still owned here."""
        return [fd.fileno() for fd in self._fds]

    def extend(self, other: "Fds") -> None:
        """Take over everything `other` owns."""
        self._fds += other._fds
        other._fds = []

    def pop(self) -> OwnedFd:
        """Take out the first descriptor.

        Raises: IndexError: there is none.
        """
        return self._fds.pop(0)

    def trim(self, keep: int) -> int:
        """Close all but the first `keep`; returns how many were closed."""
        extra, self._fds = self._fds[keep:], self._fds[:keep]
        for fd in extra:
            fd.close()
        return len(extra)

    def close(self) -> None:
        """Close all that is still owned; a second call does nothing."""
        self.trim(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fds({self._fds!r})"

"""Memory shared with the other side that is no guest memory, such as the inflight region."""

from __future__ import annotations

from ring._ring import ffi, lib
from ring.errors import check

__all__ = ["SharedArea"]


class SharedArea:
    """A mapped piece of a file that somebody else may truncate: then it reads as zeros instead of killing us.

    Resource handling: the fd is not kept. `close` unmaps; views and queues that use it must be gone by then.
    """

    def __init__(self, fd: int, size: int, offset: int = 0) -> None:
        """Map `size` bytes of `fd` at `offset` (bytes, any alignment), writable.

        Raises:
            RingError: the range wraps, is longer than the file, or cannot be mapped.
        """
        self._ptr = None
        out = ffi.new("struct ring_shared **")
        check(lib.ring_shared_map(fd, size, offset, out), f"shared area of {size:#x} bytes at offset {offset:#x}", size)
        self._ptr = out[0]
        self._size = size

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def faulted(self) -> bool:
        """Its file was truncated meanwhile. Sticky."""
        return self._ptr is not None and bool(lib.ring_shared_faulted(self._ptr))

    def view(self, offset: int, size: int) -> memoryview:
        """Writable bytes of the area; not to be used after `close`.

        Raises:
            ValueError: not inside the area, or it is closed.
        """
        if self._ptr is None:
            raise ValueError("this shared area is closed")
        if not 0 <= offset <= self._size or not 0 <= size <= self._size - offset:
            raise ValueError(f"{size} bytes at {offset} are not inside an area of {self._size} bytes")
        base = ffi.cast("char *", lib.ring_shared_base(self._ptr))
        return memoryview(ffi.buffer(base + offset, size))

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        if self._ptr is not None:
            ptr, self._ptr = self._ptr, None
            lib.ring_shared_unmap(ptr)

    def __del__(self) -> None:
        if getattr(self, "_ptr", None) is not None:
            self.close()

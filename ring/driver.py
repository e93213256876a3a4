"""The driver side of a virtqueue, split or packed: for front-ends, tests and load generators."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NewType

from _cffi_backend import FFI

from ring._ring import ffi, lib
from ring.errors import RingFull, check

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Driver", "DriverLayout", "DriverPtr", "Used"]

DriverPtr = NewType("DriverPtr", FFI.CData)

_F_PACKED = 1 << 34
_POLL = 256  # completions taken from C per call

Buffer = tuple[int, int]  # address the device understands (gpa or iova), bytes


class DriverLayout(NamedTuple):
    """Offsets from the start of a ring's area, bytes, and its whole length."""

    desc: int
    avail: int
    used: int
    indirect: int
    size: int


class Used(NamedTuple):
    """A request that came back."""

    token: int
    length: int
    id: int


class Driver:
    """A ring of ``size`` entries in ``area``, as a guest's driver would keep it.

    Args:
        area: writable buffer shared with the device (kept until `close`), or a C pointer to it; page aligned, zeroed
            here, at least ``Driver.layout(...).size`` bytes.
        gpa: where the device finds the area.
        size: entries.
        features: negotiated virtio features; bits 28, 29 and 34 matter.
        base: index to start from, as SET_VRING_BASE encodes it; the beginning if not given.
        indirect_max: descriptors of one indirect table; 0: the default, 16.

    Raises:
        RingError: the size is not one that the layout allows.
        ValueError: the area is too small.
    """

    def __init__(
        self,
        area: Any,
        *,
        gpa: int,
        size: int,
        features: int = 0,
        base: int | None = None,
        indirect_max: int = 0,
    ) -> None:
        self._ptr: DriverPtr | None = None
        layout = self.layout(size, features, indirect_max)
        if isinstance(area, ffi.CData):
            pinned = area
        else:
            pinned = ffi.from_buffer(area, require_writable=True)
            if len(pinned) < layout.size:
                raise ValueError(f"the area has {len(pinned)} bytes, a ring of {size} entries needs {layout.size}")
        if base is None:
            base = 0x80008000 if features & _F_PACKED else 0
        ptr = lib.ring_drv_new(pinned, gpa, size, features, indirect_max, base)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a driver ring")
        self._ptr = DriverPtr(ptr)
        self._pinned = pinned
        self._owned = not isinstance(area, ffi.CData)
        self.gpa = gpa
        self.size = size
        self.features = features
        self.base = base
        self.offsets = layout
        self._bufs = ffi.new("struct ring_drv_buf[]", 64)
        self._used = ffi.new("struct ring_drv_used[]", _POLL)

    @staticmethod
    def layout(size: int, features: int = 0, indirect_max: int = 0) -> DriverLayout:
        """Where the parts of such a ring lie in its area.

        Raises:
            RingError: the size is not one that the layout allows.
        """
        out = ffi.new("struct ring_drv_layout *")
        check(lib.ring_drv_layout(size, features, indirect_max, out), f"driver ring of {size} entries", size)
        return DriverLayout(out.desc, out.avail, out.used, out.indirect, out.bytes)

    @property
    def ptr(self) -> DriverPtr:
        """The ``struct ring_drv *``.

        Raises:
            RuntimeError: it was closed.
        """
        if self._ptr is None:
            raise RuntimeError("this driver ring is closed")
        return self._ptr

    @property
    def desc(self) -> int:
        """Address of the descriptor table, as the device sees it."""
        return self.gpa + self.offsets.desc

    @property
    def avail(self) -> int:
        """Address of the available ring; packed: of the driver's event suppression."""
        return self.gpa + self.offsets.avail

    @property
    def used(self) -> int:
        """Address of the used ring; packed: of the device's event suppression."""
        return self.gpa + self.offsets.used

    def add(
        self,
        readable: Sequence[Buffer] = (),
        writable: Sequence[Buffer] = (),
        *,
        token: int = 0,
        indirect: bool = False,
    ) -> int:
        """Add a request; the device sees it after `publish`.

        Args:
            readable: ``(address, bytes)`` of what the device reads.
            writable: of what it writes.
            token: comes back with the completion, 64 bits.
            indirect: put the descriptors into a table of their own (bit 28).

        Returns:
            The descriptor's index or buffer id.

        Raises:
            RingFull: no free descriptors.
            RingError: too many buffers, or indirect without bit 28.
        """
        nr_out, nr_in = len(readable), len(writable)
        bufs = self._bufs
        if nr_out + nr_in > len(bufs):
            bufs = self._bufs = ffi.new("struct ring_drv_buf[]", 2 * (nr_out + nr_in))
        i = 0
        for part in (readable, writable):
            for address, length in part:
                buf = bufs[i]
                buf.addr = address
                buf.len = length
                i += 1
        result = lib.ring_drv_add(self.ptr, bufs, nr_out, nr_in, token, indirect)
        if result == -errno.ENOSPC:
            raise RingFull(errno.ENOSPC, nr_out + nr_in, "no free descriptors in the ring")
        return check(result, f"request of {nr_out} readable and {nr_in} writable buffers", nr_out + nr_in)

    def publish(self) -> bool:
        """Make added requests visible; True if the device wants a kick."""
        return bool(lib.ring_drv_publish(self.ptr))

    def poll(self, limit: int = _POLL) -> list[Used]:
        """Up to ``limit`` completed requests, without waiting.

        Raises:
            RingError: the device returned an id that is not in flight.
        """
        used = self._used
        n = check(lib.ring_drv_poll(self.ptr, used, min(limit, _POLL)), "completion from the device")
        return [Used(entry.token, entry.len, entry.id) for entry in (used[i] for i in range(n))]

    def calls_off(self) -> None:
        """Tell the device that notifications are not needed."""
        lib.ring_drv_calls_off(self.ptr)

    def calls_on(self) -> bool:
        """Ask for notifications; True if completions are there already."""
        return bool(lib.ring_drv_calls_on(self.ptr))

    @property
    def free_slots(self) -> int:
        """Descriptors free."""
        return lib.ring_drv_free_slots(self.ptr)

    @property
    def pending(self) -> int:
        """Requests not yet returned."""
        return lib.ring_drv_pending(self.ptr)

    def close(self) -> None:
        """Free it and let go of the area. May be called again."""
        if self._ptr is None:
            return
        ptr, self._ptr = self._ptr, None
        lib.ring_drv_free(ptr)
        if self._owned:
            ffi.release(self._pinned)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_ptr", None) is not None:
            self.close()

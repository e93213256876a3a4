"""The translation cache of a virtual IOMMU: guest I/O addresses to front-end addresses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NewType

from _cffi_backend import FFI

from ring._ring import ffi, lib
from ring.errors import check

__all__ = ["Iotlb", "IotlbMiss", "IotlbPtr", "Perm"]

IotlbPtr = NewType("IotlbPtr", FFI.CData)

_MISSES = 64  # taken from C per call


class Perm(IntFlag):
    """Access rights of an entry, as ``struct vhost_iotlb_msg`` encodes them."""

    NONE = 0
    READ = lib.RING_PERM_READ
    WRITE = lib.RING_PERM_WRITE


@dataclass(frozen=True, slots=True)
class IotlbMiss:
    """A lookup that found nothing: the front-end is to be asked."""

    iova: int
    perm: Perm
    queue: int


class Iotlb:
    """Entries ``iova -> uaddr``. All calls are thread-safe.

    Must outlive the queues that were started with it.
    """

    __slots__ = ("__weakref__", "_ptr")

    def __init__(self) -> None:
        ptr = lib.ring_iotlb_new()
        if ptr == ffi.NULL:
            raise MemoryError("no memory for an IOTLB")
        self._ptr = IotlbPtr(ffi.gc(ptr, lib.ring_iotlb_free))

    @property
    def ptr(self) -> IotlbPtr:
        """The ``struct ring_iotlb *``."""
        return self._ptr

    def update(self, iova: int, size: int, uaddr: int, perm: int) -> None:
        """Add an entry, or replace what the range held.

        Args:
            iova: first address, bytes.
            size: length, bytes, at least 1.
            uaddr: front-end virtual address that ``iova`` stands for.
            perm: `Perm`.

        Raises:
            RingError: the range wraps, or there are too many entries.
        """
        check(
            lib.ring_iotlb_update(self._ptr, iova, size, uaddr, perm), f"IOTLB update of {size:#x} bytes at {iova:#x}"
        )

    def invalidate(self, iova: int, size: int) -> None:
        """Forget the range; entries that reach beyond it are cut.

        Raises:
            RingError: the range wraps.
        """
        check(lib.ring_iotlb_invalidate(self._ptr, iova, size), f"IOTLB invalidation of {size:#x} bytes at {iova:#x}")

    def clear(self) -> None:
        """Forget everything."""
        lib.ring_iotlb_clear(self._ptr)

    def misses(self) -> list[IotlbMiss]:
        """Take the misses recorded since the last call, each once."""
        out = ffi.new("struct ring_iotlb_miss[]", _MISSES)
        found: list[IotlbMiss] = []
        while True:
            n = lib.ring_iotlb_misses(self._ptr, out, _MISSES)
            found.extend(IotlbMiss(out[i].iova, Perm(out[i].perm), out[i].queue) for i in range(n))
            if n < _MISSES:
                return found

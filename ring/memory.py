"""Guest memory: regions mapped from fds, translation of addresses, the dirty log."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NewType

from _cffi_backend import FFI

from ring._ring import ffi, lib
from ring.errors import RingError, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["AddressKind", "GuestMemory", "MemPtr", "Region"]

MemPtr = NewType("MemPtr", FFI.CData)

_PIECES = lib.RING_MEM_MAX_REGIONS  # a range has at most one piece per region
_CHUNK = 1 << 30  # bytes copied per C call: lengths are 32 bits there


class AddressKind(IntEnum):
    """Which address space a number belongs to."""

    UADDR = lib.RING_ADDR_UADDR
    GPA = lib.RING_ADDR_GPA


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of guest memory.

    Attributes:
        gpa: guest-physical address.
        size: bytes.
        uaddr: front-end virtual address.
        offset: where it begins in its file, bytes.
        hva: where it is mapped in this process; 0 while it is not.
        read_only: mapped without write permission.
        postcopy: nothing is touched ahead of time.
    """

    gpa: int
    size: int
    uaddr: int
    offset: int = 0
    hva: int = 0
    read_only: bool = False
    postcopy: bool = False


def _flags(read_only: bool, postcopy: bool) -> int:
    flags: int = lib.RING_MEM_RO if read_only else 0
    return flags | (lib.RING_MEM_NOTOUCH if postcopy else 0)


class GuestMemory:
    """The memory of one guest.

    The table may change while queues run on it, provided that every worker with such a queue is parked
    (`Worker.parked`), or that the queues belong to the calling thread; `Virtqueue.remap` follows for each of them.

    Resource handling: file descriptors are not kept, the caller closes his. `close` (or the end of a ``with`` block)
    unmaps everything; views given out by `view` are released then and when their region goes, so that a later use
    raises ``ValueError``. Slices that were made of them cannot be found: do not keep them.
    """

    __slots__ = ("__weakref__", "_keep", "_ptr", "_queues", "_views")

    def __init__(self) -> None:
        self._queues: dict[int, Callable[[], None]] = {}  # queues alive on this memory: how to free each
        self._views: dict[int, weakref.ref[memoryview]] = {}
        self._keep: list[Any] = []  # buffers of embedders, as long as they may be used
        self._ptr: MemPtr | None = None
        ptr = lib.ring_mem_new()
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a memory table")
        self._ptr = MemPtr(ptr)

    @property
    def ptr(self) -> MemPtr:
        """The ``struct ring_mem *``.

        Raises:
            RuntimeError: the memory was closed.
        """
        if self._ptr is None:
            raise RuntimeError("guest memory is closed")
        return self._ptr

    def add_region(
        self,
        fd: int,
        *,
        gpa: int,
        size: int,
        uaddr: int | None = None,
        offset: int = 0,
        read_only: bool = False,
        postcopy: bool = False,
    ) -> None:
        """Map ``size`` bytes of ``fd`` at ``offset`` as guest memory.

        Args:
            fd: memfd, shm or hugetlbfs file; not kept, the caller closes it.
            gpa: guest-physical address, bytes, any alignment.
            size: bytes, at least 1.
            uaddr: the front-end's virtual address; ``gpa`` if not given.
            offset: bytes from the start of the file.
            read_only: map without write permission.
            postcopy: touch nothing ahead of time and use no huge pages.

        Raises:
            RingError: the range wraps, overlaps another, is longer than the file, or cannot be mapped.
        """
        uaddr = gpa if uaddr is None else uaddr
        check(
            lib.ring_mem_add(self.ptr, fd, gpa, size, uaddr, offset, _flags(read_only, postcopy)),
            f"guest memory of {size:#x} bytes at {gpa:#x} (file offset {offset:#x})",
            gpa,
        )

    def add_mapped(self, hva: int, *, gpa: int, size: int, uaddr: int | None = None, read_only: bool = False) -> None:
        """Use memory that the embedder mapped himself at address ``hva``; it is never unmapped here.

        The embedder keeps it mapped until the region is removed or the memory closed.

        Raises:
            RingError: the range wraps or overlaps another.
        """
        check(
            lib.ring_mem_add_mapped(
                self.ptr,
                ffi.cast("void *", hva),
                gpa,
                size,
                gpa if uaddr is None else uaddr,
                _flags(read_only, False),
            ),
            f"guest memory of {size:#x} bytes at {gpa:#x}",
            gpa,
        )

    def add_buffer(self, buffer: Any, *, gpa: int, uaddr: int | None = None) -> None:
        """Use a writable buffer object (``mmap``, ``bytearray``) as guest memory; it is kept until `close`."""
        pinned = ffi.from_buffer(buffer, require_writable=True)
        self.add_mapped(int(ffi.cast("uintptr_t", pinned)), gpa=gpa, size=len(pinned), uaddr=uaddr)
        self._keep.append(pinned)

    def remove_region(self, *, gpa: int, size: int, uaddr: int | None = None) -> None:
        """Remove the region that matches all three numbers.

        Chains in flight that have pieces there may still be completed; what is written to them goes nowhere.

        Raises:
            RingError: there is no such region.
        """
        uaddr = gpa if uaddr is None else uaddr
        gone = [region for region in self.regions if region.gpa == gpa]
        check(lib.ring_mem_remove(self.ptr, gpa, size, uaddr), f"guest memory of {size:#x} bytes at {gpa:#x}", gpa)
        for region in gone:
            self._release(region.hva, region.size)

    def clear(self) -> None:
        """Remove all regions."""
        lib.ring_mem_clear(self.ptr)
        self._release(0, 1 << 64)

    @property
    def regions(self) -> tuple[Region, ...]:
        """All regions, ordered by guest-physical address."""
        out = ffi.new("struct ring_region_info[]", lib.RING_MEM_MAX_REGIONS)
        n = lib.ring_mem_regions(self.ptr, out, lib.RING_MEM_MAX_REGIONS)
        return tuple(
            Region(
                info.gpa,
                info.len,
                info.uaddr,
                info.offset,
                info.hva,
                bool(info.flags & lib.RING_MEM_RO),
                bool(info.flags & lib.RING_MEM_NOTOUCH),
            )
            for info in (out[i] for i in range(n))
        )

    def _pieces(self, address: int, size: int, kind: int, writable: bool) -> list[tuple[int, int]]:
        """Translated pieces: ``(address in this process, bytes)``."""
        out = ffi.new("struct ring_iov[]", _PIECES)
        n = check(
            lib.ring_mem_translate(self.ptr, kind, address, size, writable, out, _PIECES),
            f"{size:#x} bytes at {'guest-physical' if kind == AddressKind.GPA else 'front-end'} address {address:#x}",
            address,
        )
        return [(int(ffi.cast("uintptr_t", out[i].base)), out[i].len) for i in range(n)]

    def translate(
        self, address: int, size: int, kind: AddressKind = AddressKind.GPA, *, writable: bool = False
    ) -> list[tuple[int, int]]:
        """Where ``size`` bytes at ``address`` lie in this process: ``(address, bytes)`` pairs.

        Raises:
            RingError: they are not wholly inside guest memory, or not writable where asked for.
        """
        if size == 0:
            return []
        return self._pieces(address, size, kind, writable)

    def view(self, gpa: int, size: int, *, writable: bool = False) -> list[memoryview]:
        """Memoryviews that lie in guest memory; one, unless the range crosses regions.

        The guest may change what they show at any time: copy before you check.

        Raises:
            RingError: the range is not wholly inside guest memory, or not writable where asked for.
        """
        if size == 0:
            return []
        views = []
        for hva, length in self._pieces(gpa, size, AddressKind.GPA, writable):
            view = memoryview(ffi.buffer(ffi.cast("void *", hva), length))
            if not writable:
                view = view.toreadonly()
            self._views[id(view)] = weakref.ref(view, self._forget(id(view)))
            views.append(view)
        return views

    def _forget(self, key: int) -> Callable[[weakref.ref[memoryview]], None]:
        views = self._views

        def forget(ref: weakref.ref[memoryview]) -> None:
            if views.get(key) is ref:
                del views[key]

        return forget

    def _release(self, hva: int, size: int) -> None:
        """Release the views that touch the range, as far as nobody holds a buffer of them."""
        for ref in list(self._views.values()):
            view = ref()
            if view is None:
                continue
            try:
                start = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
                if start < hva + size and hva < start + view.nbytes:
                    view.release()
            except (BufferError, ValueError):  # in use by somebody; released already
                pass

    def read(self, gpa: int, size: int) -> bytes:
        """Copy ``size`` bytes out of guest memory. Other threads run meanwhile: a page may have to be fetched.

        Raises:
            RingError: the range is not wholly inside guest memory.
        """
        out = bytearray(size)
        if size:
            self._copy(gpa, out, writable=False)
        return bytes(out)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` into guest memory, and mark it in the dirty log if there is one.

        Raises:
            RingError: the range is not wholly inside writable guest memory.
        """
        size = memoryview(data).nbytes
        if size:
            self._copy(gpa, data, writable=True)
            lib.ring_mem_log_gpa(self.ptr, gpa, size)

    def _copy(self, gpa: int, data: bytes | bytearray | memoryview, *, writable: bool) -> None:
        """Copy through the ring's own door to guest memory: a chain that is just one piece at a time."""
        pieces = self._pieces(gpa, memoryview(data).nbytes, AddressKind.GPA, writable)
        chain = ffi.new("struct ring_chain *")
        chain.iov = iov = ffi.new("struct ring_iov *")
        chain.nr_out, chain.nr_in = (0, 1) if writable else (1, 0)
        copy = lib.ring_chain_write if writable else lib.ring_chain_read
        with ffi.from_buffer("uint8_t[]", data, require_writable=not writable) as local:
            done = 0
            for hva, length in pieces:
                for start in range(0, length, _CHUNK):
                    n = min(length - start, _CHUNK)
                    iov.base = ffi.cast("void *", hva + start)
                    iov.len = chain.in_bytes = chain.out_bytes = n
                    copy(chain, 0, local + done, n)
                    done += n
        if self.faulted:
            raise RingError(lib.RING_E_FAULT, gpa, f"guest memory at {gpa:#x}")

    def set_log(self, fd: int, size: int, offset: int = 0) -> None:
        """Use ``size`` bytes of ``fd`` at ``offset`` as the dirty log: one bit per 4096 bytes of guest memory.

        Replaces an earlier one. ``fd`` is not kept. What is logged is decided per queue (`Virtqueue.set_logging`).

        Raises:
            RingError: the range wraps, is longer than the file, or cannot be mapped.
        """
        check(
            lib.ring_mem_log_set(self.ptr, fd, size, offset),
            f"dirty log of {size:#x} bytes at offset {offset:#x}",
            size,
        )

    def clear_log(self) -> None:
        """Forget the dirty log."""
        lib.ring_mem_log_clear(self.ptr)

    def log_gpa(self, gpa: int, size: int) -> None:
        """Mark a range of guest memory dirty; nothing happens without a log."""
        lib.ring_mem_log_gpa(self.ptr, gpa, size)

    @property
    def faulted(self) -> bool:
        """The front-end truncated a file of this memory while it was in use. Sticky."""
        return bool(lib.ring_mem_faulted(self.ptr))

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._ptr is None

    def close(self) -> None:
        """Stop and free the queues on this memory, then unmap everything. May be called again.

        No worker may have such a queue any more.
        """
        if self._ptr is None:
            return
        for free in list(self._queues.values()):
            free()
        self._release(0, 1 << 64)
        ptr, self._ptr = self._ptr, None
        lib.ring_mem_free(ptr)
        self._keep.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_ptr", None) is not None:
            self.close()

"""Stores that never wait: memory, and nothing at all."""

from __future__ import annotations

from devices.blk._blk import ffi, lib
from devices.blk.stores.base import Store, StorePtr, Topology, check_size

__all__ = ["MemoryStore", "NullStore"]


class MemoryStore(Store):
    """Memory of this process, zeros at first, gone at the end.

    Args:
        size: bytes, a multiple of 512; pages are taken when written.

    Raises:
        StoreError: not a size for a disk.
        MemoryError: no address space.
    """

    topology = Topology(physical=4096, discard=4096)

    def __init__(self, size: int) -> None:
        check_size(size, "memory store")
        self.description = f"memory:{size}"
        super().__init__(StorePtr(lib.blk_memory_new(size)), size)

    @property
    def contents(self) -> memoryview:
        """Its bytes, in place; not to be used after `close`."""
        return memoryview(ffi.buffer(lib.blk_memory_base(self.ptr), self.size))


class NullStore(Store):
    """Takes writes and forgets them, completes reads without touching the guest's buffers: for measuring.

    Args:
        size: bytes, a multiple of 512.

    Raises:
        StoreError: not a size for a disk.
    """

    def __init__(self, size: int) -> None:
        check_size(size, "null store")
        self.description = f"null:{size}"
        super().__init__(StorePtr(lib.blk_null_new()), size)

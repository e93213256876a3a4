"""What every store has in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from types import TracebackType
from typing import NewType, Self

from _cffi_backend import FFI

from devices.blk._blk import ffi, lib
from vhost import Metric, VhostError
from vhost._owned import Owned

__all__ = ["Can", "Store", "StoreError", "StorePtr", "Topology", "check_size"]

StorePtr = NewType("StorePtr", FFI.CData)

SECTOR = 512


class StoreError(VhostError):
    """A store cannot be opened or changed: the message says what is wrong, where, and what to do."""


class Can(IntFlag):
    """What a store is able to do beyond reading."""

    WRITE = lib.BLK_CAN_WRITE
    FLUSH = lib.BLK_CAN_FLUSH
    DISCARD = lib.BLK_CAN_DISCARD
    ZERO = lib.BLK_CAN_ZERO
    ERASE = lib.BLK_CAN_ERASE
    LIFETIME = lib.BLK_CAN_LIFETIME


@dataclass(frozen=True, slots=True)
class Topology:
    """Sizes a store works best in, bytes.

    Attributes:
        logical: smallest unit it takes, a power of two.
        physical: unit below which a write costs a read, a power of two.
        min_io: smallest efficient request; 0: unknown.
        opt_io: best size of a request; 0: unknown.
        discard: granularity and alignment of discards; 0: any.
    """

    logical: int = SECTOR
    physical: int = SECTOR
    min_io: int = 0
    opt_io: int = 0
    discard: int = 0


def check_size(size: int, what: str) -> None:
    """Refuse a capacity no disk can have.

    Raises:
        StoreError: not a positive multiple of 512 below 2^63.
    """
    if size <= 0 or size % SECTOR or size >= 1 << 63:
        raise StoreError(f"{what}: {size} bytes cannot be the size of a disk; give a positive multiple of {SECTOR}")


class Store(Owned[StorePtr]):
    """Base of all stores; a subclass makes the C part and says what it knows.

    A store is closed after its disks; it is a context manager, plain and async.
    """

    #: for messages: what and where it is
    description: str = "store"
    topology: Topology = Topology()

    def __init__(self, ptr: StorePtr, size: int) -> None:
        if ptr == ffi.NULL:
            raise MemoryError(f"no memory for {self.description}")
        super().__init__(ptr)
        self._size = size

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self._size

    @property
    def can(self) -> Can:
        """What it is able to do."""
        return Can(lib.blk_store_can(self.ptr))

    @property
    def read_only(self) -> bool:
        """It takes no writes."""
        return not self.can & Can.WRITE

    async def sync(self) -> None:
        """Make durable what was written.

        Raises:
            OSError: the system says no.
        """

    async def resize(self, size: int | None) -> int:
        """Grow to ``size`` bytes; None: look how big it has become meanwhile. Returns the size.

        Raises:
            StoreError: it cannot have that size.
        """
        if size is not None and size != self._size:
            raise StoreError(f"{self.description} cannot be resized")
        return self._size

    async def watch(self) -> None:
        """Run beside the disk while it is served: tell the log what happens to the store."""

    def metrics(self) -> Iterable[Metric]:
        """Values of its own, beside the disk's. Called often: no waiting."""
        return ()

    def _free(self, ptr: StorePtr) -> None:
        lib.blk_store_free(ptr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._ptr is None else ""
        return f"<{type(self).__name__} {self.description}, {self._size} bytes{state}>"

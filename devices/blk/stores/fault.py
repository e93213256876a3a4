"""Errors and delays on purpose, in front of another store: for tests of devices, servers and guests."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from devices.blk._blk import lib
from devices.blk.stores.base import Store, StorePtr

__all__ = ["FaultStore"]

OPS = ("read", "write", "flush", "discard", "write_zeroes", "secure_erase")


def _bits(ops: Iterable[str]) -> int:
    return sum(1 << OPS.index(op) for op in set(ops))


class FaultStore(Store):
    """A filter in front of ``inner``, which stays its owner's and is closed after it.

    Args:
        inner: what serves the requests that get through.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.description = f"faulty {inner.description}"
        self.topology = inner.topology
        super().__init__(StorePtr(lib.blk_fault_new(inner.ptr)), inner.size)

    def fail(self, *ops: str, every: int = 1, error: int = errno.EIO) -> None:
        """From now on every ``every``-th (0: no) request of ``ops`` (of `OPS`; none: all) fails with ``error``."""
        lib.blk_fault_errors(self.ptr, _bits(ops or OPS), every, error)

    def delay(self, *ops: str, seconds: float) -> None:
        """From now on requests of ``ops`` (none: all) wait before they start; only where the worker has io_uring."""
        lib.blk_fault_delay(self.ptr, _bits(ops or OPS), int(seconds * 1e6))

    @property
    def seen(self) -> int:
        """Requests that got here."""
        return lib.blk_fault_seen(self.ptr)

    async def sync(self) -> None:
        """As the inner one."""
        await self.inner.sync()

    async def resize(self, size: int | None) -> int:
        """As the inner one."""
        self._size = await self.inner.resize(size)
        return self._size

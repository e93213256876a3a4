"""A request of the driver, as the device sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NewType

from _cffi_backend import FFI

from ring._ring import ffi, lib

if TYPE_CHECKING:
    from ring.virtqueue import Virtqueue

__all__ = ["Chain", "ChainPtr"]

ChainPtr = NewType("ChainPtr", FFI.CData)

_push = lib.ring_vq_push
_buffer = ffi.buffer


class Chain:
    """One request of the driver: pieces of guest memory, readable ones first.

    Views are made when asked for and released by `complete` and when the queue stops: using them later raises
    ``ValueError``. Slices made of them cannot be found and must not be used after that. The guest may change the
    bytes under a view at any time: copy (`read`) before you check.
    """

    __slots__ = ("_auto", "_ptr", "_queue", "_readable", "_writable")

    def __init__(self, queue: Virtqueue, ptr: ChainPtr, auto: bool) -> None:
        self._queue = queue
        self._ptr: ChainPtr | None = ptr
        self._auto = auto
        self._readable: list[memoryview] | None = None
        self._writable: list[memoryview] | None = None

    @property
    def ptr(self) -> ChainPtr:
        """The ``struct ring_chain *``.

        Raises:
            RuntimeError: the chain was completed, or its queue stopped.
        """
        if self._ptr is None:
            raise RuntimeError("this chain is not the device's any more: it was completed or its queue stopped")
        return self._ptr

    @property
    def id(self) -> int:
        """Split: head index; packed: buffer id."""
        p: Any = self.ptr
        return int(p.id)

    @property
    def out_bytes(self) -> int:
        """Bytes the driver wrote."""
        p: Any = self.ptr
        return int(p.out_bytes)

    @property
    def in_bytes(self) -> int:
        """Bytes the device may write."""
        p: Any = self.ptr
        return int(p.in_bytes)

    @property
    def readable(self) -> list[memoryview]:
        """What the driver wrote, read-only."""
        if self._readable is None:
            p: Any = self.ptr
            iov = p.iov
            self._readable = [
                memoryview(_buffer(iov[i].base, iov[i].len)).toreadonly() if iov[i].len else memoryview(b"")
                for i in range(p.nr_out)
            ]
        return self._readable

    @property
    def writable(self) -> list[memoryview]:
        """Where the device writes."""
        if self._writable is None:
            p: Any = self.ptr
            iov, first = p.iov, p.nr_out
            self._writable = [
                memoryview(_buffer(iov[i].base, iov[i].len)) if iov[i].len else memoryview(bytearray())
                for i in range(first, first + p.nr_in)
            ]
        return self._writable

    def read(self, offset: int, size: int) -> bytes:
        """Copy up to ``size`` bytes of the readable pieces, from ``offset``; fewer where they end."""
        ptr = self.ptr
        out = bytearray(max(0, min(size, self.out_bytes - offset)))
        if not out:
            return b""
        with ffi.from_buffer(out) as local:
            n = lib.ring_chain_read(ptr, offset, local, len(out))
        return bytes(out[:n])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Copy ``data`` to the writable pieces, from ``offset``; returns the bytes that fitted."""
        with ffi.from_buffer(data) as local:
            return lib.ring_chain_write(self.ptr, offset, local, len(local))

    def complete(self, written: int = 0) -> None:
        """Give the chain back to the driver.

        Args:
            written: bytes of the writable pieces that were written, from their beginning.

        The driver sees it when the queue is flushed: by `Virtqueue.flush`, when the device next waits for the queue,
        and under ``async for`` at the latest when the event loop turns.

        Raises:
            RuntimeError: completed already, or the queue has stopped.
            ValueError: ``written`` is more than the pieces hold.
        """
        ptr: Any = self._ptr
        if ptr is None:
            raise RuntimeError("this chain is not the device's any more: it was completed or its queue stopped")
        if written and not 0 < written <= ptr.in_bytes:
            raise ValueError(f"written={written}, but the chain has {ptr.in_bytes} writable bytes")
        queue = self._queue
        self._ptr = None
        if self._readable is not None or self._writable is not None:
            self._release()
        del queue._live[self]
        _push(queue._ptr, ptr, written)
        queue._staged = True
        if queue._attentive or (self._auto and not queue._scheduled):
            queue._completed()

    def _release(self) -> None:
        """Make the views unusable, as far as nobody holds a buffer of them."""
        for views in (self._readable, self._writable):
            for view in views or ():
                try:
                    view.release()
                except BufferError:
                    pass
        self._readable = self._writable = None

    def _invalidate(self) -> None:
        self._ptr = None
        self._release()

    def __repr__(self) -> str:
        if self._ptr is None:
            return "<ring.Chain, completed>"
        return f"<ring.Chain {self.id}: {self.out_bytes} bytes out, {self.in_bytes} bytes in>"

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
_copy_in = lib.ring_chain_read
_copy_out = lib.ring_chain_write
_buffer = ffi.buffer
_unpack = ffi.unpack

SCRATCH = 4096  # bytes of a queue's private memory for `Chain.read`; what is longer takes memory of its own
_U32 = 1 << 32
_GONE = "this chain is not the device's any more: it was completed or its queue stopped"


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
            raise RuntimeError(_GONE)
        return self._ptr

    @property
    def id(self) -> int:
        """Split: head index; packed: buffer id."""
        ptr: Any = self._ptr
        if ptr is None:
            raise RuntimeError(_GONE)
        number: int = ptr.id
        return number

    @property
    def out_bytes(self) -> int:
        """Bytes the driver wrote."""
        ptr: Any = self._ptr
        if ptr is None:
            raise RuntimeError(_GONE)
        number: int = ptr.out_bytes
        return number

    @property
    def in_bytes(self) -> int:
        """Bytes the device may write."""
        ptr: Any = self._ptr
        if ptr is None:
            raise RuntimeError(_GONE)
        number: int = ptr.in_bytes
        return number

    @property
    def readable(self) -> list[memoryview]:
        """What the driver wrote, read-only."""
        if self._readable is None:
            p: Any = self.ptr
            self._readable = [
                memoryview(_buffer(piece.base, piece.len)).toreadonly() if piece.len else memoryview(b"")
                for piece in _unpack(p.iov, p.nr_out)
            ]
        return self._readable

    @property
    def writable(self) -> list[memoryview]:
        """Where the device writes."""
        if self._writable is None:
            p: Any = self.ptr
            self._writable = [
                memoryview(_buffer(piece.base, piece.len)) if piece.len else memoryview(bytearray())
                for piece in _unpack(p.iov + p.nr_out, p.nr_in)
            ]
        return self._writable

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """Copy up to ``size`` bytes of the readable pieces, from ``offset``; fewer where they end.

        Args:
            offset: bytes from the start of the first readable piece.
            size: bytes; None: all there are, which a guest may make 4 GiB.

        Raises:
            RuntimeError: the chain was completed, or its queue stopped.
        """
        ptr: Any = self._ptr
        if ptr is None:
            raise RuntimeError(_GONE)
        if size is None:
            size = ptr.out_bytes
        if 0 <= size <= SCRATCH and 0 <= offset < _U32:
            local = self._queue._scratch
        else:
            size = min(size, ptr.out_bytes - offset)
            if size <= 0:
                return b""
            local = ffi.new("char[]", size)
        data: bytes = _unpack(local, _copy_in(ptr, offset, local, size))
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Copy ``data`` to the writable pieces, from ``offset``; returns the bytes that fitted.

        Args:
            offset: bytes from the start of the first writable piece.
            data: contiguous.

        Raises:
            RuntimeError: the chain was completed, or its queue stopped.
        """
        ptr: Any = self._ptr
        if ptr is None:
            raise RuntimeError(_GONE)
        if type(data) is bytes:
            same: Any = data  # goes for a pointer as it is
            return _copy_out(ptr, offset, same, len(data))
        with ffi.from_buffer(data) as local:
            return _copy_out(ptr, offset, local, len(local))

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
            raise RuntimeError(_GONE)
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

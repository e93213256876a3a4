"""Errors of the ring core: codes, words and exceptions."""

from __future__ import annotations

from enum import IntEnum

from ring._ring import ffi, lib

__all__ = ["Error", "ErrorCode", "RingError", "RingFull", "strerror"]


class ErrorCode(IntEnum):
    """What can be wrong with a ring or with guest memory; ``ring/csrc/mem.h`` says it with the clause of the spec."""

    HEAD = lib.RING_E_HEAD
    AVAIL = lib.RING_E_AVAIL
    NEXT = lib.RING_E_NEXT
    LOOP = lib.RING_E_LOOP
    INDIRECT = lib.RING_E_INDIRECT
    ORDER = lib.RING_E_ORDER
    ADDR = lib.RING_E_ADDR
    LEN = lib.RING_E_LEN
    DUP = lib.RING_E_DUP
    ID = lib.RING_E_ID
    PERM = lib.RING_E_PERM
    IOVECS = lib.RING_E_IOVECS
    FAULT = lib.RING_E_FAULT
    INFLIGHT = lib.RING_E_INFLIGHT
    RING = lib.RING_E_RING
    SIZE = lib.RING_E_SIZE
    OVERLAP = lib.RING_E_OVERLAP
    RANGE = lib.RING_E_RANGE
    SHORT = lib.RING_E_SHORT
    SLOTS = lib.RING_E_SLOTS
    NOREGION = lib.RING_E_NOREGION
    DEVICE = lib.RING_E_DEVICE
    STATE = lib.RING_E_STATE
    LOG = lib.RING_E_LOG
    MISS = lib.RING_MISS


def strerror(code: int) -> str:
    """Words for an error ``code``: an `ErrorCode` or an errno, of either sign."""
    text: bytes = ffi.string(lib.ring_strerror(code))
    return text.decode()


class Error(Exception):
    """Base of the exceptions of this package."""


class RingError(Error):
    """A ring, guest memory or an address given by the other side is not usable.

    Attributes:
        code: an `ErrorCode`, or an errno where a system call failed.
        detail: the offending number (index, address, length), 0 if there is none.
    """

    def __init__(self, code: int, detail: int = 0, doing: str = "") -> None:
        code = abs(code)
        self.code: int = ErrorCode(code) if code in _CODES else code
        self.detail = detail
        self.doing = doing
        super().__init__(f"{doing}: {strerror(code)}" if doing else strerror(code))

    def __reduce__(self) -> tuple[type[RingError], tuple[int, int, str]]:
        return type(self), (int(self.code), self.detail, self.doing)


class RingFull(RingError):
    """The driver side has no free descriptors: poll for completions first."""


_CODES = frozenset(ErrorCode)


def check(result: int, doing: str, detail: int = 0) -> int:
    """``result`` if it is no error, else raise `RingError` that says what was being done."""
    if result < 0:
        raise RingError(-result, detail, doing)
    return result

"""Locks on an image, so that two programs do not write it at the same time: QEMU's scheme, as QEMU must see ours.

QEMU (``block/file-posix.c``) takes shared OFD locks on single bytes: byte 100 + n says "I use permission n", byte
200 + n says "nobody else may use permission n". Whoever comes later takes its bytes and then asks whether anybody else
holds one that contradicts: 200 + n for what it uses, 100 + n for what it does not allow others.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from typing import Literal

from devices.blk.stores.base import StoreError

__all__ = ["lock_image", "unlock_image"]

_USES = 100
_DENIES = 200

# bits of QEMU's BlockPermission
_READ = 0
_WRITE = 1
_RESIZE = 3

_FLOCK = "hhqqi"  # struct flock: l_type, l_whence, l_start, l_len, l_pid


def _lock(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, 0, byte, 1, 0))


def _held_by_others(fd: int, byte: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, byte, 1, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def unlock_image(fd: int) -> None:
    """Give up all locks of the open image ``fd``, whoever else still has a copy of it (io_uring, for a moment)."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, 0, 0, 0, 0))


def lock_image(fd: int, name: str, *, writable: bool, mode: Literal["on", "off", "shared"]) -> None:
    """Lock the open image ``fd``; the lock lasts until `unlock_image`, or until its last copy is closed.

    Raises:
        StoreError: somebody uses it in a way that contradicts, or the file system has no locks.
    """
    if mode == "off":
        return
    uses = [_READ, _WRITE, _RESIZE] if writable else [_READ]
    denies = [_WRITE, _RESIZE] if mode == "on" else []
    try:
        for bit in uses:
            _lock(fd, _USES + bit)
        for bit in denies:
            _lock(fd, _DENIES + bit)
        denied = any(_held_by_others(fd, _DENIES + bit) for bit in uses)
        used = any(_held_by_others(fd, _USES + bit) for bit in denies)
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise StoreError(f"{name} cannot be locked: {exc.strerror}; --lock off does without") from exc
        denied = True
        used = False
    if denied or used:
        doing = "written" if used else "used"
        raise StoreError(
            f"{name} is being {doing} by another program (a second server, or QEMU); stop that one first, or use "
            "--lock shared on both where that is meant"
        )

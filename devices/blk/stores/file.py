"""Raw files and block devices."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import trio

from devices.blk._blk import ffi, lib
from devices.blk.stores.base import SECTOR, Can, Store, StoreError, StorePtr, Topology
from devices.blk.stores.lock import lock_image, unlock_image

__all__ = ["FileStore", "Lock"]

Lock = Literal["on", "off", "shared"]

# <linux/fs.h>
_BLKSSZGET = 0x1268  # logical block, int
_BLKPBSZGET = 0x127B  # physical block, int
_BLKIOMIN = 0x1278  # int
_BLKIOOPT = 0x1279  # int
_BLKGETSIZE64 = 0x80081272  # u64


def _ioctl_int(fd: int, request: int, default: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, request, b"\0" * 4))[0])
    except OSError:
        return default


class FileStore(Store):
    """A regular file or a block device, taken as raw whatever it holds. Made by `open`.

    Raw is never probed as another format: a guest that writes a qcow2 header gets a disk with a qcow2 header.
    """

    def __init__(self, fd: int, path: str, *, can: Can, direct: bool, at_once: bool) -> None:
        """Take over ``fd``; use `open`."""
        self._fd = fd
        self._file_size = 0
        self.description = path
        self.direct = direct
        self._block_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.topology = self._find_topology()
        self._align = _probe_alignment(fd, self.topology.logical) if direct else (1, 1)
        if direct:
            logical = max(self._align[0], SECTOR)
            self.topology = Topology(
                logical,
                max(self.topology.physical, logical),
                self.topology.min_io,
                self.topology.opt_io,
                self.topology.discard,
            )
        config = ffi.new("struct blk_file_config *")
        config.fd, config.can, config.direct = fd, can, direct
        config.io_align, config.mem_align = self._align
        config.at_once = at_once
        super().__init__(StorePtr(lib.blk_file_new(config)), self._measure())

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        direct: bool = False,
        lock: Lock = "on",
        at_once: bool = True,
    ) -> Self:
        """Open ``path``.

        Args:
            path: regular file or block device.
            read_only: open for reading, refuse writes.
            direct: bypass the page cache (O_DIRECT).
            lock: "on": nobody else may use the image in a way that conflicts, QEMU included; "shared": others may, as
                long as they agree (live migration); "off": do not look.
            at_once: do what is a copy, cached reads and files in memory, without the detour through io_uring; False is
                for comparisons.

        Raises:
            StoreError: it cannot be opened or locked, or is nothing a disk can be made of.
        """
        name = os.fspath(path)
        fd = _open(name, (os.O_RDONLY if read_only else os.O_RDWR) | (os.O_DIRECT if direct else 0))
        try:
            _check_kind(fd, name)
            lock_image(fd, name, writable=not read_only, mode=lock)
            can = Can.FLUSH if read_only else Can.WRITE | Can.FLUSH | Can.DISCARD | Can.ZERO
            return cls(fd, name, can=can, direct=direct, at_once=at_once)
        except BaseException:
            os.close(fd)
            raise

    def _find_topology(self) -> Topology:
        if self._block_device:
            logical = _ioctl_int(self._fd, _BLKSSZGET, SECTOR)
            return Topology(
                logical,
                max(_ioctl_int(self._fd, _BLKPBSZGET, logical), logical),
                max(_ioctl_int(self._fd, _BLKIOMIN, 0), 0),
                max(_ioctl_int(self._fd, _BLKIOOPT, 0), 0),
                _discard_granularity(os.fstat(self._fd).st_rdev),
            )
        block = os.fstat(self._fd).st_blksize  # what the file system allocates and discards in
        physical = block if block & (block - 1) == 0 and SECTOR <= block <= 1 << 16 else 4096
        return Topology(SECTOR, physical, physical, 0, physical)

    def _measure(self) -> int:
        """What a disk can use of it: whole logical blocks."""
        if self._block_device:
            raw = int(struct.unpack("Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, b"\0" * 8))[0])
        else:
            raw = os.fstat(self._fd).st_size
        size = raw - raw % max(self.topology.logical, SECTOR)
        if not size:
            raise StoreError(f"{self.description} is empty; make it as big as the disk is to be: truncate -s 10G PATH")
        return size

    async def sync(self) -> None:
        """As `Store.sync`."""
        if not self.read_only:
            await trio.to_thread.run_sync(os.fdatasync, self._fd)

    async def resize(self, size: int | None) -> int:
        """As `Store.resize`; a file grows, a block device is only looked at.

        Raises:
            StoreError: smaller than now, no multiple of the block size, or the file cannot grow.
        """
        if size is not None:
            self._grow(size)
        measured = self._measure()
        if measured < self._size:
            raise StoreError(
                f"{self.description} has shrunk from {self._size} to {measured} bytes; a disk in use only grows: "
                f"make it {self._size} bytes again"
            )
        self._size = measured
        return measured

    def _grow(self, size: int) -> None:
        unit = self.topology.logical
        if size < self._size:
            raise StoreError(f"{self.description} has {self._size} bytes and a disk in use only grows, not to {size}")
        if size % unit:
            raise StoreError(f"{size} is no multiple of {self.description}'s block size, {unit} bytes")
        if self._block_device or self.read_only:
            if size != self._measure():
                raise StoreError(f"{self.description} cannot be grown from here; grow it and call resize without size")
            return
        try:
            if size > os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, size)
        except OSError as exc:
            raise StoreError(f"{self.description} cannot grow to {size} bytes: {exc.strerror}") from exc

    def close(self) -> None:
        """As `Store.close`; the image is free for others after it."""
        if self._ptr is not None:
            super().close()
            with suppress(OSError):  # no locks on this file system, hence none to give up
                unlock_image(self._fd)
            os.close(self._fd)


def _open(name: str, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not make us wait for its writer
    except FileNotFoundError:
        raise StoreError(f"{name} does not exist; make it first: truncate -s 10G {Path(name).name}") from None
    except PermissionError as exc:
        want = "read" if flags & os.O_ACCMODE == os.O_RDONLY else "read and written; --read-only may do"
        raise StoreError(f"{name} may not be {want}: {exc.strerror}") from None
    except IsADirectoryError:
        raise StoreError(f"{name} is a directory; give a file or a block device") from None
    except OSError as exc:
        hint = "; its file system has no O_DIRECT, leave --direct out" if flags & os.O_DIRECT else ""
        raise StoreError(f"{name} cannot be opened: {exc.strerror}{hint}") from exc


def _check_kind(fd: int, name: str) -> None:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise StoreError(f"{name} is neither a regular file nor a block device")
    os.set_blocking(fd, True)


def _discard_granularity(device: int) -> int:
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for folder in (base, base.parent):  # a partition's queue is its disk's
        try:
            return int((folder / "queue/discard_granularity").read_text())
        except (OSError, ValueError):
            continue
    return 0


def _reads(fd: int, buffer: memoryview) -> bool:
    try:
        os.preadv(fd, [buffer], 0)
    except OSError:
        return False
    return True


def _probe_alignment(fd: int, logical: int) -> tuple[int, int]:
    """Smallest lengths and buffer addresses that O_DIRECT takes here, found by reading. (io, memory), bytes."""
    with mmap.mmap(-1, 1 << 17) as area, memoryview(area) as view:
        sizes = [size for size in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536) if size >= logical]
        io_align = next((size for size in sizes if _try(fd, view, 0, size)), 4096)
        memory = next((at for at in (4, 16, 64, 512, 1024, 2048) if _try(fd, view, at, io_align)), 4096)
    return io_align, memory


def _try(fd: int, view: memoryview, at: int, size: int) -> bool:
    with view[at : at + size] as part:
        return _reads(fd, part)

"""Guest memory as a front-end owns it: memfds, mapped here, handed to the back-end by descriptor.

Guest-physical, front-end and mapping addresses differ on purpose, so that a back-end that confuses them is found out.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from ring._ring import ffi as _ffi
from vhost.errors import DeviceError
from vhost.messages import MemRegion

PAGE: Final = 4096
UADDR_BASE: Final = 0x5500_0000_0000
"""Front-end addresses start here; nothing of ours is mapped there."""


HUGE_2M: Final = 21 << 26
"""MFD_HUGE_2MB of linux/memfd.h, which Python 3.11 spells only on some builds."""


@dataclass(eq=False)
class Region:
    """One piece of guest memory.

    Attributes:
        gpa, uaddr: its addresses for descriptors and for SET_VRING_ADDR.
        size: bytes.
        offset: of the region in its file, bytes.
        fd: the memfd, owned by the region.
        owner: of `fd` and `map`; False where another region is.
    """

    gpa: int
    uaddr: int
    size: int
    offset: int
    fd: int
    map: mmap.mmap
    view: memoryview
    owner: bool = True

    @classmethod
    def create(cls, gpa: int, size: int, *, uaddr: int | None = None, offset: int = 0, hugepages: bool = False) -> Self:
        """Make the memfd and map it.

        Raises:
            DeviceError: no memory, or no huge pages are free.
        """
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if hugepages:
            flags |= os.MFD_HUGETLB | HUGE_2M
        fd = os.memfd_create("vhost-frontend", flags)
        try:
            os.ftruncate(fd, offset + size)
            area = mmap.mmap(fd, offset + size)
        except OSError as error:
            os.close(fd)
            how = "; write to /proc/sys/vm/nr_hugepages to get some" if hugepages else ""
            raise DeviceError(f"cannot get {size} bytes of guest memory: {error.strerror}{how}") from error
        view = memoryview(area)[offset:]
        return cls(gpa, UADDR_BASE + gpa if uaddr is None else uaddr, size, offset, fd, area, view)

    def message(self) -> MemRegion:
        """As SET_MEM_TABLE and ADD_MEM_REG describe it."""
        return MemRegion(self.gpa, self.size, self.uaddr, self.offset)

    @property
    def hva(self) -> int:
        """Where it is mapped in this process."""
        return int(_ffi.cast("uintptr_t", _ffi.from_buffer(self.view)))

    def close(self) -> None:
        """Unmap and close; memory still referenced by somebody's buffer stays mapped until that is gone."""
        if self.fd < 0:
            return
        if self.owner:
            os.close(self.fd)
        self.fd = -1
        try:
            self.view.release()
            if self.owner:
                self.map.close()
        except BufferError:
            pass  # a driver ring still holds a pointer; the mapping goes with it


class Memory:
    """All regions of one front-end, with an allocator for rings and buffers.

    Resource handling: owns the regions; `close` releases them. Also a context manager.
    """

    def __init__(
        self, size: int = 64 << 20, *, regions: int = 1, gpa: int = 0, hole: int = 0, hugepages: bool = False
    ) -> None:
        """Make the memory.

        Args:
            size: bytes in all, split evenly over the regions (1-32), in whole pages.
            gpa: guest-physical address of the first region.
            hole: bytes of guest-physical space between regions; 0 makes them adjoin, each in a file of its own.
            hugepages: take them from the 2 MiB huge page pool.
        """
        page = 2 << 20 if hugepages else PAGE
        each = size // regions // page * page
        if not each:
            raise ValueError(f"{size} bytes do not make {regions} regions of whole pages")
        self.regions: list[Region] = []
        self._free: list[tuple[int, int]] = []
        self._used: dict[int, int] = {}
        try:
            for number in range(regions):
                self.add(gpa + number * (each + hole), each, hugepages=hugepages)
        except BaseException:
            self.close()
            raise

    def add(self, gpa: int, size: int, **how: Any) -> Region:
        """One more region; see Region.create. The back-end is not told."""
        region = Region.create(gpa, size, **how)
        self.regions.append(region)
        self._give(gpa, size)
        return region

    def add_pieces(self, gpa: int, size: int, count: int) -> Region:
        """One file, mapped here as one, that a back-end gets as `count` adjoining regions; not for `alloc`.

        Args:
            size: bytes of each, whole pages.

        Returns:
            The first; the addresses of the others follow it, guest-physical and in this process.
        """
        whole = Region.create(gpa, size * count)
        pieces = [
            Region(
                gpa + at, whole.uaddr + at, size, at, whole.fd, whole.map, whole.view[at : at + size], owner=False
            )
            for at in range(size, size * count, size)
        ]  # fmt: skip
        whole.size, whole.view = size, whole.view[:size]
        # the owner is closed last
        self.regions += [*reversed(pieces), whole]
        return whole

    def remove(self, region: Region) -> None:
        """Drop a region; allocations in it are gone. The back-end is not told."""
        self.regions.remove(region)
        end = region.gpa + region.size
        self._free = [(at, size) for at, size in self._free if not region.gpa <= at < end]
        self._used = {at: size for at, size in self._used.items() if not region.gpa <= at < end}
        region.close()

    def region_of(self, gpa: int) -> Region:
        """The region that holds `gpa`. Raises: ValueError: none does."""
        for region in self.regions:
            if 0 <= gpa - region.gpa < region.size:
                return region
        raise ValueError(f"guest address {gpa:#x} is in no region")

    def uaddr(self, gpa: int) -> int:
        """The front-end address of `gpa`."""
        region = self.region_of(gpa)
        return region.uaddr + gpa - region.gpa

    def hva(self, gpa: int) -> int:
        """The address of `gpa` in this process."""
        region = self.region_of(gpa)
        return region.hva + gpa - region.gpa

    # Allocation: first fit, addresses are guest-physical; a block never crosses regions.

    def alloc(self, size: int, align: int = 16, *, region: Region | None = None) -> int:
        """`size` bytes aligned to `align` (a power of two), zeroed. Raises: DeviceError: the memory is full."""
        size = max(size, 1)
        for number, (at, room) in enumerate(self._free):
            start = (at + align - 1) & -align
            if start + size > at + room or (region is not None and not 0 <= at - region.gpa < region.size):
                continue
            rest = [(at, start - at), (start + size, at + room - start - size)]
            self._free[number : number + 1] = [piece for piece in rest if piece[1]]
            self._used[start] = size
            self.write(start, bytes(size))
            return start
        raise DeviceError(f"no {size} bytes left in the front-end's memory; give it a larger one")

    def free(self, gpa: int) -> None:
        """Give back what `alloc` returned."""
        self._give(gpa, self._used.pop(gpa))

    def _give(self, gpa: int, size: int) -> None:
        self._free.append((gpa, size))
        self._free.sort()
        merged: list[tuple[int, int]] = []
        for at, room in self._free:
            if merged and merged[-1][0] + merged[-1][1] == at and self.region_of(at) is self.region_of(merged[-1][0]):
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((at, room))
        self._free = merged

    # Access

    def _pieces(self, gpa: int, size: int) -> Iterator[memoryview]:
        while size:
            region = self.region_of(gpa)
            start = gpa - region.gpa
            count = min(size, region.size - start)
            yield region.view[start : start + count]
            gpa, size = gpa + count, size - count

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes out; may cross regions that adjoin."""
        return b"".join(bytes(piece) for piece in self._pieces(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        """Copy `data` in; may cross regions that adjoin."""
        done = 0
        for piece in self._pieces(gpa, len(data)):
            piece[:] = data[done : done + len(piece)]
            done += len(piece)

    def view(self, gpa: int, size: int) -> memoryview:
        """The bytes themselves; must lie in one region."""
        region = self.region_of(gpa)
        start = gpa - region.gpa
        if start + size > region.size:
            raise ValueError(f"{size} bytes at {gpa:#x} cross the end of their region")
        return region.view[start : start + size]

    # One aligned load or store each: what the other side may see at any moment.

    def load(self, gpa: int, size: int) -> int:
        """The `size`-byte (1, 2, 4, 8) number at `gpa`, read once."""
        return int(self.view(gpa, size).cast(_FORMATS[size])[0])

    def store(self, gpa: int, size: int, value: int) -> None:
        """Write the `size`-byte (1, 2, 4, 8) number at `gpa` at once."""
        self.view(gpa, size).cast(_FORMATS[size])[0] = value

    def messages(self) -> tuple[MemRegion, ...]:
        """All regions as SET_MEM_TABLE describes them."""
        return tuple(region.message() for region in self.regions)

    def filenos(self) -> Sequence[int]:
        """Descriptors of all regions, still owned here."""
        return [region.fd for region in self.regions]

    def close(self) -> None:
        """Release all regions; a second call does nothing."""
        for region in self.regions:
            region.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


_FORMATS: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}

"""What the guest's virtual IOMMU maps, as far as the front-end told us; finds what an invalidation concerns.

`ring.Iotlb` answers the data path. This copy of its entries, kept on the control side, answers one question more: which
of our mappings lie behind a range of I/O addresses, so that accesses in flight there can be waited for.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["IovaMap", "Piece"]

U64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` bytes at I/O address `iova` are at front-end address `uaddr`."""

    iova: int
    size: int
    uaddr: int


class IovaMap:
    """Non-overlapping pieces, ordered by I/O address."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def update(self, iova: int, size: int, uaddr: int) -> None:
        """Add a piece; it replaces what the range held."""
        self.invalidate(iova, size)
        at = self._first(iova)
        if at and (left := self._pieces[at - 1]).iova + left.size == iova and left.uaddr + left.size == uaddr:
            self._pieces[at - 1] = Piece(left.iova, left.size + size, left.uaddr)
        else:
            self._pieces.insert(at, Piece(iova, size, uaddr))

    def invalidate(self, iova: int, size: int) -> None:
        """Forget the range; pieces that reach beyond it are cut."""
        end = iova + size
        at = self._first(iova)
        if at and self._pieces[at - 1].iova + self._pieces[at - 1].size > iova:
            at -= 1
        stop = at
        rest: list[Piece] = []
        while stop < len(self._pieces) and (piece := self._pieces[stop]).iova < end:
            if piece.iova < iova:
                rest.append(Piece(piece.iova, iova - piece.iova, piece.uaddr))
            if piece.iova + piece.size > end:
                cut = end - piece.iova
                rest.append(Piece(end, piece.size - cut, piece.uaddr + cut))
            stop += 1
        self._pieces[at:stop] = rest

    def find(self, iova: int, size: int) -> list[Piece]:
        """The mapped parts of the range."""
        end = iova + size
        at = self._first(iova)
        if at and self._pieces[at - 1].iova + self._pieces[at - 1].size > iova:
            at -= 1
        found = []
        while at < len(self._pieces) and (piece := self._pieces[at]).iova < end:
            start, stop = max(piece.iova, iova), min(piece.iova + piece.size, end)
            found.append(Piece(start, stop - start, piece.uaddr + start - piece.iova))
            at += 1
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()

    def _first(self, iova: int) -> int:
        """Index of the first piece that begins at `iova` or later."""
        return bisect_right(self._pieces, iova - 1, key=lambda piece: piece.iova)

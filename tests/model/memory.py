"""Guest memory as the model sees it: byte strings at addresses, holes between them."""

from __future__ import annotations

from ring import ErrorCode


class Bad(Exception):
    """What a guest did is against the rules; any of ``codes`` says so rightly."""

    def __init__(self, *codes: ErrorCode) -> None:
        self.codes = frozenset(codes)
        super().__init__(", ".join(sorted(code.name for code in codes)))


class Memory:
    """Regions ``(gpa, bytes, read_only)``; they do not overlap."""

    def __init__(self, regions: list[tuple[int, bytearray, bool]]) -> None:
        self.regions = sorted(regions, key=lambda region: region[0])

    def pieces(self, gpa: int, size: int) -> list[tuple[int, int, bool]]:
        """``(gpa, bytes, read_only)`` per region touched.

        Raises:
            Bad: not every byte is mapped.
        """
        if gpa + size > 1 << 64:
            raise Bad(ErrorCode.ADDR, ErrorCode.RANGE)
        out = []
        while size:
            for start, data, read_only in self.regions:
                if start <= gpa < start + len(data):
                    n = min(size, start + len(data) - gpa)
                    out.append((gpa, n, read_only))
                    gpa += n
                    size -= n
                    break
            else:
                raise Bad(ErrorCode.ADDR)
        return out

    def touches_read_only(self, gpa: int, size: int) -> bool:
        """Part of the range is mapped read-only."""
        return any(ro and start < gpa + size and gpa < start + len(data) for start, data, ro in self.regions)

    def _slice(self, gpa: int) -> tuple[bytearray, int]:
        for start, data, _ in self.regions:
            if start <= gpa < start + len(data):
                return data, gpa - start
        raise AssertionError(f"{gpa:#x} was not checked")

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at ``gpa``; Bad if they are not all mapped."""
        out = b""
        for start, n, _ in self.pieces(gpa, size):
            data, at = self._slice(start)
            out += data[at : at + n]
        return out

    def write(self, gpa: int, new: bytes) -> None:
        """Change the bytes at ``gpa``; Bad if they are not all mapped."""
        for start, n, _ in self.pieces(gpa, len(new)):
            data, at = self._slice(start)
            data[at : at + n] = new[:n]
            new = new[n:]

    def u16(self, gpa: int) -> int:
        """A little-endian number."""
        return int.from_bytes(self.read(gpa, 2), "little")

    def put(self, gpa: int, size: int, value: int) -> None:
        """Store a little-endian number."""
        self.write(gpa, value.to_bytes(size, "little"))

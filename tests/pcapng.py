"""What a pcapng file says, every block of it read by the text of the standard."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

IN, OUT = 1, 2


@dataclass
class Section:
    """A file as a reader sees it."""

    names: list[str] = field(default_factory=list)
    packets: list[tuple[int, int, bytes, int, int]] = field(default_factory=list)  # interface, ns, bytes, length, way
    received: dict[int, int] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            assert data == b"\0\0\0\0"
            return
        yield code, data[4 : 4 + length]
        data = data[4 + (length + 3) // 4 * 4 :]
    raise AssertionError("options without an end")


def read(path: Path) -> Section:
    """Every block of a file, by the text of the standard."""
    data = path.read_bytes()
    out = Section()
    assert data[:4] == b"\x0a\x0d\x0d\x0a"
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, length - 4) == (length,)
        body, data = data[8 : length - 4], data[length:]
        if kind == 0x0A0D0D0A:
            assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
            assert dict(_options(body[16:])) == {4: b"vhostkit"}
        elif kind == 1:
            assert struct.unpack_from("<HH", body) == (1, 0)
            options = dict(_options(body[8:]))
            assert options[9] == b"\x09"
            out.names.append(options[2].decode())
        elif kind == 5:
            interface, *_ = struct.unpack_from("<III", body)
            options = dict(_options(body[12:]))
            (out.received[interface],), (out.dropped[interface],) = (
                struct.unpack("<Q", options[4]),
                struct.unpack("<Q", options[5]),
            )
        else:
            assert kind == 6
            interface, high, low, kept, full = struct.unpack_from("<IIIII", body)
            assert interface < len(out.names)
            options = dict(_options(body[20 + (kept + 3) // 4 * 4 :]))
            (way,) = struct.unpack("<I", options[2])
            out.packets.append((interface, high << 32 | low, body[20 : 20 + kept], full, way))
    return out

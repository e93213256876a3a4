"""Writes the seed corpus of frame_fuzz: frames as good drivers send them, whole and unfinished, in few and many pieces.

    python tests/fuzz/frame_seeds.py [FOLDER]

The layout of an input is at the head of ``frame_fuzz.c``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

CSUM, TSO4, TSO6, ECN, USO, UFO = (1 << i for i in range(6))
ALL = CSUM | TSO4 | TSO6 | ECN | USO
NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4, WITH_ECN = 1, 4, 5, 0x80
TCP, UDP, HOP, ROUTING = 6, 17, 0, 43
HEADERS = (10, 12, 20)
CHANGES, TAG, UNTAG = 1, 2, 4


def header(flags: int = 0, kind: int = 0, hdr_len: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    """struct net_hdr."""
    return struct.pack("<BBHHHH", flags, kind, hdr_len, size, start, offset)


def frame(
    *, v6: bool = False, protocol: int = TCP, tags: int = 0, extensions: int = 0, options: int = 0, payload: int = 100
) -> tuple[bytes, int, int]:
    """A frame, where its transport header is, and where its payload; lengths are true, checksums are not."""
    if protocol == UDP:
        body = struct.pack(">HHHH", 53, 54, 8 + payload, 0)
    else:
        body = struct.pack(">HHIIBBHHH", 80, 81, 7, 8, (5 + options) << 4, 0x99, 100, 0, 0) + b"\x01" * (4 * options)
    bytes_of = bytes(i * 11 & 0xFF for i in range(payload))
    if v6:
        chain = b"".join(
            bytes([HOP if i + 1 < extensions else protocol, 0, 1, 4, 0, 0, 0, 0]) for i in range(extensions)
        )
        length = len(chain) + len(body) + payload
        ip = struct.pack(">IHBB", 6 << 28, length, HOP if extensions else protocol, 9) + b"\xfd" * 16 + b"\xfe" * 16
        ip += chain
    else:
        length = 20 + len(body) + payload
        ip = struct.pack(">BBHHHBBH", 0x45, 0, length, 0xFFFF, 0x4000, 9, protocol, 0) + b"\x0a\0\0\1\x0a\0\0\2"
    ether = b"\x02" * 12 + b"\x81\0\0\1" * tags + (b"\x86\xdd" if v6 else b"\x08\0")
    return ether + ip + body + bytes_of, len(ether) + len(ip), len(ether) + len(ip) + len(body)


def seed(
    hdr: bytes,
    data: bytes,
    *,
    takes: int = 0,
    allowed: int = ALL,
    kind: int = 1,
    cuts: tuple[int, ...] = (),
    flags: int = 0,
    extra: int = 0,
) -> bytes:
    """One input."""
    head = struct.pack("<BBBBHH", kind, allowed, takes, flags, extra, len(cuts))
    return head + struct.pack(f"<{len(cuts)}H", *cuts) + hdr.ljust(HEADERS[kind], b"\0") + data


def large(name: str, size: int, **what: int) -> tuple[bytes, bytes]:
    """A frame to be cut, and its header."""
    v6, protocol = bool(what.get("v6")), what.get("protocol", TCP)
    data, start, end = frame(
        v6=v6,
        protocol=protocol,
        tags=what.get("tags", 0),
        extensions=what.get("extensions", 0),
        options=what.get("options", 0),
        payload=what.get("payload", 3000),
    )
    kind = UDP_L4 if protocol == UDP else TCPV6 if v6 else TCPV4
    kind |= WITH_ECN if "ecn" in name else 0
    return header(NEEDS_CSUM, kind, end, size, start, 6 if protocol == UDP else 16), data


def seeds() -> dict[str, bytes]:
    """All, by name."""
    out = {}
    for kind in range(3):
        out[f"plain-{kind}"] = seed(header(), frame()[0], kind=kind, takes=ALL)
    out["short"] = seed(header(), bytes(14))
    data, start, _ = frame(payload=500)
    out["checksum"] = seed(header(NEEDS_CSUM, 0, 0, 0, start, 16), data)
    out["checksum-odd"] = seed(header(NEEDS_CSUM, 0, 0, 0, 15, 7), data, cuts=(3, 1, 20, 7, 91, 200))
    out["checksum-far"] = seed(header(NEEDS_CSUM, 0, 0, 0, 300, 16), data, cuts=(12, 300))
    for name, (hdr, whole) in {
        "tcp4": large("tcp4", 1000),
        "tcp4-ecn": large("tcp4-ecn", 999, options=3),
        "tcp4-tag": large("tcp4", 1448, tags=1, options=10),
        "tcp4-one": large("tcp4", 4000),
        "tcp4-tiny": large("tcp4", 3, payload=600),
        "tcp6": large("tcp6", 1400, v6=1),
        "tcp6-ext": large("tcp6", 700, v6=1, tags=2, extensions=2),
        "udp4": large("udp4", 1200, protocol=UDP),
        "udp6": large("udp6", 501, v6=1, protocol=UDP),
    }.items():
        out[name] = seed(hdr, whole)
        out[f"{name}-pieces"] = seed(hdr, whole, cuts=(12, 14, 20, 31, 70, 1, 299, 0, 50))
        out[f"{name}-taken"] = seed(hdr, whole, takes=ALL)
        out[f"{name}-checksum-taken"] = seed(hdr, whole, takes=CSUM, cuts=(100, 200))
        out[f"{name}-tagged"] = seed(hdr, whole, flags=TAG, cuts=(12,) if "6" in name else ())
        if name != "tcp6-ext":  # of two tags, one does not go
            out[f"{name}-untagged"] = seed(hdr, whole, flags=UNTAG, takes=CSUM, cuts=(12,))
        out[f"{name}-changes"] = seed(hdr, whole, flags=CHANGES, cuts=(500,))
    hdr, whole = large("tcp4", 1448, payload=1000)
    # lengths left to the device, and a frame as long as they get
    longest = bytearray(whole)
    longest[16:18] = b"\0\0"
    out["longest"] = seed(hdr, bytes(longest), extra=65535 + 14 - len(whole))
    return out


def main(argv: list[str]) -> int:
    """See the module's text."""
    folder = Path(argv[0]) if argv else Path(__file__).parent / "corpus" / "frame"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

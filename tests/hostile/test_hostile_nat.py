"""Guests that send anything to the user-mode NAT: an IP stack in C that is not ours, on a thread of its own."""

from __future__ import annotations

import itertools
import random
import struct
import time

import peerlib
import pytest
from hostilecard import ALL, EVERYONE, EVIL, Card, eth
from hostilelib import RSS_SLACK, SANITIZED


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)


def _for_the_nat(rng: random.Random) -> bytes:
    """A packet that the NAT looks into, more or less: IPv4 with a right sum, and what it carries; ARP; IPv6."""
    dns, dhcp = bytes(3) + b"\1" + rng.randbytes(20), b"\1\1\6\0" + bytes(232) + bytes.fromhex("63825363 3501")
    tcp = struct.pack(
        "!HHIIBBHHH", 4000, rng.choice((1, 22, 65535)), 1, 0, rng.choice((0x50, 0xF0, 0x10, 0)), 2, 9, 0, 0
    )
    carried = [
        (6, tcp + rng.randbytes(rng.choice((0, 1, 40, 1400)))),
        (17, struct.pack("!HHHH", 68, 67, rng.choice((8, 260, 0, 0xFFFF)), 0) + dhcp + rng.randbytes(60)),
        (17, struct.pack("!HHHH", 4000, rng.choice((53, 69, 9)), rng.choice((8, 32, 7, 9000)), 0) + dns),
        (1, b"\x08\0\0\0" + rng.randbytes(rng.choice((0, 4, 60)))),
        (58, bytes((rng.choice((128, 133, 135, 136, 143)), 0, 0, 0)) + rng.randbytes(rng.choice((0, 4, 20, 40)))),
    ]
    kind, body = rng.choice(carried)
    if rng.random() < 0.25:
        head = struct.pack("!IHBB", 0x60000000, rng.choice((len(body), 0, 0xFFFF)), kind, 255)
        return eth(
            b"\x33\x33\0\0\0\2", EVIL, head + b"\xfe\x80" + bytes(14) + b"\xfe\xc0" + bytes(13) + b"\2" + body, 0x86DD
        )
    if rng.random() < 0.1:
        return eth(EVERYONE, EVIL, bytes.fromhex("000108000604") + rng.randbytes(22), 0x0806)
    first = rng.choice((0x45, 0x45, 0x45, 0x46, 0x4F, 0x44))
    cut = rng.choice((0, 0, 0x4000, 0x2000, 0x2001, 0x1FFF, 0x3FFF))  # fragments that overlap, and end beyond 64 KiB
    size = rng.choice((20 + len(body), 20 + len(body), 0, 19, 0xFFFF))
    head = struct.pack("!BBHHHBBH", first, 0, size, rng.randrange(4), cut, 64, kind, 0)
    head += b"\x0a\0\2\x0f\x0a\0\2" + rng.choice((b"\2", b"\3", b"\xff"))
    words = (first & 15) * 4
    whole = head + body
    return eth(
        EVERYONE, EVIL, whole[:10] + _checksum(whole[:words].ljust(words + words % 2, b"\0")) + whole[12:], 0x0800
    )


@pytest.mark.parametrize("features", [ALL, -1], ids=["split", "packed"])
def test_nat(features: int) -> None:
    """Whatever goes to the NAT, which is in C and somebody else's; the gateway still answers."""
    rng = random.Random(8)
    with peerlib.vhost_net("--user", "--restrict") as backend, Card(backend.path, features) as evil:
        rss = 0
        for n in range(4000):
            data = bytearray(_for_the_nat(rng))
            for _ in range(rng.choice((0, 0, 1, 3))):
                data[14 + rng.randrange(len(data) - 14)] = rng.getrandbits(8)
            evil.send(bytes(data[: rng.choice((len(data), len(data), rng.randrange(14, len(data) + 1)))]))
            evil.heard()
            if n == 2000:
                rss = backend.rss()
        arp = bytes.fromhex("0001 0800 0604 0001") + EVIL + b"\x0a\0\2\x0f" + bytes(6) + b"\x0a\0\2\2"
        evil.send(eth(EVERYONE, EVIL, arp.ljust(46, b"\0"), 0x0806))
        end = time.monotonic() + 60
        while not [data for _, data in evil.heard() if data[12:14] == b"\x08\x06" and data[28:32] == b"\x0a\0\2\2"]:
            assert time.monotonic() < end, "the gateway does not answer"
            time.sleep(0.002)
        assert backend.process.poll() is None
        assert backend.deaths == 0
        assert SANITIZED or backend.rss() <= rss + RSS_SLACK
        assert "Traceback" not in backend.words


def test_pieces_of_datagrams() -> None:
    """In order they make an echo that is answered; alone, out of order, or overlapping they are lost."""
    gateway = b"\x0a\0\2\2"
    payload = bytes(range(256)) * 5
    echo = b"\x08\0\0\0\0\1\0\1" + payload
    echo = echo[:2] + _checksum(echo) + echo[4:]

    def piece(first: int, end: int, more: bool, number: int) -> bytes:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + end - first, number, more << 13 | first // 8, 64, 1, 0)
        head += b"\x0a\0\2\x0f" + gateway
        return eth(
            EVERYONE, EVIL, head[:10] + _checksum(head) + head[12:] + echo[first:end].ljust(end - first, b"\0"), 0x0800
        )

    with peerlib.vhost_net("--user") as backend, Card(backend.path) as guest:

        def answered() -> None:
            end, got = time.monotonic() + 60, 0
            while not got:
                assert time.monotonic() < end, "an echo was not answered"
                for _, data in guest.heard():
                    if data[12:14] == b"\x08\0" and data[34] == 0:
                        assert data[42:] == payload
                        got += 1
            assert got == 1

        arp = bytes.fromhex("0001 0800 0604 0001") + EVIL + b"\x0a\0\2\x0f" + bytes(6) + gateway
        guest.send(eth(EVERYONE, EVIL, arp.ljust(46, b"\0"), 0x0806))
        size = len(echo)
        for first, more in ((8, False), (0x1FFF * 8, False), (1480, False), (8, True)):
            guest.send(piece(first, first + 64, more, first & 0xFFFF))
        for number, cuts in enumerate(((0, 800, size), (0, 8, 16, 800, size), (0, 1024, size)), 1):
            pieces = [piece(a, b, b < size, number) for a, b in itertools.pairwise(cuts)]
            for data in reversed(pieces[1:]):
                guest.send(data)
            guest.send(pieces[0])
            guest.send(pieces[0])
            for data in pieces[1:]:
                guest.send(data)
            answered()
        for data in (piece(0, 800, True, 9), piece(792, 1200, True, 9), piece(1200, size, False, 9)):
            guest.send(data)
        guest.send(piece(0, 1000, True, 11))
        guest.send(piece(1000, size, False, 11))
        answered()

"""Cards (class G) and their switch: one guest does its worst while two others on the same worker talk to each other.

After every attack the process is the same, the two hear each other and nothing else, the attacker's own card starts
again, and neither descriptors nor memory grew. What else a hostile ring does to a card is tried with all devices, in
test_hostile_rings.py and test_hostile_lifecycle.py.
"""

from __future__ import annotations

import random
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import peerlib
import pytest
from hostilecard import ALL, EVERYONE, EVIL, HEADER, NOBODY, PLAIN, UNTOUCHED, A, B, Card, eth
from hostilelib import FD_SLACK, INDIRECT, RSS_SLACK, SANITIZED

from vhost.constants import FrontendRequest as F
from vhost.frontend import Memory
from vhost.messages import VringState
from vhost.testing import Failure, Peer, connect_to

LAYOUTS = pytest.mark.parametrize("features", [ALL, -1], ids=["split", "packed"])

#: port: what its table says beyond the switch
PORTS = {
    "a": 'pin-mac = "52:54:00:00:00:01"',
    "b": 'pin-mac = "52:54:00:00:00:02"',
    "evil": "",
    "in5": "vlan = 5",
    "in6": "vlan = 6",
    "both": 'trunk = "5,6"',
}


class Lan:
    """The process, and the two that nothing must happen to."""

    def __init__(self, backend: peerlib.Backend, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        self.a, self.b = Card(folder / "a"), Card(folder / "b")
        self.number = 0
        self.pid = backend.pid
        self.heard = self.fds = self.rss = 0
        self.a.send(eth(EVERYONE, A))
        self.b.send(eth(EVERYONE, B))
        self.drain()

    def card(self, name: str = "evil", features: int = 0, *, queues: int = 2, buffers: int = 60) -> Card:
        return Card(self.folder / name, features, queues=queues, buffers=buffers)

    def drain(self) -> list[bytes]:
        """What came to a and b."""
        return [data for card in (self.a, self.b) for _, data in card.heard()]

    def talk(self, count: int = 3) -> None:
        """Frames from a to b and back, each of which comes once and as it was sent."""
        for source, dst, src, dest in ((self.a, B, A, self.b), (self.b, A, B, self.a)):
            for _ in range(count):
                self.number += 1
                data = eth(dst, src, self.number.to_bytes(8, "big") * 20)
                source.send(data)
                assert not [found for found in dest.wait_for(data) if found[:12] == data[:12]]

    def begin(self) -> None:
        self.card().close()
        self.heard = len(self.backend.words)
        self.fds, self.rss = self.backend.fds(), self.backend.rss()

    def check(self) -> None:
        """The invariants. Raises: AssertionError."""
        assert self.backend.process.poll() is None, f"the process died:\n{self.backend.words[-3000:]}"
        self.drain()
        self.talk()
        with self.card() as evil:
            evil.send(eth(A, EVIL, b"again" * 20))
            self.a.wait_for(eth(A, EVIL, b"again" * 20))
        fds = self.backend.settled_fds(self.fds + FD_SLACK)
        assert fds <= self.fds + FD_SLACK, f"open descriptors grew from {self.fds} to {fds}"
        rss = self.backend.rss()
        assert SANITIZED or rss <= self.rss + RSS_SLACK, f"memory grew from {self.rss >> 10} to {rss >> 10} KiB"
        said = self.backend.words[self.heard :]
        assert "Traceback" not in said, said[-3000:]
        assert said.count("\n") < 200, "every frame makes a line"

    def close(self) -> None:
        self.a.close()
        self.b.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Lan]:
    with peerlib.short_folder() as folder:
        config = folder / "config.toml"
        config.write_text(
            "".join(
                f'[[device]]\ntype = "net"\nname = "{name}"\nsocket-path = "{folder / name}"\nswitch = "lan"\n{more}\n'
                for name, more in PORTS.items()
            )
        )
        command = [str(Path(sys.executable).with_name("vhost")), "serve", str(config)]
        with peerlib.running(command, folder / "both", folder / "log") as backend:
            lan = Lan(backend, folder)
            try:
                yield lan
            finally:
                lan.close()


@pytest.fixture
def lan(three: Lan) -> Iterator[Lan]:
    """Two good neighbours; they are well afterwards."""
    three.begin()
    yield three
    three.check()


# Frames and their headers


def any_header(rng: random.Random) -> bytes:
    def number(*likely: int) -> int:
        return rng.choice((0, 1, 13, 14, 34, 54, 0x7FFF, 0xFFFF, rng.getrandbits(16), *likely))

    flags = rng.choice((0, 1, 2, 3, 0xFF, rng.getrandbits(8)))
    kind = rng.choice((0, 1, 3, 4, 5, 0x81, 0x84, 0x7F, rng.getrandbits(8)))
    return HEADER.pack(flags, kind, number(42, 66), number(8, 1448), number(), number(6, 16), number())


def any_frame(rng: random.Random) -> bytes:
    ip4 = bytes.fromhex("4500 0bf0 0000 0000 4006 0000 01020304 05060708")
    ip6 = bytes.fromhex("60000000 0bdc 06 40") + bytes(32)
    tcp = bytes.fromhex("0001 0002 00000000 00000000 5010 ffff 0000 0000")
    kind, head = rng.choice(((0x0800, ip4), (0x86DD, ip6), (0x8100, b"\0\5\x08\0" + ip4), (rng.getrandbits(16), b"")))
    body = head + tcp + bytes(rng.choice((0, 1, 100, 1446, 3000, 9000, 65000)))
    data = bytearray(eth(rng.choice((B, EVERYONE, NOBODY)), EVIL, body, kind))
    for _ in range(rng.choice((0, 0, 1, 4))):
        data[12 + rng.randrange(min(len(data) - 12, 60))] = rng.getrandbits(8)
    return bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])


@LAYOUTS
def test_headers_and_frames_of_all_kinds(lan: Lan, features: int) -> None:
    """CVE-2024-11614 and its like: whatever the header says, in whatever pieces; what others get is whole."""
    rng = random.Random(5)
    with lan.card(features=features) as evil:
        for n in range(600):
            cut = [rng.choice((1, 1, 2, 9, 11, 12, 13, 26, 400)) for _ in range(rng.randrange(12))]
            evil.send(any_frame(rng), any_header(rng), cut, indirect=n % 3 == 0)
            for header, data in lan.b.heard():  # b negotiated nothing
                assert header[:10] == bytes(10)
                assert 14 <= len(data) <= 65535 + 18
                assert data[6:12] != A
            lan.a.heard()


@LAYOUTS
def test_header_over_many_descriptors(lan: Lan, features: int) -> None:
    """CVE-2022-2132."""
    with lan.card(features=features) as evil:
        data = eth(B, EVIL, bytes(range(200)))
        for cut in ((1,) * 12, (1,) * 60, (3, 3, 3, 3, 1, 1), (11, 1, 1), (11,)):
            lan.drain()
            evil.send(data, cut=cut, indirect=len(cut) > 50)
            assert lan.b.wait() == data


@LAYOUTS
def test_runts_and_giants(lan: Lan, features: int) -> None:
    with lan.card(features=features) as evil:
        data = eth(B, EVIL)
        for length in range(1, HEADER.size + 14):
            evil.send(b"", (PLAIN + data)[:length], (5,))
        assert not lan.drain()
        for length in (65535 + 18 + 1, 70_000, 1 << 20):
            evil.send(data.ljust(length, b"\0"), cut=(12, 60_000))
        # the same megabyte again and again: 64 MiB of frame in one table
        piece = evil.peer.room(1 << 20)
        evil.transmit.submit([evil.peer.put(PLAIN), *[piece] * 63], [], indirect=True)
        with suppress(Failure):
            evil.transmit.wait()
        assert not lan.drain()


@LAYOUTS
def test_buffers_without_room(lan: Lan, features: int) -> None:
    """Receive chains that nothing fits into, that hold nothing to be written, or that are endless pieces."""
    with lan.card(features=features, buffers=0) as evil:
        peer = evil.peer
        evil.send(eth(EVERYONE, EVIL))
        lan.drain()
        for pieces in ([1], [11], [12], [13], [1] * 40, [12, 13], [2, 3, 5, 7, 11]):
            evil.receive.submit([], [peer.room(n) for n in pieces], indirect=len(pieces) > 1)
            lan.a.send(eth(EVIL, A, bytes(1400)))
        with suppress(Failure):
            evil.receive.submit([peer.room(2048)], [])
            lan.a.send(eth(EVIL, A, bytes(1400)))
            evil.receive.submit([peer.room(64)], [peer.room(2048)])
            lan.a.send(eth(EVIL, A, bytes(1400)))
        evil.receive.driver.poll(64)
        lan.talk()


@LAYOUTS
def test_header_and_frame_change_meanwhile(lan: Lan, features: int) -> None:
    """Double fetches: a thread rewrites headers and frames while they are being sent on."""
    end = time.monotonic() + (4 if SANITIZED else 1.5)
    with lan.card(features=features) as evil:
        memory, stop = evil.peer.memory, threading.Event()
        frame = eth(B, EVIL, b"\x45" + bytes(2000), 0x0800)
        at, size = evil.peer.put(HEADER.pack(1, 1, 54, 1448, 34, 16, 0) + frame)

        def mutate() -> None:
            rng = random.Random(3)
            view = memory.view(at, 64)
            while not stop.is_set():
                view[:12] = any_header(rng)
                view[12 + 12 + rng.randrange(40)] = rng.getrandbits(8)
            del view

        thread = threading.Thread(target=mutate)
        thread.start()
        try:
            while time.monotonic() < end:
                for _ in range(20):
                    evil.transmit.submit([(at, 30), (at + 30, size - 30)], [], indirect=True, kick=False)
                evil.transmit.kick()
                evil.transmit.wait(20)
                for header, data in lan.b.heard():
                    assert header[:10] == bytes(10)
                    assert 14 <= len(data) <= len(frame)
                lan.a.heard()
        finally:
            stop.set()
            thread.join()


# The control queue


def _commands(rng: random.Random) -> Iterator[list[bytes]]:
    mac, many = EVIL, 0xFFFF_FFFF.to_bytes(4, "little")
    for count in (0, 1, 2, 64, 65, 5000):
        table = count.to_bytes(4, "little") + mac * count
        yield [b"\1\0", table, bytes(4)]
        yield [b"\1\0", table[:-1], bytes(4)]
        yield [b"\1\0" + table + table]
    yield [b"\1\0", many, mac]  # CVE-2014-0150
    yield [b"\1\0", many + mac * 100, many + mac * 100]
    yield [b"\1\0", bytes(4), many]
    yield [b"\1\1", mac[:5]]
    yield [b"\1\1", mac + b"\0"]
    for vlan in (0, 1, 4095, 4096, 65535):
        yield [b"\2\0", vlan.to_bytes(2, "little")]
        yield [b"\2\1", vlan.to_bytes(2, "little")]
    yield [b"\2\0", b"\1"]
    for pairs in (0, 1, 2, 3, 0x8000, 0xFFFF):
        yield [b"\4\0", pairs.to_bytes(2, "little")]
    yield [b"\3\0"]
    yield [b"\5\0", b"\xff" * 8]
    yield [b"\5\0", b"\xff" * 7]
    for at in range(4):  # RSS and hash configuration: lengths that lie (CVE-2024-6505, CVE-2023-6693)
        fields = [many[:4], b"\x7f\0", b"\0\0", b"\xff\xff" * 128, b"\1\0", b"\xff"]
        fields[at] = b"\xff" * (len(fields[at]) + at)
        yield [b"\4\1", b"".join(fields), bytes(40)]
        yield [b"\4\2", b"".join(fields)[: 8 + at]]
    for n in range(400):
        kind = bytes(
            (rng.choice((0, 1, 2, 3, 4, 5, 6, rng.getrandbits(8))), rng.choice((0, 1, 2, 3, rng.getrandbits(8))))
        )
        yield [(kind + rng.randbytes(rng.choice((0, 1, 2, 4, 5, 8, 300))))[: rng.choice((1, 2, 400))]] + [
            rng.randbytes(rng.choice((1, 2, 6, 40, 3000))) for _ in range(n % 4)
        ]


@LAYOUTS
def test_control_queue(lan: Lan, features: int) -> None:
    """Every command with lengths that lie, in pieces, with and without room for the answer."""
    rng = random.Random(9)
    with lan.card(features=features, queues=3) as evil:
        ring = evil.rings[2]
        peer = ring.peer
        for n, parts in enumerate(_commands(rng)):
            data = b"".join(parts)
            cuts = [parts, [data], [data[:1], data[1:]], [bytes([byte]) for byte in data[:20]]][n % 4]
            out = [peer.put(part) for part in cuts if part]
            room = [] if n % 7 == 6 else [peer.room(1, UNTOUCHED), *([peer.room(8, UNTOUCHED)] if n % 5 == 4 else [])]
            ring.submit(out, room, indirect=n % 2 == 0)
            (used,) = ring.wait()
            assert used.length <= 1
            if room:
                assert peer.memory.load(room[0][0], 1) in (0, 1)
            for at, _ in out + room:
                peer.memory.free(at)
            if n % 50 == 0:
                lan.talk(1)
        # nothing to read, nothing at all but room, and a gigabyte
        ring.submit([], [peer.room(1)])
        ring.wait()
        big = peer.room(1 << 20)
        with suppress(Failure):
            ring.submit([peer.put(b"\1\0"), *[big] * 60], [peer.room(1)], indirect=True)
            ring.wait()


# Memory, rings, connections


@LAYOUTS
def test_memory_goes_away_under_traffic(lan: Lan, features: int) -> None:
    """The region that frames are sent from, and received into, is removed and added while they are under way."""
    memory = Memory(4 << 20)
    memory.add(1 << 32, 4 << 20)
    far = memory.regions[1]
    peer = Peer(connect_to(lan.folder / "evil")(), memory=memory)
    try:
        receive, transmit = peer.bring_up(features, queues=2)
        memory.write(far.gpa, PLAIN + eth(B, EVIL, bytes(1400)))
        for _ in range(15):
            with suppress(Failure, BlockingIOError):
                for n in range(16):
                    transmit.submit(
                        [(far.gpa, 12), (far.gpa + 12, 1414)], [], indirect=bool(features & INDIRECT), kick=False
                    )
                    receive.submit([], [(far.gpa + 4096 * (n + 1), 2048)], kick=False)
                transmit.kick()
                lan.a.send(eth(EVERYONE, A))
                peer.code(F.REM_MEM_REG, far.message())
                lan.a.send(eth(EVERYONE, A))
                transmit.driver.poll(64)
                receive.driver.poll(64)
                peer.code(F.ADD_MEM_REG, far.message(), fds=[far.fd])
            lan.drain()
    finally:
        peer.close()


@LAYOUTS
def test_rings_move_under_traffic(lan: Lan, features: int) -> None:
    """Addresses, sizes and bases of rings that run are changed: refused, or done, and nobody else notices."""
    with lan.card(features=features) as evil:
        other = evil.peer.ring
        for n in range(10):
            with suppress(Failure):
                for ring in (evil.transmit, evil.receive):
                    stranger = other(ring.index + 2, 64)
                    message = evil.peer.address(stranger)
                    evil.peer.code(F.SET_VRING_ADDR, type(message)(**{**_fields(message), "index": ring.index}))
                    evil.peer.code(F.SET_VRING_NUM, VringState(ring.index, 32 << n % 3))
                    evil.peer.code(F.SET_VRING_BASE, VringState(ring.index, n * 7))
                    ring.kick()
            lan.a.send(eth(EVERYONE, A))
            lan.drain()
            lan.talk(1)


def _fields(message: object) -> dict[str, object]:
    return {name: getattr(message, name) for name in type(message).__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["no-buffers", "disabled", "stopped", "unread", "half-set-up"])
def test_dead_receiver(lan: Lan, how: str) -> None:
    """Ports that take nothing hold nobody up: everything between the others arrives, floods included."""
    with lan.card(buffers=0 if how == "no-buffers" else 5) as evil:
        evil.send(eth(EVERYONE, EVIL))
        if how == "disabled":
            evil.peer.enable(evil.receive, False)
        elif how == "stopped":
            evil.peer.stop(evil.receive)
        elif how == "half-set-up":
            evil.close()
            evil.peer = Peer(connect_to(lan.folder / "evil")()).handshake()
        lan.drain()
        began = time.monotonic()
        for _ in range(20):
            lan.a.send(eth(EVIL, A, bytes(1400)))
            lan.a.send(eth(EVERYONE, A, bytes(1400)))
            lan.b.wait_for(eth(EVERYONE, A, bytes(1400)))
            lan.talk(5)
        assert time.monotonic() - began < (60 if SANITIZED else 10)


def test_guests_that_vanish(lan: Lan) -> None:
    """Front-ends end in the middle of a frame's way, fifty times, while the others talk."""
    for n in range(50):
        evil = lan.card(features=ALL if n % 2 else -1)
        for _ in range(30):
            evil.transmit.submit(
                [evil.peer.put(PLAIN + eth(B if n % 3 else EVERYONE, EVIL, bytes(9000)))], [], kick=False
            )
        evil.transmit.kick()
        lan.a.send(eth(EVIL, A, bytes(1400)))
        evil.close()
        lan.talk(1)
        lan.drain()


# What a port of the switch does to the others


def _blast(card: Card, frames: Sequence[bytes]) -> None:
    """Send many, by the ringful."""
    for first in range(0, len(frames), 64):
        some = frames[first : first + 64]
        pieces = [card.peer.put(PLAIN + data) for data in some]
        for piece in pieces:
            card.transmit.submit([piece], [], kick=False)
        card.transmit.kick()
        card.transmit.wait(len(some))
        for at, _ in pieces:
            card.peer.memory.free(at)


def test_address_flood(lan: Lan) -> None:
    """Twenty thousand senders at one port: others stay known, and what they say to each other stays theirs."""
    rng = random.Random(2)
    with lan.card() as evil:
        for _ in range(10):
            macs = [b"\x02" + rng.randbytes(5) for _ in range(2000)]
            _blast(evil, [eth(NOBODY if n % 50 else EVERYONE, mac) for n, mac in enumerate(macs)])
            lan.drain()
            lan.talk(2)
        _blast(evil, [eth(EVERYONE, mac) for mac in (A, B, EVERYONE, bytes(6), b"\1\0\x5e\0\0\1")] * 10)
        evil.heard()
        lan.drain()
        lan.talk(20)
        assert not [data for _, data in evil.heard() if data[6:12] in (A, B)], "the attacker hears the others"


def test_tags(lan: Lan) -> None:
    """Nobody leaves a VLAN: tags of all sorts, double, cut off, of other VLANs, of none."""
    with lan.card("in5") as evil, lan.card("in6") as other, lan.card("both") as trunk:
        other.send(eth(EVERYONE, NOBODY))
        trunk.wait()
        tags = [
            struct.pack("!HH", kind, tag)
            for kind in (0x8100, 0x88A8, 0x9100)
            for tag in (0, 5, 6, 7, 0x1006, 0xE006, 0xF006, 4094, 4095, 0xFFFF)
        ]
        addresses = [dst + EVIL for dst in (EVERYONE, NOBODY, A)]
        frames = [
            where + tag + more + b"\x88\xb5" + bytes(46)
            for where in addresses
            for tag in tags
            for more in (b"", struct.pack("!HH", 0x8100, 6), struct.pack("!HH", 0x88A8, 6) * 3)
        ]
        frames += [frame[:cut] for frame in frames[:40] for cut in (14, 15, 16, 17, 18, 19)]
        for sender in (evil, trunk):
            for first in range(0, len(frames), 20):
                _blast(sender, frames[first : first + 20])
                for _, data in trunk.heard():
                    assert data[12:16] == b"\x81\0\0\5", data[:20].hex()
                got = [data for _, data in other.heard()]
                if sender is evil:
                    assert not got
                evil.heard()
        assert not [data for data in lan.drain() if data[6:12] == EVIL], "plain ports hear a VLAN"

"""What one side sends unfinished and the other cannot take: checksums and segments made in software.

Frames are built here from a description; what is to come out of a large one is built from the same description with
other numbers in it, and checksums word by word. So nothing of this knows how a frame is cut.
"""

from __future__ import annotations

import ipaddress
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cbuild
import pytest
from netrig import BASE, ECN, NEEDS_CSUM, PACKED, TCPV4, TCPV6, UDP_L4, Guest, Header, guest, serving

from devices.net import EchoLink, Net, NetFeature

#: NET_TAKES_*
CSUM, TSO4, TSO6, TAKES_ECN, USO = 1, 2, 4, 8, 16
FIN, PSH, ACK, ECE, CWR = 0x01, 0x08, 0x10, 0x40, 0x80
TCP, UDP = 6, 17
HOP, ROUTING, OPTIONS = 0, 43, 60
DROP_HEADER = 3


def naive_sum(data: bytes) -> int:
    """The folded sum of big-endian words, RFC 1071 as it is written."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def complement(data: bytes) -> int:
    """The checksum of `data`; never 0 (see RFC 768)."""
    return ~naive_sum(data) & 0xFFFF or 0xFFFF


@dataclass(frozen=True)
class Packet:
    """All that makes a frame."""

    v6: bool = False
    protocol: int = TCP
    tags: tuple[int, ...] = ()
    options: bytes = b""  # IPv4, a multiple of 4
    extensions: tuple[tuple[int, bytes], ...] = ()  # IPv6: type, body
    last_hop: bytes = b""  # where a routing header or a source route sends it in the end
    tcp_options: bytes = b""
    flags: int = ACK
    seq: int = 1
    ident: int = 7
    payload: bytes = b""

    @property
    def l3(self) -> int:
        return 14 + 4 * len(self.tags)

    @property
    def l4(self) -> int:
        return self.l3 + (40 + sum(2 + len(body) for _, body in self.extensions) if self.v6 else 20 + len(self.options))

    @property
    def headers(self) -> int:
        return self.l4 + (8 if self.protocol == UDP else 20 + len(self.tcp_options))

    @property
    def place(self) -> int:
        """The checksum's offset in its header."""
        return 6 if self.protocol == UDP else 16

    def transport(self, checksum: int) -> bytes:
        if self.protocol == UDP:
            return struct.pack(">HHHH", 4000, 5000, 8 + len(self.payload), checksum) + self.payload
        offset = (20 + len(self.tcp_options)) // 4 << 4
        fixed = struct.pack(">HHIIBBHHH", 80, 9000, self.seq, 0x01020304, offset, self.flags, 512, checksum, 0)
        return fixed + self.tcp_options + self.payload

    def build(self, *, whole: bool) -> bytes:
        """The frame; not `whole`: its checksum is left to others, over the pseudo header's sum."""
        if self.v6:
            source, target = ipaddress.ip_address("2001:db8::1").packed, ipaddress.ip_address("2001:db8::2:ffff").packed
        else:
            source, target = ipaddress.ip_address("192.0.2.1").packed, ipaddress.ip_address("198.51.100.9").packed
        bare = self.transport(0)
        pseudo = source + (self.last_hop or target) + struct.pack(">II", len(bare), self.protocol)
        body = self.transport(complement(pseudo + bare) if whole else naive_sum(pseudo))
        if self.v6:
            chain = b""
            kinds = [kind for kind, _ in self.extensions] + [self.protocol]
            for (_, content), after in zip(self.extensions, kinds[1:], strict=True):
                chain += bytes([after, len(content) // 8]) + content
            ip = struct.pack(">IHBB", 0x60000000, len(chain) + len(body), kinds[0], 64) + source + target + chain
        else:
            lead = bytes([0x40 | (20 + len(self.options)) // 4, 0])
            ip = lead + struct.pack(
                ">HHHBBH", 20 + len(self.options) + len(body), self.ident, 0x4000, 64, self.protocol, 0
            )
            ip += source + target + self.options
            ip = ip[:10] + struct.pack(">H", ~naive_sum(ip) & 0xFFFF) + ip[12:]
        ether = b"\x52\x54\0\0\0\2\x52\x54\0\0\0\1"
        for tag in self.tags:
            ether += struct.pack(">HH", tag, 5)
        return ether + struct.pack(">H", 0x86DD if self.v6 else 0x0800) + ip + body

    def cut(self, size: int) -> Iterator[Packet]:
        """The packets that a large one stands for."""
        chunks = [self.payload[i : i + size] for i in range(0, len(self.payload), size)] or [b""]
        for i, chunk in enumerate(chunks):
            flags = self.flags if i == len(chunks) - 1 else self.flags & ~(FIN | PSH)
            yield replace(
                self,
                payload=chunk,
                flags=flags & ~CWR if i else flags,
                seq=(self.seq + i * size) & 0xFFFFFFFF,
                ident=(self.ident + i) & 0xFFFF,
            )

    def header(self, size: int = 0) -> Header:
        kind = 0
        if size:
            kind = UDP_L4 if self.protocol == UDP else TCPV6 if self.v6 else TCPV4
            if self.flags & CWR and self.protocol == TCP:
                kind |= ECN
        return Header(NEEDS_CSUM, kind, self.headers, size, self.l4, self.place)


def random_packet(rng: random.Random) -> Packet:
    v6 = rng.random() < 0.5
    protocol = TCP if rng.random() < 0.7 else UDP
    tags = tuple(rng.choice((0x8100, 0x88A8)) for _ in range(rng.choice((0, 0, 0, 1, 2))))
    tcp_options = rng.randbytes(4 * rng.randrange(11)) if protocol == TCP else b""
    extensions: tuple[tuple[int, bytes], ...] = ()
    last_hop = b""
    options = b""
    room = 128 - 14 - 4 * len(tags) - 20 - len(tcp_options)
    if v6 and rng.random() < 0.3 and room >= 48:
        extensions = ((HOP, bytes(6)),)
        if room >= 56 and rng.random() < 0.5:
            extensions += ((OPTIONS, bytes(6)),)
    elif v6 and rng.random() < 0.2 and room >= 64:
        last_hop = rng.randbytes(16)
        extensions = ((ROUTING, bytes([4, 1, 0, 0, 0, 0]) + last_hop),)
    elif not v6 and rng.random() < 0.2 and room >= 60:
        options = b"\x01" * (4 * rng.randrange(1, 9))
        if rng.random() < 0.5:  # loose source route
            last_hop = rng.randbytes(4)
            options += b"\x01\x83\x07\x04" + last_hop
    return Packet(
        v6=v6,
        protocol=protocol,
        tags=tags,
        options=options,
        extensions=extensions,
        last_hop=last_hop,
        tcp_options=tcp_options,
        flags=rng.choice((ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR, ACK | CWR | ECE | PSH)),
        seq=rng.choice((1, 0xFFFFFFF0, rng.randrange(1 << 32))),
        ident=rng.choice((0, 0xFFFE, rng.randrange(1 << 16))),
        payload=rng.choice((rng.randbytes, bytes, lambda n: b"\xff" * n))(
            rng.randrange(1, rng.choice((20, 200, 3000, 65000)))
        ),
    )


@pytest.fixture(scope="module", params=["offload_unit", "offload_unit-asan"])
def program(request: pytest.FixtureRequest) -> Path:
    return cbuild.program(str(request.param))


@dataclass
class Job:
    """One frame for `net_finish`, and what comes of it."""

    takes: int
    header: Header
    frame: bytes
    skip: int = 12


def finish(program: Path, jobs: list[Job], folder: Path) -> list[tuple[int, list[tuple[Header, bytes]]]]:
    """What the C makes of `jobs`: the reason for a drop or 0, and frames."""
    source = folder / "jobs"
    with source.open("wb") as out:
        for job in jobs:
            out.write(struct.pack("<III10s2x", job.takes, len(job.frame), job.skip, job.header.pack(10)) + job.frame)
    done = subprocess.run([program, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = []
    for line in done.stdout.splitlines():
        first, *frames, why = line.split()
        assert first == "="
        pairs = [item.split(":") for item in frames]
        results.append((int(why), [(Header.unpack(bytes.fromhex(h)), bytes.fromhex(f)) for h, f in pairs]))
    assert len(results) == len(jobs)
    return results


def test_segments_against_model(program: Path, tmp_path: Path) -> None:
    """Large packets of all kinds, cut for takers that take nothing and for those that fill in checksums."""
    rng = random.Random(20)
    packets, sizes, jobs = [], [], []
    for _ in range(500):
        packet = random_packet(rng)
        size = rng.choice((1448, 1460, 536, 1000, 999, rng.randrange(1, 9000)))
        size = max(size, len(packet.payload) // 2000 + 1)
        packets.append(packet)
        sizes.append(size)
        jobs.append(
            Job(rng.choice((0, CSUM)), packet.header(size), packet.build(whole=False), skip=rng.choice((0, 12, 100)))
        )
    for packet, size, job, (why, got) in zip(packets, sizes, jobs, finish(program, jobs, tmp_path), strict=True):
        assert why == 0, packet
        pieces = list(packet.cut(size))
        assert [frame for _, frame in got] == [piece.build(whole=not job.takes) for piece in pieces]
        plain = packet.header() if job.takes else Header()
        assert all(header == replace(plain, hdr_len=0) for header, _ in got)


def test_taken_as_it_is(program: Path, tmp_path: Path) -> None:
    """Nothing is done for who takes it; ECN alone is a reason to cut."""
    tcp = Packet(payload=bytes(5000), flags=ACK | CWR)
    udp = Packet(payload=bytes(5000), protocol=UDP, v6=True)
    jobs = [
        Job(CSUM | TSO4 | TAKES_ECN, tcp.header(1000), tcp.build(whole=False)),
        Job(CSUM | USO, udp.header(1000), udp.build(whole=False)),
        Job(CSUM | TSO4 | TSO6, tcp.header(1000), tcp.build(whole=False)),
        Job(CSUM | TSO6, tcp.header(1000), tcp.build(whole=False)),
        Job(TSO4 | TAKES_ECN, tcp.header(1000), tcp.build(whole=False)),  # whole checksums, hence cut
    ]
    results = finish(program, jobs, tmp_path)
    assert [len(got) for _, got in results] == [1, 1, 5, 5, 5]
    for job, (_, got) in zip(jobs[:2], results[:2], strict=True):
        assert got == [(job.header, job.frame)]
    assert [frame for _, frame in results[2][1]] == [piece.build(whole=False) for piece in tcp.cut(1000)]
    assert [frame for _, frame in results[4][1]] == [piece.build(whole=True) for piece in tcp.cut(1000)]


def test_checksums_against_model(program: Path, tmp_path: Path) -> None:
    """Packets of one segment, the checksum in the head."""
    rng = random.Random(21)
    packets = [replace(random_packet(rng), payload=rng.randbytes(rng.randrange(1600))) for _ in range(300)]
    jobs = [Job(0, packet.header(), packet.build(whole=False)) for packet in packets]
    for packet, (why, got) in zip(packets, finish(program, jobs, tmp_path), strict=True):
        assert why == 0
        assert got == [(Header(), packet.build(whole=True))]


def test_lengths_left_out(program: Path, tmp_path: Path) -> None:
    """Drivers that leave lengths in large packets 0 are understood."""
    jobs, wanted = [], []
    for packet in (
        Packet(payload=bytes(3000)),
        Packet(payload=bytes(3000), v6=True),
        Packet(payload=bytes(3000), protocol=UDP),
    ):
        frame = bytearray(packet.build(whole=False))
        at = packet.l3 + (4 if packet.v6 else 2)
        frame[at : at + 2] = b"\0\0"
        if packet.protocol == UDP:
            frame[packet.l4 + 4 : packet.l4 + 6] = b"\0\0"
        jobs.append(Job(0, packet.header(1200), bytes(frame)))
        wanted.append([piece.build(whole=True) for piece in packet.cut(1200)])
    assert [[frame for _, frame in got] for _, got in finish(program, jobs, tmp_path)] == wanted


def test_headers_that_lie(program: Path, tmp_path: Path) -> None:
    """Any byte of the headers may be anything: what is not refused is cut into as many frames as it says."""
    rng = random.Random(22)
    jobs = []
    for _ in range(400):
        packet = replace(random_packet(rng), payload=rng.randbytes(rng.randrange(2000)))
        frame = bytearray(packet.build(whole=False))
        for _ in range(rng.randrange(1, 4)):
            frame[rng.randrange(12, min(packet.headers, len(frame)))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        header = packet.header(rng.choice((0, 1, 100, 1448, 65535)))
        if rng.random() < 0.3:
            header = replace(header, csum_start=rng.randrange(14, len(frame) - 2), csum_offset=0)
        if rng.random() < 0.3:
            frame = frame[: rng.randrange(max(header.csum_start + header.csum_offset + 2, 14), len(frame) + 1)]
        jobs.append(Job(rng.choice((0, CSUM)), header, bytes(frame)))
    results = finish(program, jobs, tmp_path)
    refused = [why for why, _ in results if why]
    assert set(refused) == {DROP_HEADER}
    assert 50 < len(refused) < 390
    for job, (why, got) in zip(jobs, results, strict=True):
        assert bool(got) != bool(why)
        assert all(len(frame) <= len(job.frame) for _, frame in got)


def test_header_longer_than_the_head(program: Path, tmp_path: Path) -> None:
    """What does not fit into the bytes that are looked at is refused, not guessed at."""
    packet = Packet(v6=True, payload=bytes(3000), tcp_options=b"\x01" * 40, extensions=((HOP, bytes(30)),))
    assert packet.headers > 128
    assert finish(program, [Job(0, packet.header(1000), packet.build(whole=False))], tmp_path) == [(DROP_HEADER, [])]


# Through a device


SENDS = int(NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN | NetFeature.HOST_USO)


async def exchange(g: Guest, packet: Packet, size: int, count: int) -> list[tuple[Header, bytes]]:
    """Send `packet`, get what the echo link makes of it."""
    g.offer(count, 4096)
    g.push(packet.build(whole=False), packet.header(size))
    return await g.receive(count)


@pytest.mark.parametrize("layout", [0, int(PACKED)], ids=["split", "packed"])
@pytest.mark.parametrize("merge", [0, int(NetFeature.MRG_RXBUF)], ids=["single", "mergeable"])
async def test_driver_that_takes_nothing(layout: int, merge: int) -> None:
    """What a driver sends unfinished comes back finished, where it takes nothing else."""
    rng = random.Random(23)
    card = Net(EchoLink())
    async with serving(card) as [path], guest(path, features=BASE | SENDS | layout | merge) as g:
        for _ in range(20):
            packet = random_packet(rng)
            size = max(rng.randrange(100, 1449), len(packet.payload) // 60)
            pieces = list(packet.cut(size))
            got = await exchange(g, packet, size, len(pieces))
            assert [frame for _, frame in got] == [piece.build(whole=True) for piece in pieces]
            assert all(replace(header, num_buffers=0) == Header() for header, _ in got)


async def test_driver_that_takes_checksums() -> None:
    packet = Packet(payload=bytes(range(250)) * 20, tcp_options=b"\x01" * 12)
    features = BASE | SENDS | int(NetFeature.GUEST_CSUM)
    async with serving(Net(EchoLink())) as [path], guest(path, features=features) as g:
        got = await exchange(g, packet, 1448, 4)
        assert [frame for _, frame in got] == [piece.build(whole=False) for piece in packet.cut(1448)]
        wanted = replace(packet.header(), hdr_len=0, num_buffers=1)
        assert [header for header, _ in got] == [wanted] * 4


async def test_driver_that_takes_segments() -> None:
    """Untouched, in one piece."""
    packet = Packet(payload=bytes(range(250)) * 12)
    features = BASE | SENDS | int(NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4)
    async with serving(Net(EchoLink())) as [path], guest(path, features=features) as g:
        [(header, frame)] = await exchange(g, packet, 1000, 1)
        assert frame == packet.build(whole=False)
        assert replace(header, num_buffers=0, hdr_len=0) == replace(packet.header(1000), hdr_len=0)


async def test_refused_ones_are_counted() -> None:
    """A large packet whose headers lie is dropped; what follows is not."""
    packet = Packet(payload=bytes(3000))
    bad = bytearray(packet.build(whole=False))
    bad[packet.l3] = 0x65
    card = Net(EchoLink())
    async with serving(card) as [path], guest(path, features=BASE | SENDS) as g:
        g.offer(8, 4096)
        g.push(bytes(bad), packet.header(1000))
        g.push(packet.build(whole=False), packet.header(1000))
        got = await g.receive(3)
        assert [frame for _, frame in got] == [piece.build(whole=True) for piece in packet.cut(1000)]
        assert card.stats.as_dict()["dropped"] == {"header": 1}

"""Hashes of flows: what a driver is told of them, and which pair of queues it gets them from.

The hashes are those that Microsoft publishes for its key ("Verifying the RSS hash calculation").
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import packets
import pytest
from netrig import BASE, PACKED, Control, Guest, Header, frame, guest, plugged, serving
from packets import ethernet

from devices.net import EchoLink, Net, NetFeature, Switch
from devices.net.links.files import FileLink
from vhost.frontend import Frontend

CONTROL = int(NetFeature.CTRL_VQ)
MRG, MQ = int(NetFeature.MRG_RXBUF), int(NetFeature.MQ)
HASH, RSS = int(NetFeature.HASH_REPORT), int(NetFeature.RSS)

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
IPV4, TCPV4, UDPV4, IPV6, TCPV6, UDPV6 = 1, 2, 4, 8, 16, 32
ALL = 63

#: from, to, hash of the addresses, with the ports
FLOWS = [
    (("66.9.149.187", 2794), ("161.142.100.80", 1766), 0x323E8FC2, 0x51CCC178),
    (("199.92.111.2", 14230), ("65.69.140.83", 4739), 0xD718262A, 0xC626B0EA),
    (("24.19.198.95", 12898), ("12.22.207.184", 38024), 0xD2D0A5DE, 0x5C2B394A),
    (("38.27.205.30", 48228), ("209.142.163.6", 2217), 0x82989176, 0xAFC7327F),
    (("153.39.163.191", 44251), ("202.188.127.2", 1303), 0x5D1809C5, 0x10E828A2),
    (("3ffe:2501:200:1fff::7", 2794), ("3ffe:2501:200:3::1", 1766), 0x2CC18CD5, 0x40207D3D),
    (("3ffe:501:8::260:97ff:fe40:efab", 14230), ("ff02::1", 4739), 0x0F0C461C, 0xDDE51BBF),
    (("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251), ("fe80::200:f8ff:fe21:67cf", 38024), 0x4B61E985, 0x02D1FEEF),
]


def flow(number: int, *, udp: bool = False) -> bytes:
    (src, sport), (dst, dport), _, _ = FLOWS[number]
    ends = packets.ip(src), packets.ip(dst)
    proto = packets.UDP if udp else packets.TCP
    data = packets.udp(*ends, sport, dport, b"x" * 30) if udp else packets.tcp(*ends, sport, dport, 1, 1, packets.ACK)
    return ethernet(
        b"\xff" * 6, b"\x52\x54\0\0\0\1", 0x86DD if ":" in src else 0x0800, packets.packet(*ends, proto, data)
    )


def rss(types: int, table: Sequence[int], *, unclassified: int = 0, pairs: int = 4, key: bytes = KEY) -> bytes:
    """struct virtio_net_rss_config."""
    head = struct.pack("<IHH", types, len(table) - 1, unclassified) + struct.pack(f"<{len(table)}H", *table)
    return head + struct.pack("<HB", pairs, len(key)) + key


def hashed(types: int, key: bytes = KEY) -> bytes:
    """struct virtio_net_hash_config."""
    return struct.pack("<I8xB", types, len(key)) + key


@asynccontextmanager
async def steered(features: int, pairs: int = 4) -> AsyncIterator[tuple[Guest, Guest, Control, Net]]:
    """One that sends, one with `pairs` pairs on the same switch, and that one's control queue."""
    async with Switch() as switch:
        cards = [Net(switch), Net(switch, pairs=pairs, mac="52:54:00:00:00:02")]
        async with (
            serving(*cards) as paths,
            guest(paths[0]) as a,
            guest(paths[1], features=features | BASE | CONTROL, rings=range(2 * pairs + 1)) as b,
        ):
            yield a, b, Control(b, 2 * pairs), cards[1]


async def arrive(a: Guest, b: Guest, data: bytes, pairs: int = 4) -> tuple[int, Header]:
    """The pair that a frame comes from, and its header."""
    a.push(data)
    await a.sent(1)
    got = [(pair, header, whole) for pair in range(pairs) for header, whole in b.take(pair=pair)]
    assert [whole for _, _, whole in got] == [data]
    return got[0][0], got[0][1]


@pytest.mark.parametrize("layout", [0, int(PACKED)], ids=["split", "packed"])
@pytest.mark.parametrize("merge", [0, MRG], ids=["single", "mergeable"])
async def test_queues_and_hashes(layout: int, merge: int) -> None:
    table = [3, 1, 2, 0, 1, 3, 2, 2]
    async with steered(RSS | HASH | layout | merge) as (a, b, control, _):
        for pair in range(4):
            b.offer(50, 200 if merge else 2048, pair=pair)
        assert (await arrive(a, b, flow(0)))[1].hash_report == 0
        assert await control(4, 1, rss(ALL, table, unclassified=2)) == 0
        for i, (_, _, addresses, ports) in enumerate(FLOWS):
            first = 4 if i >= 5 else 1
            for udp in (False, True):
                pair, header = await arrive(a, b, flow(i, udp=udp))
                assert (header.hash_value, header.hash_report) == (ports, first + 1 + udp)
                assert pair == table[ports % 8]
            pair, header = await arrive(a, b, flow(i).replace(b"\x06", b"\x01", 1))  # ICMP, or no TCP
            if i < 5:
                assert (pair, header.hash_value, header.hash_report) == (table[addresses % 8], addresses, first)
        pair, header = await arrive(a, b, frame(600))
        assert (pair, header.hash_report) == (2, 0)
        assert await control(4, 1, rss(IPV4 | IPV6, [1], pairs=2)) == 0
        for i, (_, _, addresses, _) in enumerate(FLOWS):
            pair, header = await arrive(a, b, flow(i))
            assert (pair, header.hash_value, header.hash_report) == (1, addresses, 4 if i >= 5 else 1)
        assert await control(4, 1, rss(0, [1])) == 0  # nothing is hashed
        pair, header = await arrive(a, b, flow(0))
        assert (pair, header.hash_report) == (0, 0)


async def test_many_flows_of_a_batch() -> None:
    """A batch is spread over the queues; in each of them the order stays."""
    async with steered(RSS) as (a, b, control, card):
        assert await control(4, 1, rss(ALL, [0, 1, 2, 3] * 32)) == 0
        for pair in range(4):
            b.offer(100, pair=pair)
        want: dict[int, list[bytes]] = {pair: [] for pair in range(4)}
        for i in range(96):
            data = flow(i % 8) + bytes((i,))
            want[FLOWS[i % 8][3] % 4].append(data)
            a.push(data, publish=False)
        a.publish()
        await a.sent(96)
        assert {pair: [data for _, data in b.take(pair=pair)] for pair in range(4)} == want
        card.reset()


async def test_a_pair_that_does_not_run() -> None:
    async with Switch() as switch:
        cards = [Net(switch), Net(switch, pairs=2, mac="52:54:00:00:00:02")]
        features = BASE | CONTROL | RSS
        async with (
            serving(*cards) as paths,
            guest(paths[0]) as a,
            guest(paths[1], features=features, rings=(0, 1, 4)) as b,
        ):
            assert await Control(b, 4)(4, 1, rss(ALL, [1], pairs=1)) == 0
            b.offer(1)
            assert (await arrive(a, b, flow(0), pairs=1))[0] == 0


WRONG = [
    (1, rss(64, [0])),
    (1, rss(ALL, [0, 0, 0])),
    (1, rss(ALL, [0] * 256)),
    (1, rss(ALL, [4])),
    (1, rss(ALL, [0], unclassified=4)),
    (1, rss(ALL, [0], pairs=0)),
    (1, rss(ALL, [0], pairs=5)),
    (1, rss(ALL, [0], key=bytes(41))),
    (1, rss(ALL, [0])[:-1]),
    (1, rss(ALL, [0]) + b"\0"),
    (1, rss(ALL, [0] * 128)[:100]),
    (1, b"\xff" * 8),
    (1, b""),
    (2, hashed(64)),
    (2, hashed(ALL)[:-1]),
    (2, hashed(ALL, bytes(41))),
    (2, b"\xff" * 5),
    (3, b"\1\0"),
]


async def test_wrong_commands_change_nothing() -> None:
    async with steered(RSS | HASH) as (a, b, control, _):
        assert await control(4, 1, rss(ALL, [1])) == 0
        for command in WRONG:
            assert await control(4, *command) == 1, command
            b.offer(1, pair=1)
            pair, header = await arrive(a, b, flow(0))
            assert (pair, header.hash_value) == (1, FLOWS[0][3]), command


async def test_pairs_end_it() -> None:
    async with steered(RSS | HASH | MQ) as (a, b, control, card):
        for pair in range(4):
            b.offer(4, pair=pair)
        assert await control(4, 1, rss(ALL, [3])) == 0
        assert (await arrive(a, b, flow(0)))[0] == 3
        assert await control(4, 0, (4).to_bytes(2, "little")) == 0  # the card chooses again
        pair, header = await arrive(a, b, flow(0))
        assert (pair, header.hash_value) == (0, FLOWS[0][3])
        card.set_status(0)
        assert (await arrive(a, b, flow(0)))[1].hash_report == 0


async def test_reports_without_steering() -> None:
    """The hash alone, with a card whose pairs may be anywhere; a short key is filled up with zeroes."""
    features = BASE | CONTROL | HASH
    async with plugged(EchoLink(), mac="52:54:00:00:00:02", features=features, rings=(0, 1, 2)) as (g, _):
        control = Control(g, 2)
        assert await control(4, 1, rss(ALL, [0], pairs=1)) == 1  # not negotiated
        assert await control(4, 2, hashed(ALL)) == 0
        for i, (*_, ports) in enumerate(FLOWS):
            g.offer(1)
            g.push(flow(i))
            [(header, data)] = await g.receive()
            assert (header.hash_value, header.hash_report, data) == (ports, 5 if i >= 5 else 2, flow(i))
        assert await control(4, 2, hashed(ALL, b"")) == 0
        g.offer(1)
        g.push(flow(0))
        [(header, _)] = await g.receive()
        assert (header.hash_value, header.hash_report) == (0, 2)
        assert await control(4, 2, hashed(0)) == 0
        g.offer(1)
        g.push(flow(0))
        [(header, _)] = await g.receive()
        assert header.hash_report == 0


class Wire(FileLink):
    """As a tap: a socket of packets with headers, whose other end the test has."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__([ours.detach()], header=True)

    @property
    def description(self) -> str:
        return "wire"

    async def aclose(self) -> None:
        self.end.close()
        await super().aclose()


@pytest.mark.parametrize("merge", [0, MRG], ids=["single", "mergeable"])
async def test_frames_that_are_read_in_place(merge: int) -> None:
    """From a file straight into buffers in pieces, until the driver spreads flows over its pairs."""
    wire = Wire()
    how = {"features": BASE | CONTROL | HASH | RSS | merge, "pairs": 2, "mac": "52:54:00:00:00:02"}
    async with plugged(wire, rings=range(5), **how) as (g, _):
        control = Control(g, 4)
        if merge:  # the largest frame has to have room
            g.offer(40, (20, 33, 8, 5, 2000))

        async def sent(number: int, pair: int) -> Header:
            g.offer(1, (20, 33, 8, 5, 2000), pair=pair)
            wire.end.send(bytes(12) + flow(number))
            [(header, data)] = await g.receive(pair=pair)
            assert data == flow(number)
            return header

        assert (await sent(0, 0)).hash_report == 0
        assert await control(4, 2, hashed(ALL)) == 0
        for i, (*_, ports) in enumerate(FLOWS):
            header = await sent(i, 0)
            assert (header.hash_value, header.hash_report) == (ports, 5 if i >= 5 else 2)
        assert await control(4, 1, rss(ALL, [0, 1], pairs=2)) == 0
        for i, (*_, ports) in enumerate(FLOWS):
            assert (await sent(i, ports % 2)).hash_value == ports


async def test_who_is_offered_what() -> None:
    async def offered(card: Net) -> tuple[bool, bool]:
        async with serving(card) as [path], Frontend.connect(path) as fe:
            config = await fe.get_config(0, 24)
            assert (config[17], config[18:20], config[20:]) == (40, b"\x80\0", b"\x3f\0\0\0")
            return bool(fe.features_offered & RSS), bool(fe.features_offered & HASH)

    mac = "52:54:00:00:00:02"
    async with EchoLink() as echo, Switch() as switch:
        assert await offered(Net(echo, mac=mac, pairs=2)) == (False, True)  # a pair may be on another worker
        assert await offered(Net(switch, mac=mac, pairs=2)) == (True, True)
        assert await offered(Net(switch, mac=mac)) == (False, True)
        assert not Net(switch, pairs=2).features & (RSS | HASH)  # nobody could read how

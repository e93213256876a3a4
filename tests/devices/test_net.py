"""A card without a network: what a driver sends comes back from an echo link, or is dropped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from netrig import (
    BASE,
    DATA_VALID,
    ECN,
    IN_ORDER,
    NEEDS_CSUM,
    PACKED,
    TCPV4,
    TCPV6,
    UDP,
    UDP_L4,
    VERSION_1,
    Control,
    Guest,
    Header,
    frame,
    guest,
    plugged,
    serving,
)

import vhost
from devices.net import EchoLink, Net, NetFeature, NullLink, SourceLink
from vhost.constants import FrontendRequest, ProtocolFeature
from vhost.frontend import CLOUD_HYPERVISOR, CROSVM, QEMU, QEMU_7_2, UML, Frontend, Refused
from vhost.messages import VringState

MRG = int(NetFeature.MRG_RXBUF)


@pytest.fixture(params=["split", "packed"])
def layout(request) -> int:
    return int(PACKED) if request.param == "packed" else 0


@pytest.fixture(params=["single", "mergeable"])
def merge(request) -> int:
    return MRG if request.param == "mergeable" else 0


async def test_frames_come_back(layout: int, merge: int) -> None:
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=BASE | layout | merge) as g:
        sent = [frame(length, tag=length) for length in (14, 15, 60, 61, 127, 128, 129, 1514, 1800)]
        g.offer(len(sent))
        for data in sent:
            g.push(data)
        got = await g.receive(len(sent))
        assert [data for _, data in got] == sent
        assert all(header == Header(num_buffers=1) for header, _ in got)
        await g.sent(len(sent))


async def test_in_order(layout: int, merge: int) -> None:
    """Sent or received, dropped or given back empty: in the order of the ring."""
    features = BASE | layout | merge | int(IN_ORDER)
    async with plugged(EchoLink(), in_order=True, features=features, size=64) as (g, card):
        for _ in range(20):
            g.offer(2, 300)
            g.offer(1, 5)
            g.offer(6, 300)
            sent = [frame(60 + 30 * i, tag=i) for i in range(8)]
            for i, data in enumerate(sent):
                g.push(data, publish=False)
                if i == 4:
                    g.push(b"short", publish=False)
            g.publish()
            assert [data for _, data in await g.receive(8)] == sent
            await g.sent(9)
        assert card.stats.dropped["runt"] == 20


async def test_many(layout: int, merge: int) -> None:
    """More than rings hold, in bursts of all sizes."""
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=BASE | layout | merge) as g:
        number = 0
        for burst in (1, 2, 63, 64, 65, 128, 200, 7, 250):
            sent = [frame(60 + i % 900, tag=i) for i in range(number, number + burst)]
            number += burst
            g.offer(burst)
            for data in sent:
                g.push(data, publish=False)
            g.publish()
            assert [data for _, data in await g.receive(burst)] == sent
            await g.sent(burst)


# Receive buffers


async def echo_of(sent: list[bytes], *, features: int, buffers: int, size) -> list[bytes]:
    """What comes back of `sent`, into that many buffers of such a size."""
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=features) as g:
        g.offer(buffers, size)
        for data in sent:
            g.push(data)
        got = await g.receive(len(sent))
        await g.sent(len(sent))
        return [data for _, data in got]


@pytest.mark.parametrize("size", [26, 100, 256, 1526, 4096])
async def test_merged_buffers(layout: int, size: int) -> None:
    sent = [frame(max(n, 14), tag=n) for n in (60, size - 13, size - 12, size - 11, 2 * size, 5000)]
    buffers = sum(-(-(len(data) + 12) // size) for data in sent)
    assert await echo_of(sent, features=BASE | layout | MRG, buffers=buffers, size=size) == sent


@pytest.mark.parametrize(
    "pieces", [(12, 2000), (1, 11, 2000), (12, 14, 1, 999), (2, 3, 5, 7, 11, 13, 2000), (10, 2, 1000)]
)
async def test_buffers_in_pieces(layout: int, merge: int, pieces) -> None:
    sent = [frame(n, tag=n) for n in (60, 200, 900)]
    assert await echo_of(sent, features=BASE | layout | merge, buffers=3, size=pieces) == sent


async def test_a_frame_without_enough_buffers_leaves_them(layout: int) -> None:
    async with EchoLink() as link, serving(card := Net(link)) as [path], guest(path, features=BASE | layout | MRG) as g:
        g.offer(3, 1000)
        g.push(frame(4000))
        await g.sent(1)
        assert not g.take()
        assert card.stats.dropped["no_buffer"] == 1
        g.push(frame(2900))  # what the first did not need is all there
        assert (await g.receive())[0][1] == frame(2900)
        g.push(frame(60))
        await g.sent(2)
        assert card.stats.dropped["no_buffer"] == 2
        g.offer(1)
        g.push(frame(60))
        assert (await g.receive())[0][1] == frame(60)


async def test_a_frame_too_large_for_its_buffer(layout: int) -> None:
    async with EchoLink() as link, serving(card := Net(link)) as [path], guest(path, features=BASE | layout) as g:
        g.offer(2, 1000)
        g.push(frame(989))
        g.push(frame(988))
        assert [data for _, data in await g.receive()] == [frame(988)]
        assert card.stats.dropped["too_small"] == 1


async def test_buffers_that_hold_nothing_are_given_back(layout: int, merge: int) -> None:
    features = BASE | layout | merge
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=features) as g:
        g.offer(3, 5)
        g.offer(1)
        g.push(frame(60))
        assert [data for _, data in await g.receive()] == [frame(60)]


async def test_a_driver_of_the_old_kind() -> None:
    """Without VERSION_1 and mergeable buffers the header has ten bytes."""
    features = BASE & ~int(VERSION_1)
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=features) as g:
        assert g.header == 10
        g.offer(2)
        g.push(frame(100), cut=(10,))
        g.push(frame(101), cut=(3, 20))
        assert [data for _, data in await g.receive(2)] == [frame(100), frame(101)]


# What a guest sends


@pytest.mark.parametrize(
    "cut", [(12,), (1, 1, 1, 9), (11,), (13,), (5, 8), (12, 14), (12, 1, 13, 50), (140,), (12, 128), (30, 100)]
)
@pytest.mark.parametrize("indirect", [False, True])
async def test_frames_in_pieces(layout: int, cut, indirect: bool) -> None:
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=BASE | layout) as g:
        sent = [frame(n, tag=n) for n in (60, 128, 129, 1000)]
        g.offer(len(sent))
        for data in sent:
            g.push(data, cut=cut, indirect=indirect)
        assert [data for _, data in await g.receive(len(sent))] == sent


async def dropped(reason: str, *pushes, features: int = 0) -> None:
    """Each of `pushes`, arguments of `Guest.push`, is dropped for `reason`; the card goes on."""
    async with EchoLink() as link, serving(card := Net(link)) as [path], guest(path, features=BASE | features) as g:
        g.offer(2)
        for n, (args, how) in enumerate(pushes, 1):
            g.push(*args, **how)
            await g.sent(1)
            assert card.stats.dropped[reason] == n, (args, card.stats)
        g.push(frame(60))
        assert [data for _, data in await g.receive()] == [frame(60)]


async def test_runts(layout: int) -> None:
    await dropped(
        "runt",
        ((b"", b"\0"), {}),
        ((b"", b"\0" * 11), {}),
        ((b"", None), {}),
        ((frame(13), None), {}),
        ((frame(13), None), {"cut": (4, 4, 4, 1)}),
        features=layout,
    )


async def test_giants(layout: int) -> None:
    giant = bytes(65558)
    await dropped("giant", ((giant, None), {}), ((giant * 4, None), {"cut": (12, 70000, 70000)}), features=layout)


HOST = int(NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_USO)


async def test_headers_that_lie(layout: int) -> None:
    lies = [
        Header(NEEDS_CSUM, csum_start=34, csum_offset=65535),
        Header(NEEDS_CSUM, csum_start=65535, csum_offset=65535),
        Header(NEEDS_CSUM, csum_start=99, csum_offset=0),
        Header(NEEDS_CSUM, csum_start=34, csum_offset=65),
        Header(NEEDS_CSUM, csum_start=0, csum_offset=6),
        Header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16),
        Header(0, TCPV4, 54, 1448, 34, 16),
        Header(NEEDS_CSUM, TCPV4 | ECN, 54, 1448, 34, 16),
        Header(NEEDS_CSUM, ECN, 54, 1448, 34, 16),
        Header(NEEDS_CSUM, 2, 54, 1448, 34, 16),
        Header(NEEDS_CSUM, 6, 54, 1448, 34, 16),
        Header(NEEDS_CSUM, 127, 54, 1448, 34, 16),
        Header(NEEDS_CSUM, UDP, 54, 1448, 34, 6),
        Header(NEEDS_CSUM, UDP_L4 | ECN, 54, 1448, 34, 6),
    ]
    await dropped("header", *(((frame(100), lie), {}) for lie in lies), features=layout | HOST)


async def test_offloads_that_were_not_negotiated(layout: int) -> None:
    asked = [Header(NEEDS_CSUM, 0, 0, 0, 34, 16), Header(NEEDS_CSUM, TCPV4, 54, 1448, 34, 16)]
    await dropped("header", *(((frame(100), header), {}) for header in asked), features=layout)
    only = int(NetFeature.CSUM | NetFeature.HOST_TSO4)
    wrong = [Header(NEEDS_CSUM, TCPV6, 54, 1448, 34, 16), Header(NEEDS_CSUM, UDP_L4, 54, 1448, 34, 6)]
    await dropped("header", *(((frame(100), header), {}) for header in wrong), features=layout | only)


async def test_hints_are_made_true() -> None:
    """What no flag speaks of is not passed on, and a header length is no longer than the frame."""
    guest_offloads = int(NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4)
    features = BASE | HOST | guest_offloads | MRG
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=features) as g:
        g.offer(4)
        g.push(frame(100), Header(DATA_VALID | 0xF0, 0, 60000, 1, 60000, 60000, 77))
        g.push(frame(100), Header(NEEDS_CSUM, 0, 60000, 1, 34, 16, 77))
        g.push(frame(100), Header(NEEDS_CSUM, TCPV4, 60000, 1448, 34, 16, 77))
        got = [header for header, _ in await g.receive(3)]
        assert got == [
            Header(num_buffers=1),
            Header(NEEDS_CSUM, csum_start=34, csum_offset=16, num_buffers=1),
            Header(NEEDS_CSUM, TCPV4, 100, 1448, 34, 16, 1),
        ]


# Rings that are not enabled, links that are down


async def test_a_disabled_ring_discards(layout: int) -> None:
    """Spec: vhost-user, "Ring states"."""
    async with EchoLink() as link, serving(card := Net(link)) as [path], guest(path, features=BASE | layout) as g:
        g.offer(4)
        await g.fe.enable(g.fe.queues[1], False)
        g.push(frame(60))
        await g.sent(1)
        assert card.stats.dropped["down"] == 1
        await g.fe.enable(g.fe.queues[1])
        await g.fe.enable(g.fe.queues[0], False)
        g.push(frame(61))
        await g.sent(1)
        assert card.stats.dropped["down"] == 2
        assert not g.take()
        await g.fe.enable(g.fe.queues[0])
        g.push(frame(62))
        assert [data for _, data in await g.receive()] == [frame(62)]


async def test_link_down_and_up(layout: int) -> None:
    features = BASE | layout | int(NetFeature.STATUS | NetFeature.MAC)
    card = Net(link := EchoLink(), mac="52:54:00:aa:bb:cc")
    async with link, serving(card) as [path], guest(path, features=features) as g:
        g.offer(2)
        assert await g.fe.get_config(0, 8) == bytes.fromhex("525400aabbcc0100")
        assert card.controls()["set_link"](up=False) is False
        with trio.fail_after(60):
            await g.fe.config_changed()
        assert await g.fe.get_config(6, 2) == b"\0\0"
        g.push(frame(60))
        await g.sent(1)
        assert card.stats.dropped["down"] == 1
        card.set_link(True)
        with trio.fail_after(60):
            await g.fe.config_changed()
        g.push(frame(60))
        await g.receive()


async def test_nowhere_to_go() -> None:
    async with NullLink() as link, serving(card := Net(link)) as [path], guest(path) as g:
        g.push(frame(60))
        await g.sent(1)
        assert card.stats.out_frames == 1
        assert not any(card.stats.dropped.values())


# The control queue


CONTROL = int(
    NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_RX_EXTRA | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR | NetFeature.GUEST_ANNOUNCE
)  # fmt: skip
OWN, OTHER, GROUP = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\2", b"\1\0\x5e\0\0\1"


@asynccontextmanager
async def controlled(features: int = CONTROL) -> AsyncIterator[tuple[Guest, Control, Net]]:
    async with plugged(EchoLink(), mac=OWN, features=BASE | features, rings=(0, 1, 2)) as (g, card):
        yield g, Control(g, 2), card


async def passes(g: Guest, card: Net, *frames: bytes) -> list[bool]:
    """Which of `frames` the card's filter lets through."""
    out = []
    for data in frames:
        g.offer(1)
        before = card.stats.dropped["filter"]
        g.push(data)
        await g.sent(1)
        with trio.fail_after(60):
            while not (got := g.take()) and card.stats.dropped["filter"] == before:
                await trio.sleep(0.001)
        out.append(bool(got))
    return out


def tagged(vlan: int, dst: bytes = OWN) -> bytes:
    data = frame(60, dst=dst)
    return data[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + data[12:]


async def test_receive_modes(layout: int) -> None:
    async with controlled(CONTROL | layout) as (g, control, card):
        kinds = [frame(60, dst=dst) for dst in (OWN, OTHER, GROUP, b"\xff" * 6)]
        assert await passes(g, card, *kinds) == [True] * 4  # promiscuous until told otherwise
        assert await control(0, 0, b"\0") == 0
        assert await passes(g, card, *kinds) == [True, False, False, True]
        for command, expected in (
            (1, [True, False, True, True]),  # all multicast
            (2, [True, True, False, True]),  # all unicast
            (4, [False, False, False, True]),  # no unicast
            (5, [True, False, False, False]),  # no broadcast
        ):
            assert await control(0, command, b"\1") == 0
            assert await passes(g, card, *kinds) == expected, command
            assert await control(0, command, b"\0") == 0
        assert await control(0, 1, b"\1") == 0
        assert await control(0, 3, b"\1") == 0  # no multicast is stronger
        assert await passes(g, card, *kinds) == [True, False, False, True]
        assert await control(0, 0, b"\1") == 0
        assert await passes(g, card, *kinds) == [True] * 4


async def test_mac_tables() -> None:
    async with controlled() as (g, control, card):
        await control(0, 0, b"\0")
        kinds = [frame(60, dst=dst) for dst in (OWN, OTHER, GROUP)]
        one = (1).to_bytes(4, "little")
        assert await control(1, 0, one + OTHER, one + GROUP) == 0
        assert await passes(g, card, *kinds) == [True, True, True]
        assert await control(1, 0, bytes(4), one, GROUP) == 0
        assert await passes(g, card, *kinds) == [True, False, True]
        many = (65).to_bytes(4, "little") + bytes(65 * 6)
        assert await control(1, 0, many, bytes(4)) == 0  # more than we keep: all of that kind
        assert await passes(g, card, *kinds) == [True, True, False]
        assert await control(1, 1, b"\x52\x54\0\0\0\x09") == 0
        await control(1, 0, bytes(8))
        assert await passes(g, card, *kinds) == [False, False, False]
        assert card.mac_now == b"\x52\x54\0\0\0\x09"
        card.reset()
        assert card.mac_now == OWN


async def test_vlans() -> None:
    async with controlled() as (g, control, card):
        await control(0, 0, b"\0")
        assert await passes(g, card, frame(60, dst=OWN), tagged(5), tagged(0xFFF)) == [True, False, False]
        assert await control(2, 0, (5).to_bytes(2, "little")) == 0
        assert await control(2, 0, (0xFFF).to_bytes(2, "little")) == 0
        assert await passes(g, card, tagged(5), tagged(6), tagged(0xFFF)) == [True, False, True]
        assert await control(2, 1, (5).to_bytes(2, "little")) == 0
        assert await passes(g, card, tagged(5), tagged(0xFFF)) == [False, True]
        assert await control(2, 0, (0x1000).to_bytes(2, "little")) == 1


@pytest.mark.parametrize(
    "command",
    [
        (0, 6, b"\1"),
        (0, 0),
        (0, 0, b"\2"),
        (0, 0, b"\1\1"),
        (1, 0),
        (1, 0, bytes(4)),
        (1, 0, b"\xff" * 4),
        (1, 0, b"\xff\xff\xff\x7f", bytes(4)),
        (1, 0, b"\1\0\0\0", bytes(5), bytes(4)),
        (1, 0, bytes(4), b"\xaa\xaa\xaa\xaa"),
        (1, 1, bytes(5)),
        (1, 1, b"\1\0\0\0\0\0"),
        (1, 2, bytes(6)),
        (2, 2, bytes(2)),
        (2, 0, bytes(1)),
        (3, 1),
        (4, 0, b"\1\0"),
        (5, 0, bytes(8)),
        (6, 0),
        (255, 255, bytes(100)),
    ],
)
async def test_wrong_commands(command) -> None:
    async with controlled() as (_, control, _):
        assert await control(*command) == 1
        assert await control(*command, ack=5) == 1
        assert await control(*command, ack=0) is None
        assert await control(0, 0, b"\0") == 0


async def test_offloads_of_the_guest() -> None:
    guest_csum = int(NetFeature.GUEST_CSUM)
    features = CONTROL | HOST | int(NetFeature.CTRL_GUEST_OFFLOADS) | guest_csum
    async with controlled(features) as (g, control, card):
        data = bytes.fromhex("525400000001525400000002 0800 4500002e00010000401100000a0000010a000002 00010002001a0000")
        data = data.ljust(60, b"\5")
        partial = Header(NEEDS_CSUM, csum_start=34, csum_offset=6)
        g.offer(4)
        g.push(data, partial)
        assert [header.flags for header, _ in await g.receive()] == [NEEDS_CSUM]
        assert await control(5, 0, (1 << 7).to_bytes(8, "little")) == 1  # not negotiated
        assert await control(5, 0, bytes(8)) == 0
        g.push(data, partial)
        assert [header.flags for header, _ in await g.receive()] == [0]
        assert card.stats.in_checksums == 1
        assert await control(5, 0, guest_csum.to_bytes(8, "little")) == 0
        g.push(data, partial)
        assert [header.flags for header, _ in await g.receive()] == [NEEDS_CSUM]


async def test_announcing() -> None:
    features = CONTROL | int(NetFeature.STATUS)
    async with controlled(features) as (g, control, card):
        assert await g.fe.get_config(6, 2) == b"\1\0"
        card.controls()["announce"]()
        await g.fe.config_changed()
        assert await g.fe.get_config(6, 2) == b"\3\0"
        assert await control(3, 0) == 0
        assert await g.fe.get_config(6, 2) == b"\1\0"


# More pairs, front-ends of all manners


@pytest.mark.parametrize(("pairs", "workers"), [(4, 1), (16, 3)])
async def test_pairs(layout: int, pairs: int, workers: int) -> None:
    features = BASE | layout | int(NetFeature.MQ)
    how = vhost.WorkerOptions(count=workers)
    async with plugged(EchoLink(), pairs=pairs, features=features, workers=how) as (g, card):
        sent = [[frame(60 + i, tag=pair) for i in range(100)] for pair in range(pairs)]
        for pair in range(pairs):
            g.offer(100, pair=pair)
            for data in sent[pair]:
                g.push(data, pair=pair)
        for pair in range(pairs):
            assert [data for _, data in await g.receive(100, pair=pair)] == sent[pair]
        assert card.stats.out_frames == card.stats.in_frames == 100 * pairs
        assert len(card._workers()) == workers


@pytest.mark.parametrize("personality", [QEMU, QEMU_7_2, CLOUD_HYPERVISOR, CROSVM, UML], ids=lambda p: p.name)
async def test_personalities(personality) -> None:
    features = BASE & ~personality.not_features | MRG | HOST | CONTROL
    async with EchoLink() as link, serving(Net(link, pairs=2, mac=OWN)) as [path]:
        for _ in range(2):  # the next front-end finds it as the first did
            async with guest(path, features=features | int(NetFeature.MQ), pairs=2, personality=personality) as g:
                for pair in (0, 1):
                    g.offer(2, pair=pair)
                    g.push(frame(60), pair=pair)
                    await g.receive(pair=pair)


async def test_rings_are_numbered_and_more_are_refused() -> None:
    async with EchoLink() as link, serving(Net(link, pairs=3)) as [path], Frontend.connect(path) as fe:
        assert fe.num_queues == 7
        assert fe.features_offered & NetFeature.CTRL_VQ
        assert not fe.protocol_offered & ProtocolFeature.CONFIG  # nobody gave what would be in it
        await fe.negotiate(BASE)
        with pytest.raises(Refused):
            await fe.send(FrontendRequest.SET_VRING_ENABLE, VringState(7, 1))


async def test_enabled_before_anything_else() -> None:
    """As QEMU does at every reset, on rings without addresses."""
    async with EchoLink() as link, serving(Net(link)) as [path], Frontend.connect(path, personality=QEMU) as fe:
        for on in (1, 0, 1):
            for index in (0, 1):
                await fe.send(FrontendRequest.SET_VRING_ENABLE, VringState(index, on))
        await fe.negotiate(BASE)
        await fe.share_memory()
        for index in (0, 1):
            fe.make_queue(index, 64, serve=False)
        await fe.start_queues()
        g = Guest(fe, fe.features, header=12, mergeable=False)
        g.offer(1)
        g.push(frame(60))
        await g.receive()
        for index in (0, 1):
            await fe.stop_queue(fe.queues[index])
        for index in (0, 1):
            await fe.send(FrontendRequest.SET_VRING_ENABLE, VringState(index, 1))


async def test_pair_by_pair() -> None:
    """QEMU sets each pair up as if it were the device; the guest uses the second one later, and again after a stop."""
    features = BASE | int(NetFeature.MQ)
    async with (
        EchoLink() as link,
        serving(Net(link, pairs=2)) as [path],
        Frontend.connect(path, personality=QEMU) as fe,
    ):
        for _ in range(2):
            assert await fe.ask_u64(FrontendRequest.GET_FEATURES) == fe.features_offered
            offered = await fe.ask_u64(FrontendRequest.GET_PROTOCOL_FEATURES)
            await fe.send(FrontendRequest.SET_PROTOCOL_FEATURES, int(offered & fe.personality.protocol))
            assert await fe.ask_u64(FrontendRequest.GET_MAX_MEM_SLOTS) > 8
        await fe.negotiate(features)
        await fe.share_memory()
        for index in range(4):
            fe.make_queue(index, 64, serve=False)
        await fe.start_queues()
        g = Guest(fe, fe.features, header=12, mergeable=False)

        async def talk(pair: int) -> None:
            g.offer(1, pair=pair)
            g.push(frame(60, tag=pair), pair=pair)
            assert [data for _, data in await g.receive(pair=pair)] == [frame(60, tag=pair)]

        for index in (2, 3):
            await fe.enable(fe.queues[index], False)
        for _ in range(2):
            await talk(0)
            await fe.send(FrontendRequest.SET_FEATURES, fe.features)  # once for each pair, while others run
            for index in (2, 3):
                await fe.enable(fe.queues[index])
            await talk(1)
            bases = {index: await fe.stop_queue(fe.queues[index]) for index in (2, 3)}
            await talk(0)
            await fe.start_queues(bases)
        await fe.send(FrontendRequest.SET_VRING_NUM, VringState(7, 64))  # of a pair that is not there, without answer
        with pytest.raises(Refused):
            await fe.send(FrontendRequest.SET_VRING_ENABLE, VringState(7, 1))
        await talk(0)


async def test_a_ring_starts_anew() -> None:
    """A driver makes its rings smaller while another pair is in use."""
    features = BASE | int(NetFeature.MQ)
    async with plugged(EchoLink(), pairs=2, features=features) as (g, card):
        for size in (64, 16, 256):
            for index in (0, 1):
                await g.fe.stop_queue(g.fe.queues[index])
            g.offer(1, pair=1)
            g.push(frame(61), pair=1)
            await g.receive(pair=1)
            for index in (0, 1):
                g.fe.make_queue(index, size, serve=False)
            await g.fe.start_queues()
            g.offer(size)
            g.push(frame(60))
            await g.receive()
        assert card.stats.in_frames == 6


async def test_mtu() -> None:
    async with EchoLink() as link, serving(card := Net(link, mtu=9000)) as [path]:
        async with Frontend.connect(path, personality=QEMU) as fe:
            assert fe.features_offered & NetFeature.MTU
            assert (await fe.get_config(10, 2)) == (9000).to_bytes(2, "little")
            await fe.send(FrontendRequest.NET_SET_MTU, 9000)
            with pytest.raises(Refused):
                await fe.send(FrontendRequest.NET_SET_MTU, 9001)
        assert card.features & NetFeature.MTU


async def test_rarp() -> None:
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, personality=QEMU) as g:
        g.offer(1)
        await g.fe.send(FrontendRequest.SEND_RARP, int.from_bytes(OWN, "little"))
        [(_, data)] = await g.receive()
        assert data == b"\xff" * 6 + OWN + bytes.fromhex("8035 0001 0800 06 04 0003") + (
            OWN + bytes(4) + OWN + bytes(4)
        ) + bytes(18)


async def test_a_source_offers_what_is_taken(layout: int, merge: int) -> None:
    async with plugged(SourceLink(100), features=BASE | layout | merge) as (g, card):
        for count in (1, 64, 200, 3):
            g.offer(count)
            got = await g.receive(count)
            assert {len(data) for _, data in got} == {100}
        assert not card.stats.dropped["no_buffer"]


async def test_buffers_are_left_in_the_ring() -> None:
    """What was taken and not used is the guest's again when a ring stops."""
    async with EchoLink() as link, serving(Net(link)) as [path], guest(path, features=BASE | MRG) as g:
        g.offer(200)
        g.push(frame(5000))
        await g.receive()
        assert await g.fe.stop_queue(g.fe.queues[0]) == 3

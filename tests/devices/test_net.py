"""A card without a network: what a driver sends comes back from an echo link, or is dropped."""

from __future__ import annotations

import pytest
import trio
from netrig import (
    BASE,
    DATA_VALID,
    ECN,
    NEEDS_CSUM,
    PACKED,
    TCPV4,
    TCPV6,
    UDP,
    UDP_L4,
    VERSION_1,
    Header,
    frame,
    guest,
    serving,
)

from devices.net import EchoLink, Net, NetFeature, NullLink

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
        with trio.fail_after(5):
            await g.fe.config_changed()
        assert await g.fe.get_config(6, 2) == b"\0\0"
        g.push(frame(60))
        await g.sent(1)
        assert card.stats.dropped["down"] == 1
        card.set_link(True)
        with trio.fail_after(5):
            await g.fe.config_changed()
        g.push(frame(60))
        await g.receive()


async def test_nowhere_to_go() -> None:
    async with NullLink() as link, serving(card := Net(link)) as [path], guest(path) as g:
        g.push(frame(60))
        await g.sent(1)
        assert card.stats.out_frames == 1
        assert not any(card.stats.dropped.values())

"""A card without a network: what a driver sends comes back from an echo link, or is dropped."""

from __future__ import annotations

import pytest
from netrig import BASE, PACKED, Header, frame, guest, serving

from devices.net import EchoLink, Net, NetFeature

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

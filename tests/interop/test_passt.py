"""passt as a back-end of our front-end: DHCP, and datagrams through its NAT to a socket of this host and back."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import netrig
import pytest
import trio
from guestlib import AssetError, trixie
from guestlib.net import passt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

OURS = bytes.fromhex("525400000001")
GATEWAY, GUEST = "192.0.2.1", "192.0.2.2"


@pytest.fixture(autouse=True)
def available() -> None:
    """passt with vhost-user, or why there is none."""
    try:
        trixie.passt()
    except AssetError as error:
        pytest.skip(str(error))


def checksum(data: bytes) -> int:
    """The Internet checksum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) & 1 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(dst: bytes, source: tuple[str, int], to: tuple[str, int], data: bytes) -> bytes:
    """An Ethernet frame with a datagram."""
    a, b = (socket.inet_aton(address) for address, _ in (source, to))
    size = 8 + len(data)
    head = struct.pack("!HHHH", source[1], to[1], size, 0)
    total = checksum(a + b + struct.pack("!BBH", 0, 17, size) + head + data) or 0xFFFF
    head = head[:6] + struct.pack("!H", total)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0, 64, 17, 0) + a + b
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return dst + OURS + b"\x08\x00" + ip + head + data


def datagrams(frames: list[tuple[netrig.Header, bytes]], port: int) -> Iterator[tuple[bytes, str, bytes]]:
    """Sender's card, sender's address and content of those that came for `port`."""
    for _, data in frames:
        if data[12:14] == b"\x08\x00" and data[23] == 17 and struct.unpack_from("!H", data, 36)[0] == port:
            size = struct.unpack_from("!H", data, 38)[0]
            yield data[6:12], socket.inet_ntoa(data[26:30]), data[42 : 34 + size]


async def answer(guest: netrig.Guest, port: int, count: int = 1) -> list[tuple[bytes, str, bytes]]:
    """Wait until `count` datagrams for `port` have come."""
    got: list[tuple[bytes, str, bytes]] = []
    with trio.fail_after(60):
        while len(got) < count:
            frames = guest.take()
            guest.offer(len(frames))
            got += datagrams(frames, port)
            guest.reap()
            await trio.sleep(0.002)
    return got


def discover() -> bytes:
    """A DHCPDISCOVER."""
    fixed = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000) + bytes(16) + OURS + bytes(10 + 192)
    return fixed + bytes.fromhex("63825363 350101 ff")


async def test_passt(tmp_path: Path) -> None:
    async with passt(tmp_path, "-4", "-a", GUEST, "-n", "24", "-g", GATEWAY) as served:
        features = netrig.BASE | 1 << 15  # MRG_RXBUF, without which passt does nothing
        async with netrig.guest(str(served.socket), features=int(features), size=128) as guest:
            guest.foreign = True
            guest.offer(64)
            guest.push(udp(b"\xff" * 6, ("0.0.0.0", 68), ("255.255.255.255", 67), discover()))
            ((card, _, offer),) = await answer(guest, 68)
            assert offer[0] == 2
            assert socket.inet_ntoa(offer[16:20]) == GUEST

            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
                host.bind(("127.0.0.1", 0))
                host.settimeout(10)
                port = host.getsockname()[1]
                sent = [bytes((i * 3 + j) & 0xFF for j in range(40 * i + 1)) for i in range(30)]
                for data in sent:
                    guest.push(udp(card, (GUEST, 4000), (GATEWAY, port), data), cut=(12,))
                arrived = []
                for _ in sent:
                    data, peer = await trio.to_thread.run_sync(host.recvfrom, 2000)
                    arrived.append(data)
                    host.sendto(data[::-1], peer)
                assert arrived == sent
                back = await answer(guest, 4000, len(sent))
                assert [data[::-1] for _, _, data in back] == sent
                assert {address for _, address, _ in back} == {GATEWAY}

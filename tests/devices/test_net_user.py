"""User-mode NAT: libslirp as a guest sees it, and forwards both ways."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio
from netrig import BASE, NEEDS_CSUM, TCPV4, TCPV6, Header, free_port, guest, serving
from packets import (
    ACK,
    BROADCAST,
    FIN,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    Node,
    Packet,
    checksum,
    dhcp,
    dhcp_options,
    echo,
    ethernet,
    ip,
    packet,
    pseudo,
    tcp,
    udp,
)

pytest.importorskip("devices.net._slirp", reason="built without libslirp")

from devices.net import LinkError, Net, NetFeature
from devices.net.links.forwards import Forward, GuestForward
from devices.net.links.switch import Switch
from devices.net.links.user import User, UserConfig
from devices.net.options import TYPE
from vhost.plugin import ConfigError

GUEST, GATEWAY, DNS = ip("10.0.2.15"), ip("10.0.2.2"), ip("10.0.2.3")
GUEST6, GATEWAY6 = ip("fec0::15"), ip("fec0::2")


@contextlib.asynccontextmanager
async def plugged(link: User, features: int = BASE, address: bytes = GUEST) -> AsyncIterator[Node]:
    async with link, serving(Net(link)) as [path], guest(path, features=features) as g:
        yield Node(g, address)


class Stream:
    """One end of a TCP connection, without any repair: nothing is lost here."""

    def __init__(self, node: Node, mac: bytes, peer: bytes, port: int, own: int) -> None:
        self.node, self.mac, self.peer, self.port, self.own = node, mac, peer, port, own
        self.seq, self.ack = 1000, 0

    def send(self, flags: int, data: bytes = b"") -> None:
        options = b"\x02\x04\x05\xb4" if flags & SYN else b""
        self.node.send(
            self.mac,
            self.peer,
            TCP,
            tcp(self.node.address, self.peer, self.own, self.port, self.seq, self.ack, flags, data, options),
        )
        self.seq += len(data) + bool(flags & SYN) + bool(flags & FIN)

    async def next(self, flags: int) -> Packet:
        p = await self.node.wait(
            lambda p: p.protocol == TCP and p.dport == self.own and p.flags & flags == flags and p.src == self.peer
        )
        assert p.good()
        self.ack = (p.seq + len(p.data) + bool(p.flags & SYN) + bool(p.flags & FIN)) & 0xFFFFFFFF
        return p

    async def connect(self) -> None:
        self.send(SYN)
        p = await self.next(SYN | ACK)
        assert p.ack == self.seq
        # the largest segment: what the guest's network takes, whatever libslirp works with
        assert p.payload[20:24] == struct.pack("!BBH", 2, 4, 1460 if p.kind == IPV4 else 1440)
        self.send(ACK)

    async def receive(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            p = await self.node.wait(lambda p: p.protocol == TCP and p.dport == self.own and bool(p.data))
            assert p.good()
            if p.seq == self.ack:
                got += p.data
                self.ack = (self.ack + len(p.data)) & 0xFFFFFFFF
            self.send(ACK)
        return got


# --- what a guest finds -------------------------------------------------------------------------------------------


async def test_gateway_and_dhcp() -> None:
    config = UserConfig(hostname="vm0", domainname="example.org", search=("a.example", "b.example"))
    async with plugged(User(config)) as node:
        mac = await node.resolve(GATEWAY)
        assert mac[:2] == b"\x52\x55"
        assert await node.resolve(DNS) != node.mac
        node.address = bytes(4)
        for kind, answer in ((1, 2), (3, 5)):  # DISCOVER, OFFER; REQUEST, ACK
            asked = b"" if kind == 1 else b"\x32\x04" + GUEST
            query = udp(bytes(4), b"\xff" * 4, 68, 67, dhcp(kind, node.mac, options=asked))
            node.push(ethernet(BROADCAST, node.mac, IPV4, packet(bytes(4), b"\xff" * 4, UDP, query)))
            p = await node.wait(lambda p: p.protocol == UDP and p.dport == 68)
            options = dhcp_options(p.data)
            assert options[53] == bytes([answer])
        assert p.data[16:20] == GUEST
        assert (options[1], options[3], options[6]) == (ip("255.255.255.0"), GATEWAY, DNS)
        assert options[12].rstrip(b"\0") == b"vm0"
        assert options[15].rstrip(b"\0") == b"example.org"
        assert b"\x01a\x07example" in options[119]


async def test_another_network() -> None:
    config = UserConfig(net="192.168.77.0/24", host="192.168.77.1", dns="192.168.77.9", dhcp_start="192.168.77.100")
    async with plugged(User(config)) as node:
        node.address = ip("192.168.77.50")
        await node.resolve(ip("192.168.77.1"))
        await node.resolve(ip("192.168.77.9"))
        query = udp(bytes(4), b"\xff" * 4, 68, 67, dhcp(1, node.mac))
        node.push(ethernet(BROADCAST, node.mac, IPV4, packet(bytes(4), b"\xff" * 4, UDP, query)))
        p = await node.wait(lambda p: p.protocol == UDP and p.dport == 68)
        assert p.data[16:20] == ip("192.168.77.100")


async def test_router_advertisement() -> None:
    async with plugged(User()) as node:
        source, routers = ip("fe80::5054:ff:fe00:1"), ip("ff02::2")
        body = struct.pack("!BBHI", 133, 0, 0, 0)
        total = checksum(pseudo(source, routers, ICMPV6, len(body)) + body)
        solicit = packet(source, routers, ICMPV6, body[:2] + struct.pack("!H", total) + body[4:])
        node.push(ethernet(b"\x33\x33\0\0\0\2", node.mac, IPV6, solicit))
        p = await node.wait(lambda p: p.protocol == ICMPV6 and p.payload[0] == 134)
        assert p.good()
        assert ip("fec0::") in p.payload


async def test_no_ipv6() -> None:
    async with plugged(User(UserConfig(net6=None))) as node:
        solicit = packet(ip("fe80::1"), ip("ff02::2"), ICMPV6, struct.pack("!BBHI", 133, 0, 0, 0))
        node.push(ethernet(b"\x33\x33\0\0\0\2", node.mac, IPV6, solicit))
        await node.resolve(GATEWAY)
        await node.quiet(lambda p: p.kind == IPV6)


async def test_ping_gateway() -> None:
    async with plugged(User()) as node:
        mac = await node.resolve(GATEWAY)
        node.send(mac, GATEWAY, ICMP, echo(3))
        p = await node.wait(lambda p: p.protocol == ICMP)
        assert p.payload == echo(3, reply=True)


async def test_garbage_is_harmless() -> None:
    async with plugged(User()) as node:
        for i in range(200):
            node.push(
                BROADCAST + node.mac + (b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x12\x34")[i % 4] + os.urandom(i)
            )
            if i % 50 == 49:
                await node.resolve(GATEWAY)


async def test_shared_by_a_switch() -> None:
    """Two guests behind one NAT, and a forward to one of them that came while they ran."""
    link = User()
    async with Switch("lan") as switch:
        switch.add_uplink(link, name="nat")
        async with (
            serving(Net(switch), Net(switch)) as paths,
            guest(paths[0]) as first,
            guest(paths[1]) as second,
        ):
            nodes = [Node(first, GUEST), Node(second, ip("10.0.2.16"), b"\x52\x54\0\0\0\2")]
            for node in nodes:
                mac = await node.resolve(GATEWAY)
                node.send(mac, GATEWAY, ICMP, echo(3))
                p = await node.wait(lambda p: p.protocol == ICMP)
                assert p.frame[:6] == node.mac
            port = free_port(socket.SOCK_DGRAM)
            link.add_forward(f"udp:127.0.0.1:{port}-10.0.2.16:53")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"question", ("127.0.0.1", port))
                p = await nodes[1].wait(lambda p: p.protocol == UDP and p.dport == 53)
                assert p.data == b"question"
            await nodes[0].quiet(lambda p: p.protocol == UDP)
    with pytest.raises(RuntimeError, match="is closed"):
        link.stats  # noqa: B018 - the switch has closed it


# --- from the guest to the world ------------------------------------------------------------------------------------


async def _echo_server(listener: trio.SocketListener) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    await trio.serve_listeners(serve, [listener])


async def test_tcp_to_the_host() -> None:
    """The gateway's address is the host's loopback; data both ways, and a large one each way."""
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(_echo_server, listener)
        async with plugged(User()) as node:
            stream = Stream(node, await node.resolve(GATEWAY), GATEWAY, port, 40000)
            await stream.connect()
            for length in (1, 1000, 1460):
                data = os.urandom(length)
                stream.send(PSH | ACK, data)
                assert await stream.receive(length) == data
            stream.send(FIN | ACK)
            await stream.next(FIN)
        nursery.cancel_scope.cancel()


async def _resolve(node: Node, address: bytes) -> bytes:
    """The MAC of an IPv4 or IPv6 address; IPv6: and libslirp knows ours then."""
    if len(address) == 4:
        return await node.resolve(address)
    many = ip("ff02::1:ff00:0")[:13] + address[13:]
    body = struct.pack("!BBHI", 135, 0, 0, 0) + address + b"\x01\x01" + node.mac
    total = checksum(pseudo(node.address, many, ICMPV6, len(body)) + body)
    node.send(b"\x33\x33" + many[12:], many, ICMPV6, body[:2] + struct.pack("!H", total) + body[4:])
    p = await node.wait(lambda p: p.protocol == ICMPV6 and p.payload[0] == 136)
    return p.frame[6:12]


@pytest.mark.parametrize("version", [4, 6])
async def test_a_large_segment_is_taken_whole(version: int) -> None:
    """TSO: libslirp gets 32 KiB at once, with a checksum that somebody filled in."""
    features = BASE | NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.MRG_RXBUF
    own, peer, host = (GUEST, GATEWAY, "127.0.0.1") if version == 4 else (GUEST6, GATEWAY6, "::1")
    header = (
        Header(NEEDS_CSUM, TCPV4, 54, 1460, 34, 16) if version == 4 else Header(NEEDS_CSUM, TCPV6, 74, 1440, 54, 16)
    )
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=host)
        port = listener.socket.getsockname()[1]
        nursery.start_soon(_echo_server, listener)
        link = User()
        async with plugged(link, int(features), own) as node:
            stream = Stream(node, await _resolve(node, peer), peer, port, 40001)
            await stream.connect()
            before = link.stats.in_frames
            data = os.urandom(32000)
            segment = bytearray(tcp(own, peer, 40001, port, stream.seq, stream.ack, PSH | ACK, data))
            partial = ~checksum(pseudo(own, peer, TCP, len(segment))) & 0xFFFF
            segment[16:18] = struct.pack("!H", partial)
            node.send(stream.mac, peer, TCP, bytes(segment), header)
            stream.seq += len(data)
            assert await stream.receive(len(data)) == data
            acks = -(-len(data) // header.gso_size)
            assert link.stats.in_frames - before <= 1 + 2 * acks
            assert link.stats.in_bytes > len(data)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("whole", [True, False])
async def test_segments_to_the_guest_are_joined(whole: bool) -> None:
    """What the host sends comes in large frames to who takes them, in ordinary ones to who does not."""
    data = os.urandom(40000)  # libslirp's window is larger, so nothing has to be acknowledged in between

    async def give(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.receive_some(1)

    features = BASE | NetFeature.MRG_RXBUF | NetFeature.GUEST_CSUM
    if whole:
        features |= NetFeature.GUEST_TSO4
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, give, [listener])
        async with plugged(User(), int(features)) as node:
            stream = Stream(node, await node.resolve(GATEWAY), GATEWAY, port, 40001)
            await stream.connect()
            got, sizes = b"", []
            while len(got) < len(data):
                p = await node.wait(lambda p: p.protocol == TCP and p.dport == 40001 and bool(p.data))
                assert p.seq == stream.ack
                sizes.append(len(p.data))
                got += p.data
                stream.ack += len(p.data)
                if p.header.gso_type:
                    assert p.header.gso_type == TCPV4
                    assert p.header.gso_size == 1460 < len(p.data)
                    assert (p.header.flags, p.header.hdr_len) == (NEEDS_CSUM, 54)
                    assert (p.header.csum_start, p.header.csum_offset) == (34, 16)
                    # the sum of the pseudo header stands where the checksum goes
                    partial = ~checksum(pseudo(GATEWAY, GUEST, TCP, len(p.payload))) & 0xFFFF
                    assert struct.unpack_from("!H", p.payload, 16)[0] == partial
                    assert checksum(p.frame[14:34]) == 0
                elif not p.header.flags & NEEDS_CSUM:
                    assert p.good()
                stream.send(ACK)
            assert got == data
            assert max(sizes) > 10000 if whole else max(sizes) <= 1460
        nursery.cancel_scope.cancel()


async def test_udp_to_the_host() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        port = server.getsockname()[1]
        async with plugged(User()) as node:
            mac = await node.resolve(GATEWAY)
            node.send(mac, GATEWAY, UDP, udp(GUEST, GATEWAY, 5000, port, b"question"))
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(server)
            data, peer = server.recvfrom(100)
            assert data == b"question"
            server.sendto(b"answer", peer)
            p = await node.wait(lambda p: p.protocol == UDP and p.dport == 5000)
            assert (p.src, p.sport, p.data) == (GATEWAY, port, b"answer")


async def test_a_large_datagram_comes_in_pieces() -> None:
    """None is larger than the network's MTU, and together they are what was sent."""
    sent = os.urandom(20000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        port = server.getsockname()[1]
        async with plugged(User()) as node:
            mac = await node.resolve(GATEWAY)
            node.send(mac, GATEWAY, UDP, udp(GUEST, GATEWAY, 5000, port, b"question"))
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(server)
            _, peer = server.recvfrom(100)
            server.sendto(sent, peer)
            got, more = b"", True
            while more:
                p = await node.wait(lambda p: p.protocol == UDP and p.src == GATEWAY)
                length, _, place = struct.unpack_from("!HHH", p.frame, 16)
                assert length == len(p.frame) - 14 <= 1500
                assert checksum(p.frame[14:34]) == 0
                assert (place & 0x1FFF) * 8 == len(got)
                got, more = got + p.payload, bool(place & 0x2000)
            whole = Packet(b"", Header(), IPV4, GATEWAY, GUEST, UDP, got)
            assert whole.good()
            assert got[8:] == sent


@pytest.mark.parametrize("config", [UserConfig(restrict=True), UserConfig(host_loopback=False)], ids=str)
async def test_kept_in(config: UserConfig) -> None:
    """Neither restrict nor a closed loopback lets a guest reach the host's services."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, plugged(User(config)) as node:
        port = listener.socket.getsockname()[1]
        stream = Stream(node, await node.resolve(GATEWAY), GATEWAY, port, 40000)
        stream.send(SYN)
        await node.quiet(lambda p: p.protocol == TCP and p.flags & (SYN | ACK) == SYN | ACK, 0.5)
        with pytest.raises(BlockingIOError):
            listener.socket._sock.accept()


# --- forwards ---------------------------------------------------------------------------------------------------------


async def _accept(node: Node, port: int) -> tuple[Stream, Packet]:
    """As a guest's server: the connection that comes in to ``port``."""
    syn = await node.wait(lambda p: p.protocol == TCP and p.dport == port and p.flags & SYN == SYN)
    stream = Stream(node, syn.frame[6:12], syn.src, syn.sport, port)
    stream.ack = syn.seq + 1
    stream.send(SYN | ACK)
    await stream.next(ACK)
    return stream, syn


async def test_tcp_forward() -> None:
    port = free_port()
    async with plugged(User(forwards=[f"tcp:127.0.0.1:{port}-:22"])) as node, trio.open_nursery() as nursery:
        await node.resolve(GATEWAY)  # libslirp learns where we are

        async def client() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(b"ping")
                assert await stream.receive_some(100) == b"pong"
                assert await stream.receive_some(100) == b""

        nursery.start_soon(client)
        stream, syn = await _accept(node, 22)
        assert syn.src == GATEWAY
        assert await stream.receive(4) == b"ping"
        stream.send(PSH | ACK, b"pong")
        stream.send(FIN | ACK)
        await stream.next(FIN)


async def test_udp_forward() -> None:
    port = free_port(socket.SOCK_DGRAM)
    async with plugged(User(forwards=[f"udp:127.0.0.1:{port}-10.0.2.15:53"])) as node:
        await node.resolve(GATEWAY)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", port))
            client.send(b"question")
            p = await node.wait(lambda p: p.protocol == UDP and p.dport == 53)
            assert p.data == b"question"
            assert p.good()
            node.send(p.frame[6:12], p.src, UDP, udp(GUEST, p.src, 53, p.sport, b"answer"))
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(client)
            assert client.recv(100) == b"answer"


async def test_forwards_come_and_go() -> None:
    port = free_port()
    forward = f"tcp:127.0.0.1:{port}-:22"
    link = User(UserConfig(restrict=True))
    async with plugged(link) as node:
        await node.resolve(GATEWAY)
        with pytest.raises(OSError, match=r"all attempts|refused"):
            await trio.open_tcp_stream("127.0.0.1", port)
        controls = link.controls()
        assert controls["forward_add"](forward=forward) == forward
        assert controls["forwards"]() == {"forwards": [forward], "guest_forwards": []}
        async with await trio.open_tcp_stream("127.0.0.1", port):
            stream, _ = await _accept(node, 22)
            stream.send(RST)
        assert any(str(port) in line for line in controls["connections"]())
        controls["forward_remove"](forward=forward)
        with pytest.raises(OSError, match=r"all attempts|refused"):
            await trio.open_tcp_stream("127.0.0.1", port)
        with pytest.raises(ValueError, match="there is none"):
            controls["forward_remove"](forward=forward)


async def test_forward_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LinkError, match=f"tcp port {port} of 127.0.0.1 is in use; choose another"):
            User(forwards=[f"tcp:127.0.0.1:{port}-:22"])
    with pytest.raises(LinkError, match=r"this machine has no address 192\.0\.2\.1"):
        User(forwards=["tcp:192.0.2.1:2222-:22"])


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("live", [False, True], ids=["given", "added"])
async def test_guest_forward(tmp_path, kind: str, live: bool) -> None:
    """A guest reaches a service of the host at an address that nobody has, even when restricted."""
    async with trio.open_nursery() as nursery:
        if kind == "unix":
            path = tmp_path / "service"
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            await sock.bind(str(path))
            sock.listen(5)
            listener, target = trio.SocketListener(sock), f"unix:{path}"
        else:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.start_soon(_echo_server, listener)
        forward = f"tcp:10.0.2.100:80-{target}"
        link = User(UserConfig(restrict=True), guest_forwards=[] if live else [forward])
        async with plugged(link) as node:
            if live:
                await node.resolve(GATEWAY)
                assert str(link.add_guest_forward(forward)) == forward
            mac = await node.resolve(ip("10.0.2.100"))
            for own in (40000, 40001):
                stream = Stream(node, mac, ip("10.0.2.100"), 80, own)
                await stream.connect()
                stream.send(PSH | ACK, b"hello")
                assert await stream.receive(5) == b"hello"
                stream.send(FIN | ACK)
                await stream.next(FIN)
            link.remove_guest_forward(forward)
            assert link.guest_forwards == ()
            stream = Stream(node, mac, ip("10.0.2.100"), 80, 40002)
            stream.send(SYN)
            await node.quiet(lambda p: p.protocol == TCP and p.dport == 40002 and p.flags & SYN == SYN)
        nursery.cancel_scope.cancel()


async def test_options() -> None:
    """What the command and the configuration file say."""
    given = {
        "user": True,
        "net": "192.168.9.0/24",
        "gateway": "192.168.9.1",
        "net6": "none",
        "restrict": True,
        "forward": [f"tcp::{free_port()}-:22"],
        "domainname": "example.org",
    }
    async with TYPE.open(TYPE.values(given)) as card:
        assert isinstance(card, Net)
        link = card.link
        assert isinstance(link, User)
        assert link.config == UserConfig(
            "192.168.9.0/24", "192.168.9.1", net6=None, domainname="example.org", search=(), restrict=True
        )
        assert len(link.forwards) == 1
        assert {"forward_add", "connections"} <= set(card.controls())
        assert "net_user_sockets" in {m.name for m in card.metrics()}
    for wrong, why in (({"mtu": 65535}, "give 1280 to 65521"), ({"dns": "1.2.3.4"}, "not in the guest's network")):
        with pytest.raises(ConfigError, match=why):
            async with TYPE.open(TYPE.values({"user": True} | wrong)):
                pass
    with pytest.raises(ConfigError, match="option forward is for user only"):
        async with TYPE.open(TYPE.values({"echo": True, "forward": ["tcp::1-:2"]})):
            pass


# --- what users write -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tcp:127.0.0.1:2222-:22", None),
        ("udp:0.0.0.0:53-10.0.2.15:5353", None),
        ("tcp::8080-:80", "tcp:127.0.0.1:8080-:80"),
        ("tcp:[::1]:2222-[fec0::5054:ff:fe12:3456]:22", None),
    ],
)
def test_forwards_are_read(text: str, shown: str | None) -> None:
    assert str(Forward.parse(text)) == (shown or text)
    assert Forward.parse(str(Forward.parse(text))) == Forward.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tcp:2222-22", "cannot be read; write PROTOCOL"),
        ("sctp:127.0.0.1:1-:2", "cannot be read"),
        ("tcp:localhost:2222-:22", "'localhost' is not an IP address"),
        ("tcp:127.0.0.1:0-:22", "0 is not a port"),
        ("tcp:127.0.0.1:2222-:65536", "65536 is not a port"),
        ("tcp:[127.0.0.1]:2222-:22", "in brackets"),
        ("tcp:[::1]:2222-10.0.2.15:22", "both addresses are IPv4"),
        ("tcp:[::1]:2222-:22", "give the guest's IPv6 address"),
        ("", "cannot be read"),
    ],
)
def test_forwards_that_cannot_be(text: str, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        Forward.parse(text)


@pytest.mark.parametrize(
    "text", ["tcp:10.0.2.100:80-127.0.0.1:8080", "tcp:10.0.2.100:80-unix:/run/x", "tcp:10.0.2.9:1-[::1]:2"]
)
def test_guest_forwards_are_read(text: str) -> None:
    assert str(GuestForward.parse(text)) == text


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (UserConfig(net="10.0.2.0/33"), "net '10.0.2.0/33'"),
        (UserConfig(net="10.0.2.5/24"), "has host bits set"),
        (UserConfig(net="10.0.2.0/28"), "too small"),
        (UserConfig(host="10.0.3.2"), "10.0.3.2 is not in the guest's network"),
        (UserConfig(host="10.0.2.3"), "three different"),
        (UserConfig(dns="10.0.2.255"), "no address of a host"),
        (UserConfig(net6="fec0::/48"), "only in a /64"),
        (UserConfig(net=None, net6=None), "leads nowhere"),
        (UserConfig(mtu=100), "mtu is 100; give 1280 to 65521"),
        (UserConfig(hostname="x" * 300), "1 to 255 bytes"),
    ],
    ids=str,
)
def test_networks_that_cannot_be(config: UserConfig, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        User(config)


def test_forwards_need_their_network() -> None:
    with pytest.raises(LinkError, match="has no IPv6"):
        User(UserConfig(net6=None), forwards=["tcp:[::1]:2222-[fec0::1]:22"])
    for text, why in (
        ("tcp:10.9.9.9:80-unix:/x", "not in the guest's"),
        ("tcp:10.0.2.2:80-unix:/x", "is taken"),
        ("tcp:10.0.2.9:80-unix:/" + "x" * 107, "at most 107 bytes"),
    ):
        with pytest.raises(LinkError, match=why):
            User(guest_forwards=[text])


async def test_one_card() -> None:
    async with User() as link:
        card = Net(link)
        with pytest.raises(LinkError, match="plug both into a switch"):
            Net(link)
        card.close()
        Net(link).close()

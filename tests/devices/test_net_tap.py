"""Taps in a network namespace of their own: the kernel's stack is the other end."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from netrig import BASE, NEEDS_CSUM, TCPV4, UDP_L4, Header, guest, serving
from packets import (
    ACK,
    ICMP,
    IPV4,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    Node,
    Packet,
    checksum,
    echo,
    ethernet,
    ip,
    packet,
    pseudo,
    tcp,
    udp,
)

import vhost
from devices.net import LinkError, Net, NetFeature
from devices.net.links.switch import Switch
from devices.net.links.tap import Tap
from vhost.constants import FrontendRequest

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 2, 1, 0x1000, 0x4000, 0x100

HOST, GUEST = ip("10.1.0.1"), ip("10.1.0.2")
MRG = int(NetFeature.MRG_RXBUF)
OFFLOADS = MRG | int(NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_USO | NetFeature.GUEST_CSUM)

libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """This thread's network is a new and empty one."""
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun (modprobe tun)")
    if not shutil.which("ip"):
        pytest.skip("needs ip (Debian: iproute2)")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(CLONE_NEWNET) != 0:
        os.close(before)
        pytest.skip(f"needs a network namespace: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


def interfaces() -> dict[str, str]:
    found = {}
    for line in run("ip", "-o", "link").splitlines():
        _, name, rest = line.split(": ", 2)
        found[name] = rest
    return found


def addressed(name: str) -> None:
    """The kernel is a host on the tap; it sends nothing of its own accord."""
    run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
    run("ip", "addr", "add", "10.1.0.1/24", "dev", name)


@contextlib.asynccontextmanager
async def plugged(
    link: Tap, features: int = BASE, *, pairs: int = 1, address: bool = True, buffers: int = 64, size: int = 2048, **how
) -> AsyncIterator[Node]:
    async with link:
        if address:
            addressed(link.name)
        async with (
            serving(Net(link, pairs=pairs), **how) as [path],
            guest(path, features=features, pairs=pairs) as g,
        ):
            yield Node(g, GUEST, buffers=buffers, pairs=pairs, size=size)


async def ping(node: Node, number: int = 1, size: int = 8, **how) -> Packet:
    mac = await node.resolve(HOST)
    node.send(mac, HOST, ICMP, echo(number, bytes(size)), **how)
    p = await node.wait(lambda p: p.protocol == ICMP)
    assert p.payload == echo(number, bytes(size), reply=True)
    return p


# --- frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [BASE, BASE | MRG, BASE | OFFLOADS], ids=["plain", "mergeable", "offloads"])
async def test_the_kernel_answers(features: int) -> None:
    link = Tap.open("t0")
    async with plugged(link, features) as node:
        for number, size in enumerate((0, 1, 56, 1000, 1472)):
            p = await ping(node, number, size)
            assert p.header.flags & NEEDS_CSUM == 0
        assert "UP" in interfaces()["t0"]
    assert "t0" not in interfaces()


async def test_legacy_header() -> None:
    """Ten bytes of header: what a driver without VERSION_1 and mergeable buffers has."""
    async with plugged(Tap.open("t0"), 0) as node:
        assert node.guest.header == 10
        await ping(node, 1, 1000)


async def test_without_buffers_nothing_is_lost() -> None:
    """What comes for a guest that has no buffers waits in the tap's queue."""
    async with plugged(Tap.open("t0"), buffers=1) as node:
        await ping(node)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for i in range(50):
                sender.sendto(b"%d" % i, ("10.1.0.2", 7))
        await trio.sleep(0.1)
        for i in range(50):
            p = await node.wait(lambda p: p.protocol == UDP and p.dport == 7)
            assert p.data == b"%d" % i


async def test_small_buffers() -> None:
    """Mergeable buffers of less than a frame; without them what does not fit is dropped, and nothing else."""
    async with plugged(Tap.open("t0"), BASE | MRG, buffers=200, size=200) as node:
        await ping(node, 1, 1472)
    async with plugged(Tap.open("t0"), BASE, buffers=60, size=200) as node:
        await ping(node, 1, 56)
        mac = await node.resolve(HOST)
        node.guest.tidy = False
        node.send(mac, HOST, ICMP, echo(2, bytes(1000)))
        await node.quiet(lambda p: p.protocol == ICMP)
        await ping(node, 3, 56)


async def test_many() -> None:
    async with plugged(Tap.open("t0"), BASE | MRG) as node:
        mac = await node.resolve(HOST)
        for number in range(300):
            node.send(mac, HOST, ICMP, echo(number, bytes(number)))
            p = await node.wait(lambda p: p.protocol == ICMP)
            assert p.payload == echo(number, bytes(number), reply=True)


@pytest.mark.parametrize("features", [BASE, BASE | OFFLOADS], ids=["plain", "offloads"])
async def test_in_many_pieces(features: int) -> None:
    """More pieces than are written in one call, and buffers of odd pieces, header included."""
    async with plugged(Tap.open("t0"), features, buffers=0) as node:
        node.guest.offer(4, [3, 5, 7, 11, *[13] * 20, 2000])
        mac = await node.resolve(HOST)
        whole = ethernet(mac, node.mac, IPV4, packet(GUEST, HOST, ICMP, echo(1, bytes(range(256)) * 4)))
        for cut in ((12, 14, *[17] * 58), (1, 2, 3), (12, *[1] * 20)):
            node.guest.offer(2, [5, 2, 9, 1, *[31] * 30, 1000])
            node.push(whole, cut=cut, indirect=True)
            p = await node.wait(lambda p: p.protocol == ICMP)
            assert p.payload == echo(1, bytes(range(256)) * 4, reply=True)


async def test_link_down() -> None:
    link = Tap.open("t0")
    async with link:
        addressed("t0")
        card = Net(link)
        async with serving(card) as [path], guest(path) as g:
            node = Node(g, GUEST)
            mac = await node.resolve(HOST)
            card.set_link(False)
            node.send(mac, HOST, ICMP, echo(1))
            await node.quiet(lambda p: p.protocol == ICMP)
            card.set_link(True)
            await ping(node, 2)


@pytest.mark.parametrize("queues", [1, 2])
async def test_a_port_of_a_switch(queues: int) -> None:
    """Guests of a switch reach the host by its tap, which takes and gives segments whole."""
    link = Tap.open("t0", queues=queues)
    addressed("t0")
    features = BASE | OFFLOADS | int(NetFeature.GUEST_TSO4)
    async with Switch("lan") as switch:
        switch.add_uplink(link)
        async with (
            serving(Net(switch), Net(switch)) as paths,
            guest(paths[0], features=features) as first,
            guest(paths[1], features=BASE) as second,
        ):
            nodes = [Node(first, GUEST), Node(second, ip("10.1.0.3"), b"\x52\x54\0\0\0\2")]
            for node in nodes:
                await ping(node, 1, 1000)
            for node, large in zip(nodes, (True, False), strict=True):
                got = await _from_kernel(node, 20000)
                assert any(len(p.frame) > 1514 for p in got) == large


async def test_captured(tmp_path) -> None:
    """Frames that are not read straight into the guest's buffers any more, and are again."""
    async with Tap.open("t0") as link:
        addressed("t0")
        card = Net(link)
        async with serving(card) as [path], guest(path, features=BASE | OFFLOADS) as g:
            node = Node(g, GUEST)
            await ping(node, 1, 1000)
            card.capture.start(str(tmp_path / "c.pcapng"))
            await ping(node, 2, 1000)
            await card.capture.stop()
            await ping(node, 3, 1000)
    data = (tmp_path / "c.pcapng").read_bytes()
    assert echo(1, bytes(1000)) not in data
    assert echo(2, bytes(1000)) in data
    assert echo(2, bytes(1000), reply=True) in data
    assert echo(3, bytes(1000)) not in data


# --- offloads ---------------------------------------------------------------------------------------------------------


async def _from_kernel(node: Node, length: int) -> list[Packet]:
    """What the kernel sends of ``length`` bytes of TCP, until all of it has come."""
    with socket.socket() as server:
        server.bind(("10.1.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        mac = await node.resolve(HOST)

        def send(flags: int, seq: int, ack: int, options: bytes = b"") -> None:
            node.send(mac, HOST, TCP, tcp(node.address, HOST, 999, port, seq, ack, flags, options=options))

        send(SYN, 100, 0, b"\x02\x04\x05\xb4")
        p = await node.wait(lambda p: p.protocol == TCP and p.flags & (SYN | ACK) == SYN | ACK)
        start = p.seq + 1
        send(ACK, 101, start)
        with trio.fail_after(60):
            server.setblocking(False)
            await trio.lowlevel.wait_readable(server)
        peer, _ = server.accept()
        with peer:
            sent = os.urandom(length)
            peer.setblocking(False)
            assert peer.send(sent) == length
            got: list[Packet] = []
            data = bytearray(length)
            have = 0
            while have < length:
                p = await node.wait(lambda p: p.protocol == TCP and bool(p.data))
                got.append(p)
                at = p.seq - start
                if at == have:
                    data[at : at + len(p.data)] = p.data
                    have += len(p.data)
                    send(ACK, 101, start + have)
            assert data == sent
            send(RST, 101, start + have)
    return got


async def test_segments_to_a_guest_that_takes_them() -> None:
    async with plugged(Tap.open("t0"), BASE | OFFLOADS | int(NetFeature.GUEST_TSO4)) as node:
        got = await _from_kernel(node, 20000)
        large = [p for p in got if len(p.frame) > 1514]
        assert large, "the kernel cut them"
        for p in large:
            assert (p.header.gso_type, p.header.flags & NEEDS_CSUM) == (TCPV4, NEEDS_CSUM)
            assert (p.header.gso_size, p.header.csum_start, p.header.csum_offset) == (1460, 34, 16)


@pytest.mark.parametrize("features", [BASE | MRG, BASE | MRG | int(NetFeature.GUEST_CSUM)], ids=["nothing", "csum"])
async def test_segments_to_a_guest_that_does_not(features: int) -> None:
    async with plugged(Tap.open("t0"), features) as node:
        got = await _from_kernel(node, 20000)
        assert all(len(p.frame) <= 1514 and p.header.gso_type == 0 for p in got)
        for p in got:
            if features & int(NetFeature.GUEST_CSUM):
                assert p.header.flags & NEEDS_CSUM or p.good()
            else:
                assert p.header.flags == 0
                assert p.good()


async def test_the_next_driver_takes_less() -> None:
    """A boot loader after an operating system: what the tap gives follows what was negotiated."""
    link = Tap.open("t0")
    async with link:
        addressed("t0")
        async with serving(Net(link)) as [path]:
            for features, large in ((BASE | OFFLOADS | int(NetFeature.GUEST_TSO4), True), (BASE, False)):
                async with guest(path, features=features) as g:
                    got = await _from_kernel(Node(g, GUEST), 20000)
                    assert any(len(p.frame) > 1514 for p in got) == large


async def test_a_segment_from_the_guest() -> None:
    """The kernel gets 20000 bytes as one frame, with a partial checksum."""
    async with plugged(Tap.open("t0"), BASE | OFFLOADS) as node:
        with socket.socket() as server:
            server.bind(("10.1.0.1", 0))
            server.listen(1)
            port = server.getsockname()[1]
            mac = await node.resolve(HOST)
            node.send(mac, HOST, TCP, tcp(GUEST, HOST, 999, port, 100, 0, SYN, options=b"\x02\x04\x05\xb4"))
            p = await node.wait(lambda p: p.protocol == TCP and p.flags & SYN == SYN)
            node.send(mac, HOST, TCP, tcp(GUEST, HOST, 999, port, 101, p.seq + 1, ACK))
            data = os.urandom(20000)
            segment = bytearray(tcp(GUEST, HOST, 999, port, 101, p.seq + 1, PSH | ACK, data))
            segment[16:18] = struct.pack("!H", ~checksum(pseudo(GUEST, HOST, TCP, len(segment))) & 0xFFFF)
            node.send(mac, HOST, TCP, bytes(segment), Header(NEEDS_CSUM, TCPV4, 54, 1460, 34, 16))
            with trio.fail_after(60):
                await node.wait(lambda q: q.protocol == TCP and q.ack == 101 + len(data))
            server.settimeout(5)
            peer, _ = server.accept()
            with peer:
                peer.settimeout(5)
                assert peer.recv(len(data), socket.MSG_WAITALL) == data


async def test_datagrams_from_the_guest() -> None:
    """USO: one frame, many datagrams; cut by us where the kernel does not know how."""
    async with plugged(Tap.open("t0"), BASE | OFFLOADS) as node:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("10.1.0.1", 0))
            server.settimeout(5)
            port = server.getsockname()[1]
            mac = await node.resolve(HOST)
            data = os.urandom(4500)
            whole = bytearray(udp(GUEST, HOST, 999, port, data))
            whole[6:8] = struct.pack("!H", ~checksum(pseudo(GUEST, HOST, UDP, len(whole))) & 0xFFFF)
            node.send(mac, HOST, UDP, bytes(whole), Header(NEEDS_CSUM, UDP_L4, 42, 1000, 34, 6))
            got = [server.recv(2000) for _ in range(5)]
            assert [len(d) for d in got] == [1000] * 4 + [500]
            assert b"".join(got) == data


UDP_SEGMENT = 103  # linux/udp.h


@pytest.mark.parametrize("takes", [True, False], ids=["takes", "not"])
async def test_datagrams_to_a_guest(takes: bool) -> None:
    """USO the other way: one frame for a guest that takes it, where the kernel has it; else as many as there are."""
    features = BASE | OFFLOADS | (int(NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6) if takes else 0)
    async with plugged(Tap.open("t0"), features) as node:
        await ping(node)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("10.1.0.1", 0))
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            data = os.urandom(4500)
            sender.sendto(data, ("10.1.0.2", 7))
            got = b""
            while len(got) < len(data):
                p = await node.wait(lambda p: p.protocol == UDP and p.dport == 7)
                got += p.data
                if len(p.data) > 1000:
                    assert takes
                    assert (p.header.gso_type, p.header.gso_size) == (UDP_L4, 1000)
                else:
                    assert p.header.flags & NEEDS_CSUM or p.good()
            assert got == data


# --- queues and descriptors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
async def test_several_queues(workers: int) -> None:
    """Answers come to the queue that asked."""
    link = Tap.open("t0", queues=2)
    async with plugged(
        link, BASE | MRG | int(NetFeature.MQ), pairs=2, workers=vhost.WorkerOptions(count=workers)
    ) as node:
        mac = await node.resolve(HOST)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("10.1.0.1", 7))
            server.setblocking(False)
            for number in range(20):
                pair = number % 2
                sport = 5000 + pair
                node.send(mac, HOST, UDP, udp(GUEST, HOST, sport, 7, b"%d" % number), pair=pair)
                with trio.fail_after(60):
                    await trio.lowlevel.wait_readable(server)
                data, peer = server.recvfrom(100)
                server.sendto(data, peer)
                p = await node.wait(lambda p: p.protocol == UDP)
                assert (p.dport, p.data, p.pair) == (sport, b"%d" % number, pair)


async def test_a_pair_that_the_guest_leaves_alone() -> None:
    """The kernel puts no frames where nobody looks: all answers come to the pair that is enabled."""
    link = Tap.open("t0", queues=2)
    async with plugged(link, BASE | MRG | int(NetFeature.MQ), pairs=2) as node:
        for on in (False, True):
            for queue in (node.guest.fe.queues[2], node.guest.fe.queues[3]):
                await node.guest.fe.enable(queue, on)
            await node.guest.fe.ask_u64(FrontendRequest.GET_FEATURES)
            await node.resolve(HOST)
            pairs = set()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for port in range(100, 140):
                    sender.sendto(b"%d" % port, ("10.1.0.2", port))
                for port in range(100, 140):
                    p = await node.wait(lambda p, port=port: p.protocol == UDP and p.dport == port)
                    pairs.add(p.pair)
            assert pairs == ({0, 1} if on else {0})


async def test_more_pairs_than_queues() -> None:
    async with plugged(
        Tap.open("t0"), BASE | int(NetFeature.MQ), pairs=2, workers=vhost.WorkerOptions(count=2)
    ) as node:
        mac = await node.resolve(HOST)
        node.send(mac, HOST, ICMP, echo(5), pair=1)
        await node.wait(lambda p: p.protocol == ICMP)


def _queue(name: str, flags: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
    return fd


@pytest.mark.parametrize("header", [IFF_VNET_HDR, 0], ids=["header", "plain"])
async def test_inherited(header: int) -> None:
    """A descriptor that a manager opened, with virtio headers and without."""
    fd = _queue("m0", IFF_TAP | IFF_NO_PI | header)
    run("ip", "link", "set", "m0", "up")
    async with plugged(Tap.from_fds([fd]), BASE | OFFLOADS | int(NetFeature.GUEST_TSO4)) as node:
        await ping(node, 1, 1000)
        got = await _from_kernel(node, 20000)
        assert any(len(p.frame) > 1514 for p in got) == bool(header)


async def test_inherited_queues() -> None:
    fds = [_queue("m0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE) for _ in range(2)]
    run("ip", "link", "set", "m0", "up")
    link = Tap.from_fds(fds)
    assert (link.name, link.queues) == ("m0", 2)
    async with plugged(link, BASE | int(NetFeature.MQ), pairs=2) as node:
        await ping(node)


def test_descriptors_that_are_no_taps() -> None:
    with pytest.raises(LinkError, match="tap-fd 4242: no such descriptor"):
        Tap.from_fds([4242])
    with pytest.raises(LinkError, match=r"is not an open tap .*TUNSETIFF"):
        Tap.from_fds([os.open("/dev/net/tun", os.O_RDWR)])
    with pytest.raises(LinkError, match="is not an open tap"):
        Tap.from_fds([os.open("/dev/null", os.O_RDWR)])
    with pytest.raises(LinkError, match="is a tun; open it as a tap"):
        Tap.from_fds([_queue("n0", IFF_TUN | IFF_NO_PI)])
    with pytest.raises(LinkError, match="queues of different taps: a0, a1"):
        Tap.from_fds([_queue(f"a{i}", IFF_TAP | IFF_NO_PI) for i in range(2)])
    with pytest.raises(LinkError, match="0 descriptors"):
        Tap.from_fds([])


# --- the interface ----------------------------------------------------------------------------------------------------


def test_what_existed_stays() -> None:
    run("ip", "tuntap", "add", "dev", "p0", "mode", "tap")
    tap = Tap.open("p0", mtu=9000)
    assert tap.mtu == 9000
    tap.close()
    tap.close()
    assert "mtu 9000" in interfaces()["p0"]


def test_one_queue_of_a_tap_with_several() -> None:
    run("ip", "tuntap", "add", "dev", "p0", "mode", "tap", "multi_queue")
    first, second = Tap.open("p0"), Tap.open("p0")
    first.close()
    second.close()


async def test_jumbo() -> None:
    async with plugged(Tap.open("t0", mtu=9000), BASE | MRG) as node:
        await ping(node, 1, 8000)


def test_name_by_the_kernel() -> None:
    tap = Tap.open("vm%d")
    assert tap.description == "tap vm0"
    tap.close()


async def test_bridge() -> None:
    """The kernel answers through a bridge; what the tap is a port of is known."""
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "link", "set", "br0", "up")
    link = Tap.open("t0", bridge="br0")
    async with link:
        assert link.controls()["tap"]() == {"name": "t0", "queues": 1, "mtu": 1500, "bridge": "br0"}
        addressed("br0")
        async with serving(Net(link)) as [path], guest(path) as g:
            await ping(Node(g, GUEST))
    run("ip", "tuntap", "add", "dev", "p0", "mode", "tap")
    run("ip", "link", "add", "br1", "type", "bridge")
    for _ in range(2):  # the second time it is there already
        Tap.open("p0", bridge="br0").close()
    with pytest.raises(
        LinkError, match="tap p0 is a port of br0 already; take it out first: ip link set dev p0 nomaster"
    ):
        Tap.open("p0", bridge="br1")


def test_bridges_that_are_none() -> None:
    run("ip", "tuntap", "add", "dev", "p0", "mode", "tap")
    with pytest.raises(LinkError, match="there is no bridge nobr; make it first: ip link add nobr type bridge"):
        Tap.open("t0", bridge="nobr")
    with pytest.raises(LinkError, match="p0 is not a bridge"):
        Tap.open("t0", bridge="p0")
    assert "t0" not in interfaces()


@pytest.mark.parametrize("name", ["", "a" * 16, "a b", "a/b", "..", "a:b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(LinkError, match="cannot be the name of a tap"):
        Tap.open(name)


def test_taken() -> None:
    tap = Tap.open("t0")
    with pytest.raises(LinkError, match="tap t0 is in use by another program"):
        Tap.open("t0")
    tap.close()
    with pytest.raises(LinkError, match="lo is an interface of another kind"):
        Tap.open("lo")
    run("ip", "tuntap", "add", "dev", "p0", "mode", "tap")
    with pytest.raises(LinkError, match=r"p0 is no tap with several queues; have it made so: .* multi_queue"):
        Tap.open("p0", queues=2)
    with pytest.raises(LinkError, match="17 queues; a tap here has 1 to 16"):
        Tap.open("t1", queues=17)


ASK = """
import sys
from devices.net.links import LinkError
from devices.net.links.tap import Tap
try:
    Tap.open(sys.argv[1]).close()
except LinkError as exc:
    print(exc)
"""


def test_without_privilege() -> None:
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv (Debian: util-linux)")
    drop = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", ASK)
    assert "making it takes CAP_NET_ADMIN; have root make it once: ip tuntap add dev t0 mode tap" in run(*drop, "t0")
    run("ip", "tuntap", "add", "dev", "p0", "mode", "tap", "user", "0")
    assert "it takes CAP_NET_ADMIN to bring it up; have root do it: ip link set dev p0 up" in run(*drop, "p0")
    run("ip", "link", "set", "p0", "up")
    assert run(*drop, "p0") == ""
    run("ip", "tuntap", "add", "dev", "p1", "mode", "tap", "user", "1")
    assert "tap p1 belongs to another user" in run(*drop, "p1")


async def test_deleted_while_it_runs(caplog) -> None:
    caplog.set_level(logging.ERROR)
    link = Tap.open("t0")
    async with plugged(link) as node:
        await ping(node)
        assert [m.value for m in link.metrics()] == [1]
        run("ip", "link", "del", "t0")
        with trio.fail_after(60):
            while not caplog.records:
                await trio.sleep(0.05)
        assert "tap t0 is gone" in caplog.text
        assert [m.value for m in link.metrics()] == [0]
        assert link.controls()["tap"]()["gone"]
        mac = b"\x02\0\0\0\0\1"
        node.send(mac, HOST, ICMP, echo(1))
        await node.guest.sent(1)

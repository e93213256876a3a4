"""Cards on a switch: guests of ours that talk to each other, and what ports allow."""

from __future__ import annotations

import socket
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from netrig import BASE, NEEDS_CSUM, PACKED, TCPV4, Guest, Header, frame, free_port, guest, serving
from pcapng import IN, OUT, read

import vhost
from devices.net import LinkError, Net, NetFeature, Rules, Switch
from devices.net._net import lib
from devices.net.capture import CaptureError
from devices.net.links.files import FileLink
from devices.net.links.rules import format_vlans, parse_vlans
from devices.net.options import TYPE
from vhost.constants import FrontendRequest
from vhost.frontend import Refused
from vhost.plugin import ConfigError

EVERYONE = b"\xff" * 6
MACS = [bytes((0x52, 0x54, 0, 0, 0, i)) for i in range(8)]
MRG = int(NetFeature.MRG_RXBUF)


@pytest.fixture(params=["split", "packed"])
def layout(request) -> int:
    return int(PACKED) if request.param == "packed" else 0


@asynccontextmanager
async def guests(switch: Switch, *rules: Rules | None, features: int = BASE, buffers: int = 32, **how):
    """A guest for each of `rules`, and their cards, on a switch."""
    async with switch, AsyncExitStack() as stack:
        cards = [Net(switch.port(rule, f"vm{i}")) for i, rule in enumerate(rules)]
        paths = await stack.enter_async_context(serving(*cards, workers=vhost.WorkerOptions(count=2)))
        found = [await stack.enter_async_context(guest(path, features=features, **how)) for path in paths]
        for g in found:
            g.offer(buffers)
        yield found, cards


def between(dst: int | bytes, src: int, length: int = 60, *, tag: int = 0) -> bytes:
    return frame(length, tag=tag, dst=dst if isinstance(dst, bytes) else MACS[dst], src=MACS[src])


async def send(g: Guest, data: bytes, header: Header | None = None) -> None:
    g.push(data, header)
    await g.sent(1)


async def only(data: bytes, to: Guest, *others: Guest) -> None:
    """`to` gets `data`, nobody else gets anything; what was sent has been delivered."""
    assert [got for _, got in await to.receive()] == [data]
    for other in others:
        assert not other.take()


async def test_two_and_a_third(layout: int) -> None:
    async with guests(Switch(), None, None, None, features=BASE | layout) as ((a, b, c), cards):
        await send(a, first := between(2, 1))
        await only(first, b)
        await only(first, c)  # nobody knew yet
        await send(b, answer := between(1, 2, 1000))
        await only(answer, a, c)
        await send(a, second := between(2, 1, 1500, tag=1))
        await only(second, b, c)
        await send(c, everyone := between(EVERYONE, 3))
        await only(everyone, a)
        await only(everyone, b)
        switch = cards[0].link.switch
        table = {(entry.mac[-2:], entry.port) for entry in switch.table()}
        assert table == {("01", "vm0"), ("02", "vm1"), ("03", "vm2")}
        ports = {port["name"]: port for port in cards[0].controls()["ports"]()}
        assert ports["vm0"]["sent"] == {"frames": 2, "bytes": 1560}
        assert ports["vm0"]["received"] == {"frames": 2, "bytes": 1060}
        assert len(cards[0].controls()["table"](port="vm1")) == 1
        metrics = [metric for card in cards for metric in card.metrics() if metric.name.startswith("net_switch_")]
        assert sum(metric.name == "net_switch_entries" for metric in metrics) == 1
        sent = [m for m in metrics if m.name == "net_switch_frames_total" and m.labels["direction"] == "sent"]
        assert [(m.labels["port"], m.value) for m in sent] == [("vm0", 2), ("vm1", 1), ("vm2", 1)]


async def test_bursts_between_many(layout: int) -> None:
    """Interleaved destinations: everyone gets his own, in order."""
    async with guests(Switch(), *[None] * 4, features=BASE | layout | MRG, buffers=200) as (found, _):
        for i, g in enumerate(found):
            await send(g, between(EVERYONE, i))
        for g in found:
            await g.receive(len(found) - 1)
        want: list[list[bytes]] = [[] for _ in found]
        for i in range(150):
            to = 1 + i % 3
            data = between(to, 0, 60 + i * 5, tag=i)
            want[to].append(data)
            found[0].push(data, publish=False)
        found[0].publish()
        for g, mine in zip(found[1:], want[1:], strict=True):
            assert [data for _, data in await g.receive(len(mine))] == mine
        await found[0].sent(150)


async def test_offload_fields_are_carried_over_or_finished(layout: int) -> None:
    takes = int(NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4)
    async with Switch() as switch, AsyncExitStack() as stack:
        cards = [Net(switch) for _ in range(3)]
        paths = await stack.enter_async_context(serving(*cards))
        features = BASE | layout | MRG
        a, b = [await stack.enter_async_context(guest(path, features=features | takes)) for path in paths[:2]]
        c = await stack.enter_async_context(guest(paths[2], features=features))
        for g in (b, c):
            g.offer(16, 2048)
        # an IPv4 packet with 3000 bytes of TCP
        ip = bytes.fromhex("45000be0000000004006000001020304 05060708".replace(" ", ""))
        tcp = bytes.fromhex("0001000200000000000000005010ffff00000000")
        data = EVERYONE + MACS[1] + b"\x08\x00" + ip + tcp + bytes(3000)
        header = Header(NEEDS_CSUM, TCPV4, 54, 1448, 34, 16)
        await send(a, data, header)
        [(got, whole)] = await b.receive()
        assert whole == data
        assert (got.flags, got.gso_type, got.gso_size, got.csum_start) == (NEEDS_CSUM, TCPV4, 1448, 34)
        cut = await c.receive(3)
        assert [len(piece) for _, piece in cut] == [54 + 1448, 54 + 1448, 54 + 104]
        assert not any(got.flags or got.gso_type for got, _ in cut)
        assert cards[2].stats.in_segments == 3


async def test_ageing() -> None:
    async with guests(Switch(ageing=1), None, None, None) as ((a, b, c), cards):
        await send(b, data := between(EVERYONE, 2))
        await only(data, a)
        await only(data, c)
        await send(a, data := between(2, 1))
        await only(data, b, c)
        lib.net_switch_skip(cards[0].link.switch._ptr, 3)  # its clock goes on
        await send(a, data := between(2, 1))
        await only(data, b)
        await only(data, c)
        cards[0].controls()["set_ageing"](seconds=1000)
        await send(b, data := between(EVERYONE, 2))
        await a.receive()
        await c.receive()
        lib.net_switch_skip(cards[0].link.switch._ptr, 500)
        await send(a, data := between(2, 1))
        await only(data, b, c)
        with pytest.raises(ValueError, match="give 1 to 1000000 seconds"):
            cards[0].controls()["set_ageing"](seconds=0)


async def test_a_guest_without_buffers_holds_nobody_up() -> None:
    async with guests(Switch(), None, None, None, buffers=0) as ((a, b, c), cards):
        c.offer(200)
        await send(b, between(EVERYONE, 2))
        await send(c, between(EVERYONE, 3))
        await c.receive(1)
        for i in range(100):
            a.push(between(2, 1, tag=i), publish=False)
            a.push(between(3, 1, tag=i), publish=False)
        a.publish()
        await a.sent(200)
        await c.receive(100)
        assert cards[1].stats.dropped["no_buffer"] == 101


async def test_vlans(layout: int) -> None:
    rules = Rules(vlan=5), Rules(vlan=5), Rules(vlan=6), Rules(trunk=parse_vlans("5-6")), None
    async with guests(Switch(), *rules, features=BASE | layout) as ((a, b, c, trunk, plain), _):
        tagged = between(EVERYONE, 1, 400)[:12] + b"\x81\x00\x00\x05" + between(EVERYONE, 1, 400)[12:]
        await send(a, between(EVERYONE, 1, 400))
        await only(between(EVERYONE, 1, 400), b, c, plain)
        await only(tagged, trunk)
        back = MACS[1] + MACS[4] + b"\x81\x00\x00\x05" + between(1, 4, 1200)[12:]
        await send(trunk, back)
        await only(between(1, 4, 1200), a, b, c, plain)
        await send(trunk, back.replace(b"\x81\x00\x00\x05", b"\x81\x00\x00\x06"))
        await only(between(1, 4, 1200), c, a, b, plain)  # not known in that VLAN
        await send(plain, between(EVERYONE, 5))
        await trio.sleep(0.05)
        assert not any(g.take() for g in (a, b, c, trunk))


async def test_captures_of_ports(layout: int, tmp_path: Path) -> None:
    """Of cards and of others, each by its name, on and off while frames pass."""
    wire = Wire()
    switch = Switch()
    switch.add_uplink(wire, name="wire")
    async with guests(switch, None, None, features=BASE | layout) as ((a, b), cards):
        do = cards[0].controls()
        for port in ("wire", "vm1"):
            assert do["capture_start"](path=str(tmp_path / port), port=port, snaplen=200)["frames"] == 0
        await send(a, one := between(EVERYONE, 1, 100))
        await only(one, b)
        assert await from_wire(wire) == one
        wire.end.send(two := between(2, 7, 300))
        await only(two, a)  # nobody knew where b was
        await only(two, b)
        with pytest.raises(CaptureError, match="port vm1 is captured to"):
            do["capture_start"](path=str(tmp_path / "x"), port="vm1")
        with pytest.raises(ValueError, match="no port 'x'"):
            await do["capture_stop"](port="x")
        metrics = {(m.name, m.labels.get("port")): m.value for card in cards for m in card.metrics()}
        assert metrics["net_captured_total", "wire"] == metrics["net_captured_total", "vm1"] == 2
        assert (await do["capture_stop"](port="wire"))["frames"] == 2
        await send(b, three := between(1, 2, 90))
        await only(three, a)
        assert do["capture"](port="vm1")["frames"] == 3
        assert [port["capture"] for port in do["ports"]()] == [None, None, str(tmp_path / "vm1")]
    # one that is still under way ends with its port
    wanted = {"wire": [(one, IN), (two[:200], OUT)], "vm1": [(one, IN), (two[:200], IN), (three, OUT)]}
    for port, want in wanted.items():
        captured = read(tmp_path / port)
        assert captured.names == [f"switch switch, port {port}"]
        assert [(data, way) for _, _, data, _, way in captured.packets] == want
    with pytest.raises(LinkError, match="nothing is plugged in"):
        assert switch.port().capture


async def test_isolation_and_pins() -> None:
    alone = Rules(isolated=True)
    pinned = Rules(isolated=True, pin_mac="52:54:00:00:00:02")
    async with guests(Switch(), None, alone, pinned) as ((router, a, b), cards):
        await send(a, data := between(EVERYONE, 1))
        await only(data, router, b)
        await send(b, between(EVERYONE, 1))  # not its address
        await send(a, between(EVERYONE, 2))  # not its either
        await send(b, data := between(EVERYONE, 2))
        await only(data, router, a)
        drops = [port["dropped"] for port in cards[0].controls()["ports"]()]
        assert drops == [{}, {"filter": 1}, {"filter": 1}]
        with pytest.raises(LinkError, match="pinned to another port"):
            Net(cards[0].link.switch.port(pinned))
        with pytest.raises(LinkError, match="pinned to another port"):
            cards[0].controls()["set_port"](pin_mac="52:54:00:00:00:02")


async def test_a_migrated_guest_is_where_it_is_announced(layout: int) -> None:
    """Spec: vhost-user, VHOST_USER_SEND_RARP: it need not say a word."""
    async with guests(Switch(), None, None, None, features=BASE | layout) as ((before, peer, after), _):
        await send(before, hello := between(EVERYONE, 1))
        await only(hello, peer)
        await only(hello, after)
        await after.fe.send(FrontendRequest.SEND_RARP, int.from_bytes(MACS[1], "little"))
        [(_, announced)] = await peer.receive()
        assert announced[:14] == EVERYONE + MACS[1] + b"\x80\x35"  # RFC 903
        assert [data for _, data in await before.receive()] == [announced]
        await send(peer, data := between(1, 2))
        await only(data, after, before)


async def test_rules_change_under_traffic() -> None:
    async with guests(Switch(), None, None, buffers=250) as ((a, b), cards):
        set_port = cards[0].controls()["set_port"]
        await send(a, between(EVERYONE, 1))
        await b.receive()
        assert set_port(port="vm1", vlan=7)["rules"] == {"vlan": 7}
        await send(a, between(EVERYONE, 1))
        assert set_port(vlan=7)["rules"] == {"vlan": 7}
        await send(a, between(EVERYONE, 1, tag=1))
        await only(between(EVERYONE, 1, tag=1), b)
        set_port(up=False)
        await send(a, between(EVERYONE, 1))
        set_port(up=True, flood_pps=10, burst_ms=1000)
        for _ in range(100):
            a.push(between(EVERYONE, 1), publish=False)
        a.publish()
        await a.sent(100)
        got = 0
        with trio.move_on_after(0.2):
            while True:
                got += len(b.take())
                await trio.sleep(0.01)
        assert 10 <= got <= 14
        assert cards[0].controls()["ports"]()[0]["dropped"] == {"down": 1, "limit": 100 - got}
        with pytest.raises(ValueError, match="no port 'x'; there are vm0, vm1"):
            set_port(port="x")
        cards[0].controls()["flush"]()
        assert cards[0].controls()["table"]() == []


async def test_ports_come_and_go_under_traffic() -> None:
    """A guest goes away and comes back, its card too, while two others talk."""
    async with Switch() as switch, AsyncExitStack() as stack:
        cards = [Net(switch) for _ in range(2)]
        async with vhost.open_server(workers=vhost.WorkerOptions(count=3)) as server:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            for i, card in enumerate(cards):
                await server.listen(card, f"{folder}/{i}")
            count = 0

            async def talk() -> None:
                nonlocal count
                while True:
                    b.offer(32)
                    for i in range(32):
                        a.push(between(EVERYONE, 1, tag=i), publish=False)
                    a.publish()
                    await a.sent(32)
                    await b.receive(32)
                    count += 32

            async with guest(f"{folder}/0") as a, guest(f"{folder}/1") as b, trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                for _ in range(5):
                    other = Net(switch)
                    endpoint = await server.listen(other, f"{folder}/other")
                    for _ in range(2):
                        async with guest(f"{folder}/other") as c:
                            c.offer(100)
                            with trio.fail_after(60):
                                while not c.take():
                                    await trio.sleep(0.001)
                    await endpoint.aclose()
                    other.close()
                assert count
                nursery.cancel_scope.cancel()
        for card in cards:
            card.close()
    assert switch.ports == ()


async def test_pairs_and_workers() -> None:
    """All rings of all cards are on one worker, however many pairs there are."""
    async with Switch() as switch:
        cards = [Net(switch, pairs=2) for _ in range(2)]
        features = BASE | int(NetFeature.MQ)
        async with (
            serving(*cards, workers=vhost.WorkerOptions(count=4)) as paths,
            guest(paths[0], features=features, pairs=2) as a,
            guest(paths[1], features=features, pairs=2) as b,
        ):
            assert len({worker for card in cards for worker in card._workers()}) == 1
            for pair in (0, 1):
                b.offer(4, pair=pair)
                a.push(data := between(EVERYONE, 1, tag=pair), pair=pair)
                await a.sent(1, pair=pair)
                got = b.take(pair=0) + b.take(pair=1)
                assert [d for _, d in got] == [data]


class Wire(FileLink):
    """A link to a socket of packets, whose other end the test has."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.runs = 0
        super().__init__([ours.detach()], header=False)

    @property
    def description(self) -> str:
        return "wire"

    async def run(self) -> None:
        self.runs += 1
        try:
            await trio.sleep_forever()
        finally:
            self.runs -= 1

    async def aclose(self) -> None:
        self.end.close()
        await super().aclose()


async def from_wire(wire: Wire) -> bytes:
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(wire.end)
        return wire.end.recv(70000)


async def test_uplinks() -> None:
    wire, late = Wire(), Wire()
    switch = Switch()
    switch.add_uplink(wire, name="wire")
    async with guests(switch, None, None) as ((a, b), _):
        await send(a, data := between(EVERYONE, 1))
        await only(data, b)
        assert await from_wire(wire) == data
        wire.end.send(data := between(1, 7, 900))
        await only(data, a, b)
        await send(b, data := between(7, 2))
        assert await from_wire(wire) == data
        assert not a.take()
        with pytest.raises(LinkError, match="has a port wire already"):
            switch.add_uplink(late, name="wire")
        switch.add_uplink(late, Rules(vlan=9), name="late")
        late.end.send(between(EVERYONE, 6))
        await trio.sleep(0.02)
        assert not a.take()
        switch.ports[-1].set_rules(Rules())
        late.end.send(data := between(EVERYONE, 6))
        await only(data, a)
        await only(data, b)
        assert await from_wire(wire) == data
        with trio.fail_after(60):
            while (wire.runs, late.runs) != (1, 1):
                await trio.sleep(0.01)
        assert {entry.port for entry in switch.table()} == {"vm0", "vm1", "wire", "late"}
        await switch.remove_uplink("late")
        assert [port.name for port in switch.ports] == ["wire", "vm0", "vm1"]
        await send(a, data := between(EVERYONE, 1))
        await only(data, b)
        with pytest.raises(ValueError, match="is a card's"):
            await switch.remove_uplink("vm0")
    assert wire.runs == 0


async def test_uplinks_outlive_the_card_that_runs_them() -> None:
    wire = Wire()
    async with Switch() as switch, vhost.open_server() as server, AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        switch.add_uplink(wire)
        cards = [Net(switch) for _ in range(2)]
        endpoints = [await server.listen(card, f"{folder}/{i}") for i, card in enumerate(cards)]
        async with guest(f"{folder}/0"), guest(f"{folder}/1") as b:
            b.offer(2)
            wire.end.send(data := between(EVERYONE, 6))
            await only(data, b)
            await endpoints[0].aclose()
            wire.end.send(data := between(EVERYONE, 6, tag=1))
            await only(data, b)
            with trio.fail_after(60):
                while wire.runs != 1:
                    await trio.sleep(0.01)
        await endpoints[1].aclose()
        for card in cards:
            card.close()


# Names, options


async def test_shared_by_name() -> None:
    async with Switch.named("lan", port_name="a") as one:
        async with Switch.named("lan") as two:
            assert one.switch is two.switch
            card = Net(one)
            with pytest.raises(LinkError, match="switch lan has a port a already"):
                Switch.named("lan", port_name="a")
            card.close()
        async with Switch.named("other") as three:
            assert three.switch is not one.switch
    async with Switch.named("lan") as again:
        assert again.switch is not one.switch


async def test_options(tmp_path: Path) -> None:
    def values(**given):
        return TYPE.values({name.replace("_", "-"): value for name, value in given.items()})

    given = values(
        switch="s", ageing="60", vlan="5", trunk="7,9-11", send_pps="5k", pin_mac="52:54:00:00:00:09", uplink=["user"]
    )
    async with TYPE.open(given) as card, TYPE.open(values(switch="s", port_name="x", uplink=["user"])) as other:
        assert [port.name for port in card.link.switch.ports] == ["user", "port1", "x"]
        assert card.link.rules.as_dict() == {
            "vlan": 5, "trunk": "7,9-11", "send_pps": 5000, "pin_mac": "52:54:00:00:00:09"
        }  # fmt: skip
        assert other.link.switch is card.link.switch
        lan = card.link.switch.ports
        do = other.controls()
        pcap, forward = tmp_path / "x", f"tcp:127.0.0.1:{free_port()}-10.0.2.15:22"
        added = await do["uplink_add"](uplink=f"user,name=nat6,vlan=6,isolated,forward={forward},pcap={pcap}")
        assert (added["rules"], added["capture"]) == ({"vlan": 6, "isolated": True}, str(pcap))
        with pytest.raises(LinkError, match="has a port nat6 already"):
            await do["uplink_add"](uplink="user,name=nat6")
        with pytest.raises(CaptureError, match="cannot capture to /nowhere/x"):
            await do["uplink_add"](uplink="user,name=more,pcap=/nowhere/x")
        await do["uplink_remove"](name="nat6")
        assert card.link.switch.ports == lan
    for wrong, words in (
        ({"switch": "s", "trunk": "7-"}, "'7-' is no VLAN"),
        ({"switch": "s", "pin_mac": "x"}, "not a MAC address"),
        ({"switch": "s", "uplink": ["tap"]}, "neither user nor tap:NAME"),
        ({"switch": "s", "uplink": ["user,x"]}, "'x' is none of name=NAME, vlan=5"),
        ({"switch": "s", "uplink": ["tap:x,forward=tcp::1-:1"]}, "forwards are for the NAT"),
        ({"echo": True, "vlan": "5"}, "option vlan is for switch only"),
    ):
        with pytest.raises(ConfigError, match=words):
            async with TYPE.open(values(**wrong)):
                pass
    assert not Switch._by_name


def test_lists_of_vlans() -> None:
    assert parse_vlans("5, 7,100-102") == {5, 7, 100, 101, 102}
    assert format_vlans(parse_vlans("1+3-5,7")) == "1,3-5,7"
    assert format_vlans(parse_vlans("all")) == "1-4094"
    for wrong in ("", "0", "4095", "7-5", "x", "1,,2"):
        with pytest.raises(ValueError, match="is no VLAN"):
            parse_vlans(wrong)


def test_rules_that_cannot_be() -> None:
    for wrong, words in (
        ({"vlan": 0}, "VLANs are 1 to 4094"),
        ({"trunk": (4095,)}, "VLAN 4095"),
        ({"learn": -1}, "learn is -1"),
        ({"send_pps": -1}, "limit send_pps is -1"),
        ({"burst_ms": 0}, "give 1 to 1000"),
        ({"pin_mac": "1"}, "not a MAC address"),
    ):
        with pytest.raises(ValueError, match=words):
            Rules(**wrong)


async def test_two_servers_are_refused(caplog) -> None:
    async with Switch() as switch:
        cards = [Net(switch) for _ in range(2)]
        async with serving(cards[0]) as [path], guest(path), serving(cards[1]) as [second]:
            with pytest.raises(Refused, match="SET_VRING_KICK"):
                async with guest(second):
                    pass
        assert "its cards are served by two servers; serve them by one" in caplog.text

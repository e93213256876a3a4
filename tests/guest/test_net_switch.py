"""Three guests on one switch: who hears what, every kind of traffic between them, and one of them killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import trio
from guestlib import QemuConfig, UmlDevice, VhostNet, boot_qemu, boot_uml
from guestlib import net as netlib
from guestlib.backends import vhost_program
from guestlib.net import MIB, NET, Guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


def config(folder: Path, names: str, more: str = "") -> tuple[str, dict[str, Path]]:
    """A process with a card for each letter of ``names``, all on the switch "lan"; and their sockets."""
    sockets = {name: folder / f"{name}.sock" for name in names}
    tables = [
        f'[[device]]\ntype = "net"\nname = "{name}"\nsocket-path = "{socket}"\nswitch = "lan"\n{more}'
        for name, socket in sockets.items()
    ]
    return "\n".join(tables), sockets


def ip(number: int) -> str:
    """The IPv4 address of guest ``number``."""
    return f"10.8.0.{number}"


async def heard(guest: Guest) -> int:
    """Frames that the guest's card has received."""
    return int(await guest.output("cat /sys/class/net/eth0/statistics/rx_packets"))


async def _who_hears(a: Guest, b: Guest, c: Guest) -> None:
    """Unknown addresses reach everybody who listens to them, known ones only their owner."""
    for guest, others in ((a, (2, 3)), (b, (1, 3)), (c, (1, 2))):
        for number in others:
            await netlib.ping(guest, ip(number))
    before = await heard(c)
    await netlib.tcp(a, ip(2))
    assert await heard(c) - before < 30, "frames from a to b come to c"
    # who listens: b with its filter off (User-mode Linux gives us its control queue), c always (QEMU keeps it)
    await b.run("ip link set eth0 promisc on")
    before_b, before_c = await heard(b), await heard(c)
    await a.run(f"busybox arp -s {ip(99)} 52:54:00:00:09:99 && ping -c 5 -i 0.1 -W 1 {ip(99)} >/dev/null; true")
    assert await heard(b) - before_b >= 5
    assert await heard(c) - before_c >= 5
    await b.run("ip link set eth0 promisc off")


async def _two(a: Guest, b: Guest, to_a: str, to_b: str) -> None:
    """Everything between two guests, each way, whatever the two cards do for them."""
    for on_a, on_b in ((True, True), (False, True), (True, False), (False, False)):
        await netlib.offloads(a, on_a)
        await netlib.offloads(b, on_b)
        await netlib.tcp(a, to_b)
        await netlib.tcp(b, to_a)
        arrived = await netlib.udp(a, to_b, 400, 1200, segment=20 if on_a else 1, pause_us=500)
        assert arrived.received > 200
        assert arrived.doubled == 0
    await netlib.udp(b, to_a, 40, 4800, pause_us=2000)  # in fragments


async def _jumbo(a: Guest, b: Guest) -> None:
    for guest in (a, b):
        await guest.run("ip link set eth0 mtu 9000")
    await netlib.ping(a, ip(2), size=8900)
    for on in (True, False):
        await netlib.offloads(a, on)
        await netlib.tcp(a, ip(2))
        await netlib.tcp(b, ip(1))
    for guest in (a, b):
        await netlib.offloads(guest, True)
        await guest.run("ip link set eth0 mtu 1500")


async def _iperf3(a: Guest, b: Guest, six: str) -> None:
    await b.run("iperf3 -s -D >/dev/null 2>&1; sleep 0.3")
    for words in ([], ["-R"]):
        for host in (ip(2), six):
            end = await netlib.iperf3(a, host, *words)
            assert end["sum_received"]["bytes"] > MIB
    end = await netlib.iperf3(a, ip(2), "-u", "-b", "20M")
    assert end["sum"]["lost_percent"] < 50


async def test_three_guests(tmp_path: Path) -> None:
    """Two User-mode Linux guests and a QEMU on packed rings share a switch."""
    text, sockets = config(tmp_path, "abc")
    async with (
        netlib.vhost_serve(tmp_path, text, list(sockets.values())),
        boot_uml(tmp_path, UmlDevice(sockets["a"], NET)) as a,
        boot_uml(tmp_path, UmlDevice(sockets["b"], NET)) as b,
    ):
        card = VhostNet(sockets["c"], packed=True, mac=netlib.mac(3))
        async with boot_qemu(QemuConfig(devices=(card,)), tmp_path) as c:
            for number, guest in enumerate((a, b, c), 1):
                await netlib.address(guest, f"{ip(number)}/24")
                await netlib.listen(guest)
            await _who_hears(a, b, c)
            await _two(a, b, ip(1), ip(2))
            six_a, six_b, six_c = [f"{await netlib.link_local(guest)}%eth0" for guest in (a, b, c)]
            await netlib.tcp(a, six_b)
            await _two(b, c, six_b, six_c)
            await netlib.tcp(c, six_a)
            await _jumbo(a, b)
            if shutil.which("iperf3"):
                await _iperf3(a, b, six_b)
            stream = netlib.Stream(a, ip(2))
            await stream.start()
            await c.kill()
            await stream.goes_on()
        # another in its place
        async with boot_uml(tmp_path, UmlDevice(sockets["c"], NET)) as c2:
            await netlib.address(c2, f"{ip(3)}/24")
            await netlib.tcp(c2, ip(1))
            await netlib.tcp(c2, ip(2))
            await stream.goes_on()
            await c2.power_off()
        await stream.stop()
        await a.power_off()
        await b.power_off()


async def where(control: Path, mac: str) -> str:
    """The port that the switch has learnt ``mac`` on."""
    command = [str(vhost_program()), "ctl", "-s", str(control), "--json", "table", "device=p"]
    done = await trio.run_process(command, capture_stdout=True)
    return next(entry["port"] for entry in json.loads(done.stdout) if entry["mac"] == mac)


async def test_migration(tmp_path: Path) -> None:
    """A guest moves from one port to another; its TCP streams, to and from a third port, go on."""
    control = tmp_path / "control.sock"
    text, sockets = config(tmp_path, "stp")
    text = f'[server]\ncontrol = "{control}"\n{text}'
    for name in sockets:
        text = text.replace(f'name = "{name}"\n', f'name = "{name}"\nport-name = "{name}"\n')
    async with (
        netlib.vhost_serve(tmp_path, text, list(sockets.values())),
        boot_uml(tmp_path, UmlDevice(sockets["p"], NET)) as peer,
    ):
        here = VhostNet(sockets["s"], mac=netlib.mac(1))
        there = VhostNet(sockets["t"], mac=netlib.mac(1))
        async with (
            boot_qemu(QemuConfig(devices=(here,), memory_mib=256), tmp_path, name="source") as source,
            boot_qemu(QemuConfig(devices=(there,), memory_mib=256, incoming=True), tmp_path, name="target") as target,
        ):
            await netlib.address(source, f"{ip(1)}/24")
            await netlib.address(peer, f"{ip(2)}/24")
            for guest in (source, peer):
                await netlib.listen(guest)
            outgoing, incoming = netlib.Stream(source, ip(2)), netlib.Stream(peer, ip(1))
            for stream in (outgoing, incoming):
                await stream.start()
                await stream.goes_on()
            assert await where(control, netlib.mac(1)) == "s"
            await source.migrate_to(target)
            await source.kill()
            outgoing.guest = target
            for stream in (outgoing, incoming):
                await stream.goes_on()
            assert await where(control, netlib.mac(1)) == "t"
            for stream in (outgoing, incoming):
                await stream.stop()
            await netlib.ping(peer, ip(1))
            await target.power_off()
        await peer.power_off()

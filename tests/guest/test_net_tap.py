"""A guest on a tap in a network namespace: four pairs of packed queues, traffic of known content and iperf3."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from guestlib import AssetError, QemuConfig, UmlDevice, VhostNet, boot_qemu, boot_uml, started
from guestlib import net as netlib
from guestlib.net import MIB, NET, PORT, Guest, Namespace

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

HOST, OURS = "10.9.0.1", "10.9.0.2"
RING_PACKED = 34


def set_up(space: Namespace, tap: str) -> None:
    """Give the tap's host side its address."""
    space.run("ip", "addr", "add", f"{HOST}/24", "dev", tap)
    space.run("ip", "link", "set", tap, "up")


async def both_ways(guest: Guest, space: Namespace) -> None:
    """TCP and UDP in both directions, with and without the card's offloads."""
    for on in (True, False):
        await netlib.offloads(guest, on)
        await netlib.tcp(guest, HOST)
        said = await netlib.host_netio("tcp", OURS, str(PORT), str(4 * MIB), str(4 * MIB), space=space)
        assert f"sent={4 * MIB} got={4 * MIB} bad=0" in said
        arrived = await netlib.udp(guest, HOST, 500, 1400, segment=20 if on else 1, pause_us=500)
        assert arrived.received > 250
        assert arrived.doubled == 0
    said = await netlib.host_netio("udp", OURS, str(PORT), "500", "1400", "20", "500", space=space)
    assert "bad=0 doubled=0" in said
    await netlib.offloads(guest, True)


async def test_four_packed_pairs(tmp_path: Path) -> None:
    """Streams side by side over all queues of a QEMU guest."""
    try:
        with netlib.namespace() as space:
            await _four_packed_pairs(tmp_path, space)
    except AssetError as error:
        pytest.skip(str(error))


async def _four_packed_pairs(folder: Path, space: Namespace) -> None:
    async with netlib.vhost_net(folder, "--tap", "vm0", "--queues", "4", namespace=space) as served:
        card = VhostNet(served.socket, pairs=4, packed=True, mac=netlib.mac(1))
        async with (
            boot_qemu(QemuConfig(devices=(card,), smp=4), folder) as guest,
            netlib.listener(folder, space=space),
        ):
            features = await guest.output("cat /sys/bus/virtio/devices/virtio0/features")
            assert features[RING_PACKED] == "1"
            assert len((await guest.output("ls -d /sys/class/net/eth0/queues/rx-*")).split()) == 4
            set_up(space, "vm0")
            await netlib.address(guest, f"{OURS}/24")
            await netlib.listen(guest)
            await netlib.ping(guest, HOST)
            await netlib.ping(guest, HOST, size=1400)
            await both_ways(guest, space)
            script = f"for i in 1 2 3 4; do netio tcp {HOST} {PORT} {2 * MIB} {2 * MIB} & done; wait"
            said = await guest.output(script)
            assert said.count(f"sent={2 * MIB} got={2 * MIB} bad=0") == 4, said
            if shutil.which("iperf3"):
                async with started("iperf3", space.command("iperf3", "-s"), folder / "iperf3.log"):
                    await trio.sleep(0.3)
                    for words in (["-P", "4"], ["-P", "4", "-R"]):
                        end = await netlib.iperf3(guest, HOST, *words)
                        assert end["sum_received"]["bytes"] > MIB
                    end = await netlib.iperf3(guest, HOST, "-u", "-b", "10M")
                    assert end["sum"]["lost_percent"] < 50
            await guest.power_off()


async def test_user_mode_linux(tmp_path: Path) -> None:
    """The same with one pair of split queues, and a tap that another made."""
    try:
        with netlib.namespace() as space:
            space.run("ip", "tuntap", "add", "vm1", "mode", "tap", "vnet_hdr")
            async with (
                netlib.vhost_net(tmp_path, "--tap", "vm1", namespace=space) as served,
                boot_uml(tmp_path, UmlDevice(served.socket, NET)) as guest,
                netlib.listener(tmp_path, space=space),
            ):
                set_up(space, "vm1")
                await netlib.address(guest, f"{OURS}/24")
                await netlib.listen(guest)
                await netlib.ping(guest, HOST)
                await both_ways(guest, space)
                await guest.power_off()
    except AssetError as error:
        pytest.skip(str(error))

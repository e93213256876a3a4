"""Guests on user-mode NAT: addresses by DHCP, services of the host, forwards into the guest; all data compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from guestlib import QemuConfig, UmlDevice, VhostNet, boot_qemu, boot_uml
from guestlib import net as netlib
from guestlib.backends import vhost_program
from guestlib.net import MIB, NET, PORT, Guest

from devices.net import NetFeature

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

GATEWAY, GATEWAY6, OURS = "10.0.2.2", "fec0::2", "10.0.2.15"


@contextlib.asynccontextmanager
async def _guest(kind: str, folder: Path, socket: Path) -> AsyncIterator[Guest]:
    if kind == "uml":
        async with boot_uml(folder, UmlDevice(socket, NET)) as uml:
            yield uml
            await uml.power_off()
    else:
        card = VhostNet(socket, packed=kind == "qemu-packed")
        async with boot_qemu(QemuConfig(devices=(card,)), folder) as machine:
            yield machine
            await machine.power_off()


async def _http_into(guest: Guest, port: int) -> None:
    """The host fetches a file from a server in the guest."""
    await guest.run(
        """
        mkdir -p /tmp/www
        dd if=/dev/urandom of=/tmp/www/data bs=64k count=32 2>/dev/null
        httpd -p 80 -h /tmp/www
        """
    )
    want = (await guest.output("sha256sum </tmp/www/data")).split()[0]

    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data", timeout=30) as answer:
            return hashlib.sha256(answer.read()).hexdigest()

    assert await trio.to_thread.run_sync(fetch) == want


@pytest.mark.parametrize("kind", ["uml", "qemu-packed"])
async def test_network(tmp_path: Path, kind: str) -> None:
    """One guest does all that a guest does with NAT."""
    netio, http, host_port = netlib.free_port(), netlib.free_port(), netlib.free_port()
    forwards = [f"tcp:127.0.0.1:{netio}-:{PORT}", f"udp:127.0.0.1:{netio}-:{PORT}", f"tcp:127.0.0.1:{http}-:80"]
    words = ["--user", *(word for forward in forwards for word in ("--forward", forward))]
    if (
        kind == "uml"
    ):  # its driver reads what we offer, and has its control queue with us: flows' hashes choose the pair
        words += ["--mac", netlib.mac(1), "--queues", "2", "--control", str(tmp_path / "ctl")]
    content = os.urandom(3 * MIB)
    async with (
        netlib.vhost_net(tmp_path, *words) as served,
        netlib.listener(tmp_path, host_port),
        netlib.http_server(content) as server,
        _guest(kind, tmp_path, served.socket) as guest,
    ):
        assert await netlib.dhcp(guest) == OURS
        await netlib.ping(guest, GATEWAY)
        said = await guest.output(f"wget -q -O - http://{GATEWAY}:{server}/ | sha256sum")
        assert said.split()[0] == hashlib.sha256(content).hexdigest()

        await netlib.listen(guest)
        for on in (True, False):
            await netlib.offloads(guest, on)
            await netlib.tcp(guest, GATEWAY, port=host_port)
            said = await netlib.host_netio("tcp", "127.0.0.1", str(netio), str(4 * MIB), str(4 * MIB))
            assert f"sent={4 * MIB} got={4 * MIB} bad=0" in said
        await netlib.offloads(guest, True)
        arrived = await netlib.udp(guest, GATEWAY, 500, 1400, pause_us=200, port=host_port)
        assert arrived.received > 250
        assert arrived.doubled == 0
        said = await netlib.host_netio("udp", "127.0.0.1", str(netio), "500", "1400", "1", "200")
        assert "bad=0 doubled=0" in said
        await _http_into(guest, http)

        if kind == "uml":
            asked = [vhost_program(), "ctl", "--socket", str(tmp_path / "ctl"), "--json", "info"]
            said = (await trio.run_process(asked, capture_stdout=True)).stdout.decode()
            acked = int(json.loads(said)["features"], 16)
            assert acked & NetFeature.RSS
            assert acked & NetFeature.HASH_REPORT

        assert (await netlib.advertised_ipv6(guest)).startswith("fec0:")
        await netlib.tcp(guest, GATEWAY6, up=MIB, down=MIB, port=host_port)

"""What goes away and comes back under a guest with a TCP stream: the guest itself, the back-end, its process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from guestlib import AssetError, QemuConfig, VhostNet, boot_qemu
from guestlib import net as netlib
from guestlib.net import Namespace

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

HOST, OURS = "10.9.0.1", "10.9.0.2"


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_guest_and_backend_come_back(tmp_path: Path, packed: bool) -> None:
    """A reboot of the guest; then the back-end is killed and started again, twice, and once ended in order."""
    try:
        with netlib.namespace() as space:
            await _come_back(tmp_path, space, packed)
    except AssetError as error:
        pytest.skip(str(error))


async def _come_back(folder: Path, space: Namespace, packed: bool) -> None:
    # the tap outlives the back-end, so the host's side keeps address and connections
    space.run("ip", "tuntap", "add", "vm0", "mode", "tap", "vnet_hdr", "multi_queue")
    space.run("ip", "addr", "add", f"{HOST}/24", "dev", "vm0")
    space.run("ip", "link", "set", "vm0", "up")
    socket = folder / "net.sock"
    words = ("--tap", "vm0", "--queues", "2")

    def backend(name: str) -> contextlib.AbstractAsyncContextManager[netlib.Backend]:
        return netlib.vhost_net(folder, *words, socket=socket, namespace=space, name=name, clean=False)

    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(backend("life0"))
        await stack.enter_async_context(netlib.listener(folder, space=space))
        card = VhostNet(socket, pairs=2, packed=packed, reconnect=True, mac=netlib.mac(1))
        guest = await stack.enter_async_context(boot_qemu(QemuConfig(devices=(card,), reboots=True), folder))
        await netlib.address(guest, f"{OURS}/24")
        stream = netlib.Stream(guest, HOST)
        await stream.start()
        await guest.reboot()
        await netlib.address(guest, f"{OURS}/24")
        await netlib.tcp(guest, HOST)

        stream = netlib.Stream(guest, HOST)
        await stream.start()
        for life in (1, 2):
            await stream.goes_on()
            await served.kill()
            served = await stack.enter_async_context(backend(f"life{life}"))
            await stream.goes_on()
        assert await served.terminate() == 0
        await stack.enter_async_context(backend("life3"))
        await stream.goes_on()
        await stream.stop()
        await netlib.tcp(guest, HOST)
        await guest.power_off()

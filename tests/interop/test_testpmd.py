"""DPDK on the other side: its virtio_user as a front-end of our card, its net_vhost as a back-end of our front-end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import netrig
import pytest
import trio
from guestlib import AssetError, dpdk
from guestlib.net import vhost_net, vhost_serve

from devices.net import NetFeature

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HEADER = 12
#: acknowledge, driver, features OK, driver OK
DRIVER_OK = 0xF
A, B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


@pytest.fixture(autouse=True)
def installed() -> None:
    """testpmd, or why there is none."""
    try:
        dpdk.program()
    except AssetError as error:
        pytest.skip(str(error))


async def ctl(control: Path, *words: str) -> Any:
    """What `vhost ctl` answers, as JSON."""
    command = [str(Path(sys.executable).with_name("vhost")), "ctl", "-s", str(control), "--json", *words]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "big"])
async def test_virtio_user(tmp_path: Path, packed: bool, mergeable: bool) -> None:
    """Frames go round through --echo, none is lost; then more than comes back: what was dropped is counted."""
    control = tmp_path / "control"
    async with (
        vhost_net(tmp_path, "--echo", "--control", control) as ours,
        dpdk.virtio_user(tmp_path, ours.socket, packed=packed, mergeable=mergeable) as front,
    ):
        # DPDK 22.11 marks the header writable in the tables it makes for frames of several pieces on packed rings
        for sizes in ("64", "1514") if packed else ("64", "1514", "700,500"):
            await front.ask(f"set txpkts {sizes}", "testpmd>")
            before = await front.stats()
            await front.forward("io", 0.3, first=4)
            await front.forward("rxonly", 0.2)  # those that were still on their way
            after = await front.stats()
            sent, got = after.tx_packets - before.tx_packets, after.rx_packets - before.rx_packets
            assert sent > 1000, sizes
            assert got == sent, sizes
            assert after.rx_bytes - before.rx_bytes == after.tx_bytes - before.tx_bytes
        stats = await ctl(control, "stats")
        assert stats["out"] == {"frames": after.tx_packets, "bytes": after.tx_bytes}
        assert stats["in"] == {"frames": after.rx_packets, "bytes": after.rx_bytes}
        assert not stats["dropped"]

        await front.forward("txonly", 0.3)
        await front.forward("rxonly", 0.2)
        end = await front.stats()
        stats = await ctl(control, "stats")
        assert stats["out"]["frames"] == end.tx_packets
        assert stats["in"]["frames"] == end.rx_packets
        assert stats["in"]["frames"] + sum(stats["dropped"].values()) == end.tx_packets
        assert set(stats["dropped"]) == {"no_buffer"}


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "big"])
async def test_virtio_user_on_a_switch(tmp_path: Path, packed: bool, mergeable: bool) -> None:
    """A front-end of ours sends to testpmd through the switch; it swaps the addresses; every byte comes back."""
    sockets = [tmp_path / "dpdk.sock", tmp_path / "ours.sock"]
    config = "".join(
        f'[[device]]\ntype = "net"\nname = "{socket.stem}"\nsocket-path = "{socket}"\nswitch = "s"\n'
        for socket in sockets
    )
    async with (
        vhost_serve(tmp_path, config, sockets),
        dpdk.virtio_user(tmp_path, sockets[0], packed=packed, mergeable=mergeable) as front,
        netrig.guest(str(sockets[1]), size=64) as ours,
    ):
        await front.ask("set fwd macswap", "Set macswap")
        await front.ask("start", "packets/burst")
        for size in (60, 601, 1514):
            ours.offer(20)
            frames = [netrig.frame(size, tag=tag, dst=B, src=A) for tag in range(20)]
            for tag, data in enumerate(frames):
                ours.push(data, cut=(HEADER, 100) if tag % 2 else ())
            got = await ours.receive(20)
            await ours.sent(20)
            assert [data for _, data in got] == [A + B + data[12:] for data in frames]
        await front.ask("stop", r"Done\.")


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "big"])
async def test_net_vhost(tmp_path: Path, packed: bool, mergeable: bool) -> None:
    """Our front-end sends, testpmd swaps the addresses and sends back; every byte is there."""
    socket = tmp_path / "dpdk.sock"
    features = netrig.BASE | (netrig.PACKED if packed else 0) | (NetFeature.MRG_RXBUF if mergeable else 0)
    async with dpdk.net_vhost(tmp_path, socket) as back:
        await back.ask("set fwd macswap", "Set macswap")
        await back.ask("start", "packets/burst")
        async with netrig.guest(str(socket), features=int(features), size=64) as guest:
            await guest.fe.set_status(DRIVER_OK)  # DPDK waits for it where it offered STATUS
            guest.foreign = True
            assert guest.mergeable is mergeable
            for size, buffers in ((60, 1), (1514, 3 if mergeable else 1), (601, 2 if mergeable else 1)):
                guest.offer(20 * buffers, -(-(size + HEADER) // buffers))
                frames = [netrig.frame(size, tag=tag, dst=B, src=A) for tag in range(20)]
                for tag, data in enumerate(frames):
                    guest.push(data, cut=(HEADER,) if tag % 2 else ())
                got = await guest.receive(20)
                await guest.sent(20)
                assert [data for _, data in got] == [A + B + data[12:] for data in frames]
        await back.ask("stop", r"Done\.")
        stats = await back.stats()
        assert stats.rx_packets == stats.tx_packets == 60

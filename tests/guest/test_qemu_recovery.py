"""The back-end goes away under a running guest: reconnection, inflight replay, live migration."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from guestlib import Qemu, QemuConfig, VhostUser, boot_qemu
from guestlib.checks import Writer, assert_nothing_lost, disk, other_backend

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

BLOCKS = 2000


@pytest.mark.skipif(other_backend(), reason="qemu-storage-daemon keeps no inflight records")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_backend_killed_under_load(tmp_path: Path, image: Path, packed: bool) -> None:
    """SIGKILL of the back-end, three times: QEMU reconnects, requests in flight are done again, nothing is lost."""
    socket = tmp_path / "disk.sock"
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(
            disk(tmp_path, image, num_queues=2, socket=socket, name="life0", clean=False)
        )
        device = VhostUser(socket, num_queues=2, packed=packed, reconnect=True)
        async with boot_qemu(QemuConfig(devices=(device,)), tmp_path) as guest:
            writer = Writer(guest, "/dev/vda", first=0, blocks=BLOCKS)
            await writer.start()
            steps = await writer.beyond(500)
            for life in range(1, 4):
                await backend.kill()
                assert_nothing_lost(image, first=0, blocks=BLOCKS, synced=steps)
                backend = await stack.enter_async_context(
                    disk(tmp_path, image, num_queues=2, socket=socket, name=f"life{life}", clean=False)
                )
                steps = await writer.beyond(steps + 500)
            steps = await writer.stop()
            assert not await guest.output("dmesg | grep -i 'i/o error' || true"), "the guest saw errors"
            await guest.power_off()
    assert_nothing_lost(image, first=0, blocks=BLOCKS, synced=steps)


@pytest.mark.skipif(other_backend(), reason="tests our own clean end")
async def test_backend_stopped_and_started_again(tmp_path: Path, image: Path) -> None:
    """SIGTERM drains what is in flight and ends with 0; the next back-end takes over the running guest."""
    socket = tmp_path / "disk.sock"
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(disk(tmp_path, image, socket=socket, name="life0", clean=False))
        async with boot_qemu(QemuConfig(devices=(VhostUser(socket, reconnect=True),)), tmp_path) as guest:
            writer = Writer(guest, "/dev/vda", first=0, blocks=BLOCKS)
            await writer.start()
            steps = await writer.beyond(500)
            assert await backend.terminate() == 0
            await stack.enter_async_context(disk(tmp_path, image, socket=socket, name="life1", clean=False))
            await writer.beyond(steps + 500)
            steps = await writer.stop()
            await guest.power_off()
    assert_nothing_lost(image, first=0, blocks=BLOCKS, synced=steps)


@pytest.mark.parametrize(
    ("qemu", "postcopy", "packed"),
    [
        pytest.param("system", False, False, id="precopy"),
        pytest.param("system", True, False, id="postcopy"),
        pytest.param("backports", False, True, id="backports-precopy-packed"),
        pytest.param("backports", True, False, id="backports-postcopy"),
    ],
    indirect=["qemu"],
)
async def test_migration(tmp_path: Path, image: Path, qemu: Qemu, postcopy: bool, packed: bool) -> None:
    """A writing guest moves to another QEMU with a back-end of its own on the same image, and goes on."""
    if other_backend() and (postcopy or packed):
        pytest.skip("qemu-storage-daemon has neither packed rings nor postcopy")
    async with (
        disk(tmp_path, image, num_queues=2, shared=True, name="from") as from_backend,
        disk(tmp_path, image, num_queues=2, shared=True, name="to") as to_backend,
    ):
        here = QemuConfig(
            devices=(VhostUser(from_backend.socket, num_queues=2, packed=packed),), qemu=qemu, memory_mib=256
        )
        there = QemuConfig(
            devices=(VhostUser(to_backend.socket, num_queues=2, packed=packed),),
            qemu=qemu,
            memory_mib=256,
            incoming=True,
        )
        async with (
            boot_qemu(here, tmp_path, name="source") as source,
            boot_qemu(there, tmp_path, name="target") as target,
        ):
            writer = Writer(source, "/dev/vda", first=0, blocks=BLOCKS)
            await source.run(
                "guestio touch 48 >/tmp/touch 2>&1 & while ! grep -q touched /tmp/touch; do sleep 0.1; done"
            )
            await writer.start()
            before = await writer.beyond(300)
            state = await source.migrate_to(target, postcopy=postcopy)
            assert state["status"] == "completed"
            if postcopy:
                assert state["ram"]["postcopy-requests"] > 0, "nothing was fetched after the switch"
            writer.guest = target
            after = await writer.beyond(before)
            await writer.beyond(after + 300)
            assert "changed" not in await target.output("cat /tmp/touch"), "the guest's memory changed on the way"
            await source.kill()
            steps = await writer.stop()
            await target.power_off()
    assert_nothing_lost(image, first=0, blocks=BLOCKS, synced=steps)

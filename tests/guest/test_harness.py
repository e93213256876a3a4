"""The harness itself on somebody else's back-end: what the other tests trust, and that a lie would be found."""

from __future__ import annotations

from pathlib import Path

import pytest
from guestlib import CommandFailed, GuestError, QemuConfig, UmlDevice, VhostUser, boot_qemu, boot_uml, storage_daemon
from guestlib.checks import Writer, assert_nothing_lost, filesystem_roundtrip, host_agrees
from guestlib.seqio import BLOCK, block_of, lost_steps

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]


async def test_qemu_and_uml_on_one_image(tmp_path: Path, image: Path) -> None:
    """Both kinds of guest agree about one image, and damage done on the host shows in every check."""
    async with storage_daemon(tmp_path, image, num_queues=2) as served:
        async with boot_qemu(QemuConfig(devices=(VhostUser(served.socket, num_queues=2),)), tmp_path) as guest:
            sha = await filesystem_roundtrip(guest)
            with pytest.raises(CommandFailed, match="status 3"):
                await guest.run("exit 3")
            with pytest.raises(GuestError, match="did not end within"):
                await guest.run("sleep 5", timeout=0.5)
            await guest.power_off()
        host_agrees(image, sha)
        async with boot_uml(tmp_path, UmlDevice(served.socket, 2)) as guest:
            writer = Writer(guest, "/dev/vda", first=0, blocks=100)
            await writer.start()
            await writer.beyond(500)
            steps = await writer.stop()
            assert_nothing_lost(image, first=0, blocks=100, synced=steps)
            victim = block_of(steps - 1, 100)
            with image.open("r+b") as file:
                file.seek(victim * BLOCK + 2000)
                file.write(b"damaged")
            assert lost_steps(image, first=0, blocks=100, synced=steps) == [
                f"block {victim}: torn, it begins as step {steps - 1}"
            ]
            with pytest.raises(CommandFailed, match=f"block {victim} holds step"):
                await writer.verify(steps)
            with pytest.raises(GuestError, match="e2fsck"):
                host_agrees(image, sha)

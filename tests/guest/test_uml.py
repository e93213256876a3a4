"""User-mode Linux, a real guest with a front-end of its own kind: split rings, in-band notifications if offered."""

from __future__ import annotations

from pathlib import Path

import pytest
from guestlib import UmlDevice, boot_uml
from guestlib.checks import Writer, assert_nothing_lost, disk, filesystem_roundtrip, host_agrees

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

BLK = 2


async def test_disk(tmp_path: Path, image: Path) -> None:
    """mkfs, write, verify, fsck, then numbered writes; the host agrees; a second guest finds it all."""
    async with disk(tmp_path, image) as served:
        async with boot_uml(tmp_path, UmlDevice(served.socket, BLK)) as guest:
            sha = await filesystem_roundtrip(guest)
            host_agrees(image, sha)
            await guest.power_off()
        async with boot_uml(tmp_path, UmlDevice(served.socket, BLK)) as guest:
            await guest.run("mount /dev/vda /mnt && sha256sum /mnt/data | grep " + sha + " && umount /mnt")
            writer = Writer(guest, "/dev/vda", first=0, blocks=1000)
            await writer.start()
            await writer.beyond(2000)
            steps = await writer.stop()
            await guest.power_off()
    assert_nothing_lost(image, first=0, blocks=1000, synced=steps)

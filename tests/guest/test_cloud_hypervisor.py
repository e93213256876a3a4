"""cloud-hypervisor as front-end. Debian has no package of it: CLOUD_HYPERVISOR names the program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from guestlib import UmlDevice, boot_uml, started
from guestlib.checks import disk, filesystem_roundtrip

PROGRAM = os.environ.get("CLOUD_HYPERVISOR", "")

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not PROGRAM, reason="CLOUD_HYPERVISOR does not name a cloud-hypervisor"),
]


async def test_handshake(tmp_path: Path, image: Path) -> None:
    """It makes the disk's device before it looks at the kernel, which is none; only the kernel may be at fault."""
    async with disk(tmp_path, image, num_queues=1) as served:
        disk_words = f"vhost_user=on,socket={served.socket},num_queues=1,queue_size=128"
        command = [PROGRAM, "--memory", "size=256M,shared=on", "--kernel", "/bin/true", "--disk", disk_words]
        async with started("cloud-hypervisor", command, tmp_path / "cloud-hypervisor.log") as vmm:
            await vmm.wait(30)
            said = vmm.log.read_text(errors="replace")
        assert "vhost" not in said.lower(), said
        assert "disk" not in said.lower(), said
        # and the back-end is there for the next one
        async with boot_uml(tmp_path, UmlDevice(served.socket, 2)) as guest:
            await filesystem_roundtrip(guest)

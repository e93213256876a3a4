"""The virtio-rng example in real guests: a device in a dozen lines of Python feeds QEMU's and UML's front-ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from guestlib import Backend, UmlDevice, VhostUser, boot_qemu, boot_uml, started
from guestlib.checks import Guest
from guestlib.debian import ROOT
from guestlib.process import listening, until
from guestlib.qemu import QemuConfig

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

RNG = 4


@contextlib.asynccontextmanager
async def _entropy(folder: Path) -> AsyncIterator[Backend]:
    socket = folder / "rng.sock"
    command = [sys.executable, ROOT / "examples" / "rng.py", socket]
    async with started("rng example", command, folder / "rng.log") as proc:
        await until(lambda: listening(socket), proc, "listening")
        yield Backend(proc, socket)
        assert await proc.terminate() == 0, proc.log.read_text()


async def _draws(guest: Guest) -> None:
    """The guest's /dev/hwrng is ours and gives bytes that do not repeat and do not compress."""
    available = (await guest.output("cat /sys/class/misc/hw_random/rng_available")).split()
    ours = [name for name in available if name.startswith("virtio_rng")]
    assert ours, f"the guest's kernel offers only {available}"
    await guest.run(f"echo {ours[0]} >/sys/class/misc/hw_random/rng_current")
    drawn = await guest.output(
        """
        for n in 1 2; do dd if=/dev/hwrng of=/tmp/draw$n bs=4096 count=16 iflag=fullblock 2>/dev/null; done
        sha256sum </tmp/draw1; sha256sum </tmp/draw2
        gzip -c /tmp/draw1 | wc -c
        """
    )
    first, second, packed = drawn.splitlines()
    assert first != second, "two draws of 64 KiB are the same"
    assert int(packed) > 65000, f"64 KiB of entropy compress to {packed} bytes"


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_qemu(tmp_path: Path, packed: bool) -> None:
    async with _entropy(tmp_path) as served:
        config = QemuConfig(devices=(VhostUser(served.socket, model="vhost-user-rng", packed=packed),), memory_mib=256)
        async with boot_qemu(config, tmp_path) as guest:
            await _draws(guest)
            await guest.power_off()


async def test_uml(tmp_path: Path) -> None:
    """User-mode Linux's front-end finds the device; Debian's kernel for it has no driver to go further."""
    async with _entropy(tmp_path) as served, boot_uml(tmp_path, UmlDevice(served.socket, RNG)) as guest:
        assert await guest.output("cat /sys/bus/virtio/devices/virtio0/device") == "0x0004"
        if "virtio_rng" in await guest.output("cat /sys/class/misc/hw_random/rng_available"):
            await _draws(guest)
        await guest.power_off()

"""QEMU with a Debian kernel on our disk: file systems, discard, read-only, resize, boot, reboot, crashes of the VMM."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import trio
from guestlib import Qemu, QemuConfig, VhostUser, boot_disk, boot_qemu, debian_kernel
from guestlib.checks import (
    MIB,
    Writer,
    allocated,
    assert_nothing_lost,
    disk,
    filesystem_roundtrip,
    has_feature,
    host_agrees,
    host_file,
    host_fsck,
    make_image,
    other_backend,
    wait_size,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

RING_PACKED = 34
PARTITION_AT = MIB


async def _discard(guest, image: Path) -> None:
    """The guest discards and zeroes; the host's file gives the space back and reads as zeroes."""
    assert int(await guest.output("cat /sys/block/vda/queue/discard_max_bytes")) > 0
    await guest.run("guestio write /dev/vda 8192 4096 4096 2 1024", timeout=120)  # 16 MiB at 32 MiB, every block once
    full = allocated(image)
    await guest.run(f"/sbin/blkdiscard -o {32 * MIB} -l {8 * MIB} /dev/vda")
    assert full - allocated(image) >= 8 * MIB, "discard gave nothing back"
    await guest.run(
        f"""
        /sbin/blkdiscard -z -o {40 * MIB} -l {8 * MIB} /dev/vda
        dd if=/dev/vda bs=1M skip=40 count=8 2>/dev/null | cmp -n {8 * MIB} - /dev/zero
        """
    )
    with image.open("rb") as file:
        file.seek(32 * MIB)
        assert file.read(16 * MIB) == bytes(16 * MIB)


async def _read_only(guest, sha256: str) -> None:
    """The second disk can be read and not written."""
    assert await guest.output("cat /sys/block/vdb/ro") == "1"
    assert (await guest.output("sha256sum </dev/vdb")).split()[0] == sha256
    refused = await guest.run("dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct", check=False)
    assert refused.status != 0


async def _resize(guest, image: Path, control: Path) -> None:
    """The image grows under the guest, which sees it and uses the new part."""
    size = 160 * MIB
    command = [str(Path(sys.executable).with_name("vhost")), "ctl", "-s", str(control), "resize", f"size={size}"]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    await wait_size(guest, "vda", size)
    await guest.run("yes vhostkit | dd of=/dev/vda bs=1M count=1 seek=159 oflag=direct iflag=fullblock 2>/dev/null")
    assert image.stat().st_size == size
    with image.open("rb") as file:
        file.seek(159 * MIB)
        assert file.read(MIB) == (b"vhostkit\n" * MIB)[:MIB]


@pytest.mark.parametrize(
    ("qemu", "packed", "num_queues"),
    [
        pytest.param("system", False, 1, id="split-1"),
        pytest.param("system", False, 4, id="split-4"),
        pytest.param("system", True, 1, id="packed-1"),
        pytest.param("system", True, 4, id="packed-4"),
        pytest.param("backports", False, 4, id="backports-split-4"),
        pytest.param("backports", True, 1, id="backports-packed-1"),
    ],
    indirect=["qemu"],
)
async def test_disk(tmp_path: Path, image: Path, qemu: Qemu, packed: bool, num_queues: int) -> None:
    """One guest does all that a guest does to a disk, and the host finds the same in the image."""
    frozen = make_image(tmp_path / "frozen.img", 4)
    frozen.write_bytes(os.urandom(4 * MIB))
    frozen_sha = hashlib.sha256(frozen.read_bytes()).hexdigest()
    control = tmp_path / "control.sock"
    if other_backend() and packed:
        pytest.skip("qemu-storage-daemon has no packed rings")
    async with (
        disk(tmp_path, image, num_queues=num_queues, args=("--control", control)) as served,
        disk(tmp_path, frozen, read_only=True, name="frozen") as served_frozen,
    ):
        config = QemuConfig(
            devices=(
                VhostUser(served.socket, num_queues=num_queues, packed=packed),
                VhostUser(served_frozen.socket, packed=packed),
            ),
            smp=max(2, num_queues),
            qemu=qemu,
        )
        async with boot_qemu(config, tmp_path) as guest:
            assert await has_feature(guest, RING_PACKED) is packed
            assert len((await guest.output("ls /sys/block/vda/mq")).split()) == num_queues
            await _discard(guest, image)
            await _read_only(guest, frozen_sha)
            sha = await filesystem_roundtrip(guest)
            host_agrees(image, sha)
            if not other_backend():
                await _resize(guest, image, control)
            await guest.power_off()
    host_agrees(image, sha)
    assert hashlib.sha256(frozen.read_bytes()).hexdigest() == frozen_sha


async def test_boots_from_the_disk_and_reboots(tmp_path: Path) -> None:
    """Firmware, boot loader and kernel all come off our disk, twice: the second time after a reboot in the guest."""
    image = tmp_path / "boot.img"
    shutil.copy(boot_disk(debian_kernel()), image)
    async with disk(tmp_path, image, num_queues=2) as served:
        device = VhostUser(served.socket, num_queues=2, boot=True)
        async with boot_qemu(QemuConfig(devices=(device,), from_disk=True, reboots=True), tmp_path) as guest:
            for boot in ("first", "second"):
                assert "booted_from=disk" in await guest.output("cat /proc/cmdline")
                await guest.run(f"mount /dev/vda1 /mnt && date >/mnt/{boot} && umount /mnt && e2fsck -fn /dev/vda1")
                if boot == "first":
                    await guest.reboot()
            assert await guest.output("mount /dev/vda1 /mnt && ls /mnt/first /mnt/second && umount /mnt")
            await guest.power_off()
    host_fsck(image, offset=PARTITION_AT)
    assert host_file(image, "/first", offset=PARTITION_AT)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_reboot_under_a_kernel(tmp_path: Path, image: Path, packed: bool) -> None:
    """A reboot in the middle of writing resets the device; the next kernel finds all that was synced."""
    if other_backend() and packed:
        pytest.skip("qemu-storage-daemon has no packed rings")
    async with disk(tmp_path, image, num_queues=2) as served:
        device = VhostUser(served.socket, num_queues=2, packed=packed)
        async with boot_qemu(QemuConfig(devices=(device,), reboots=True), tmp_path) as guest:
            writer = Writer(guest, "/dev/vda", first=0, blocks=2000)
            await writer.start()
            synced = await writer.beyond(500)
            await guest.reboot()
            assert_nothing_lost(image, first=0, blocks=2000, synced=synced)
            host_agrees(image, await filesystem_roundtrip(guest))
            await guest.power_off()


async def test_vmm_killed_and_another_attached(tmp_path: Path, image: Path) -> None:
    """QEMU dies of SIGKILL under load; the back-end goes on listening and serves the next one."""
    async with disk(tmp_path, image, num_queues=2) as served:
        config = QemuConfig(devices=(VhostUser(served.socket, num_queues=2),))
        async with boot_qemu(config, tmp_path) as first:
            writer = Writer(first, "/dev/vda", first=0, blocks=2000)
            await writer.start()
            synced = await writer.beyond(1000)
            await first.kill()
        async with boot_qemu(config, tmp_path) as second:
            assert_nothing_lost(image, first=0, blocks=2000, synced=synced)
            sha = await filesystem_roundtrip(second)
            await second.power_off()
    host_agrees(image, sha)

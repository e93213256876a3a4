"""Kinds of guest memory: huge pages, memory plugged in under I/O, a virtual IOMMU."""

from __future__ import annotations

from pathlib import Path

import pytest
from guestlib import Qemu, QemuConfig, VhostUser, boot_qemu
from guestlib.checks import Writer, assert_nothing_lost, disk, filesystem_roundtrip, host_agrees, other_backend

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ACCESS_PLATFORM = 33


async def test_huge_pages(tmp_path: Path, image: Path, hugepages: int) -> None:
    """All guest memory is in 2 MiB pages."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

    def left() -> int:
        return int((pool / "free_hugepages").read_text()) - int((pool / "resv_hugepages").read_text())

    async with disk(tmp_path, image) as served:
        config = QemuConfig(devices=(VhostUser(served.socket),), memory="hugepages", memory_mib=hugepages * 2)
        before = left()
        async with boot_qemu(config, tmp_path) as guest:
            assert before - left() >= hugepages, "the guest's memory is not in huge pages"
            sha = await filesystem_roundtrip(guest)
            await guest.power_off()
    host_agrees(image, sha)


async def test_memory_file(tmp_path: Path, image: Path) -> None:
    """Guest memory is a plain file on disk, mapped shared."""
    async with (
        disk(tmp_path, image) as served,
        boot_qemu(QemuConfig(devices=(VhostUser(served.socket),), memory="file"), tmp_path) as guest,
    ):
        sha = await filesystem_roundtrip(guest)
        await guest.power_off()
    host_agrees(image, sha)


@pytest.mark.parametrize(
    ("qemu", "packed"),
    [pytest.param("system", False, id="split"), pytest.param("backports", True, id="backports-packed")],
    indirect=["qemu"],
)
async def test_memory_plugged_in_under_io(tmp_path: Path, image: Path, qemu: Qemu, packed: bool) -> None:
    """DIMMs appear while the guest writes, and its next buffers lie in them."""
    if other_backend() and packed:
        pytest.skip("qemu-storage-daemon has no packed rings")
    async with disk(tmp_path, image, num_queues=2) as served:
        config = QemuConfig(
            devices=(VhostUser(served.socket, num_queues=2, packed=packed),), memory_mib=256, hotplug_mib=512, qemu=qemu
        )
        async with boot_qemu(config, tmp_path) as guest:
            before = int(await guest.output("awk '/MemTotal/ {print $2}' /proc/meminfo"))
            writer = Writer(guest, "/dev/vda", first=0, blocks=2000)
            await writer.start()
            steps = await writer.beyond(300)
            for dimm in ("dimm0", "dimm1"):
                await guest.plug_memory(dimm, 128)
                steps = await writer.beyond(steps + 200)
            enough = before + 200 * 1024
            await guest.run(
                f"until [ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -gt {enough} ]; do sleep 0.2; done"
            )
            # read the whole disk through the page cache: more than the first 256 MiB could hold beside the kernel
            await guest.run(
                "guestio touch 150 >/tmp/touch & dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null", timeout=120
            )
            assert (
                int(await guest.output("awk '/^Cached|^Buffers/ {s += $2} END {print s}' /proc/meminfo")) > 100 * 1024
            )
            await guest.run("killall guestio || true; sleep 0.5", check=False)
            again = Writer(guest, "/dev/vda", first=4096, blocks=1000, seed=7)
            await again.start()
            await again.beyond(1000)
            fresh = await again.stop()
            await guest.power_off()
    assert_nothing_lost(image, first=0, blocks=2000, synced=steps)
    assert_nothing_lost(image, first=4096, blocks=1000, synced=fresh, seed=7)


@pytest.mark.skipif(other_backend(), reason="qemu-storage-daemon offers no ACCESS_PLATFORM")
@pytest.mark.parametrize(
    ("qemu", "packed"),
    [
        pytest.param("system", False, id="split"),
        pytest.param("system", True, id="packed"),
        pytest.param("backports", False, id="backports-split"),
    ],
    indirect=["qemu"],
)
async def test_virtual_iommu(tmp_path: Path, image: Path, qemu: Qemu, packed: bool) -> None:
    """Every address is an I/O address: the back-end asks for translations, and the guest takes them back at once."""
    async with disk(tmp_path, image, num_queues=2, args=("--iommu",)) as served:
        config = QemuConfig(
            devices=(VhostUser(served.socket, num_queues=2, packed=packed, iommu=True),),
            iommu=True,
            memory_mib=384,
            qemu=qemu,
        )
        async with boot_qemu(config, tmp_path) as guest:
            assert (await guest.output("cat /sys/block/vda/device/features"))[ACCESS_PLATFORM] == "1"
            assert await guest.output("ls /sys/class/iommu"), "the guest has no IOMMU"
            sha = await filesystem_roundtrip(guest, mebibytes=4)
            host_agrees(image, sha)
            writer = Writer(guest, "/dev/vda", first=8192, blocks=500)
            await writer.start()
            await writer.beyond(500)
            steps = await writer.stop()
            # I/O addresses are handed out from 4 GiB down; a fault there is ours: asked for too late, or twice
            faults = await guest.output("dmesg | grep 'fault addr 0xf' || true")
            assert not faults, f"the back-end used addresses that the guest had taken back:\n{faults}"
            await guest.power_off()
    assert_nothing_lost(image, first=8192, blocks=500, synced=steps)

"""A real guest's display in QEMU: what the guest draws, what QEMU shows, and what we show are the same pixels."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio
from guestlib import (
    AssetError,
    Backend,
    Kernel,
    Qemu,
    QemuConfig,
    QemuGuest,
    VhostGpu,
    boot_qemu,
    debian_display_kernel,
    vhost,
)
from guestlib.backends import vhost_program
from PIL import Image

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

_numbers = itertools.count()


@pytest.fixture
def kernel() -> Kernel:
    """A kernel with a driver for displays."""
    try:
        return debian_display_kernel()
    except AssetError as error:
        pytest.skip(str(error))


class Display:
    """A guest's display, looked at from two sides."""

    def __init__(self, guest: QemuGuest, control: Path, folder: Path) -> None:
        self.guest = guest
        self.control = control
        self.folder = folder

    async def ctl(self, *words: str) -> str:
        """``vhost ctl``."""
        command = [vhost_program(), "ctl", "--socket", str(self.control), "--json", *words]
        return (await trio.run_process(command, capture_stdout=True)).stdout.decode()

    async def ours(self) -> Image.Image:
        """As we have it."""
        path = self.folder / f"ours{next(_numbers)}.png"
        await self.ctl("gpu.screenshot", f"path={path}")
        with Image.open(path) as image:
            return image.convert("RGB")

    async def qemus(self) -> Image.Image:
        """As QEMU has it."""
        path = self.folder / f"qemu{next(_numbers)}.ppm"
        await self.guest.qmp.execute("screendump", filename=str(path))
        with Image.open(path) as image:
            return image.convert("RGB")

    async def same(self, size: tuple[int, int], pixels: bytes | None = None) -> Image.Image:
        """Wait until both show the same: such `pixels`, or anything but one colour."""
        ours = qemus = None
        for _ in range(40):
            ours, qemus = await self.ours(), await self.qemus()
            if ours.size == qemus.size == size and ours.tobytes() == qemus.tobytes():
                plain = len(ours.getcolors(1 << 24)) == 1
                if ours.tobytes() == pixels if pixels is not None else not plain:
                    return ours
            await trio.sleep(0.1)
        raise AssertionError(f"not the same picture of {size}: {ours}, {qemus}, see {self.folder}")

    async def still(self) -> None:
        """No text cursor that blinks."""
        await self.guest.run("echo 0 >/sys/class/graphics/fbcon/cursor_blink; printf '\\033[?25l\\033[9;0]' >/dev/tty1")


PATTERN = b"vhostkit draws this, four bytes a pixel, again and again\n"


def as_rgb(bgrx: bytes) -> bytes:
    out = bytearray(len(bgrx) // 4 * 3)
    out[0::3], out[1::3], out[2::3] = bgrx[2::4], bgrx[1::4], bgrx[0::4]
    return bytes(out)


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_display(tmp_path: Path, qemu: Qemu, kernel: Kernel) -> None:
    """One guest: console, a pattern of known pixels, a reboot."""
    socket, control = tmp_path / "gpu.sock", tmp_path / "ctl"
    config = QemuConfig(
        devices=(VhostGpu(socket, options="xres=1024,yres=768"),),
        qemu=qemu,
        kernel=kernel,
        drivers=("virtio-gpu",),
        reboots=True,
    )
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--mode", "640x480"]
    async with vhost(tmp_path, [socket], *words, name="gpu") as served, boot_qemu(config, tmp_path) as guest:
        shown = Display(guest, control, tmp_path)
        await _draws(shown, (1024, 768))
        await guest.reboot()
        await _draws(shown, (1024, 768))
        await guest.power_off()
        _quiet(served)


async def _draws(shown: Display, size: tuple[int, int]) -> None:
    guest = shown.guest
    width, height = size
    assert (await guest.output("cat /sys/class/graphics/fb0/virtual_size")) == f"{width},{height}"
    assert (await guest.output("head -n1 /sys/class/drm/card0-Virtual-1/modes")) == f"{width}x{height}"
    edid = bytes.fromhex(await guest.output("xxd -p /sys/class/drm/card0-Virtual-1/edid | tr -d '\\n'"))
    assert b"QEMU Monitor" in edid
    await shown.still()
    await guest.run("for i in $(seq 1 300); do echo line $i of text; done >/dev/tty1")
    await shown.same(size)
    wanted = (PATTERN * (width * height * 4 // len(PATTERN) + 1))[: width * height * 4]
    await guest.run(f"yes '{PATTERN.decode().strip()}' | head -c {len(wanted)} >/tmp/pattern")
    # in one piece: Linux 6.1 forgets what a write of exactly one line changes
    await guest.run(f"dd if=/tmp/pattern of=/dev/fb0 bs={len(wanted)} count=1 2>/dev/null")
    await shown.same(size, as_rgb(wanted))


def _quiet(served: Backend) -> None:
    assert "warning" not in served.log
    assert "error" not in served.log

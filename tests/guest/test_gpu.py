"""A real guest's display in QEMU: what the guest draws, what QEMU shows, and what we show are the same pixels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import trio
from gpurig import driver
from guestlib import (
    Backend,
    Kernel,
    Qemu,
    QemuConfig,
    QemuGuest,
    VhostGpu,
    boot_qemu,
    vhost,
)
from guestlib.backends import ctl
from PIL import Image

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

_numbers = itertools.count()


class Display:
    """A guest's display, looked at from two sides."""

    def __init__(self, guest: QemuGuest, control: Path, folder: Path) -> None:
        self.guest = guest
        self.control = control
        self.folder = folder

    async def ctl(self, *words: str) -> str:
        """``vhost ctl``."""
        return await ctl(self.control, *words)

    async def until(self, scanout: int, **wanted: object) -> None:
        """Wait until a scanout is said to be so."""
        with trio.fail_after(20):
            while True:
                found = json.loads(await self.ctl("gpu.displays"))[scanout]
                if all(found[name] == value for name, value in wanted.items()):
                    return
                await trio.sleep(0.05)

    async def ours(self, scanout: int = 0) -> Image.Image:
        """As we have it."""
        path = self.folder / f"ours{next(_numbers)}.png"
        await self.ctl("gpu.screenshot", f"path={path}", f"scanout={scanout}")
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


class Kms:
    """A program in the guest that draws through KMS (tests/guestlib/kmsio.c)."""

    def __init__(self, guest: QemuGuest) -> None:
        self.guest = guest

    async def start(self) -> None:
        await self.guest.run(
            "mkfifo /tmp/kms; (sleep 10000 >/tmp/kms &); (kmsio </tmp/kms >/tmp/kms.out 2>&1 &)\n"
            "until [ -s /tmp/kms.out ]; do sleep 0.1; done"
        )
        assert await self.guest.output("cat /tmp/kms.out") == "ok 2 heads"

    async def __call__(self, *words: object) -> None:
        line = " ".join(map(str, words))
        answer = await self.guest.output(
            f"n=$(wc -l </tmp/kms.out); echo {line} >/tmp/kms\n"
            "while [ $(wc -l </tmp/kms.out) = $n ]; do sleep 0.05; done; tail -n1 /tmp/kms.out"
        )
        assert answer == f"ok {line}"


def drawn(size: tuple[int, int], seed: int) -> Image.Image:
    """What kmsio draws."""
    width, height = size
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            pixels += bytes(((x ^ y) & 255, (y * 5 + seed) & 255, (x * 7 + seed * 31) & 255))
    return Image.frombytes("RGB", size, bytes(pixels))


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_kms(tmp_path: Path, qemu: Qemu, kernel: Kernel) -> None:
    """One guest: what firmware shows, modes, two monitors, cursors, darkness; then QEMU is killed."""
    socket, control = tmp_path / "gpu.sock", tmp_path / "ctl"
    config = QemuConfig(
        devices=(VhostGpu(socket, outputs=2, vga=True, options="xres=800,yres=600"),),
        qemu=qemu,
        kernel=kernel,
        drivers=("virtio-gpu",),
        reboots=True,
    )
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--scanouts", "2"]
    async with vhost(tmp_path, [socket], *words, name="gpu") as served:
        async with boot_qemu(config, tmp_path) as guest:
            shown, kms = Display(guest, control, tmp_path), Kms(guest)
            await kms.start()
            await _modes(shown, kms)
            await _cursors(shown, kms)
            await _two(shown, kms)
            await _firmware(shown)
            await guest.kill()
        await _after_a_kill(shown, socket)
        _quiet(served)


async def _modes(shown: Display, kms: Kms) -> None:
    for size, seed in (((800, 600), 1), ((640, 480), 2)):
        await kms("show", 0, *size, seed)
        picture = drawn(size, seed)
        await shown.same(size, picture.tobytes())
    area = (100, 50, 228, 180)
    picture.paste(drawn((640, 480), 3).crop(area), area)
    await kms("draw", 0, 100, 50, 128, 130, 3)
    await shown.same((640, 480), picture.tobytes())
    await kms("off", 0)
    await shown.until(0, shows=None)
    await kms("show", 0, 640, 480, 4)
    await shown.same((640, 480), drawn((640, 480), 4).tobytes())


async def _cursors(shown: Display, kms: Kms) -> None:
    """Ours has it in the picture; QEMU's screendump never has."""
    plain, shape = drawn((640, 480), 4), drawn((64, 64), 9)
    await kms("cursor", 0, 10, 20, 9)
    for place in ((10, 20), (300, 200)):
        await kms("move", 0, *place)
        await shown.until(0, cursor={"x": place[0], "y": place[1]})
        wanted = plain.copy()
        wanted.paste(shape, place)
        assert (await shown.ours()).tobytes() == wanted.tobytes()
    await kms("hide", 0)
    await shown.until(0, cursor=None)
    await shown.same((640, 480), plain.tobytes())


async def _two(shown: Display, kms: Kms) -> None:
    """A second monitor, which QEMU has not plugged in: the guest is told to use it nevertheless."""
    guest = shown.guest
    await guest.run("echo on >/sys/class/drm/card0-Virtual-2/status")
    await kms("show", 1, 1024, 768, 5)
    await shown.until(1, shows="1024x768")
    assert (await shown.ours(1)).tobytes() == drawn((1024, 768), 5).tobytes()
    await shown.same((640, 480), drawn((640, 480), 4).tobytes())


async def _firmware(shown: Display) -> None:
    """A VGA card shows text before there is a driver; QEMU draws that itself."""
    await shown.guest.qmp.execute("system_reset")
    with trio.fail_after(60):
        while True:
            picture = await shown.qemus()
            if picture.size == (720, 400) and len(picture.getcolors(1 << 24)) > 1:
                return


async def _after_a_kill(shown: Display, socket: Path) -> None:
    """Nothing is left of that guest, and the next one is served."""
    with trio.fail_after(20):
        while "null" not in await shown.ctl("gpu.displays"):
            await trio.sleep(0.1)
    assert '"resources": 0' in await shown.ctl("gpu.stats")
    pixels = bytes([1, 2, 3, 255]) * (64 * 64)
    async with driver(str(socket)) as guest:
        await guest.paint(0, 1, 64, 64, pixels)
        assert (await shown.ours()).tobytes() == as_rgb(pixels)


def _quiet(served: Backend) -> None:
    assert "warning" not in served.log
    assert "error" not in served.log

"""A real guest's display over VNC and in a browser, and what is typed there in the guest."""

from __future__ import annotations

import re
import shutil
import struct
import sys
from pathlib import Path

import pytest
import trio
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
from weblib import browser

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell"))), None)
SIZE = (800, 600)
KEY, ABS = 1, 3

pytest.importorskip("devices.gpu.vnc", reason="built without libvncserver (Debian: libvncserver-dev)")


async def picture(control: Path, folder: Path) -> bytes:
    path = folder / "ours.png"
    await ctl(control, "gpu.screenshot", f"path={path}")
    with Image.open(path) as image:
        assert image.size == SIZE
        return image.convert("RGB").tobytes()


async def vncdo(where: Path, *words: str) -> None:
    """A real client."""
    program = Path(sys.executable).with_name("vncdo")
    await trio.run_process([str(program), "-s", f"{where}", *words], capture_stderr=True)


async def events(guest: QemuGuest) -> list[tuple[int, int, int]]:
    data = bytes.fromhex(await guest.output("xxd -p /tmp/events | tr -d '\\n'"))
    return [event[2:] for event in struct.iter_unpack("<qqHHi", data)]


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_seen_and_typed_from_afar(tmp_path: Path, qemu: Qemu, kernel: Kernel) -> None:
    """One guest: console text seen by all, keys and the pointer from a VNC client, from the page and by hand."""
    socket, seat, control, vnc = (tmp_path / name for name in ("gpu.sock", "input.sock", "ctl", "vnc"))
    config = QemuConfig(
        devices=(VhostGpu(socket, options=f"xres={SIZE[0]},yres={SIZE[1]}"),),
        qemu=qemu,
        kernel=kernel,
        drivers=("virtio-gpu", "virtio_input", "evdev"),
        extra=("-chardev", f"socket,id=seat,path={seat}", "-device", "vhost-user-input-pci,chardev=seat"),
    )
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--vnc", f"unix:{vnc}"]
    words += ["--web", "127.0.0.1:0", "--input-socket", str(seat)]
    async with vhost(tmp_path, [socket, seat], *words, name="gpu") as served, boot_qemu(config, tmp_path) as guest:
        await _sees(guest, served, control, vnc, tmp_path)
        found = await guest.output("grep -l 'vhostkit combined' /sys/class/input/event*/device/name | cut -d/ -f5")
        await guest.run(f"cat /dev/input/{found} >/tmp/events & usleep 300000")
        await vncdo(vnc, "type", "go", "move", "799", "599", "click", "1")
        await ctl(control, "gpu-input.key", "key=F5")
        wanted = [(KEY, 34, 1), (KEY, 34, 0), (KEY, 24, 1), (KEY, 24, 0), (KEY, 272, 1), (KEY, 272, 0), (KEY, 63, 1)]
        with trio.fail_after(30):
            while (KEY, 63, 0) not in (seen := await events(guest)):
                await trio.sleep(0.2)
        assert [event for event in seen if event[0] == KEY][: len(wanted)] == wanted
        assert {(ABS, 0, 32767), (ABS, 1, 32767)} <= set(seen)
        await guest.power_off()
        assert "error" not in served.log
        assert "no sandbox" not in served.log


async def _sees(guest: QemuGuest, served: Backend, control: Path, vnc: Path, folder: Path) -> None:
    await guest.run("echo 0 >/sys/class/graphics/fbcon/cursor_blink; printf '\\033[?25l\\033[9;0]' >/dev/tty1")
    await guest.run("for i in $(seq 1 100); do echo line $i of text; done >/dev/tty1")
    png = folder / "vnc.png"
    for _ in range(20):
        await vncdo(vnc, "capture", str(png))
        ours = await picture(control, folder)
        with Image.open(png) as image:
            if image.size == SIZE and image.convert("RGB").tobytes() == ours:
                break
    else:
        raise AssertionError(f"VNC shows something else, see {folder}")
    assert len(set(ours)) > 1, "a picture of one colour proves nothing"
    if CHROMIUM is None:
        return
    (url,) = re.findall(r"http://127\S+", served.log)
    drawn = "(c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data))"
    async with browser(CHROMIUM, folder / "profile") as it:
        await it.do("Page.navigate", url=url)
        await it.until(f"document.getElementById('state')?.textContent === '{SIZE[0]}×{SIZE[1]}'")
        for _ in range(20):
            rgba = bytes(await it.evaluate(f"{drawn}(document.getElementById('screen'))"))
            rgb = bytearray(len(rgba) // 4 * 3)
            rgb[0::3], rgb[1::3], rgb[2::3] = rgba[0::4], rgba[1::4], rgba[2::4]
            if rgb == ours:
                return
    raise AssertionError("the page shows something else")

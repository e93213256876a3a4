"""A real guest's display in QEMU: what the guest draws, what QEMU shows, and what we show are the same pixels."""

from __future__ import annotations

import struct
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
from guestlib.display import Display, data_picture, opened_page, screen_text, vnc_words, vncdo
from PIL import Image

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]
SIZE = (800, 600)
KEY, ABS = 1, 3
PATTERN = b"vhostkit draws this, four bytes a pixel, again and again\n"


def as_rgb(bgrx: bytes) -> bytes:
    out = bytearray(len(bgrx) // 4 * 3)
    out[0::3], out[1::3], out[2::3] = bgrx[2::4], bgrx[1::4], bgrx[0::4]
    return bytes(out)


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_display(tmp_path: Path, qemu: Qemu, kernel: Kernel) -> None:
    """One guest: console, a pattern of known pixels, what is typed and pointed at from afar; then a reboot."""
    socket, seat, control = (tmp_path / name for name in ("gpu.sock", "input.sock", "ctl"))
    config = QemuConfig(
        devices=(VhostGpu(socket, options=f"xres={SIZE[0]},yres={SIZE[1]}"),),
        qemu=qemu,
        kernel=kernel,
        drivers=("virtio-gpu", "virtio_input", "evdev"),
        reboots=True,
        extra=("-chardev", f"socket,id=seat,path={seat}", "-device", "vhost-user-input-pci,chardev=seat"),
    )
    vnc, more = vnc_words(tmp_path)
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--mode", "640x480", *more]
    words += ["--web", "127.0.0.1:0", "--input-socket", str(seat)]
    async with (
        vhost(tmp_path, [socket, seat], *words, name="gpu") as served,
        boot_qemu(config, tmp_path) as guest,
        opened_page(served, tmp_path) as page,
    ):
        shown = Display(guest, control, tmp_path, vnc=vnc, page=page)
        await _draws(shown)
        await _types(shown)
        await guest.reboot()
        await _draws(shown)
        await guest.power_off()
        _quiet(served)


async def _draws(shown: Display) -> None:
    guest = shown.guest
    width, height = SIZE
    assert (await guest.output("cat /sys/class/graphics/fb0/virtual_size")) == f"{width},{height}"
    assert (await guest.output("head -n1 /sys/class/drm/card0-Virtual-1/modes")) == f"{width}x{height}"
    edid = bytes.fromhex(await guest.output("xxd -p /sys/class/drm/card0-Virtual-1/edid | tr -d '\\n'"))
    assert b"QEMU Monitor" in edid
    await shown.still()
    await guest.run("for i in $(seq 1 100); do echo line $i of text; done >/dev/tty1")
    await shown.same(SIZE)
    wanted = (PATTERN * (width * height * 4 // len(PATTERN) + 1))[: width * height * 4]
    await guest.run(f"yes '{PATTERN.decode().strip()}' | head -c {len(wanted)} >/tmp/pattern")
    # in one piece: Linux 6.1 forgets what a write of exactly one line changes
    await guest.run(f"dd if=/tmp/pattern of=/dev/fb0 bs={len(wanted)} count=1 2>/dev/null")
    await shown.everywhere(SIZE, as_rgb(wanted))


async def _types(shown: Display) -> None:
    """Keys and the pointer arrive in the guest: of a VNC client, of the page, and by hand."""
    guest = shown.guest
    found = await guest.output("grep -l 'vhostkit combined' /sys/class/input/event*/device/name | cut -d/ -f5")
    await guest.run(f"exec 3</dev/input/{found}; cat <&3 >/tmp/events &")  # what comes before it is open is lost
    wanted = []
    if shown.vnc:
        await vncdo(shown.vnc[0], "type", "go", "move", str(SIZE[0] - 1), str(SIZE[1] - 1), "click", "1")
        wanted += [(KEY, 34, 1), (KEY, 34, 0), (KEY, 24, 1), (KEY, 24, 0), (KEY, 272, 1), (KEY, 272, 0)]
    if shown.page is not None:
        for kind in ("keyDown", "keyUp"):
            await shown.page.do("Input.dispatchKeyEvent", type=kind, code="KeyQ", key="a")  # by its place
        wanted += [(KEY, 16, 1), (KEY, 16, 0)]
    await shown.ask("gpu-input.key", key="F5")
    wanted += [(KEY, 63, 1), (KEY, 63, 0)]
    with trio.fail_after(60):
        while wanted[-1] not in (seen := await _events(guest)):
            await trio.sleep(0.1)
    assert [event for event in seen if event[0] == KEY] == wanted
    assert not shown.vnc or {(ABS, 0, 32767), (ABS, 1, 32767)} <= set(seen)


async def _events(guest: QemuGuest) -> list[tuple[int, int, int]]:
    data = bytes.fromhex(await guest.output("xxd -p /tmp/events | tr -d '\\n'"))
    return [event[2:] for event in struct.iter_unpack("<qqHHi", data)]


class Kms:
    """A program in the guest that draws through KMS (tests/guestlib/kmsio.c)."""

    def __init__(self, guest: QemuGuest) -> None:
        self.guest = guest

    async def start(self) -> None:
        await self.guest.run(
            "mkfifo /tmp/kms; (sleep 10000 >/tmp/kms &); (kmsio </tmp/kms >/tmp/kms.out 2>&1 &)\n"
            "until [ -s /tmp/kms.out ]; do usleep 20000; done"
        )
        assert await self.guest.output("cat /tmp/kms.out") == "ok 2 heads"

    async def __call__(self, *words: object) -> None:
        line = " ".join(map(str, words))
        answer = await self.guest.output(
            f"n=$(wc -l </tmp/kms.out); echo {line} >/tmp/kms\n"
            "while [ $(wc -l </tmp/kms.out) = $n ]; do usleep 10000; done; tail -n1 /tmp/kms.out"
        )
        assert answer == f"ok {line}"


def drawn(size: tuple[int, int], seed: int) -> Image.Image:
    """What kmsio draws."""
    width, height = size
    across = int.from_bytes(bytes(x & 255 for x in range(width)))
    red = [(across ^ int.from_bytes(bytes((y & 255,)) * width)).to_bytes(width) for y in range(height)]
    green = [bytes(((y * 5 + seed) & 255,)) * width for y in range(height)]
    blue = [bytes((x * 7 + seed * 31) & 255 for x in range(width))] * height
    return Image.merge("RGB", [Image.frombytes("L", size, b"".join(rows)) for rows in (red, green, blue)])


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_kms(tmp_path: Path, qemu: Qemu, kernel: Kernel) -> None:
    """One guest: modes, two monitors, cursors, darkness, what firmware shows; then QEMU is killed."""
    socket, control = tmp_path / "gpu.sock", tmp_path / "ctl"
    config = QemuConfig(
        devices=(VhostGpu(socket, outputs=2, vga=True, options="xres=800,yres=600"),),
        qemu=qemu,
        kernel=kernel,
        drivers=("virtio-gpu",),
        reboots=True,
    )
    vnc, more = vnc_words(tmp_path, 2)
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--scanouts", "2", *more]
    async with vhost(tmp_path, [socket], *words, "--web", "127.0.0.1:0", name="gpu") as served:
        async with boot_qemu(config, tmp_path) as guest, opened_page(served, tmp_path) as page:
            shown, kms = Display(guest, control, tmp_path, vnc=vnc, page=page), Kms(guest)
            await kms.start()
            await _modes(shown, kms)
            await _cursors(shown, kms)
            await _two(shown, kms)
            await _firmware(shown)
            await guest.kill()
        await _after_a_kill(shown, socket)
        _quiet(served)


async def _modes(shown: Display, kms: Kms) -> None:
    await kms("show", 0, 800, 600, 1)
    await shown.same((800, 600), drawn((800, 600), 1).tobytes())
    await kms("show", 0, 640, 480, 2)
    picture = drawn((640, 480), 2)
    await shown.everywhere((640, 480), picture.tobytes())
    area = (100, 50, 228, 180)
    picture.paste(drawn((640, 480), 3).crop(area), area)
    await kms("draw", 0, 100, 50, 128, 130, 3)
    await shown.everywhere((640, 480), picture.tobytes())
    await kms("off", 0)
    await shown.until(0, shows=None)
    if shown.page is not None:
        await shown.page.until("document.getElementById('state').textContent === 'the guest shows nothing'")
    await kms("show", 0, 640, 480, 4)
    await shown.same((640, 480), drawn((640, 480), 4).tobytes())


async def _cursors(shown: Display, kms: Kms) -> None:
    """Ours has it in the picture, and so do clients of VNC that draw none; QEMU's screendump never has."""
    plain, shape = drawn((640, 480), 4), drawn((64, 64), 9)
    await kms("cursor", 0, 10, 20, 9)
    for place in ((10, 20), (300, 200)):
        await kms("move", 0, *place)
        await shown.until(0, cursor={"x": place[0], "y": place[1]})
        wanted = plain.copy()
        wanted.paste(shape, place)
        assert (await shown.ours()).tobytes() == wanted.tobytes()
    if shown.vnc:
        assert (await shown.vncs()).tobytes() == wanted.tobytes()
    if shown.page is not None:
        await shown.page.until(f"{CANVAS}.style.cursor.startsWith('url')")
        style = await shown.page.evaluate(f"{CANVAS}.style.cursor")
        url, at = style.removeprefix('url("').removesuffix(", default").split('") ')
        assert at == "2 2"
        assert data_picture(url).tobytes() == shape.tobytes()
    await kms("hide", 0)
    await shown.until(0, cursor=None)
    if shown.page is not None:
        await shown.page.until(f"{CANVAS}.style.cursor === 'default'")
    await shown.same((640, 480), plain.tobytes())


CANVAS = "document.getElementById('screen')"


async def _two(shown: Display, kms: Kms) -> None:
    """A second monitor, which QEMU has not plugged in: the guest is told to use it nevertheless."""
    await shown.guest.run("echo on >/sys/class/drm/card0-Virtual-2/status")
    await kms("show", 1, 1024, 768, 5)
    await shown.until(1, shows="1024x768")
    await shown.everywhere((1024, 768), drawn((1024, 768), 5).tobytes(), scanout=1)
    await shown.everywhere((640, 480), drawn((640, 480), 4).tobytes())


async def _firmware(shown: Display) -> None:
    """A VGA card shows text before there is a driver: QEMU draws that itself, and tells nobody."""
    qemu = shown.guest.config.qemu
    rom = next(path for path in map(Path, qemu.command[2::2]) if (path / "vgabios-virtio.bin").exists())
    await shown.guest.qmp.execute("system_reset")
    with trio.fail_after(60):
        while True:
            picture = await shown.qemus()
            if picture.size == (720, 400):
                text = screen_text(picture, rom / "vgabios-virtio.bin")
                if any(line.startswith("SeaBIOS (version") for line in text):
                    break
    assert [each["shows"] for each in await shown.ask("gpu.displays")] == [None, None]


async def _after_a_kill(shown: Display, socket: Path) -> None:
    """Nothing is left of that guest, and the next one is served."""
    with trio.fail_after(60):
        while (await shown.ask("gpu.displays"))[0]["shows"] is not None:
            await trio.sleep(0.02)
    assert (await shown.ask("gpu.stats"))["resources"] == 0
    pixels = bytes([1, 2, 3, 255]) * (64 * 64)
    async with driver(str(socket)) as guest:
        await guest.paint(0, 1, 64, 64, pixels)
        assert (await shown.ours()).tobytes() == as_rgb(pixels)


def _quiet(served: Backend) -> None:
    assert "no sandbox" not in served.log
    assert "warning" not in served.log
    assert "error" not in served.log

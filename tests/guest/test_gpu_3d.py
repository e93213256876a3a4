"""3D in a real guest: Debian's kernel and Mesa draw through virgl, and the pixels are those that OpenGL is to make."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import trio
from gpurig import descendants
from guestlib import (
    AssetError,
    Backend,
    Kernel,
    Qemu,
    QemuConfig,
    QemuGuest,
    VhostFs,
    VhostGpu,
    boot_qemu,
    vhost,
)
from guestlib.assets import glio
from guestlib.backends import ctl
from guestlib.fs import host_root, mount, vhost_fs
from PIL import Image

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

SIZE = (640, 480)
GLIO = "/tmp/glio"  # of the guest
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def program() -> Path:
    """What draws, and the Mesa that it draws with."""
    pytest.importorskip("devices.gpu.render._virgl", reason="not built: install libvirglrenderer-dev")
    if not list(Path("/usr/lib").glob("*/dri/virtio_gpu_dri.so")):
        pytest.skip("no driver of OpenGL for guests: install libgl1-mesa-dri")
    try:
        return glio()
    except AssetError as error:
        pytest.skip(str(error))


async def shot(control: Path, folder: Path) -> Image.Image:
    """What is shown."""
    path = folder / "shot.png"
    await ctl(control, "gpu.screenshot", f"path={path}")
    with Image.open(path) as image:
        return image.convert("RGB")


async def mounted(guest: QemuGuest, program: Path) -> None:
    """The host's root, as its Mesa needs it; the program where it is to be seen wherever this tree lies."""
    where = await mount(guest, "root", "/plain")
    await guest.run(f"cp {where}{program} /tmp/glio && umount {where}")
    await host_root(guest)
    await guest.run(f"cp /tmp/glio /host{GLIO}")
    await guest.run("mount -t sysfs sys /host/sys")


async def drawn(guest: QemuGuest, control: Path, folder: Path) -> None:
    """The picture of glio is on the screen, upright, and QEMU's is the same."""
    await guest.run(
        f"""
        rm -f /tmp/end /tmp/said; mkfifo /tmp/end; sleep 600 >/tmp/end & echo $! >/tmp/pid
        chroot /host {GLIO} 3 </tmp/end >/tmp/said 2>&1 &
        """
    )
    await guest.run("for i in $(seq 600); do [ -s /tmp/said ] && break; sleep 0.2; done", timeout=180)
    assert (await guest.output("cat /tmp/said")).startswith(f"drawn {SIZE[0]}x{SIZE[1]} by virgl")
    width, height = SIZE
    ours = await shot(control, folder)
    assert ours.size == SIZE
    assert ours.getpixel((width - 2, 2)) == RED
    assert ours.getpixel((width - 2, height - 3)) == BLUE
    assert ours.getpixel((2, height // 2)) == GREEN
    count = {colour: number for number, colour in ours.getcolors(1 << 24)}
    assert set(count) == {RED, GREEN, BLUE}
    assert abs(count[GREEN] - width * height / 4) < width
    assert abs(count[RED] - count[BLUE]) < width
    for _ in range(50):  # QEMU's comes over a socket
        await guest.qmp.execute("screendump", filename=str(folder / "qemu.ppm"))
        with Image.open(folder / "qemu.ppm") as image:
            if image.convert("RGB").tobytes() == ours.tobytes():
                break
        await trio.sleep(0.1)
    else:
        raise AssertionError("QEMU shows something else")
    await guest.run("kill $(cat /tmp/pid); while pidof glio; do sleep 0.1; done")


def quiet(served: Backend) -> None:
    assert "warning" not in served.log
    assert "error" not in served.log


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_opengl(tmp_path: Path, qemu: Qemu, kernel: Kernel, program: Path) -> None:
    """One guest: who draws, what is drawn, a renderer that is killed, a reboot that mends it."""
    socket, control = tmp_path / "gpu.sock", tmp_path / "ctl"
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--virgl"]
    async with (
        vhost(tmp_path, [socket], *words, name="gpu") as served,
        vhost_fs(tmp_path, Path("/"), tag="root", args=["--readonly"]) as root,
    ):
        config = QemuConfig(
            devices=(VhostGpu(socket, options=f"xres={SIZE[0]},yres={SIZE[1]}"), VhostFs(root.socket, "root")),
            qemu=qemu,
            kernel=kernel,
            drivers=("virtio-gpu", "virtiofs"),
            reboots=True,
            memory_mib=768,
        )
        async with boot_qemu(config, tmp_path) as guest:
            assert "+virgl" in await guest.output("dmesg | grep features:")
            await mounted(guest, program)
            await drawn(guest, control, tmp_path)
            quiet(served)
            assert json.loads(await ctl(control, "gpu.stats"))["errors"] == {}
            # its renderer dies: 3D fails, the guest and its console go on
            _, drawing = descendants(served.proc.pid)
            os.kill(drawing, signal.SIGKILL)
            said = (await guest.run(f"chroot /host {GLIO} 1 2>&1", check=False, timeout=120)).output
            assert "failed: pixel" in said
            assert "the 3D renderer has ended (signal SIGKILL)" in served.log
            await guest.run("echo 2D goes on >/dev/tty1")
            await guest.reboot()
            await mounted(guest, program)
            await drawn(guest, control, tmp_path)

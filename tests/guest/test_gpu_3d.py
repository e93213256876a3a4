"""3D in a real guest: Debian's kernel and Mesa draw through virgl, and the pixels are those that OpenGL is to make."""

from __future__ import annotations

import os
import signal
import subprocess
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
from guestlib.assets import glio, mesa_root
from guestlib.display import Display, vnc_words
from guestlib.fs import host_root, mount, vhost_fs

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

SIZE = (640, 480)
GLIO = "/tmp/glio"  # of the guest
ONE_MODE = Path(__file__).parents[1] / "guestlib/onemode.c"
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


@pytest.fixture
def one_mode(tmp_path: Path) -> Path:
    """A folder with what is preloaded to glmark2."""
    folder = tmp_path / "tools"
    folder.mkdir()
    command = ["gcc", "-shared", "-fPIC", "-I/usr/include/libdrm", "-o", str(folder / "onemode.so"), str(ONE_MODE)]
    subprocess.run(command, check=True)
    return folder


async def mounted(guest: QemuGuest, program: Path) -> None:
    """The host's root, as its Mesa needs it; the program where it is to be seen wherever this tree lies."""
    where = await mount(guest, "root", "/plain")
    await guest.run(f"cp {where}{program} /tmp/glio && umount {where}")
    await host_root(guest)
    await guest.run(f"cp /tmp/glio /host{GLIO}")
    await guest.run("mount -t sysfs sys /host/sys")


async def drawn(shown: Display) -> None:
    """The picture of glio is on the screen, upright, and QEMU's is the same."""
    guest = shown.guest
    await guest.run(
        f"""
        rm -f /tmp/end /tmp/said; mkfifo /tmp/end; sleep 600 >/tmp/end & echo $! >/tmp/pid
        chroot /host {GLIO} 3 </tmp/end >/tmp/said 2>&1 &
        """
    )
    await guest.run("for i in $(seq 3000); do [ -s /tmp/said ] && break; usleep 50000; done", timeout=180)
    assert (await guest.output("cat /tmp/said")).startswith(f"drawn {SIZE[0]}x{SIZE[1]} by virgl")
    width, height = SIZE
    ours = await shown.same(SIZE)
    assert ours.getpixel((width - 2, 2)) == RED
    assert ours.getpixel((width - 2, height - 3)) == BLUE
    assert ours.getpixel((2, height // 2)) == GREEN
    count = {colour: number for number, colour in ours.getcolors(1 << 24)}
    assert set(count) == {RED, GREEN, BLUE}
    assert abs(count[GREEN] - width * height / 4) < width
    assert abs(count[RED] - count[BLUE]) < width
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
            shown = Display(guest, control, tmp_path)
            await mounted(guest, program)
            await drawn(shown)
            quiet(served)
            assert (await shown.ask("gpu.stats"))["errors"] == {}
            # its renderer dies: 3D fails, the guest and its console go on
            _, drawing = descendants(served.proc.pid)
            os.kill(drawing, signal.SIGKILL)
            said = (await guest.run(f"chroot /host {GLIO} 1 2>&1", check=False, timeout=120)).output
            assert "failed: pixel" in said
            assert "the 3D renderer has ended (signal SIGKILL)" in served.log
            await guest.run("echo 2D goes on >/dev/tty1")
            await guest.reboot()
            await mounted(guest, program)
            await drawn(shown)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_mesa(tmp_path: Path, qemu: Qemu, kernel: Kernel, one_mode: Path) -> None:
    """A Debian of its own with Mesa: who draws, kmscube's frames, an X server, glmark2, which checks its pixels."""
    try:
        system = mesa_root()
    except AssetError as error:
        pytest.skip(str(error))
    socket, control = tmp_path / "gpu.sock", tmp_path / "ctl"
    vnc, more = vnc_words(tmp_path)
    words = ["gpu", "--socket-path", str(socket), "--control", str(control), "--virgl", *more]
    async with (
        vhost(tmp_path, [socket], *words, name="gpu") as served,
        vhost_fs(tmp_path, system, tag="root", args=["--readonly"]) as root,
        vhost_fs(tmp_path, one_mode, tag="tools", name="tools") as shared,
    ):
        config = QemuConfig(
            devices=(
                VhostGpu(socket, options=f"xres={SIZE[0]},yres={SIZE[1]}"),
                VhostFs(root.socket, "root"),
                VhostFs(shared.socket, "tools"),
            ),
            qemu=qemu,
            kernel=kernel,
            drivers=("virtio-gpu", "virtiofs"),
            memory_mib=1024,
        )
        async with boot_qemu(config, tmp_path) as guest:
            shown = Display(guest, control, tmp_path, vnc=vnc)
            await host_root(guest)
            await guest.run("mount -t sysfs sys /host/sys")
            await mount(guest, "tools", "/host/mnt/tools")
            await _informed(guest)
            await _cube(shown)
            await _desktop(shown)
            await _marked(guest)
            assert (await shown.ask("gpu.stats"))["errors"] == {}
            quiet(served)


async def _desktop(shown: Display) -> None:
    """An X server that draws by OpenGL, and what it shows; programs on it are told who draws."""
    guest = shown.guest
    await guest.run(
        """
        mount -t tmpfs xkb /host/var/lib/xkb
        words="-retro -nocursor -noreset -nolisten tcp -logfile /tmp/x.log"
        chroot /host Xorg :0 vt1 $words </dev/null >/tmp/x.out 2>&1 & echo $! >/tmp/pid
        for i in $(seq 120); do [ -S /host/tmp/.X11-unix/X0 ] && exit 0; sleep 1; done; cat /tmp/x.out; exit 1
        """,
        timeout=180,
    )
    said = await guest.output("chroot /host env DISPLAY=:0 es2_info 2>&1", timeout=180)
    assert "GL_RENDERER: virgl" in said, said
    assert "glamor X acceleration enabled on virgl" in await guest.output("cat /host/tmp/x.log")
    await shown.everywhere(SIZE)
    await guest.run("kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done")


async def _informed(guest: QemuGuest) -> None:
    """Mesa's driver is the one for virtio-gpu, on the display and without one; eglinfo names no renderers yet."""
    said = (await guest.run("chroot /host eglinfo 2>&1", check=False, timeout=180)).output
    for platform in ("GBM", "Surfaceless"):
        section = said.split(f"{platform} platform:")[1].split("platform:")[0]
        assert "EGL driver name: virtio_gpu" in section, section


async def _cube(shown: Display) -> None:
    """Frame after frame is another picture; one that stands still is the same everywhere."""
    guest = shown.guest
    await guest.run(  # the end of its input would end it
        """
        mkfifo /tmp/input; sleep 600 >/tmp/input &
        chroot /host kmscube </tmp/input >/tmp/cube 2>&1 & echo $! >/tmp/pid
        """
    )
    seen: set[bytes] = set()
    with trio.fail_after(120):
        while len(seen) < 5:
            assert await guest.output("kill -0 $(cat /tmp/pid) || cat /tmp/cube") == ""
            picture = await shown.ours()
            colours = picture.getcolors(1 << 24)
            if picture.size == SIZE and len(colours) > 100:  # shaded
                seen.add(picture.tobytes())
    await guest.run("kill -STOP $(cat /tmp/pid)")
    await shown.everywhere(SIZE)
    await guest.run("kill -CONT $(cat /tmp/pid); kill $(cat /tmp/pid)")
    assert "virgl" in await guest.output("cat /tmp/cube")


async def _marked(guest: QemuGuest) -> None:
    """All scenes of glmark2, which knows a pixel of most; of six it does not."""
    mark = "env LD_PRELOAD=/mnt/tools/onemode.so glmark2-es2-drm --off-screen --validate"
    said = (await guest.run(f"chroot /host {mark} 2>&1", check=False, timeout=480)).output
    assert "virgl" in said, said
    assert [said.count(f"Validation: {how}") for how in ("Success", "Failure", "Unknown")] == [27, 0, 6], said

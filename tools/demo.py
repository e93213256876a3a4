"""``make demo``: processes of ours serve devices, a Debian kernel in QEMU uses them, the host checks what is left.

One has the disks, and is killed under load; the other has the network and the shared folder, for QEMU's virtio-fs does
not connect again.

Everything is made below a temporary folder that goes at the end; logs of the last run stay in .cache/demo. Exit status
0 when all went well, else 1 after one sentence that says what failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio
from guestlib import (
    AssetError,
    Backend,
    GuestError,
    QemuConfig,
    QemuGuest,
    VhostFs,
    VhostNet,
    VhostUser,
    boot_qemu,
    find_accel,
    process,
    system_qemu,
    vhost,
)
from guestlib import fs as fslib
from guestlib import net as netlib
from guestlib.backends import vhost_program
from guestlib.checks import (
    MIB,
    Writer,
    allocated,
    assert_nothing_lost,
    filesystem_roundtrip,
    has_feature,
    host_agrees,
    make_image,
    wait_size,
)
from guestlib.debian import CACHE
from rich.console import Console
from rich.table import Table

DISKS = """\
[server]
control = "{folder}/control.sock"
workers = 2

[[device]]
type = "blk"
name = "root"
socket-path = "{folder}/root.sock"
blk-file = "{folder}/root.img"
num-queues = 2

[[device]]
type = "blk"
name = "scratch"
socket-path = "{folder}/scratch.sock"
store = "memory:64M"
"""

OTHERS = """\
[[device]]
type = "net"
name = "nat"
socket-path = "{folder}/net.sock"
user = true

[[device]]
type = "fs"
name = "share"
socket-path = "{folder}/fs.sock"
shared-dir = "{folder}/shared"
tag = "shared"
"""

HOST_IN_NAT = "10.0.2.2"


@dataclass
class Row:
    """One line of the final table."""

    device: str
    guest: str
    host: str
    seconds: float


class Demo:
    """The run: where things are, and what has been shown so far."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder
        self.rows: list[Row] = []
        self.image = make_image(folder / "root.img", 128)
        self.shared = folder / "shared"
        self.shared.mkdir()

    @contextlib.asynccontextmanager
    async def _process(self, name: str, text: str, *sockets: str) -> AsyncIterator[Backend]:
        config = self.folder / f"{name}.toml"
        config.write_text(text.format(folder=self.folder))
        paths = [self.folder / socket for socket in sockets]
        async with vhost(self.folder, paths, "serve", config, name=name, clean=False) as server:
            yield server

    def disks(self, life: str) -> contextlib.AbstractAsyncContextManager[Backend]:
        """The process that serves the disks; ``life`` names its log."""
        return self._process(life, DISKS, "root.sock", "scratch.sock", "control.sock")

    def others(self) -> contextlib.AbstractAsyncContextManager[Backend]:
        """The process that serves the network and the folder."""
        return self._process("vhost-others", OTHERS, "net.sock", "fs.sock")

    async def control(self, method: str, *params: str) -> str:
        """``vhost ctl``; its output."""
        words = [str(vhost_program()), "ctl", "-s", str(self.folder / "control.sock"), method, *params]
        done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode != 0:
            raise GuestError(f"vhost ctl {method}: {done.stderr.decode().strip()}")
        return done.stdout.decode()

    async def step(self, device: str, guest: str, work: Callable[[], Awaitable[str]]) -> None:
        """Show that ``work`` is under way, do it, and add its row; it returns what was checked on the host."""
        begun = time.monotonic()
        with self.console.status(f"[bold]{device}[/]: {guest} …"):
            try:
                said = await work()
            except AssertionError as error:
                raise GuestError(f"{device}: {guest}: {error}") from error
        self.rows.append(Row(device, guest, said, time.monotonic() - begun))
        self.console.print(f"[green]✓[/] {device}: {guest}")

    def table(self) -> Table:
        """What was shown."""
        table = Table(title="What the guest did and what the host found", title_justify="left")
        table.add_column("device")
        table.add_column("the guest")
        table.add_column("checked on the host")
        table.add_column("seconds", justify="right")
        for row in self.rows:
            table.add_row(row.device, row.guest, row.host, f"{row.seconds:.1f}")
        return table


async def _show_others(demo: Demo, guest: QemuGuest) -> None:
    """What the guest does with the network and the folder."""
    content = os.urandom(4 * MIB)
    sha = hashlib.sha256(content).hexdigest()

    async def network() -> str:
        address = await netlib.dhcp(guest)
        async with netlib.http_server(content) as port:
            said = await guest.output(f"wget -q -O - http://{HOST_IN_NAT}:{port}/ | sha256sum")
        assert said.split()[0] == sha, "the guest got other bytes"
        return f"gave {address} to the guest, and 4 MiB of SHA-256 {sha[:12]}…"

    async def folder() -> str:
        fslib.make_tree(demo.shared, files=40)
        before = fslib.tree_sums(demo.shared)
        where = await fslib.mount(guest, "shared")
        await guest.run(f"mkdir /tmp/copy && cp -a {where}/. /tmp/copy && cp -a /tmp/copy {where}/back && sync")
        assert fslib.tree_sums(demo.shared / "back") == before, "the copy differs"
        return f"{len(before)} names of the tree came back, contents, modes and links the same"

    await demo.step(
        "network (user-mode NAT)", "asks for an address by DHCP, fetches 4 MiB from the host by HTTP", network
    )
    await demo.step("shared folder", "copies a tree out and back in", folder)


async def _show(demo: Demo, guest: QemuGuest, server: Backend, lives: contextlib.AsyncExitStack) -> Backend:
    """All that the guest does with the devices; the server process that lives at the end."""
    image = demo.image
    sha = ""

    async def file_system() -> str:
        nonlocal sha
        sha = await filesystem_roundtrip(guest)
        host_agrees(image, sha)
        return f"e2fsck of the image; SHA-256 {sha[:12]}… of the file in it"

    async def resize() -> str:
        await demo.control("root.resize", f"size={192 * MIB}")
        await wait_size(guest, "vda", 192 * MIB)
        grown = "df -m /mnt | awk 'END { exit !($2 > 150) }'"
        await guest.run(f"mount /dev/vda /mnt && resize2fs /dev/vda 2>/dev/null && {grown} && umount /mnt")
        host_agrees(image, sha)
        return "e2fsck of the image; the file is the same"

    async def trim() -> str:
        await guest.run("mount /dev/vda /mnt && dd if=/dev/zero of=/mnt/big bs=1M count=32 2>/dev/null && sync")
        full = allocated(image)
        await guest.run("rm /mnt/big && sync && fstrim /mnt && umount /mnt")
        back = full - allocated(image)
        assert back >= 24 * MIB, f"only {back // MIB} MiB came back"
        return f"the image takes {back // MIB} MiB less"

    async def packed() -> str:
        assert await has_feature(guest, 34, "vdb"), "the ring is not packed"
        await guest.run("guestio write /dev/vdb 0 2048 4096 8 1024 && guestio verify /dev/vdb 0 2048 4096", timeout=120)
        ops = json.loads(await demo.control("scratch.stats"))["ops"]
        written = ops["write"]["bytes"] // MIB
        assert written >= 16, f"the back-end counts {written} MiB written"
        assert not ops["write"]["errors"], f"the back-end counts {ops['write']['errors']} failed writes"
        return f"the back-end counts {written} MiB written, {ops['read']['bytes'] // MIB} MiB read, no error"

    async def crash() -> str:
        nonlocal server
        writer = Writer(guest, "/dev/vda", first=0, blocks=2000)
        await writer.start()
        steps = await writer.beyond(500)
        await server.kill()
        assert_nothing_lost(image, first=0, blocks=2000, synced=steps)
        server = await lives.enter_async_context(demo.disks("vhost-2"))
        await writer.beyond(steps + 500)
        steps = await writer.stop()
        assert_nothing_lost(image, first=0, blocks=2000, synced=steps)
        return f"all {steps} writes of the guest are in the image"

    await demo.step("disk (2 split queues)", "mkfs.ext4, write, read back, fsck", file_system)
    await demo.step("disk (2 split queues)", "sees the disk grow to 192 MiB, resizes its file system", resize)
    await demo.step("disk (2 split queues)", "trims what it deleted", trim)
    await demo.step("memory disk (packed ring)", "writes 16 MiB, 8 requests at a time, verifies", packed)
    await demo.step("disk (2 split queues)", "writes on while the back-end is killed and started again", crash)
    return server


async def _run(console: Console, folder: Path) -> None:
    begun = time.monotonic()
    demo = Demo(console, folder)
    with console.status("Finding out whether KVM boots a kernel here …"):
        accel = await find_accel(system_qemu())
    async with contextlib.AsyncExitStack() as lives:
        server = await lives.enter_async_context(demo.disks("vhost-1"))
        others = await lives.enter_async_context(demo.others())
        devices = (
            VhostUser(folder / "root.sock", num_queues=2, reconnect=True),
            VhostUser(folder / "scratch.sock", packed=True, reconnect=True),
            VhostNet(folder / "net.sock", packed=True),
            VhostFs(folder / "fs.sock", "shared"),
        )
        async with contextlib.AsyncExitStack() as machine:
            guests: list[QemuGuest] = []

            async def boot() -> str:
                guests.append(
                    await machine.enter_async_context(boot_qemu(QemuConfig(devices=devices), folder, name="guest"))
                )
                return f"QEMU with {accel.upper()}, one vhost process for both disks, one for the rest"

            await demo.step("machine", "boots a Debian kernel", boot)
            guest = guests[0]
            release = await guest.output("uname -r")
            demo.rows[-1].guest += f" ({release})"
            await _show_others(demo, guest)
            server = await _show(demo, guest, server, lives)

            async def end() -> str:
                await guest.power_off()
                for each in (server, others):
                    status = await each.terminate()
                    assert status == 0, f"the back-end ended with status {status}\n{each.log[-500:]}"
                return "SIGTERM ended the back-ends with status 0"

            await demo.step("machine", "powers off", end)
    console.print(demo.table())
    console.print(f"All well after {time.monotonic() - begun:.0f} s.")


def _one_sentence(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error).strip() or type(error).__name__
    first, *rest = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{first}: {rest[-1]}" if rest else first


def main() -> int:
    """Run the demo; its exit status."""
    console = Console()
    kept = CACHE / "demo"
    with tempfile.TemporaryDirectory(prefix="vhostkit-demo-") as name:
        folder = Path(name)
        try:
            trio.run(_run, console, folder)
        except KeyboardInterrupt:
            console.print("Stopped.")
            return 130
        except (AssetError, GuestError, OSError, BaseExceptionGroup) as error:
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            for _, log in process.LOGS:
                if log.exists():
                    shutil.copy(log, kept / log.name)
                console_log = log.with_name("console.log")
                if console_log.exists():
                    shutil.copy(console_log, kept / "console.log")
            console.print(f"[red]The demo failed:[/] {_one_sentence(error)} (logs: {kept})", soft_wrap=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A guest with files open moves to another QEMU, whose back-end shares the same folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from guestlib import Qemu, QemuConfig, VhostFs, boot_qemu
from guestlib.assets import fsio
from guestlib.fs import guest_sums, make_tree, mount, tree_sums, vhost_fs

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


def _lock(path: Path) -> str:
    """What a program on the host hears that wants to lock all of it."""
    words = [fsio(), "lock", str(path), "w", "0", "0"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize("qemu", ["backports"], indirect=True)
async def test_migration(tmp_path: Path, qemu: Qemu) -> None:
    """Open, locked and deleted files, folders and what was looked up: all goes on there; the host sees the locks."""
    shared = tmp_path / "shared"
    make_tree(shared / "tree", files=60)
    options = ["--migration-mode", "file-handles"]
    async with (
        vhost_fs(tmp_path, shared, name="from", args=options) as here,
        vhost_fs(tmp_path, shared, name="to", args=options) as there,
        boot_qemu(QemuConfig((VhostFs(here.socket, "share"),), 256, qemu=qemu), tmp_path, name="source") as source,
        boot_qemu(
            QemuConfig((VhostFs(there.socket, "share"),), 256, qemu=qemu, incoming=True), tmp_path, name="target"
        ) as target,
    ):
        await mount(source, "share")
        sums = await guest_sums(source, "/share/tree")
        beyond = "while [ $(wc -l </tmp/kept) -lt {} ]; do kill -0 $(cat /tmp/pid) || exit 1; sleep 0.1; done"
        await source.run("touch /tmp/kept; fsio keep /share >/tmp/kept 2>&1 & echo $! >/tmp/pid")
        await source.run(beyond.format(30))
        assert _lock(shared / "named").startswith("busy")
        state = await source.migrate_to(target)
        assert state["status"] == "completed"
        assert _lock(shared / "named").startswith("busy")
        steps = int(await target.output("wc -l </tmp/kept"))
        await target.run(beyond.format(steps + 30))
        await source.kill()
        assert await guest_sums(target, "/share/tree") == sums == tree_sums(shared / "tree")
        await target.run("echo more >/share/tree/more && cp -a /share/tree /share/copy && touch /share/stop")
        end = "while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done; tail -n 1 /tmp/kept"
        assert await target.output(end) == "ok"
        await target.power_off()
        assert "lost" not in there.log
    assert tree_sums(shared / "copy") == tree_sums(shared / "tree")
    assert len((shared / "named").read_bytes()) % 16 == 0
    assert _lock(shared / "named") == "ok"

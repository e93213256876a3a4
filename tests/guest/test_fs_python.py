"""The examples of file systems in Python, mounted in a real guest: all in one boot."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from guestlib import QemuConfig, VhostFs, boot_qemu
from guestlib.fs import Guest, example_fs, guest_sums, make_tree, mount, tree_sums

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


async def _memory(guest: Guest) -> None:
    """Files of all kinds, renamed, linked, grown and shrunk; everything is gone at the end."""
    await mount(guest, "mem")
    said = await guest.output(
        """
        set -e
        cd /mem
        dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
        cp /tmp/data data && cmp data /tmp/data
        echo 3 >/proc/sys/vm/drop_caches && cmp data /tmp/data
        cp -a /lib/modules copy && diff -r /lib/modules copy && rm -r copy
        mkdir -p a/b/c && mv a/b/c moved && ln data hard && ln -s data soft && cmp hard soft
        rm data && cmp hard /tmp/data && mv hard data
        for i in $(seq 500); do echo $i >n$i; done
        ls | wc -l && cat n* | sha256sum && rm n*
        truncate -s 100 data && stat -c '%s %h' data
        exec 3<data && rm data && cat <&3 >/tmp/open && exec 3<&- && stat -c %s /tmp/open
        mkfifo fifo && (echo through >fifo &) && cat fifo
        ls -1a && df -P /mem | tail -1
        """,
        timeout=120,
    )
    lines = said.splitlines()
    assert lines[0] == "504"
    assert lines[1].split()[0] == hashlib.sha256(
        "".join(f"{n}\n" for n in sorted(map(str, range(1, 501)))).encode()
    ).hexdigest()  # fmt: skip
    assert lines[2:5] == ["100 1", "100", "through"]
    assert lines[5:-1] == [".", "..", "a", "fifo", "moved", "soft"]
    assert lines[-1].split()[1:4] == ["1048576", "0", "1048576"]


async def _archive(guest: Guest, tree: Path) -> None:
    await mount(guest, "archive")
    assert await guest_sums(guest, "/archive") == tree_sums(tree)
    refused = await guest.run("echo text >/archive/new", check=False)
    assert refused.status != 0


async def _overlay(guest: Guest, shared: Path, log: Path) -> None:
    """Both sides see the same, and the log has it."""
    await mount(guest, "logged")
    make_tree(shared / "from_host", files=60)
    assert await guest_sums(guest, "/logged/from_host") == tree_sums(shared / "from_host")
    await guest.run(
        """
        set -e
        cd /logged
        cp -a from_host from_guest
        rm -r from_host
        mkdir made && echo text >made/file && chown 1000:100 made/file && chmod 640 made/file && mv made/file .
        """,
        timeout=120,
    )
    assert await guest_sums(guest, "/logged/from_guest") == tree_sums(shared / "from_guest")
    assert (shared / "file").read_bytes() == b"text\n"
    assert ((shared / "file").stat().st_uid, (shared / "file").stat().st_mode & 0o777) == (1000, 0o640)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    moved = [line for line in lines if line["what"] == "rename"]
    assert [(Path(line["path"]).name, line["to"]) for line in moved] == [("file", "file")]
    assert {"mkdir", "create", "write", "setattr", "symlink", "unlink", "rmdir"} <= {line["what"] for line in lines}


async def test_examples(tmp_path: Path) -> None:
    tree, shared, archive, log = (tmp_path / name for name in ("tree", "shared", "tree.tar", "log"))
    make_tree(tree, files=100)
    shared.mkdir()
    with tarfile.open(archive, "w") as tar:
        tar.add(tree, ".")
    async with (
        example_fs(tmp_path, "memory_fs.py") as memory,
        example_fs(tmp_path, "archive_fs.py", archive) as packed,
        example_fs(tmp_path, "overlay_log_fs.py", shared, log) as overlay,
    ):
        devices = (
            VhostFs(memory.socket, "mem"),
            VhostFs(packed.socket, "archive", packed=True),
            VhostFs(overlay.socket, "logged", queue_size=128),
        )
        async with boot_qemu(QemuConfig(devices=devices), tmp_path) as guest:
            await _memory(guest)
            await _archive(guest, tree)
            await _overlay(guest, shared, log)
            await guest.power_off()

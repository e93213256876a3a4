"""A folder that never changes: files and folders are read without being opened."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from fsrig import EVERY_FLAG, ROOT, WRITE, errno_of, mounted, set_lock

from devices.fs import Passthrough
from devices.fs.config import InitFlag, Opcode

_BOTH = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT


def tree(folder: Path) -> None:
    for i in range(500):
        (folder / f"name{i}").write_bytes(b"%d" % i)
    (folder / "sparse").write_bytes(bytes(1 << 16) + b"x")


async def test_nothing_is_opened(tmp_path: Path) -> None:
    """Handle 0 is the file or folder itself; its other handles are as bad as ever."""
    tree(tmp_path)
    async with mounted(Passthrough(tmp_path, cache="always", readonly=True)) as mount:
        assert mount.init is not None
        assert mount.init.flags & _BOTH == _BOTH
        node = (await mount.lookup(ROOT, "name123")).nodeid
        assert await errno_of(mount.open(node)) == errno.ENOSYS
        assert await errno_of(mount.opendir()) == errno.ENOSYS
        before = len(os.listdir("/proc/self/fd"))
        assert await mount.read(node, 0, 100) == b"123"
        assert await mount.read(node, 0, 100, 2) == b"3"
        assert (await mount.getattr(node, 0)).size == 3
        names = []
        at = 0
        while part := await mount.readdir(ROOT, 0, at, plus=len(names) % 2 == 0):
            names += [entry.name for entry in part]
            at = part[-1].off
        assert sorted(names) == sorted([".", "..", *os.listdir(tmp_path)])
        sparse = (await mount.lookup(ROOT, "sparse")).nodeid
        reply = await mount.ask(Opcode.LSEEK, sparse, struct.pack("<QQII", 0, 0, os.SEEK_HOLE, 0), room=8)
        assert int.from_bytes(reply, "little") <= 1 << 16 | 1
        assert await errno_of(mount.flush(node, 0)) == errno.ENOSYS
        assert await errno_of(mount.read(node, 1, 100)) == errno.EBADF
        assert await errno_of(mount.read(ROOT, 0, 100)) == errno.EISDIR
        assert await errno_of(mount.readdir(node, 0)) == errno.ENOTDIR
        assert await errno_of(mount.write(node, 0, b"x")) == errno.EROFS
        assert await errno_of(set_lock(mount, node, 0, fcntl.F_RDLCK, 0, 9, 1)) == errno.ENOSYS
        assert len(os.listdir("/proc/self/fd")) <= before + 2, "descriptors are left"


async def test_only_where_nothing_changes(tmp_path: Path) -> None:
    """Not to be had elsewhere, or by guests that do not ask for it."""
    tree(tmp_path)
    for server, flags in (
        (Passthrough(tmp_path, cache="always"), EVERY_FLAG),
        (Passthrough(tmp_path, readonly=True), EVERY_FLAG),
        (Passthrough(tmp_path, cache="always", readonly=True), EVERY_FLAG & ~_BOTH),
    ):
        async with mounted(server, flags=flags) as mount:
            assert mount.init is not None
            assert not mount.init.flags & _BOTH
            node = (await mount.lookup(ROOT, "name7")).nodeid
            assert await mount.read(node, await mount.open(node), 100) == b"7"
            assert "name499" in [entry.name for entry in await mount.list()]
            if flags == EVERY_FLAG:
                assert await errno_of(mount.read(node, 0, 100)) == errno.EBADF
                assert await errno_of(set_lock(mount, node, 0, WRITE, 0, 9, 1)) in (errno.EBADF, errno.ENOSYS)

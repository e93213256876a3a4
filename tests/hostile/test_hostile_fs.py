"""A guest that sends anything to a shared folder: what is outside stays as it is, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from pathlib import Path

import pytest
import trio
from fsrig import ARGUMENTS, NAME_COUNTS, ROOT, Mount, errno_of, groups, guest, name, security_context, serving, until

import vhost
from devices.fs import Passthrough
from devices.fs.config import Opcode

#: none of these waits for ever
OPCODES = [op for op in Opcode if op not in (Opcode.SETLKW, Opcode.INIT, Opcode.DESTROY)]
NAMES = (
    b"file", b"dir", b"link", b"..", b".", b"", b"../outside", b"dir/../../outside", b"/etc/passwd", b"a\0b",
    b"x" * 255, b"x" * 256, b"fifo", b"\xff\xfe", b"new", b"other",
)  # fmt: skip
ENTRIES = (
    Opcode.LOOKUP, Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE,
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0xFFF, 4096, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LONG = (*NUMBERS, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Storm:
    """One guest's requests, of which it remembers what they made known."""

    def __init__(self, mount: Mount, seed: int) -> None:
        self.mount = mount
        self.choose = random.Random(seed)
        self.nodes = [ROOT, ROOT, 0, 2, 1 << 32 | 2, 12345]
        self.handles = [0, 1, 2, 1 << 32, 12345]

    def number(self) -> int:
        """A word of eight bytes."""
        choose = self.choose
        return choose.choice((choose.choice(self.handles), choose.choice(self.nodes), choose.choice(LONG), 0, 0))

    def arguments(self, opcode: Opcode) -> bytes:
        """Mostly of the opcode's shape; else words and names as they come."""
        choose = self.choose
        words = b"".join(struct.pack("<Q", self.number()) for _ in range(11))
        if choose.random() < 0.2:
            return words[: choose.randrange(88)] + b"".join(choose.choices(NAMES, k=2)) + b"\0" * choose.randrange(2)
        fixed = words[: ARGUMENTS.get(opcode, 0)]
        if opcode in (Opcode.OPEN, Opcode.OPENDIR, Opcode.CREATE, Opcode.TMPFILE) and choose.random() < 0.8:
            fixed = struct.pack("<IIII", choose.choice((0, 1, 2, 0x8000, 0x241)), 0o100644, 0, 0)[: len(fixed)]
        if opcode in (Opcode.READ, Opcode.WRITE, Opcode.READDIR, Opcode.READDIRPLUS) and choose.random() < 0.8:
            size = choose.choice((0, 1, 100, 4096))
            fixed = struct.pack("<QQIIQII", choose.choice(self.handles), choose.choice(LONG[:9]), size, 0, 0, 0, 0)
        names = b"".join(name(choose.choice(NAMES)) for _ in range(NAME_COUNTS.get(opcode, 0)))
        return fixed + names + bytes(100 if opcode is Opcode.WRITE else choose.randrange(2))

    def learn(self, opcode: Opcode, reply: bytes) -> None:
        """Inodes and handles in a reply."""
        if opcode in ENTRIES:
            self.nodes.append(int.from_bytes(reply[:8], "little"))
        if opcode in (Opcode.OPEN, Opcode.OPENDIR):
            self.handles.append(int.from_bytes(reply[:8], "little"))
        if opcode in (Opcode.CREATE, Opcode.TMPFILE):
            self.handles.append(int.from_bytes(reply[128:136], "little"))

    async def rage(self, count: int) -> None:
        choose, mount = self.choose, self.mount
        self.nodes += [(await mount.lookup(ROOT, text)).nodeid for text in ("file", "dir", "link", "fifo")]
        for _ in range(count):
            opcode = choose.choice(OPCODES)
            args = self.arguments(opcode)
            if opcode is Opcode.NOTIFY_REPLY:
                await mount.raw([mount.header(opcode, ROOT, len(args)) + args], [], 1)
                continue
            ext = choose.choice((b"", b"", b"", groups(1, 2), security_context("security.x", b"v")))
            room = choose.choice((8, 128, 300, 4096, 4096, 4096))
            error, reply = await mount.call(opcode, choose.choice(self.nodes), args, ext=ext, room=room)
            if not error:
                self.learn(opcode, reply)


def outside(folder: Path) -> list[tuple[str, int, int, bytes]]:
    """What nobody may change."""
    found = []
    for path in sorted(folder.rglob("*")):
        if "shared" in path.parts:
            continue
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b""))
    return found


@pytest.mark.parametrize("handles", ["never", "prefer"])
async def test_anything_from_two_guests_queues(tmp_path: Path, handles: str) -> None:
    shared = tmp_path / "shared"
    (shared / "dir").mkdir(parents=True)
    (shared / "file").write_bytes(bytes(10_000))
    (shared / "link").symlink_to("../outside/secret")
    os.mkfifo(shared / "fifo")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    before = outside(tmp_path)
    umask = os.umask(0o022)
    os.umask(umask)
    workers = vhost.WorkerOptions(count=2)
    async with Passthrough(shared, inode_file_handles=handles, max_inodes=2000, max_files=300) as server:
        idle = len(os.listdir("/proc/self/fd"))
        async with serving(server, request_queues=2, workers=workers) as (fs, path):
            async with guest(path, queues=2) as mount, trio.open_nursery() as nursery:
                for seed in range(2):
                    nursery.start_soon(Storm(mount, 77 + seed).rage, 2500)
            await until(lambda: not fs._queues)
            async with guest(path) as mount:  # the next one finds everything in order
                assert stat.S_ISDIR((await mount.getattr()).mode)
                assert await errno_of(mount.lookup(ROOT, "no such name")) == errno.ENOENT
        stats = server.stats
        assert (stats.files, stats.locks) == (0, 0)
        assert stats.inodes <= 2
        assert len(os.listdir("/proc/self/fd")) <= idle + stats.fds + 2
    assert outside(tmp_path) == before
    assert os.umask(umask) == umask
    assert (os.geteuid(), os.getegid()) == (os.getuid(), os.getgid())

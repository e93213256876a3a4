"""Passthrough: contents of files. What a guest writes is on the host, and what is on the host the guest reads."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import resource
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from devices.fs import Passthrough
from devices.fs.config import InitFlag, Opcode
from tests.fsrig import EVERY_FLAG, ROOT, Mount, errno_of, guest, mounted, serving, until

NO_WRITEBACK = EVERY_FLAG & ~InitFlag.WRITEBACK_CACHE
WRITE_CACHE, WRITE_KILL_SUIDGID = 1, 4
OPEN_KILL_SUIDGID = 1
MIB = 1 << 20
GIB = 1 << 30

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps SUID, and mounts")


@asynccontextmanager
async def folder(path: Path, *, flags: int = EVERY_FLAG, size: int = 128, **options: Any) -> AsyncIterator[Mount]:
    """A guest that has `path` mounted."""
    async with mounted(Passthrough(path, **options), flags=flags, size=size) as mount:
        yield mount


async def opened(mount: Mount, name: str, flags: int = os.O_RDWR, **how: Any) -> tuple[int, int]:
    """The node of `name` in the root, and a handle."""
    node = (await mount.lookup(ROOT, name)).nodeid
    return node, await mount.open(node, flags, **how)


async def lseek(mount: Mount, node: int, fh: int, offset: int, whence: int) -> int:
    reply = await mount.ask(Opcode.LSEEK, node, struct.pack("<QQII", fh, offset, whence, 0), room=8)
    return int.from_bytes(reply, "little")


async def fallocate(mount: Mount, node: int, fh: int, mode: int, offset: int, length: int) -> None:
    await mount.ask(Opcode.FALLOCATE, node, struct.pack("<QQQII", fh, offset, length, mode, 0), room=0)


async def copy(mount: Mount, source: tuple[int, int, int], to: tuple[int, int, int], length: int, op: Opcode) -> int:
    """Copy between (node, fh, offset)."""
    args = struct.pack("<QQQQQQQ", source[1], source[2], to[0], to[1], to[2], length, 0)
    return int.from_bytes(await mount.ask(op, source[0], args, room=8), "little")


async def write_pieces(mount: Mount, node: int, fh: int, pieces: list[bytes], offset: int, **how: Any) -> int:
    """One WRITE whose data lies in such pieces."""
    data = sum(map(len, pieces))
    args = struct.pack("<QQIIQII", fh, offset, data, 0, 0, 0, 0)
    head = mount.header(Opcode.WRITE, node, len(args) + data)
    used, back = await mount.raw([head, args, *pieces], [24], **how)
    error = struct.unpack_from("<i", back[0], 4)[0]
    if error:
        raise OSError(-error, os.strerror(-error))
    assert used == 24
    return int(struct.unpack_from("<I", back[0], 16)[0])


async def test_data_of_any_shape(tmp_path: Path) -> None:
    """Sizes, places and pieces of all kinds leave the host with the same bytes as a file written there."""
    rng = random.Random(5)
    model = bytearray()
    async with folder(tmp_path) as mount:
        entry, fh = await mount.create(ROOT, "file")
        for size in (1, 511, 4096, 4097, 65535, MIB - 1, MIB):
            data = rng.randbytes(size)
            offset = rng.randrange(2 * MIB)
            cuts = sorted(rng.randrange(size + 1) for _ in range(rng.randrange(6)))
            bounds = [0, *cuts, size]
            pieces = [data[a:b] for a, b in itertools.pairwise(bounds) if a < b]
            assert await write_pieces(mount, entry.nodeid, fh, pieces, offset, indirect=len(pieces) > 3) == size
            model.extend(bytes(max(0, offset + size - len(model))))
            model[offset : offset + size] = data
        assert (tmp_path / "file").read_bytes() == model
        for size, room in ((1, None), (4096, [1, 4095]), (100000, [17, 1, 99982]), (MIB, [4096] * 60 + [MIB])):
            offset = rng.randrange(len(model))
            got = await mount.read(entry.nodeid, fh, size, offset, room=room, indirect=True)
            assert got == model[offset : offset + size]
        assert await mount.read(entry.nodeid, fh, 4096, len(model) - 10) == model[-10:]
        assert await mount.read(entry.nodeid, fh, 4096, len(model)) == b""
        assert await mount.read(entry.nodeid, fh, 4096, 1 << 50) == b""
        assert await mount.read(entry.nodeid, fh, 0, 0) == b""


async def test_bad_requests(tmp_path: Path) -> None:
    """Handles and offsets that a guest makes up."""
    (tmp_path / "file").write_bytes(b"text")
    async with folder(tmp_path, flags=NO_WRITEBACK) as mount:
        node, fh = await opened(mount, "file", os.O_RDONLY)
        for bad in (0, fh + 1, fh | 1 << 32, fh ^ 1 << 63, 2**64 - 1):
            assert await errno_of(mount.read(node, bad, 10)) == errno.EBADF
            assert await errno_of(mount.write(node, bad, b"x")) == errno.EBADF
            assert await errno_of(mount.release(node, bad)) == errno.EBADF
            assert await errno_of(mount.fsync(node, bad)) == errno.EBADF
        assert await errno_of(mount.write(node, fh, b"x")) == errno.EBADF  # opened for reading
        for offset in (1 << 63, 2**64 - 1):  # the last is -1, which preadv2 takes for something else
            assert await errno_of(mount.read(node, fh, 10, offset)) == errno.EINVAL
        writer = await mount.open(node, os.O_RDWR)
        assert await errno_of(mount.write(node, writer, b"x", 2**64 - 1)) == errno.EINVAL
        assert await errno_of(mount.write(node, writer, b"xx", 2**63 - 1)) == errno.EFBIG
        assert await errno_of(fallocate(mount, node, writer, 0, 0, 1 << 63)) == errno.EINVAL
        await mount.release(node, fh)
        assert await errno_of(mount.read(node, fh, 10)) == errno.EBADF
        assert await errno_of(mount.open(node, os.O_ACCMODE)) == errno.EINVAL
    assert (tmp_path / "file").read_bytes() == b"text"


async def test_only_files_are_opened(tmp_path: Path) -> None:
    """Nothing else is: a FIFO would wait for somebody, a link would be followed."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "dir").mkdir()
    async with folder(tmp_path) as mount:
        for name, code in (("fifo", errno.EACCES), ("link", errno.ELOOP), ("dir", errno.EISDIR)):
            node = (await mount.lookup(ROOT, name)).nodeid
            assert await errno_of(mount.open(node)) == code


async def test_closed_with_the_handle(tmp_path: Path) -> None:
    """RELEASE closes, and a deleted file can be read until then."""
    before = set(os.listdir("/proc/self/fd"))
    async with folder(tmp_path) as mount:
        entry, fh = await mount.create(ROOT, "file")
        await mount.write(entry.nodeid, fh, b"still here")
        await mount.unlink(ROOT, "file")
        assert await mount.read(entry.nodeid, fh, 100) == b"still here"
        handles = [await mount.open(entry.nodeid) for _ in range(20)]
        during = len(os.listdir("/proc/self/fd"))
        for handle in (*handles, fh):
            await mount.release(entry.nodeid, handle)
        assert len(os.listdir("/proc/self/fd")) <= during - 21
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_truncated_at_once(tmp_path: Path) -> None:
    """O_TRUNC empties, small files and big ones."""
    async with folder(tmp_path) as mount:
        for size in (100, 3 * MIB):
            (tmp_path / "file").write_bytes(b"x" * size)
            node, fh = await opened(mount, "file", os.O_WRONLY | os.O_TRUNC)
            assert (tmp_path / "file").stat().st_size == 0
            await mount.release(node, fh)


async def test_appends(tmp_path: Path) -> None:
    """O_APPEND: the end is where the host says it is; but pages of a mapping have their place."""
    path = tmp_path / "file"
    path.write_bytes(b"begin ")
    async with folder(tmp_path, flags=NO_WRITEBACK) as mount:
        node, fh = await opened(mount, "file", os.O_RDWR | os.O_APPEND)
        await mount.write(node, fh, b"one ", 0)
        with path.open("ab") as host:
            host.write(b"host ")
        await mount.write(node, fh, b"two", 6)
        assert path.read_bytes() == b"begin one host two"
        await mount.write(node, fh, b"BEGIN", 0, flags=WRITE_CACHE)
        assert path.read_bytes() == b"BEGIN one host two"
        # fcntl(F_SETFL) in the guest: each WRITE says what the file's flags are now
        plain = await mount.open(node, os.O_RDWR)
        for handle, flags in ((plain, os.O_RDWR | os.O_APPEND), (fh, os.O_RDWR)):
            args = struct.pack("<QQIIQII", handle, 0, 1, 0, 0, flags, 0)
            await mount.ask(Opcode.WRITE, node, args, data=b"!", room=8)
        assert path.read_bytes() == b"!EGIN one host two!"


async def test_writeback(tmp_path: Path) -> None:
    """With the guest's cache of writes every file can be read, and the guest knows where the end is."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with folder(tmp_path, writeback=True) as mount:
        assert mount.init is not None
        assert mount.init.flags & InitFlag.WRITEBACK_CACHE
        node, fh = await opened(mount, "file", os.O_WRONLY | os.O_APPEND)
        assert await mount.read(node, fh, 10) == b"0123456789"
        await mount.write(node, fh, b"ab", 2, flags=WRITE_CACHE)
        assert path.read_bytes() == b"01ab456789"


@pytest.mark.parametrize("direct", [False, True])
async def test_direct(tmp_path: Path, direct: bool) -> None:
    """O_DIRECT, also where lengths and places do not suit the disk."""
    rng = random.Random(7)
    model = bytearray(rng.randbytes(65536))
    path = tmp_path / "file"
    path.write_bytes(model)
    async with folder(tmp_path, allow_direct_io=direct) as mount:
        node, fh = await opened(mount, "file", os.O_RDWR | os.O_DIRECT)
        for offset, size in ((0, 4096), (8192, 16384), (1, 10), (100, 5000), (65536, 1000), (70000, 4096)):
            data = rng.randbytes(size)
            assert await mount.write(node, fh, data, offset) == size
            model.extend(bytes(max(0, offset + size - len(model))))
            model[offset : offset + size] = data
            assert await mount.read(node, fh, size + 7, max(0, offset - 3)) == model[max(0, offset - 3) :][: size + 7]
        assert path.read_bytes() == model
        await mount.release(node, fh)


async def test_cold_reads(tmp_path: Path) -> None:
    """What the page cache lacks is read as well as what it holds, in part or wholly."""
    data = random.Random(3).randbytes(2 * MIB)
    path = tmp_path / "file"
    path.write_bytes(data)
    async with folder(tmp_path) as mount:
        node, fh = await opened(mount, "file", os.O_RDONLY)
        with path.open("rb") as host:
            os.fsync(host.fileno())
            for offset, size in ((0, MIB), (4096, 8192), (MIB - 5, 100000)):
                os.posix_fadvise(host.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(host.fileno(), 1, offset)
                assert await mount.read(node, fh, size, offset) == data[offset : offset + size]


def suid(path: Path) -> int:
    return path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@needs_root
async def test_suid_goes(tmp_path: Path) -> None:
    """KILL_SUIDGID clears SUID and SGID, which stay where the guest's kernel does not ask for that."""
    path = tmp_path / "file"
    path.write_bytes(b"#!")
    async with folder(tmp_path) as mount:
        node, fh = await opened(mount, "file")
        steps: list[tuple[Callable[[], Awaitable[int]], bool]] = [
            (lambda: mount.write(node, fh, b"x"), False),
            (lambda: mount.write(node, fh, b"x", flags=WRITE_KILL_SUIDGID), True),
            (lambda: mount.open(node, os.O_RDWR | os.O_TRUNC), False),
            (lambda: mount.open(node, os.O_RDWR | os.O_TRUNC, OPEN_KILL_SUIDGID), True),
            (lambda: mount.write(node, fh, b"x"), False),  # the thread has its capability back
        ]
        for act, gone in steps:
            path.chmod(0o6755)
            await act()
            assert (suid(path) == 0) is gone


async def test_space(tmp_path: Path) -> None:
    """Holes: made, found and punched; sizes beyond 32 bits."""
    path = tmp_path / "file"
    async with folder(tmp_path) as mount:
        entry, fh = await mount.create(ROOT, "file")
        node = entry.nodeid
        await mount.write(node, fh, b"a" * 65536, 0)
        await mount.write(node, fh, b"b" * 65536, 5 * GIB)
        assert path.stat().st_size == 5 * GIB + 65536
        assert (await mount.getattr(node)).size == 5 * GIB + 65536
        assert await mount.read(node, fh, 4, 5 * GIB - 2) == b"\0\0bb"
        assert await lseek(mount, node, fh, 0, os.SEEK_HOLE) == 65536
        assert await lseek(mount, node, fh, 65536, os.SEEK_DATA) == 5 * GIB
        assert await errno_of(lseek(mount, node, fh, 6 * GIB, os.SEEK_DATA)) == errno.ENXIO
        assert await errno_of(lseek(mount, node, fh, 0, os.SEEK_CUR)) == errno.EINVAL
        await fallocate(mount, node, fh, 0x03, 4096, 8192)  # PUNCH_HOLE | KEEP_SIZE
        assert await lseek(mount, node, fh, 0, os.SEEK_HOLE) == 4096
        with path.open("rb") as host:
            assert host.read(4 * 4096) == b"a" * 4096 + bytes(8192) + b"a" * 4096
        await fallocate(mount, node, fh, 0, 0, 6 * GIB if free_bytes(tmp_path) > 8 * GIB else 5 * GIB + 2 * 65536)
        assert path.stat().st_size > 5 * GIB + 65536
        path.unlink()


def free_bytes(path: Path) -> int:
    about = os.statvfs(path)
    return about.f_bavail * about.f_frsize


@pytest.mark.parametrize("op", [Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64])
async def test_copy_between_files(tmp_path: Path, op: Opcode) -> None:
    """The host copies; up to the end, and no further."""
    data = random.Random(2).randbytes(300000)
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "to").write_bytes(b"head")
    async with folder(tmp_path) as mount:
        node, fh = await opened(mount, "from", os.O_RDONLY)
        other, to = await opened(mount, "to")
        assert await copy(mount, (node, fh, 100), (other, to, 4), 1 << 40, op) == len(data) - 100
        assert (tmp_path / "to").read_bytes() == b"head" + data[100:]
        assert await copy(mount, (node, fh, len(data)), (other, to, 0), 10, op) == 0
        assert await errno_of(copy(mount, (node, to, 0), (other, fh, 0), 10, op)) == errno.EBADF  # read-only target
        assert await errno_of(copy(mount, (node, fh, 0), (other, 99, 0), 10, op)) == errno.EBADF


@pytest.mark.parametrize(
    ("flags", "options", "silent"),
    [
        (NO_WRITEBACK, {"posix_lock": False}, True),
        (NO_WRITEBACK & ~InitFlag.POSIX_LOCKS, {}, True),
        (NO_WRITEBACK, {}, False),  # a close lets go of the process's locks
        (EVERY_FLAG, {"posix_lock": False, "writeback": True}, False),  # and writes what is cached
    ],
)
async def test_close_without_flush(tmp_path: Path, flags: int, options: dict[str, Any], silent: bool) -> None:
    """A guest is told to leave FLUSH out where nothing depends on it, and only there."""
    noflush = 1 << 5
    (tmp_path / "file").touch()
    async with folder(tmp_path, flags=flags, **options) as mount:
        node = (await mount.lookup(ROOT, "file")).nodeid
        opened = await mount.ask(Opcode.OPEN, node, struct.pack("<II", os.O_RDWR, 0), room=16)
        made = await mount.ask(Opcode.CREATE, ROOT, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0", room=144)
        for reply in (opened, made[128:]):
            fh, answer = struct.unpack_from("<QI", reply)
            assert bool(answer & noflush) == silent
            await mount.flush(node, fh)  # who asks all the same is answered


async def test_statfs_and_sync(tmp_path: Path) -> None:
    """What the folder's file system has, and that it can be written out."""
    async with folder(tmp_path) as mount:
        entry, fh = await mount.create(ROOT, "file")
        await mount.write(entry.nodeid, fh, b"text")
        await mount.fsync(entry.nodeid, fh)
        await mount.fsync(entry.nodeid, fh, datasync=True)
        await mount.flush(entry.nodeid, fh)
        await mount.ask(Opcode.SYNCFS, ROOT, bytes(8), room=0)
        blocks, _, _, files, _, _, namelen, frsize = await mount.statfs()
        host = os.statvfs(tmp_path)
        assert (blocks, files, namelen, frsize) == (host.f_blocks, host.f_files, host.f_namemax, host.f_frsize)


async def test_flags_of_files(tmp_path: Path) -> None:
    """The ioctls behind lsattr and chattr; others are refused."""
    getflags, setflags, fitrim = 0x80086601, 0x40086602, 0xC0185879
    nodump = 0x40
    path = tmp_path / "file"
    path.touch()

    async def ioctl(fh: int, cmd: int, data: bytes = b"", out: int = 4) -> bytes:
        args = struct.pack("<QIIQII", fh, 0, cmd, 0, len(data), out)
        reply = await mount.ask(Opcode.IOCTL, node, args, data=data, room=16 + out)
        return reply[16:]

    async with folder(tmp_path) as mount:
        node, fh = await opened(mount, "file", os.O_RDONLY)
        try:
            before = int.from_bytes(await ioctl(fh, getflags), "little")
        except OSError as exc:
            pytest.skip(f"the file system has no flags: {exc}")
        await ioctl(fh, setflags, struct.pack("<I", before | nodump), 0)
        assert int.from_bytes(await ioctl(fh, getflags), "little") == before | nodump
        with path.open("rb") as host:
            assert fcntl.ioctl(host, getflags, bytes(8))[0] & nodump
        journal = 0x4000
        assert await errno_of(ioctl(fh, setflags, struct.pack("<I", before ^ journal), 0)) == errno.EOPNOTSUPP
        assert await errno_of(ioctl(fh, fitrim)) == errno.ENOTTY


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", path], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@needs_root
async def test_full_disk(tmp_path: Path) -> None:
    """ENOSPC: what was written counts, pages of the guest's cache fail as a whole; files in memory are read at once."""
    with small_disk(tmp_path / "disk", 3 * MIB // 2) as disk:
        async with folder(disk) as mount:
            entry, fh = await mount.create(ROOT, "file")
            data = random.Random(1).randbytes(MIB)
            assert await mount.write(entry.nodeid, fh, data, 0) == MIB
            assert await mount.write(entry.nodeid, fh, data, MIB) == MIB // 2
            assert await mount.read(entry.nodeid, fh, MIB, MIB) == data[: MIB // 2]
            assert await errno_of(mount.write(entry.nodeid, fh, data, 2 * MIB)) == errno.ENOSPC
            await mount.setattr(entry.nodeid, size=MIB)
            cached = mount.write(entry.nodeid, fh, data, MIB, flags=WRITE_CACHE)
            assert await errno_of(cached) == errno.ENOSPC
            assert await errno_of(fallocate(mount, entry.nodeid, fh, 0, 0, 8 * MIB)) == errno.ENOSPC
            await mount.release(entry.nodeid, fh)


async def test_limit_of_the_process(tmp_path: Path) -> None:
    """RLIMIT_FSIZE of ours is an error of the guest's, and no signal ends us."""
    async with folder(tmp_path) as mount:
        entry, fh = await mount.create(ROOT, "file")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * MIB, hard))
        try:
            assert await errno_of(mount.write(entry.nodeid, fh, b"x" * 4096, 65 * MIB)) == errno.EFBIG
            assert await errno_of(fallocate(mount, entry.nodeid, fh, 0, 0, 65 * MIB)) == errno.EFBIG
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await mount.write(entry.nodeid, fh, b"on", 0) == 2


_AS_NOBODY = """
import os, sys, trio, vhost
from devices.fs import Fs, Passthrough

async def main():
    if len(sys.argv) == 1:
        return
    async with Passthrough(sys.argv[1], writeback=True) as server, vhost.open_server() as host:
        await host.listen(Fs(server), sys.argv[1] + "/sock")
        await trio.sleep_forever()

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
trio.run(main)
"""


@needs_root
async def test_without_privileges() -> None:
    """A server that is nobody opens what it may, with less where it gets by with less."""
    probe = await trio.run_process([sys.executable, "-c", _AS_NOBODY], check=False, capture_stderr=True)
    if probe.returncode:
        pytest.skip(f"nobody cannot run Python here: {probe.stderr.decode()[-200:]}")
    with tempfile.TemporaryDirectory() as place:
        share = Path(place)
        for name, mode in (("mine", 0o644), ("drop", 0o200), ("theirs", 0o644)):
            (share / name).write_bytes(b"text")
            (share / name).chmod(mode)
        for path in (share, share / "mine", share / "drop"):
            os.chown(path, 65534, 65534)
        async with trio.open_nursery() as nursery:
            command = [sys.executable, "-c", _AS_NOBODY, place]
            process = await nursery.start(partial(trio.run_process, command, check=False))
            await until(lambda: (share / "sock").exists() or process.poll() is not None, 20)
            async with guest(place + "/sock") as mount:
                node, fh = await opened(mount, "drop", os.O_WRONLY)  # not to be read, not even for the guest's cache
                await mount.write(node, fh, b"TEXT")
                assert (share / "drop").read_bytes() == b"TEXT"
                node, fh = await opened(mount, "theirs", os.O_RDONLY | os.O_NOATIME)
                assert await mount.read(node, fh, 10) == b"text"
                assert await errno_of(mount.open(node, os.O_WRONLY)) == errno.EACCES
                node, fh = await opened(mount, "mine", os.O_RDWR)
                await mount.write(node, fh, b"T")
            process.kill()


async def test_read_only(tmp_path: Path) -> None:
    """--readonly: nothing is opened for writing."""
    (tmp_path / "file").write_bytes(b"text")
    async with folder(tmp_path, readonly=True) as mount:
        node, fh = await opened(mount, "file", os.O_RDONLY)
        assert await mount.read(node, fh, 10) == b"text"
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
            assert await errno_of(mount.open(node, flags)) == errno.EROFS
        assert await errno_of(mount.write(node, fh, b"x")) in (errno.EROFS, errno.EBADF)
        assert await errno_of(fallocate(mount, node, fh, 0, 0, 10)) in (errno.EROFS, errno.EBADF)
    assert (tmp_path / "file").read_bytes() == b"text"


async def test_what_takes_long_to_free_goes_on_a_thread(tmp_path: Path) -> None:
    """A file that is small for sure goes at once; one that was made big since, or took its place, does not."""

    async def made(mount: Mount, name: str, size: int, *, shut: bool = True) -> tuple[int, int]:
        entry, fh = await mount.create(ROOT, name)
        if size:
            await fallocate(mount, entry.nodeid, fh, 0, 0, size)
        if shut:
            await mount.release(entry.nodeid, fh)
        return entry.nodeid, fh

    server = Passthrough(tmp_path)
    async with server, serving(server) as (device, path), guest(path, flags=NO_WRITEBACK) as mount:

        async def slow(action: Awaitable[object]) -> int:
            before = device.stats.slow
            await action
            return device.stats.slow - before

        await made(mount, "small", 4096)
        assert await slow(mount.unlink(ROOT, "small")) == 0
        await made(mount, "big", 80 * MIB)
        assert await slow(mount.unlink(ROOT, "big")) == 1
        # another takes its name
        await made(mount, "big", 80 * MIB)
        await made(mount, "small", 0)
        await mount.rename(ROOT, "big", ROOT, "small")
        assert await slow(mount.unlink(ROOT, "small")) == 1
        big, _ = await made(mount, "big", 80 * MIB)
        await made(mount, "small", 0)
        await mount.unlink(ROOT, "small")
        await mount.link(big, ROOT, "small")
        await mount.unlink(ROOT, "big")
        assert await slow(mount.unlink(ROOT, "small")) == 1
        # deleted, and then closed
        for size, threads in ((0, 0), (20 * MIB, 1)):
            node, fh = await made(mount, "open", 0, shut=False)
            await mount.unlink(ROOT, "open")
            await mount.write(node, fh, b"end", size)
            assert await slow(mount.release(node, fh)) == threads
        for way in ("setattr", "append"):
            node, fh = await made(mount, "open", 0, shut=False)
            if way == "setattr":
                await mount.setattr(node, size=20 * MIB)
            else:
                again = await mount.open(node, os.O_WRONLY | os.O_APPEND)
                os.truncate(tmp_path / "open", 20 * MIB)
                await mount.write(node, again, b"end", 0)
                await mount.release(node, again)
            await mount.unlink(ROOT, "open")
            assert await slow(mount.release(node, fh)) == 1

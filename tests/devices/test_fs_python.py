"""File systems in Python: what reaches their methods, what the guest is told, and what a hostile one cannot do."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from typing import Any

import pytest
import trio
from fsrig import ROOT, errno_of, guest, mounted, name, serving

from devices.fs import Fs, NullServer
from devices.fs.config import InitFlag, Opcode
from devices.fs.filesystem import Attr, Changes, DirEntry, Entry, FileHandle, Filesystem, Inode, Opened, StatFs, caller
from devices.fs.serving import PythonServer

FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
TEXT = b"hello, world!\n"


class Hello(Filesystem):
    """Read-only, one file: four methods are a file system."""

    async def lookup(self, parent, name):
        if parent != ROOT or name != "hello":
            raise OSError(errno.ENOENT, name)
        return await self.getattr(Inode(2))

    async def getattr(self, inode, fh=None):
        return Attr(inode, FOLDER) if inode == ROOT else Attr(inode, FILE, len(TEXT))

    async def readdir(self, inode):
        return [DirEntry("hello", Inode(2), stat.S_IFREG)]

    async def read(self, inode, fh, offset, size):
        return TEXT[offset : offset + size]


async def test_four_methods_are_a_file_system() -> None:
    async with mounted(PythonServer(Hello())) as mount:
        assert mount.init is not None
        assert InitFlag.NO_OPEN_SUPPORT in mount.init.flags
        entry = await mount.lookup(ROOT, "hello")
        assert (entry.nodeid, entry.attr.mode, entry.attr.size, entry.attr.ino) == (2, FILE, len(TEXT), 2)
        assert (entry.entry_valid, entry.attr_valid) == (1, 1)
        assert await errno_of(mount.open(2)) == errno.ENOSYS  # "need not open": what Linux takes it for
        assert await mount.read(2, 0, 4096) == TEXT
        assert await mount.read(2, 0, 5, 7) == TEXT[7:12]
        assert [entry.name for entry in await mount.list()] == [".", "..", "hello"]
        assert (await mount.getattr(ROOT)).mode == FOLDER
        assert await errno_of(mount.lookup(ROOT, "other")) == errno.ENOENT
        assert (await mount.statfs())[6] == 255
        for refused in (mount.mkdir(ROOT, "x"), mount.write(2, 0, b"x"), mount.access(2, 4), mount.readlink(2)):
            assert await errno_of(refused) == errno.ENOSYS


async def test_device_takes_a_file_system() -> None:
    fs = Fs(Hello(), tag="hello")
    assert isinstance(fs.server, PythonServer)
    assert not fs.is_native
    assert Fs(NullServer(), tag="null").is_native


class Everything(Hello):
    """Says that it can do all there is."""

    writeback = True

    async def open(self, inode, flags):
        return FileHandle(1)

    async def getlk(self, *_):
        return None

    async def setlk(self, *_):
        return None

    async def flock(self, *_):
        return None


@pytest.mark.parametrize(
    ("fs", "expected"),
    [
        (Filesystem(), InitFlag.NO_OPEN_SUPPORT),
        (Hello(), InitFlag.NO_OPEN_SUPPORT | InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO),
        (
            Everything(),
            InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
            | InitFlag.WRITEBACK_CACHE,
        ),
    ],
    ids=["nothing", "hello", "everything"],
)  # fmt: skip
async def test_init_says_what_is_there(fs: Filesystem, expected: InitFlag) -> None:
    always = (
        InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.PARALLEL_DIROPS | InitFlag.MAX_PAGES | InitFlag.INIT_EXT
        | InitFlag.AUTO_INVAL_DATA | InitFlag.ASYNC_DIO | InitFlag.ABORT_ERROR
    )  # fmt: skip
    async with mounted(PythonServer(fs)) as mount:
        assert mount.init is not None
        assert mount.init.flags == always | expected
        assert mount.init.max_write == 1 << 20


class Recorder(Filesystem):
    """Notes every call and answers with something that fits."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.callers: list[Any] = []

    def note(self, *call):
        self.calls.append(call)
        self.callers.append(caller())

    def last(self):
        return self.calls[-1]

    async def lookup(self, parent, name):
        self.note("lookup", parent, name)
        return Entry(Attr(Inode(7), FILE), generation=3, entry_timeout=0.25, attr_timeout=1e30)

    async def getattr(self, inode, fh=None):
        self.note("getattr", inode, fh)
        return Attr(
            inode, FILE, 1000, 3, 4, 5, os.makedev(300, 400), 1_000_000_001, -1, 3_000_000_003, 4_000_000_004, 512, 9
        )

    async def setattr(self, inode, changes, fh=None):
        self.note("setattr", inode, changes, fh)
        return Attr(inode, FILE)

    async def mknod(self, parent, name, mode, rdev):
        self.note("mknod", parent, name, mode, rdev)
        return Attr(Inode(8), mode, rdev=rdev)

    async def mkdir(self, parent, name, mode):
        self.note("mkdir", parent, name, mode)
        return Attr(Inode(9), stat.S_IFDIR | mode)

    async def symlink(self, parent, name, target):
        self.note("symlink", parent, name, target)
        return Attr(Inode(10), stat.S_IFLNK | 0o777)

    async def readlink(self, inode):
        return "bytes\udcff"

    async def link(self, inode, parent, name):
        self.note("link", inode, parent, name)
        return Attr(inode, FILE)

    async def unlink(self, parent, name):
        self.note("unlink", parent, name)

    async def rmdir(self, parent, name):
        self.note("rmdir", parent, name)

    async def rename(self, *args):
        self.note("rename", *args)

    async def create(self, parent, name, mode, flags):
        self.note("create", parent, name, mode, flags)
        return Attr(Inode(11), mode), Opened(FileHandle(111), direct_io=True)

    async def tmpfile(self, parent, mode, flags):
        self.note("tmpfile", parent, mode, flags)
        return Attr(Inode(12), mode), FileHandle(112)

    async def open(self, inode, flags):
        self.note("open", inode, flags)
        return FileHandle(77)

    async def read(self, inode, fh, offset, size):
        self.note("read", inode, fh, offset, size)
        return memoryview(bytearray(b"r" * 10))

    async def write(self, inode, fh, offset, data):
        self.note("write", inode, fh, offset, data)
        return len(data) - 1

    async def flush(self, inode, fh):
        self.note("flush", inode, fh)

    async def fsync(self, inode, fh, datasync):
        self.note("fsync", inode, fh, datasync)

    async def fsyncdir(self, inode, datasync):
        self.note("fsyncdir", inode, datasync)

    async def syncfs(self, inode):
        self.note("syncfs", inode)

    async def fallocate(self, *args):
        self.note("fallocate", *args)

    async def lseek(self, inode, fh, offset, whence):
        self.note("lseek", inode, fh, offset, whence)
        return 1 << 40

    async def copy_file_range(self, *args):
        self.note("copy", *args)
        return 5

    async def statfs(self, inode):
        return StatFs(10, 9, 8, 7, 6, 5, 4, 3)

    async def readdir(self, inode):
        return [DirEntry(f"name{i}", Inode(100 + i), stat.S_IFREG) for i in range(300)]

    async def getxattr(self, inode, name):
        self.note("getxattr", inode, name)
        return b"value"

    async def setxattr(self, inode, name, value, flags):
        self.note("setxattr", inode, name, value, flags)

    async def listxattr(self, inode):
        return ["user.a", "user.bb"]

    async def removexattr(self, inode, name):
        self.note("removexattr", inode, name)

    def release(self, inode, fh):
        self.note("release", inode, fh)

    def forget(self, inode):
        self.note("forget", inode)


async def test_names() -> None:
    fs = Recorder()
    async with mounted(PythonServer(fs)) as mount:
        entry = await mount.lookup(ROOT, b"caf\xe9", uid=1000, gid=100, pid=42)
        assert fs.last() == ("lookup", ROOT, "caf\udce9")
        assert (fs.callers[-1].uid, fs.callers[-1].gid, fs.callers[-1].pid) == (1000, 100, 42)
        assert (entry.nodeid, entry.generation, entry.entry_valid) == (7, 3, 0.25)
        assert entry.attr_valid > 1e9
        assert (await mount.mknod(ROOT, "n", stat.S_IFCHR | 0o600, os.makedev(1, 3), umask=0o22)).attr.rdev == 0x103
        assert fs.last() == ("mknod", ROOT, "n", stat.S_IFCHR | 0o600, 0x103)
        assert fs.callers[-1].umask == 0o22
        assert (await mount.mkdir(ROOT, "d", 0o700)).nodeid == 9
        assert fs.last() == ("mkdir", ROOT, "d", 0o700)
        assert (await mount.symlink(9, "s", "../some/where")).nodeid == 10
        assert fs.last() == ("symlink", 9, "s", "../some/where")
        assert await mount.readlink(10) == b"bytes\xff"
        assert (await mount.link(7, 9, "l")).nodeid == 7
        assert fs.last() == ("link", 7, 9, "l")
        await mount.unlink(9, "l")
        await mount.rmdir(ROOT, "d")
        assert fs.calls[-2:] == [("unlink", 9, "l"), ("rmdir", ROOT, "d")]
        await mount.rename(ROOT, "a", 9, "b")
        assert fs.last() == ("rename", ROOT, "a", 9, "b", 0)
        await mount.rename(9, "a", ROOT, "b", flags=2)
        assert fs.last() == ("rename", 9, "a", ROOT, "b", 2)
        for bad in (b"a/b", b"..", b".", b"/", b"\xff/"):
            assert await errno_of(mount.lookup(ROOT, bad)) == errno.EINVAL
            args = struct.pack("<Q", ROOT) + name("a") + name(bad)
            assert await errno_of(mount.ask(Opcode.RENAME, ROOT, args, room=0)) == errno.EINVAL
        assert fs.last()[0] == "rename"
        assert fs.last()[2] == "a"


async def test_attributes() -> None:
    fs = Recorder()
    async with mounted(PythonServer(fs)) as mount:
        await mount.lookup(ROOT, "f")
        attr = await mount.getattr(7)
        assert (attr.size, attr.nlink, attr.uid, attr.gid, attr.blksize, attr.blocks) == (1000, 3, 4, 5, 512, 9)
        assert (attr.atime, attr.atimensec) == (1, 1)
        assert (attr.mtime, attr.mtimensec) == ((1 << 64) - 1, 999_999_999)  # a nanosecond before 1970
        fh = await mount.open(7, os.O_RDWR)
        await mount.getattr(7, fh)
        assert fs.last() == ("getattr", 7, 77)
        await mount.setattr(7, mode=0o100600, uid=1, gid=2, size=3, atime=1.5, mtime=2.25, fh=fh)
        changes = Changes(0o600, 1, 2, 3, 1_500_000_000, 2_250_000_000)
        assert fs.last() == ("setattr", 7, changes, 77)
        await mount.setattr(7, valid=1 << 4 | 1 << 7)  # the time is now
        assert abs(fs.last()[2].atime_ns / 1e9 - __import__("time").time()) < 10
        assert await mount.statfs() == (10, 9, 8, 7, 6, 5, 3, 4)
        statx = await mount.ask(Opcode.STATX, 7, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF), room=288)
        mask, _, _, nlink, _, _, mode = struct.unpack_from("<IIQIIIH", statx, 32)
        assert (mask, nlink, mode) == (0xFFF, 3, FILE)
        assert struct.unpack_from("<qI", statx, 32 + 80) == (4, 4)  # born
        assert struct.unpack_from("<II", statx, 32 + 128) == (300, 400)


async def test_extended_attributes() -> None:
    fs = Recorder()
    async with mounted(PythonServer(fs)) as mount:
        await mount.lookup(ROOT, "f")
        await mount.setxattr(7, "user.a", b"\0value\xff", 1)
        assert fs.last() == ("setxattr", 7, "user.a", b"\0value\xff", 1)
        assert await mount.getxattr(7, "user.a") == b"value"
        assert struct.unpack("<II", await mount.getxattr(7, "user.a", 0)) == (5, 0)
        assert await errno_of(mount.getxattr(7, "user.a", 4)) == errno.ERANGE
        assert await mount.listxattr(7) == ["user.a", "user.bb"]
        await mount.removexattr(7, "user.a")
        assert fs.last() == ("removexattr", 7, "user.a")


async def test_files() -> None:
    fs = Recorder()
    async with mounted(PythonServer(fs)) as mount:
        entry, made = await mount.create(ROOT, "f", os.O_RDWR | os.O_APPEND, 0o100640)
        assert (entry.nodeid, entry.attr.mode) == (11, 0o100640)
        assert fs.last() == ("create", ROOT, "f", 0o100640, os.O_RDWR | os.O_APPEND)
        assert await mount.read(11, made, 4096, 1 << 40) == b"r" * 10
        assert fs.last() == ("read", 11, 111, 1 << 40, 4096)
        big = os.urandom(1 << 20)
        assert await mount.write(11, made, big, 5) == len(big) - 1
        assert fs.last() == ("write", 11, 111, 5, big)
        assert await errno_of(mount.read(11, made, 5)) == errno.EIO  # it returns more than was asked for
        await mount.flush(11, made)
        await mount.fsync(11, made, datasync=True)
        assert fs.calls[-2:] == [("flush", 11, 111), ("fsync", 11, 111, True)]
        await mount.ask(Opcode.FALLOCATE, 11, struct.pack("<QQQII", made, 1, 2, 3, 0), room=0)
        assert fs.last() == ("fallocate", 11, 111, 1, 2, 3)
        reply = await mount.ask(Opcode.LSEEK, 11, struct.pack("<QQII", made, 9, os.SEEK_DATA, 0), room=8)
        assert (fs.last(), reply) == (("lseek", 11, 111, 9, os.SEEK_DATA), (1 << 40).to_bytes(8, "little"))
        await mount.ask(Opcode.FSYNCDIR, ROOT, struct.pack("<QII", 0, 0, 0), room=0)
        await mount.ask(Opcode.SYNCFS, ROOT, bytes(8), room=0)
        assert fs.calls[-2:] == [("fsyncdir", ROOT, False), ("syncfs", ROOT)]
        reply = await mount.ask(Opcode.TMPFILE, ROOT, struct.pack("<IIII", 2, 0o600, 0, 0) + name("t"), room=144)
        other = int.from_bytes(reply[128:136], "little")
        assert fs.last() == ("tmpfile", ROOT, 0o100600, 2)
        copy = struct.pack("<QQQQQQQ", made, 1, 12, other, 2, 1 << 40, 0)
        assert (await mount.ask(Opcode.COPY_FILE_RANGE, 11, copy, room=8))[:4] == b"\5\0\0\0"
        assert fs.last()[:7] == ("copy", 11, 111, 1, 12, 112, 2)
        assert (await mount.ask(Opcode.COPY_FILE_RANGE_64, 11, copy, room=8)) == b"\5" + bytes(7)
        await mount.release(11, made)
        assert fs.last() == ("release", 11, 111)
        assert await errno_of(mount.read(11, made, 10)) == errno.EBADF
        assert await errno_of(mount.release(11, made)) == errno.EBADF


@pytest.mark.parametrize("plus", [False, True], ids=["readdir", "plus"])
async def test_listing_is_whole_and_stands_still(plus: bool) -> None:
    fs = Recorder()
    names = [".", "..", *(f"name{i}" for i in range(300))]
    async with mounted(PythonServer(fs)) as mount:
        for size in (512, 4096, 65536):
            found = await mount.list(ROOT, plus=plus, size=size)
            assert [entry.name for entry in found] == names
            assert {entry.type for entry in found[2:]} == {stat.S_IFREG >> 12}
        fh = await mount.opendir(ROOT)
        first = await mount.readdir(ROOT, fh, plus=plus)
        fs.readdir = None  # type: ignore[assignment] - the listing was taken: nobody asks again
        second = await mount.readdir(ROOT, fh, first[-1].off, plus=plus)
        assert second[0].name == names[len(first)]
        assert next(entry.name for entry in await mount.readdir(ROOT, fh, 1, plus=plus)) == ".."
        assert await errno_of(mount.readdir(ROOT, fh, 2, size=24)) == errno.EINVAL
        assert await mount.readdir(ROOT, fh, 1 << 40) == []
        assert await errno_of(mount.readdir(ROOT, 99)) == errno.EBADF
        assert await errno_of(mount.read(ROOT, fh, 10)) == errno.EBADF
        assert {entry.entry.nodeid for entry in found if entry.entry} == ({0, 7} if plus else set())


async def test_a_name_is_never_lost_over_its_attributes() -> None:
    class Vanishing(Recorder):
        async def lookup(self, parent, name):
            raise OSError(errno.EMFILE if name == "name1" else errno.ENOENT, name)

    async with mounted(PythonServer(Vanishing())) as mount:
        found = await mount.list(ROOT, plus=True)
        assert len(found) == 302
        assert all(entry.entry is not None and entry.entry.nodeid == 0 for entry in found)


async def test_forgets_are_counted() -> None:
    fs = Recorder()
    async with mounted(PythonServer(fs)) as mount:
        for _ in range(3):
            await mount.lookup(ROOT, "f")
        await mount.link(7, ROOT, "g")
        await mount.mkdir(ROOT, "d")
        await mount.forget(7, 3)
        assert (await mount.getattr(7)).ino == 7
        await mount.batch_forget((7, 1), (9, 1), (1, 5), (12345, 1))
        assert [call for call in fs.calls if call[0] == "forget"] == [("forget", 7), ("forget", 9)]
        assert await errno_of(mount.getattr(7)) == errno.ESTALE
        assert (await mount.getattr(ROOT)).ino == ROOT
        await mount.lookup(ROOT, "f")
        await mount.forget(7, 1 << 63)
        assert fs.last() == ("forget", 7)


async def test_what_the_guest_was_never_given() -> None:
    """No method ever sees an inode or handle of the guest's invention."""
    fs = Recorder()
    async with mounted(PythonServer(fs)) as mount:
        await mount.lookup(ROOT, "f")
        fh = await mount.open(7)
        await mount.mkdir(ROOT, "d")
        seen = len(fs.calls)
        assert await errno_of(mount.getattr(12)) == errno.ESTALE
        assert await errno_of(mount.getattr(0)) == errno.ESTALE
        assert await errno_of(mount.lookup(1 << 63, "f")) == errno.ESTALE
        assert await errno_of(mount.link(5, ROOT, "f")) == errno.ESTALE
        assert await errno_of(mount.rename(ROOT, "a", 5, "b")) == errno.ESTALE
        assert await errno_of(mount.read(9, fh, 10)) == errno.EBADF  # somebody else's handle
        assert await errno_of(mount.read(7, 77, 10)) == errno.EBADF  # our own number for it
        assert await errno_of(mount.read(7, 0, 10)) == errno.EBADF
        assert await errno_of(mount.getattr(7, fh + 1)) == errno.EBADF
        assert await errno_of(mount.release(9, fh)) == errno.EBADF
        assert len(fs.calls) == seen


class Slow(Hello):
    """`read` waits until told."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.reading = 0
        self.gone: list[str] = []

    async def open(self, inode, flags):
        return FileHandle(5)

    async def read(self, inode, fh, offset, size):
        self.reading += 1
        try:
            await self.go.wait()
        finally:
            self.gone.append("read")
        return b"late"

    def release(self, inode, fh):
        self.gone.append("release")

    def forget(self, inode):
        self.gone.append("forget")


async def test_slow_requests_hold_up_no_others_and_keep_what_they_use() -> None:
    fs = Slow()
    async with mounted(PythonServer(fs)) as mount, trio.open_nursery() as nursery:
        await mount.lookup(ROOT, "hello")
        fh = await mount.open(2)
        for _ in range(20):
            nursery.start_soon(mount.read, 2, fh, 10)
        while fs.reading < 20:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await mount.getattr(2)).size == len(TEXT)
        await mount.release(2, fh)
        await mount.forget(2)
        assert await errno_of(mount.read(2, fh, 10)) == errno.ESTALE
        assert fs.gone == []
        fs.go.set()
    assert fs.gone == ["read"] * 20 + ["release", "forget"]


async def test_requests_are_bounded() -> None:
    fs = Slow()
    async with mounted(PythonServer(fs, concurrency=3)) as mount, trio.open_nursery() as nursery:
        await mount.lookup(ROOT, "hello")
        fh = await mount.open(2)
        for _ in range(10):
            nursery.start_soon(mount.read, 2, fh, 10)
        await trio.sleep(0.1)
        assert fs.reading == 3
        fs.go.set()
    assert fs.gone.count("read") == 10


@pytest.mark.parametrize("concurrency", [1, 64])
async def test_guest_that_goes_leaves_nothing(concurrency: int, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does a request that waited for its turn."""
    fs = Slow()
    server = PythonServer(fs, concurrency=concurrency)
    async with serving(server) as (_, path):
        async with guest(path) as mount, trio.open_nursery() as nursery:
            await mount.lookup(ROOT, "hello")
            fh = await mount.open(2)
            await mount.open(2)

            async def read() -> None:
                with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever a cut connection gives
                    await mount.read(2, fh, 10, timeout=60)

            for _ in range(3):
                nursery.start_soon(read)
            while fs.reading < min(concurrency, 3):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while len(fs.gone) < 3 + fs.reading:
                await trio.sleep(0.001)
        assert sorted(fs.gone) == ["forget", *["read"] * min(concurrency, 3), "release", "release"]
        assert not caplog.records
        async with guest(path) as mount:
            assert await errno_of(mount.getattr(2)) == errno.ESTALE
            await mount.lookup(ROOT, "hello")


async def test_init_again_starts_afresh() -> None:
    fs = Slow()
    async with mounted(PythonServer(fs)) as mount:
        await mount.lookup(ROOT, "hello")
        await mount.open(2)
        await mount.start()
        assert fs.gone == ["release", "forget"]
        await mount.lookup(ROOT, "hello")
        await mount.destroy()
        assert fs.gone == ["release", "forget", "forget"]
        assert await errno_of(mount.getattr(ROOT)) == errno.EIO


async def test_nothing_before_init() -> None:
    async with mounted(PythonServer(Hello()), init=False) as mount:
        assert await errno_of(mount.getattr(ROOT)) == errno.EIO
        await mount.start()
        assert (await mount.getattr(ROOT)).mode == FOLDER


class Broken(Hello):
    """Every mistake one can make."""

    async def getattr(self, inode, fh=None):
        raise RuntimeError("a mistake in getattr")

    async def lookup(self, parent, name):
        if name == "number":
            return Attr(Inode(1 << 70), FILE)
        if name == "zero":
            return Attr(Inode(0), FILE)
        if name == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
        if name == "plain":
            raise OSError("no errno")
        return name

    async def fail(self):
        raise PermissionError(errno.EACCES, "in a nursery")

    def forget(self, inode):
        raise ValueError("a mistake in forget")

    async def readdir(self, inode):
        return None

    async def read(self, inode, fh, offset, size):
        return "text"


async def test_mistakes_become_eio_and_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async with mounted(PythonServer(Broken())) as mount:
        assert await errno_of(mount.getattr(ROOT)) == errno.EIO
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "Broken failed at GETATTR of inode 1" in record.getMessage()
        assert record.exc_info is not None
        assert "a mistake in getattr" in str(record.exc_info[1])
        caplog.clear()
        assert await errno_of(mount.lookup(ROOT, "group")) == errno.EACCES  # no mistake: an error, in a group of one
        assert await errno_of(mount.lookup(ROOT, "plain")) == errno.EIO
        assert not caplog.records
        for text in ("number", "zero", "string"):
            assert await errno_of(mount.lookup(ROOT, text)) == errno.EIO
        assert await errno_of(mount.list()) == errno.EIO
        assert len(caplog.records) == 4
        for _ in range(20):
            assert await errno_of(mount.read(ROOT, 0, 10)) == errno.EIO
        assert len(caplog.records) < 10  # a guest cannot fill the log
        caplog.clear()


async def test_counts() -> None:
    server = PythonServer(Hello())
    fs = Fs(server, tag="hello")
    async with mounted(server) as mount:
        await mount.lookup(ROOT, "hello")
        await mount.opendir()
        for _ in range(3):
            await errno_of(mount.lookup(ROOT, "other"))
        await errno_of(mount.call(4000))
        values = {(m.name, m.labels.get("op")): m.value for m in fs.metrics()}
        assert values["fs_requests_total", "lookup"] == 4
        assert values["fs_errors_total", "lookup"] == 3
        assert values["fs_requests_total", "unknown"] == 1
        assert (values["fs_inodes", None], values["fs_handles", None], values["fs_mounted", None]) == (1, 1, 1)
        info = fs.controls()["info"]()
        assert (info["server"], info["inodes"], info["handles"]) == ("Hello", 1, 1)


async def test_negative_entries() -> None:
    class Remembering(Hello):
        negative_timeout = 2.5

    async with mounted(PythonServer(Remembering())) as mount:
        entry = await mount.lookup(ROOT, "other")
        assert (entry.nodeid, entry.entry_valid) == (0, 2.5)


async def test_two_guests_of_one_file_system() -> None:
    """An inode is forgotten when no guest knows it any more."""
    fs = Slow()
    async with mounted(PythonServer(fs)) as one, mounted(PythonServer(fs)) as two:
        await one.lookup(ROOT, "hello")
        await two.lookup(ROOT, "hello")
        await one.forget(2)
        assert fs.gone == []
        assert await errno_of(one.getattr(2)) == errno.ESTALE
        assert (await two.getattr(2)).size == len(TEXT)
        await two.forget(2)
        assert fs.gone == ["forget"]


async def test_many_requests_at_once() -> None:
    """Split and packed, on several queues."""
    async with mounted(PythonServer(Hello()), queues=3, packed=True) as mount, trio.open_nursery() as nursery:
        await mount.lookup(ROOT, "hello")

        async def reader() -> None:
            for _ in range(50):
                assert await mount.read(2, 0, 100) == TEXT

        for _ in range(12):
            nursery.start_soon(reader)


async def test_lengths_of_every_opcode() -> None:
    """Whatever a guest sends, the mount goes on."""
    async with mounted(PythonServer(Recorder())) as mount:
        await mount.lookup(ROOT, "f")
        fh = await mount.open(7)
        for opcode in range(60):
            if opcode in (Opcode.INIT, Opcode.DESTROY):
                continue
            for size in (0, 8, 24, 56, 128):
                body = (struct.pack("<Q", fh) + b"\xff" * size)[:size]
                head = struct.pack("<IIQQIIIHH", 40 + size, opcode, 1, 7, 0, 0, 0, 0, 0)
                await mount.raw([head + body], [16, 300])
        assert (await mount.getattr(ROOT)).ino == ROOT

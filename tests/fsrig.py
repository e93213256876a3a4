"""A FUSE client: a guest's view of a file system, over our own front-end.

    async with mounted(server) as mount:
        entry = await mount.lookup(ROOT, "file")
        fh = await mount.open(entry.nodeid, os.O_RDWR)
        await mount.write(entry.nodeid, fh, b"text")

`Mount.call` sends any opcode; the methods below it are the usual ones and raise `OSError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

import vhost
from devices.fs import Fs, Server
from devices.fs.config import InitFlag, Opcode
from vhost.frontend import PLAIN, Frontend, Personality
from vhost.frontend.queue import Queue

ROOT = 1
Names = list[str]
#: of lock_args
END = 2**63 - 1
READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
F_OFD_SETLK = 37
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="file handles are root's")
EVERY_FLAG = sum(InitFlag)

#: bytes of the fixed arguments, from linux/fuse.h 7.45
ARGUMENTS = {
    Opcode.FORGET: 8, Opcode.GETATTR: 16, Opcode.SETATTR: 88, Opcode.MKNOD: 16, Opcode.MKDIR: 8, Opcode.RENAME: 8,
    Opcode.LINK: 8, Opcode.OPEN: 8, Opcode.READ: 40, Opcode.WRITE: 40, Opcode.RELEASE: 24, Opcode.FSYNC: 16,
    Opcode.SETXATTR: 16, Opcode.GETXATTR: 8, Opcode.LISTXATTR: 8, Opcode.FLUSH: 24, Opcode.INIT: 8, Opcode.OPENDIR: 8,
    Opcode.READDIR: 40, Opcode.RELEASEDIR: 24, Opcode.FSYNCDIR: 16, Opcode.GETLK: 48, Opcode.SETLK: 48,
    Opcode.SETLKW: 48, Opcode.ACCESS: 8, Opcode.CREATE: 16, Opcode.INTERRUPT: 8, Opcode.BMAP: 16, Opcode.IOCTL: 32,
    Opcode.POLL: 24, Opcode.NOTIFY_REPLY: 40, Opcode.BATCH_FORGET: 8, Opcode.FALLOCATE: 32, Opcode.READDIRPLUS: 40,
    Opcode.RENAME2: 16, Opcode.LSEEK: 24, Opcode.COPY_FILE_RANGE: 56, Opcode.SETUPMAPPING: 40,
    Opcode.REMOVEMAPPING: 4, Opcode.SYNCFS: 8, Opcode.TMPFILE: 16, Opcode.STATX: 24, Opcode.COPY_FILE_RANGE_64: 56,
}  # fmt: skip
#: and how many names follow
NAME_COUNTS = {
    Opcode.LOOKUP: 1, Opcode.SYMLINK: 2, Opcode.MKNOD: 1, Opcode.MKDIR: 1, Opcode.UNLINK: 1, Opcode.RMDIR: 1,
    Opcode.RENAME: 2, Opcode.LINK: 1, Opcode.SETXATTR: 1, Opcode.GETXATTR: 1, Opcode.REMOVEXATTR: 1, Opcode.CREATE: 1,
    Opcode.RENAME2: 2, Opcode.TMPFILE: 1,
}  # fmt: skip

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_DIRENT = struct.Struct("<QQII")
_INIT = struct.Struct("<IIII")
_SILENT = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}
assert (_IN.size, _OUT.size, _ATTR.size, _ENTRY.size) == (40, 16, 88, 40)


class Attr(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    """struct fuse_entry_out; nodeid 0: there is no such name."""

    nodeid: int
    generation: int
    entry_valid: float
    attr_valid: float
    attr: Attr

    @classmethod
    def unpack(cls, data: bytes) -> Entry:
        nodeid, generation, entry_s, attr_s, entry_ns, attr_ns = _ENTRY.unpack_from(data)
        attr = Attr(*_ATTR.unpack_from(data, _ENTRY.size))
        return cls(nodeid, generation, entry_s + entry_ns / 1e9, attr_s + attr_ns / 1e9, attr)


class Dirent(NamedTuple):
    """struct fuse_dirent, with its entry where it came from READDIRPLUS."""

    ino: int
    off: int
    type: int
    name: str
    entry: Entry | None = None


class InitReply(NamedTuple):
    """struct fuse_init_out."""

    major: int
    minor: int
    max_readahead: int
    flags: InitFlag
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    uid: int = 0
    gid: int = 0
    pid: int = 1


def name(text: str | bytes) -> bytes:
    """As it stands in a request."""
    return (text.encode() if isinstance(text, str) else text) + b"\0"


def groups(*gids: int) -> bytes:
    """Extension: supplementary groups of the caller."""
    body = struct.pack(f"<I{len(gids)}I", len(gids), *gids)
    return _extension(32, body)


def security_context(label: str, value: bytes) -> bytes:
    """Extension: the security context of what is made."""
    one = struct.pack("<II", len(value), 0) + name(label) + value
    one += bytes(-len(one) % 8)
    return struct.pack("<II", 8 + len(one), 1) + one


def _extension(kind: int, body: bytes) -> bytes:
    size = (8 + len(body) + 7) // 8 * 8
    return (struct.pack("<II", size, kind) + body).ljust(size, b"\0")


class Mount:
    """A driver that has the file system mounted, or is about to."""

    def __init__(self, fe: Frontend) -> None:
        self.fe = fe
        self.caller = Caller()
        self.init: InitReply | None = None
        self._unique = 0
        self._turn = 0

    @property
    def requests(self) -> list[Queue]:
        """The request queues."""
        return [queue for index, queue in sorted(self.fe.queues.items()) if index]

    def as_caller(self, uid: int, gid: int, pid: int = 1) -> Mount:
        """The same mount, used by somebody else."""
        other = Mount(self.fe)
        other.caller, other.init = Caller(uid, gid, pid), self.init
        other._unique = (uid + 1) << 32
        return other

    def next_unique(self) -> int:
        """A number for the next request."""
        self._unique += 2
        return self._unique

    def header(
        self, opcode: int, nodeid: int, length: int, *, unique: int | None = None, ext: int = 0, **fields: int
    ) -> bytes:
        """struct fuse_in_header of a request whose rest has `length` bytes, `ext` of them extensions."""
        who = replace(self.caller, **fields)
        number = self.next_unique() if unique is None else unique
        return _IN.pack(40 + length, opcode, number, nodeid, who.uid, who.gid, who.pid, ext // 8, 0)

    async def call(
        self,
        opcode: int,
        nodeid: int = ROOT,
        args: bytes = b"",
        *,
        data: bytes = b"",
        ext: bytes = b"",
        room: int | Sequence[int] = 4096,
        queue: int | None = None,
        unique: int | None = None,
        indirect: bool = False,
        timeout: float = 60,
        **who: int,
    ) -> tuple[int, bytes]:
        """One request: its error (0 or an errno) and the reply's bytes after its header.

        Args:
            args: fixed arguments and names.
            data: in a piece of its own, behind them.
            ext: extensions (`groups`, `security_context`), behind the names.
            room: bytes for the reply after its header, in pieces of such sizes.
            queue: index; None: the request queues in turn, opcodes without a reply on queue 0.
            unique: the request's number.
            who: uid, gid, pid instead of the mount's.
        """
        number = self.next_unique() if unique is None else unique
        head = self.header(opcode, nodeid, len(args) + len(data) + len(ext), unique=number, ext=len(ext), **who)
        silent = opcode in _SILENT
        if queue is None:
            queue = 0 if silent else 1 + self._turn % len(self.requests)
            self._turn += not silent
        pieces = [room] if isinstance(room, int) else list(room)
        out = [head, *(piece for piece in (args + ext, data) if piece)]
        used, back = await self.raw(out, [] if silent else [16, *(n for n in pieces if n)], queue, indirect, timeout)
        if silent:
            assert used == 0
            return 0, b""
        assert used >= 16, f"{opcode} was not answered"
        length, error, answered = _OUT.unpack(back[0])
        assert length == used, (length, used)
        assert answered == number
        assert -512 < error <= 0
        assert error == 0 or length == 16
        return -error, b"".join(back[1:])[: length - 16]

    async def raw(
        self, out: Sequence[bytes], room: Sequence[int], queue: int = 1, indirect: bool = False, timeout: float = 60
    ) -> tuple[int, list[bytes]]:
        """One chain of such pieces: bytes written, and the writable pieces after it."""
        return await self.fe.queues[queue].request(out, room, indirect=indirect, timeout=timeout)

    async def ask(self, opcode: int, nodeid: int = ROOT, args: bytes = b"", **how: Any) -> bytes:
        """As `call`.

        Raises:
            OSError: the request failed.
        """
        error, reply = await self.call(opcode, nodeid, args, **how)
        if error:
            raise OSError(error, f"{Opcode(opcode).name}: {os.strerror(error)}")
        return reply

    # The session

    async def start(
        self, flags: int = EVERY_FLAG, *, major: int = 7, minor: int = 45, readahead: int = 1 << 20, **how: Any
    ) -> InitReply:
        """INIT."""
        args = _INIT.pack(major, minor, readahead, flags & 0xFFFFFFFF) + struct.pack("<I44x", flags >> 32)
        reply = await self.ask(Opcode.INIT, 0, args, room=64, **how)
        fields = struct.unpack("<IIIIHHIIHHI", reply.ljust(64, b"\0")[:36])
        bits = InitFlag(fields[3] | fields[10] << 32)
        self.init = InitReply(fields[0], fields[1], fields[2], bits, *fields[4:10])
        return self.init

    async def destroy(self) -> None:
        await self.ask(Opcode.DESTROY, 0, room=0)

    # Names

    async def lookup(self, parent: int, text: str | bytes, **how: Any) -> Entry:
        return Entry.unpack(await self.ask(Opcode.LOOKUP, parent, name(text), room=128, **how))

    async def walk(self, path: str) -> Entry:
        """The entry of `path`, from the root."""
        entry = None
        for part in path.split("/"):
            entry = await self.lookup(entry.nodeid if entry else ROOT, part)
        assert entry is not None
        return entry

    async def forget(self, nodeid: int, count: int = 1) -> None:
        await self.call(Opcode.FORGET, nodeid, struct.pack("<Q", count))

    async def batch_forget(self, *pairs: tuple[int, int]) -> None:
        """`pairs` of inode and count."""
        table = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
        await self.call(Opcode.BATCH_FORGET, 0, struct.pack("<II", len(pairs), 0) + table)

    async def mkdir(self, parent: int, text: str, mode: int = 0o755, *, umask: int = 0, **how: Any) -> Entry:
        args = struct.pack("<II", mode, umask) + name(text)
        return Entry.unpack(await self.ask(Opcode.MKDIR, parent, args, room=128, **how))

    async def mknod(self, parent: int, text: str, mode: int, rdev: int = 0, *, umask: int = 0, **how: Any) -> Entry:
        args = struct.pack("<IIII", mode, rdev, umask, 0) + name(text)
        return Entry.unpack(await self.ask(Opcode.MKNOD, parent, args, room=128, **how))

    async def create(
        self,
        parent: int,
        text: str,
        flags: int = os.O_RDWR,
        mode: int = 0o644,
        *,
        umask: int = 0,
        open_flags: int = 0,
        **how: Any,
    ) -> tuple[Entry, int]:
        """The new file and its handle."""
        args = struct.pack("<IIII", flags, mode, umask, open_flags) + name(text)
        reply = await self.ask(Opcode.CREATE, parent, args, room=144, **how)
        return Entry.unpack(reply), int.from_bytes(reply[128:136], "little")

    async def symlink(self, parent: int, text: str, target: str | bytes, **how: Any) -> Entry:
        args = name(text) + name(target)
        return Entry.unpack(await self.ask(Opcode.SYMLINK, parent, args, room=128, **how))

    async def readlink(self, nodeid: int, **how: Any) -> bytes:
        return await self.ask(Opcode.READLINK, nodeid, **how)

    async def link(self, nodeid: int, parent: int, text: str, **how: Any) -> Entry:
        args = struct.pack("<Q", nodeid) + name(text)
        return Entry.unpack(await self.ask(Opcode.LINK, parent, args, room=128, **how))

    async def unlink(self, parent: int, text: str, **how: Any) -> None:
        await self.ask(Opcode.UNLINK, parent, name(text), room=0, **how)

    async def rmdir(self, parent: int, text: str, **how: Any) -> None:
        await self.ask(Opcode.RMDIR, parent, name(text), room=0, **how)

    async def rename(self, parent: int, old: str, newdir: int, new: str, flags: int = 0, **how: Any) -> None:
        if flags:
            args = struct.pack("<QII", newdir, flags, 0) + name(old) + name(new)
            await self.ask(Opcode.RENAME2, parent, args, room=0, **how)
        else:
            await self.ask(Opcode.RENAME, parent, struct.pack("<Q", newdir) + name(old) + name(new), room=0, **how)

    # Attributes

    async def getattr(self, nodeid: int = ROOT, fh: int | None = None, **how: Any) -> Attr:
        args = struct.pack("<IIQ", fh is not None, 0, fh or 0)
        reply = await self.ask(Opcode.GETATTR, nodeid, args, room=104, **how)
        return Attr(*_ATTR.unpack_from(reply, 16))

    async def setattr(
        self,
        nodeid: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: float | None = None,
        mtime: float | None = None,
        fh: int | None = None,
        valid: int = 0,
        **how: Any,
    ) -> Attr:
        """What is None stays; `valid`: more FATTR_* bits. Who asks: the mount's caller."""
        given = (mode, uid, gid, size, atime, mtime, fh)
        valid |= sum(1 << bit for bit, value in enumerate(given) if value is not None)
        times = [(int(t or 0), int(((t or 0) % 1) * 1e9)) for t in (atime, mtime)]
        args = struct.pack(
            "<IIQQQQQQIIIIIIII",
            valid, 0, fh or 0, size or 0, 0, times[0][0], times[1][0], 0,
            times[0][1], times[1][1], 0, mode or 0, 0, uid or 0, gid or 0, 0,
        )  # fmt: skip
        reply = await self.ask(Opcode.SETATTR, nodeid, args, room=104, **how)
        return Attr(*_ATTR.unpack_from(reply, 16))

    async def access(self, nodeid: int, mask: int, **how: Any) -> None:
        await self.ask(Opcode.ACCESS, nodeid, struct.pack("<II", mask, 0), room=0, **how)

    async def statfs(self, nodeid: int = ROOT, **how: Any) -> tuple[int, ...]:
        """blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
        return struct.unpack_from("<QQQQQIII", await self.ask(Opcode.STATFS, nodeid, room=80, **how))

    # Files

    async def open(self, nodeid: int, flags: int = os.O_RDONLY, open_flags: int = 0, **how: Any) -> int:
        """The file's handle."""
        reply = await self.ask(Opcode.OPEN, nodeid, struct.pack("<II", flags, open_flags), room=16, **how)
        return int.from_bytes(reply[:8], "little")

    async def read(
        self, nodeid: int, fh: int, size: int, offset: int = 0, *, room: int | Sequence[int] | None = None, **how: Any
    ) -> bytes:
        args = struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)
        return await self.ask(Opcode.READ, nodeid, args, room=size if room is None else room, **how)

    async def write(
        self, nodeid: int, fh: int, data: bytes, offset: int = 0, *, flags: int = 0, owner: int = 0, **how: Any
    ) -> int:
        """Bytes written; `flags`: FUSE_WRITE_*."""
        args = struct.pack("<QQIIQII", fh, offset, len(data), flags, owner, 0, 0)
        reply = await self.ask(Opcode.WRITE, nodeid, args, data=data, room=8, **how)
        return int.from_bytes(reply[:4], "little")

    async def flush(self, nodeid: int, fh: int, owner: int = 0, **how: Any) -> None:
        await self.ask(Opcode.FLUSH, nodeid, struct.pack("<QIIQ", fh, 0, 0, owner), room=0, **how)

    async def release(self, nodeid: int, fh: int, *, flags: int = 0, owner: int = 0, **how: Any) -> None:
        """`flags`: FUSE_RELEASE_*."""
        await self.ask(Opcode.RELEASE, nodeid, struct.pack("<QIIQ", fh, 0, flags, owner), room=0, **how)

    async def fsync(self, nodeid: int, fh: int, *, datasync: bool = False, **how: Any) -> None:
        await self.ask(Opcode.FSYNC, nodeid, struct.pack("<QII", fh, datasync, 0), room=0, **how)

    # Folders

    async def opendir(self, nodeid: int = ROOT, **how: Any) -> int:
        reply = await self.ask(
            Opcode.OPENDIR, nodeid, struct.pack("<II", os.O_RDONLY | os.O_DIRECTORY, 0), room=16, **how
        )
        return int.from_bytes(reply[:8], "little")

    async def releasedir(self, nodeid: int, fh: int, **how: Any) -> None:
        await self.ask(Opcode.RELEASEDIR, nodeid, struct.pack("<QIIQ", fh, 0, 0, 0), room=0, **how)

    async def readdir(
        self, nodeid: int, fh: int, offset: int = 0, *, size: int = 4096, plus: bool = False, **how: Any
    ) -> list[Dirent]:
        """One reply's worth of entries."""
        args = struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)
        reply = await self.ask(Opcode.READDIRPLUS if plus else Opcode.READDIR, nodeid, args, room=size, **how)
        found = []
        at = 0
        while at < len(reply):
            entry = None
            start = at
            if plus:
                entry = Entry.unpack(reply[at : at + 128])
                at += 128
            ino, off, length, kind = _DIRENT.unpack_from(reply, at)
            text = reply[at + 24 : at + 24 + length]
            assert len(text) == length
            found.append(Dirent(ino, off, kind, os.fsdecode(text), entry))
            at = start + (128 if plus else 0) + (24 + length + 7) // 8 * 8
        assert at == len(reply)
        return found

    async def list(self, nodeid: int = ROOT, *, plus: bool = False, size: int = 4096) -> list[Dirent]:
        """All entries of a folder."""
        fh = await self.opendir(nodeid)
        found: list[Dirent] = []
        while part := await self.readdir(nodeid, fh, found[-1].off if found else 0, size=size, plus=plus):
            found += part
        await self.releasedir(nodeid, fh)
        return found

    # Extended attributes

    async def getxattr(self, nodeid: int, text: str, size: int = 65536, **how: Any) -> bytes:
        return await self.ask(Opcode.GETXATTR, nodeid, struct.pack("<II", size, 0) + name(text), room=size or 8, **how)

    async def setxattr(
        self, nodeid: int, text: str, value: bytes, flags: int = 0, *, ext_flags: int = 0, **how: Any
    ) -> None:
        """In the long form where it was negotiated."""
        args = struct.pack("<II", len(value), flags)
        if self.init is not None and self.init.flags & InitFlag.SETXATTR_EXT:
            args += struct.pack("<II", ext_flags, 0)
        await self.ask(Opcode.SETXATTR, nodeid, args + name(text) + value, room=0, **how)

    async def listxattr(self, nodeid: int, size: int = 65536, **how: Any) -> Names:
        reply = await self.ask(Opcode.LISTXATTR, nodeid, struct.pack("<II", size, 0), room=size or 8, **how)
        return [os.fsdecode(text) for text in reply.split(b"\0")[:-1]]

    async def removexattr(self, nodeid: int, text: str, **how: Any) -> None:
        await self.ask(Opcode.REMOVEXATTR, nodeid, name(text), room=0, **how)

    # Locks

    def lock_args(
        self, fh: int, owner: int, kind: int, start: int, end: int, *, flock: bool = False, pid: int = 1
    ) -> bytes:
        """struct fuse_lk_in; `kind`: fcntl.F_RDLCK, F_WRLCK, F_UNLCK."""
        return struct.pack("<QQQQIIII", fh, owner, start, end, kind, pid, flock, 0)


async def set_lock(mount: Mount, node: int, fh: int, kind: int, start: int, end: int, owner: int, **how: Any) -> None:
    args = mount.lock_args(fh, owner, kind, start, end, **how)
    await mount.ask(Opcode.SETLK, node, args, room=0)


async def who_locks(mount: Mount, node: int, fh: int, byte: int) -> tuple[int, int]:
    """Kind of lock on a byte, and who alone can hold it."""
    args = mount.lock_args(fh, 99, WRITE, byte, byte)
    _, _, kind, pid = struct.unpack("<QQII", await mount.ask(Opcode.GETLK, node, args, room=24))
    return kind, pid if kind == WRITE else 0


def is_locked(path: Path) -> bool:
    """Can nobody else lock it?"""
    with path.open("r+b") as file:
        try:
            fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi", WRITE, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError:
            return True
    return False


@asynccontextmanager
async def serving(
    server: Server, *, workers: vhost.WorkerOptions | None = None, **how: Any
) -> AsyncIterator[tuple[Fs, str]]:
    """The device over `server` and the socket it is served on. `how`: of `Fs`. The server stays the caller's."""
    fs = Fs(server, **how)
    with tempfile.TemporaryDirectory(prefix="vhost-fs-") as folder:
        async with vhost.open_server(workers=workers) as host:
            path = str(Path(folder) / "fs.sock")
            await host.listen(fs, path)
            yield fs, path


@asynccontextmanager
async def guest(
    path: str,
    *,
    queues: int = 1,
    size: int = 128,
    packed: bool = False,
    personality: Personality = PLAIN,
    native: bool = True,
    memory_size: int = 64 << 20,
    init: bool = True,
    flags: int = EVERY_FLAG,
    minor: int = 45,
) -> AsyncIterator[Mount]:
    """A driver with `queues` request queues on the socket `path`; `init`: mounted, with such INIT flags offered."""
    async with Frontend.connect(path, personality=personality, memory_size=memory_size, timeout=60) as fe:
        await fe.start(queues=1 + queues, size=size, packed=packed, native=native, indirect_max=64)
        mount = Mount(fe)
        if init:
            await mount.start(flags, minor=minor)
        yield mount


_OF_FS = ("tag", "request_queues", "queue_size", "workers", "notifications")


@asynccontextmanager
async def mounted(server: Server, **how: Any) -> AsyncIterator[Mount]:
    """A guest that has `server` mounted, which is closed at the end. `how`: of `serving` and `guest`."""
    of_fs = {key: how.pop(key) for key in _OF_FS if key in how}
    of_fs.setdefault("request_queues", how.get("queues", 1))
    async with server, serving(server, **of_fs) as (_, path), guest(path, **how) as mount:
        yield mount


async def errno_of(awaitable: Any) -> int:
    """The errno that `awaitable` fails with; 0 if it does not."""
    try:
        await awaitable
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


async def until(condition: Any, seconds: float = 5) -> None:
    """Wait until `condition()` holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.001)

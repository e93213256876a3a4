"""What each opcode asks of a `Filesystem`, and how its answer becomes a reply.

A handler gets the guest's view of the file system, the request, its inode and, for opcodes on open files, the handle.
It returns the C function that writes the reply, and its arguments: that is called only if the guest still waits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices.fs._fs import ffi, lib
from devices.fs.config import Opcode
from devices.fs.filesystem import Attr, Changes, DirEntry, Entry, FileHandle, Inode, Lock, LockOwner, Opened, entry_of

if TYPE_CHECKING:
    from devices.fs.known import Handle
    from devices.fs.serving import PythonServer

__all__ = ["DONE", "OPERATIONS", "Operation", "Reply"]

#: a function that writes a reply, and what it takes besides the slot
Reply = tuple[Any, ...]
DONE: Reply = (lib.fs_py_fail, 0)

_NS = 1_000_000_000
_FOREVER = 1 << 40  # seconds: more than any guest lives
_U64 = (1 << 64) - 1
_UNKNOWN = 0xFFFFFFFF  # what listings show for ".."
_DIR_HEAD, _PLUS_HEAD = 24, 128  # bytes of a listing's entry before its name

# FUSE_GETATTR_FH, FATTR_*, FUSE_LK_FLOCK, FOPEN_*, FUSE_FSYNC_FDATASYNC, FUSE_RELEASE_FLOCK_UNLOCK
_GETATTR_FH, _FSYNC_DATA, _RELEASE_FLOCK, _LK_FLOCK = 1, 1, 2, 1
_FATTR = (("mode", 1 << 0), ("uid", 1 << 1), ("gid", 1 << 2), ("size", 1 << 3))
_FATTR_FH = 1 << 6
_FATTR_TIMES = (("atime_ns", 1 << 4, 1 << 7), ("mtime_ns", 1 << 5, 1 << 8), ("ctime_ns", 1 << 10, 0))
_FOPEN_DIRECT_IO, _FOPEN_KEEP_CACHE = 1, 2


# --- pieces of requests and replies


def name_of(data: Any, length: int) -> str:
    """One name. Raises: OSError: EINVAL: it is a path, or none."""
    name: bytes = ffi.unpack(data, length)
    if b"/" in name or name in (b"", b".", b".."):
        raise OSError(errno.EINVAL, f"{name!r} is not the name of a file")
    return os.fsdecode(name)


def _text(data: Any, length: int) -> str:
    return os.fsdecode(ffi.unpack(data, length))


def _ns(seconds: float) -> int:
    return int(min(max(seconds, 0), _FOREVER) * _NS) & _U64


def _attr(attr: Attr, timeout: float) -> Any:
    if not isinstance(attr, Attr):
        raise TypeError(f"an Attr is expected, not {type(attr).__name__}")
    if not attr.inode > 0:
        raise ValueError(f"inode {attr.inode}; they begin at 1, the root")
    c = ffi.new("struct fs_py_attr *")
    c.inode, c.size, c.mode, c.nlink = attr.inode, attr.size, attr.mode, attr.nlink
    c.uid, c.gid, c.rdev, c.blksize = attr.uid, attr.gid, attr.rdev, attr.blksize
    c.blocks = (attr.size + 511) // 512 if attr.blocks is None else attr.blocks
    c.atime_ns, c.mtime_ns, c.ctime_ns, c.btime_ns = attr.atime_ns, attr.mtime_ns, attr.ctime_ns, attr.birth_ns
    c.attr_ns = _ns(timeout)
    return c


def _entry(s: PythonServer, found: Any) -> Any:
    """A name and its file as C takes them; the guest knows the inode from now on."""
    entry: Entry = entry_of(found)
    fs = s.fs
    c = _attr(entry.attr, fs.attr_timeout if entry.attr_timeout is None else entry.attr_timeout)
    c.generation = entry.generation
    c.entry_ns = _ns(fs.entry_timeout if entry.entry_timeout is None else entry.entry_timeout)
    s.inodes.found(entry.attr.inode)
    return c


def _opened(s: PythonServer, inode: Inode, opened: Any) -> tuple[int, int]:
    flags = 0
    if isinstance(opened, Opened):
        flags = _FOPEN_DIRECT_IO * opened.direct_io | _FOPEN_KEEP_CACHE * opened.keep_cache
        opened = opened.fh
    return s.handles.add(inode, opened).number, flags


def _regular(mode: int) -> int:
    return stat.S_IFREG | mode & 0o7777


def _fh(handle: Handle | None) -> FileHandle:
    return FileHandle(0) if handle is None else handle.fh


# --- names


async def _lookup(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    try:
        found = await s.fs.lookup(inode, name_of(q.name, q.name_len))
    except OSError as error:
        if error.errno != errno.ENOENT or s.fs.negative_timeout <= 0:
            raise
        return lib.fs_py_entry, ffi.new("struct fs_py_attr *", {"entry_ns": _ns(s.fs.negative_timeout)})
    return lib.fs_py_entry, _entry(s, found)


async def _readlink(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    target = os.fsencode(await s.fs.readlink(inode))
    return lib.fs_py_data, target, len(target)


async def _mknod(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    return lib.fs_py_entry, _entry(s, await s.fs.mknod(inode, name_of(q.name, q.name_len), q.mode, q.rdev))


async def _mkdir(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    return lib.fs_py_entry, _entry(s, await s.fs.mkdir(inode, name_of(q.name, q.name_len), q.mode & 0o7777))


async def _symlink(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    target = _text(q.name2, q.name2_len)
    return lib.fs_py_entry, _entry(s, await s.fs.symlink(inode, name_of(q.name, q.name_len), target))


async def _link(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    name = name_of(q.name, q.name_len)
    with s.inodes.using(q.nodeid2) as source:
        return lib.fs_py_entry, _entry(s, await s.fs.link(source, inode, name))


async def _unlink(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    await s.fs.unlink(inode, name_of(q.name, q.name_len))
    return DONE


async def _rmdir(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    await s.fs.rmdir(inode, name_of(q.name, q.name_len))
    return DONE


async def _rename(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    name, new_name, flags = name_of(q.name, q.name_len), name_of(q.name2, q.name2_len), q.flags
    with s.inodes.using(q.nodeid2) as new_parent:
        await s.fs.rename(inode, name, new_parent, new_name, flags)
    return DONE


# --- attributes


async def _getattr(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    with s.maybe_handle(q.fh if q.fuse_flags & _GETATTR_FH else None, inode) as fh:
        attr = await s.fs.getattr(inode, fh)
    return lib.fs_py_attr, _attr(attr, s.fs.attr_timeout)


async def _setattr(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    changes, valid, now = Changes(), q.valid, time.time_ns()
    for (name, bit), value in zip(_FATTR, (q.mode & 0o7777, q.new_uid, q.new_gid, q.length), strict=True):
        if valid & bit:
            setattr(changes, name, value)
    for (name, bit, bit_now), value in zip(_FATTR_TIMES, (q.atime_ns, q.mtime_ns, q.ctime_ns), strict=True):
        if valid & bit:
            setattr(changes, name, now if valid & bit_now else value)
    with s.maybe_handle(q.fh if valid & _FATTR_FH else None, inode) as fh:
        attr = await s.fs.setattr(inode, changes, fh)
    return lib.fs_py_attr, _attr(attr, s.fs.attr_timeout)


async def _statfs(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    st = await s.fs.statfs(inode)
    c = ffi.new("struct fs_py_statfs *")
    for name in ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "frsize", "namelen"):
        setattr(c, name, getattr(st, name))
    return lib.fs_py_statfs, c


async def _getxattr(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    room = q.length
    return _value(await s.fs.getxattr(inode, _text(q.name, q.name_len)), room)


async def _listxattr(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    room = q.length
    return _value(b"".join(os.fsencode(name) + b"\0" for name in await s.fs.listxattr(inode)), room)


def _value(value: bytes, room: int) -> Reply:
    if not room:
        return lib.fs_py_count, len(value)
    if len(value) > room:
        raise OSError(errno.ERANGE, "the guest has no room for it")
    return lib.fs_py_data, ffi.from_buffer(value), len(value)


async def _setxattr(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    await s.fs.setxattr(inode, _text(q.name, q.name_len), s.data(q), q.flags)
    return DONE


async def _removexattr(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    await s.fs.removexattr(inode, _text(q.name, q.name_len))
    return DONE


# --- folders


async def _opendir(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    s.handles.room(folder=True)
    return lib.fs_py_opened, s.handles.add(inode, 0, folder=True).number, 0


async def _readdir(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    """Entries from number `offset` on; 0 and 1 are the folder itself and the one above it."""
    assert handle is not None
    offset, room, plus = q.offset, q.length, q.opcode == Opcode.READDIRPLUS
    if offset == 0 or handle.listing is None:
        # taken as a whole, so that names that come and go meanwhile move no others; gone back to 0, it is taken anew
        around = DirEntry(".", inode, stat.S_IFDIR), DirEntry("..", Inode(_UNKNOWN), stat.S_IFDIR)
        handle.listing = [*around, *await s.fs.readdir(inode)]
    found = []
    listing = handle.listing
    while offset < len(listing):
        entry = listing[offset]
        name = os.fsencode(entry.name)
        room -= (_PLUS_HEAD if plus else 0) + (_DIR_HEAD + len(name) + 7 & ~7)
        if room < 0:
            break
        known = await _listed(s, inode, entry.name) if plus and offset > 1 else ffi.NULL
        offset += 1
        found.append((entry.inode, offset, stat.S_IFMT(entry.mode) >> 12, name, len(name), known))
    if not found and offset < len(listing):
        raise OSError(errno.EINVAL, "the guest has no room for an entry")
    return _list, found


async def _listed(s: PythonServer, inode: Inode, name: str) -> Any:
    """A name's attributes for READDIRPLUS. A name never gets lost over them: the guest then looks it up itself."""
    try:
        return _entry(s, await s.fs.lookup(inode, name))
    except OSError:
        return ffi.NULL


def _list(slot: Any, found: list[tuple[Any, ...]]) -> int:
    for entry in found:
        lib.fs_py_dirent(slot, *entry)
    done: int = lib.fs_py_listed(slot)
    return done


async def _fsyncdir(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    await s.fs.fsyncdir(inode, bool(q.fuse_flags & _FSYNC_DATA))
    return DONE


# --- files


async def _create(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    s.handles.room()
    found, opened = await s.fs.create(inode, name_of(q.name, q.name_len), _regular(q.mode), q.flags)
    return _created(s, found, opened)


async def _tmpfile(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    s.handles.room()
    found, opened = await s.fs.tmpfile(inode, _regular(q.mode), q.flags)
    return _created(s, found, opened)


def _created(s: PythonServer, found: Any, opened: Any) -> Reply:
    attr = _entry(s, found)
    return lib.fs_py_created, attr, *_opened(s, Inode(attr.inode), opened)


async def _open(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    s.handles.room()
    return lib.fs_py_opened, *_opened(s, inode, await s.fs.open(inode, q.flags))


async def _read(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    size = q.length
    data = await s.fs.read(inode, _fh(handle), q.offset, size)
    if type(data) is not bytes:
        data = ffi.from_buffer(data)
    if len(data) > size:
        raise ValueError(f"read() returned {len(data)} bytes where {size} were asked for")
    return lib.fs_py_data, data, len(data)


async def _write(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    data = s.data(q)
    done = await s.fs.write(inode, _fh(handle), q.offset, data)
    if not 0 <= done <= len(data):
        raise ValueError(f"write() returned {done}, it was given {len(data)} bytes")
    return lib.fs_py_count, done


async def _flush(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    # POSIX: closing any descriptor of a file ends the process's locks on it
    s.handles.unlock(inode, s.owner(q.owner))
    if "flush" in s.has:
        await s.fs.flush(inode, _fh(handle))
    return DONE


async def _fsync(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    await s.fs.fsync(inode, _fh(handle), bool(q.fuse_flags & _FSYNC_DATA))
    return DONE


async def _syncfs(s: PythonServer, q: Any, inode: Inode, _: Handle | None) -> Reply:
    await s.fs.syncfs(inode)
    return DONE


async def _fallocate(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    await s.fs.fallocate(inode, _fh(handle), q.offset, q.length, q.flags)
    return DONE


async def _lseek(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    return lib.fs_py_offset, await s.fs.lseek(inode, _fh(handle), q.offset, q.flags)


async def _copy(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    offset, to, to_number, to_offset, length = q.offset, q.nodeid2, q.fh2, q.offset2, q.length
    with s.inodes.using(to) as target, s.maybe_handle(to_number, target) as to_fh:
        done = await s.fs.copy_file_range(
            inode, _fh(handle), offset, target, to_fh if to_fh is not None else FileHandle(0), to_offset, length
        )
    return lib.fs_py_count, done


# --- locks


def _lock(q: Any) -> Lock:
    return Lock(q.lock_type, q.start, q.end, q.lock_pid)


async def _getlk(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    found = await s.fs.getlk(inode, _fh(handle), s.owner(q.owner), _lock(q))
    if found is None:
        return lib.fs_py_lock, q.start, q.end, fcntl.F_UNLCK, 0
    return lib.fs_py_lock, found.start, found.end, found.type, found.pid


async def _setlk(s: PythonServer, q: Any, inode: Inode, handle: Handle | None) -> Reply:
    owner: LockOwner = s.owner(q.owner)
    lock, wait = _lock(q), q.opcode == Opcode.SETLKW
    if q.fuse_flags & _LK_FLOCK:
        if "flock" not in s.has:
            raise OSError(errno.ENOSYS, "no flock")
        s.handles.may_lock(inode, owner)
        await s.fs.flock(inode, _fh(handle), owner, lock.type, wait)
    else:
        if "setlk" not in s.has:
            raise OSError(errno.ENOSYS, "no locks")
        s.handles.may_lock(inode, owner)
        await s.fs.setlk(inode, _fh(handle), owner, lock, wait)
    return DONE


# --- without waiting: before the next request is looked at


def release(s: PythonServer, q: Any) -> Reply:
    """RELEASE: flock's locks end with the open file."""
    if q.fuse_flags & _RELEASE_FLOCK:
        s.handles.unlock(Inode(q.nodeid), s.owner(q.owner))
    if q.fh or "open" in s.has:
        s.handles.close(q.fh, q.nodeid)
    return DONE


def releasedir(s: PythonServer, q: Any) -> Reply:
    """RELEASEDIR."""
    s.handles.close(q.fh, q.nodeid, folder=True)
    return DONE


def forget(s: PythonServer, q: Any) -> Reply:
    """FORGET."""
    s.inodes.forget(q.nodeid, q.length)
    return (lib.fs_py_none,)


@dataclass(frozen=True, slots=True)
class Operation:
    """How an opcode is served.

    Attributes:
        handler: see the head of this file.
        methods: it is ENOSYS where the file system overrides none of them.
        handle: it works on an open file ("file"), an open folder ("folder") or neither ("").
    """

    handler: Callable[[PythonServer, Any, Inode, Handle | None], Awaitable[Reply]]
    methods: tuple[str, ...]
    handle: str = ""


OPERATIONS: dict[int, Operation] = {
    Opcode.LOOKUP: Operation(_lookup, ("lookup",)),
    Opcode.GETATTR: Operation(_getattr, ("getattr",)),
    Opcode.STATX: Operation(_getattr, ("getattr",)),
    Opcode.SETATTR: Operation(_setattr, ("setattr",)),
    Opcode.READLINK: Operation(_readlink, ("readlink",)),
    Opcode.SYMLINK: Operation(_symlink, ("symlink",)),
    Opcode.MKNOD: Operation(_mknod, ("mknod",)),
    Opcode.MKDIR: Operation(_mkdir, ("mkdir",)),
    Opcode.UNLINK: Operation(_unlink, ("unlink",)),
    Opcode.RMDIR: Operation(_rmdir, ("rmdir",)),
    Opcode.RENAME: Operation(_rename, ("rename",)),
    Opcode.RENAME2: Operation(_rename, ("rename",)),
    Opcode.LINK: Operation(_link, ("link",)),
    Opcode.OPEN: Operation(_open, ("open",)),
    Opcode.READ: Operation(_read, ("read",), "file"),
    Opcode.WRITE: Operation(_write, ("write",), "file"),
    Opcode.STATFS: Operation(_statfs, ()),
    Opcode.FSYNC: Operation(_fsync, ("fsync",), "file"),
    Opcode.SETXATTR: Operation(_setxattr, ("setxattr",)),
    Opcode.GETXATTR: Operation(_getxattr, ("getxattr",)),
    Opcode.LISTXATTR: Operation(_listxattr, ("listxattr",)),
    Opcode.REMOVEXATTR: Operation(_removexattr, ("removexattr",)),
    # without an answer of ours the guest would send no more of them, and locks would stay
    Opcode.FLUSH: Operation(_flush, ("flush", "setlk"), "file"),
    Opcode.OPENDIR: Operation(_opendir, ("readdir",)),
    Opcode.READDIR: Operation(_readdir, ("readdir",), "folder"),
    Opcode.READDIRPLUS: Operation(_readdir, ("readdir",), "folder"),
    Opcode.FSYNCDIR: Operation(_fsyncdir, ("fsyncdir",)),
    Opcode.GETLK: Operation(_getlk, ("getlk",), "file"),
    Opcode.SETLK: Operation(_setlk, ("setlk", "flock"), "file"),
    Opcode.SETLKW: Operation(_setlk, ("setlk", "flock"), "file"),
    Opcode.CREATE: Operation(_create, ("create",)),
    Opcode.FALLOCATE: Operation(_fallocate, ("fallocate",), "file"),
    Opcode.LSEEK: Operation(_lseek, ("lseek",), "file"),
    Opcode.COPY_FILE_RANGE: Operation(_copy, ("copy_file_range",), "file"),
    Opcode.COPY_FILE_RANGE_64: Operation(_copy, ("copy_file_range",), "file"),
    Opcode.SYNCFS: Operation(_syncfs, ("syncfs",)),
    Opcode.TMPFILE: Operation(_tmpfile, ("tmpfile",)),
}

"""File systems written in Python: a class that overrides what its file system can do.

    class Hello(Filesystem):
        async def lookup(self, parent, name):
            if parent != ROOT or name != "hello":
                raise OSError(errno.ENOENT, name)
            return await self.getattr(Inode(2))

        async def getattr(self, inode, fh=None):
            if inode == ROOT:
                return Attr(inode, stat.S_IFDIR | 0o755)
            return Attr(inode, stat.S_IFREG | 0o644, size=14)

        async def readdir(self, inode):
            return [DirEntry("hello", Inode(2), stat.S_IFREG)]

        async def read(self, inode, fh, offset, size):
            return b"hello, world!\\n"[offset : offset + size]

    trio.run(vhost.run_until_signal, vhost.serve, Fs(Hello(), tag="hello"), "/run/hello.sock")

What the library does for it: everything of the protocol; counting how often the guest looked a name up; refusing inodes
and file handles that the guest was never given, and names that are none (``a/b``, ``..``); keeping an inode or a handle
until no request uses it any more; listings; times; errors.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, NewType, Protocol
from weakref import WeakSet

from devices.fs import notices

__all__ = [
    "ROOT",
    "Attr",
    "Caller",
    "Changes",
    "DirEntry",
    "Entry",
    "FileHandle",
    "Filesystem",
    "Found",
    "Inode",
    "Lock",
    "LockOwner",
    "Opened",
    "StatFs",
    "caller",
]

#: a file, as its file system numbers it: 1 is the root; a number is used again only with another generation
Inode = NewType("Inode", int)
#: an open file, as `Filesystem.open` numbered it
FileHandle = NewType("FileHandle", int)
#: who holds a lock: equal for equal owners, of all guests of a file system
LockOwner = NewType("LockOwner", tuple[int, int])

ROOT = Inode(1)


@dataclass(slots=True)
class Attr:
    """What `stat` shows of a file.

    Attributes:
        inode: its number, at least 1.
        mode: type and permissions, e.g. ``stat.S_IFREG | 0o644``.
        size: bytes.
        nlink: names; a folder has two and one for each folder in it, or one if nobody counts.
        uid: owner.
        gid: group.
        rdev: device number of a device node, as `os.makedev` makes it.
        atime_ns: last read; times are nanoseconds since 1970.
        mtime_ns: last change of content: the guest throws away what it has cached when this changes.
        ctime_ns: last change of attributes.
        birth_ns: when it was made; 0: unknown.
        blksize: bytes, preferred size of reads and writes.
        blocks: of 512 bytes; None: what `size` takes.
    """

    inode: Inode
    mode: int
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    birth_ns: int = 0
    blksize: int = 4096
    blocks: int | None = None

    @property
    def is_dir(self) -> bool:
        """A folder."""
        return stat.S_ISDIR(self.mode)


@dataclass(slots=True)
class Entry:
    """A name that was found, for a file system that says more about it than its `Attr`.

    Attributes:
        attr: of the file.
        generation: differs between two files that had the same number one after the other.
        entry_timeout: seconds for which the guest may keep the name; None: the file system's.
        attr_timeout: seconds for which it may keep the attributes; None: the file system's.
    """

    attr: Attr
    generation: int = 0
    entry_timeout: float | None = None
    attr_timeout: float | None = None


Found = Attr | Entry


@dataclass(slots=True)
class DirEntry:
    """A name in a folder.

    Attributes:
        name: without a slash, at most 255 bytes.
        inode: shown by listings only: a listing is no lookup.
        mode: the type's bits, e.g. ``stat.S_IFDIR``; 0: unknown.
    """

    name: str
    inode: Inode
    mode: int = 0


@dataclass(slots=True)
class Changes:
    """What `Filesystem.setattr` is to change: what is not None. Times are nanoseconds since 1970."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    def apply(self, attr: Attr) -> None:
        """Write them into `attr`; `size` too, the content is the caller's business."""
        for name in ("uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns"):
            value = getattr(self, name)
            if value is not None:
                setattr(attr, name, value)
        if self.mode is not None:
            attr.mode = stat.S_IFMT(attr.mode) | stat.S_IMODE(self.mode)


@dataclass(slots=True)
class Opened:
    """An open file, for a file system that says more about it than its handle.

    Attributes:
        fh: the handle.
        direct_io: reads and writes pass the guest's page cache by.
        keep_cache: what the guest has cached of it is still right.
    """

    fh: FileHandle
    direct_io: bool = False
    keep_cache: bool = False


@dataclass(slots=True)
class StatFs:
    """What `df` shows. Blocks are of `frsize` bytes.

    Attributes:
        blocks: all there are.
        bfree: of them free.
        bavail: of them free for others than root.
        files: all inodes.
        ffree: of them free.
        bsize: bytes, preferred size of reads and writes.
        frsize: bytes of a block.
        namelen: longest name, bytes.
    """

    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    bsize: int = 4096
    frsize: int = 4096
    namelen: int = 255


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock on bytes of a file.

    Attributes:
        type: `fcntl.F_RDLCK`, `fcntl.F_WRLCK` or `fcntl.F_UNLCK`.
        start: first byte.
        end: last byte; 2^63 - 1: to the end, however long the file grows.
        pid: of the process in the guest that has or wants it.
    """

    type: int
    start: int
    end: int
    pid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """The process in the guest that a request is from; the guest has checked its permissions, and the umask is applied.

    Attributes:
        uid: user.
        gid: group, which new files get.
        pid: 0 where the guest's kernel acts by itself.
        umask: of the process, where the request makes a file.
    """

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


_NOBODY = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


class Guest(Protocol):
    """Somebody who has a file system mounted."""

    def tell(self, inode: int, messages: Iterable[bytes]) -> bool:
        """Send notifications if it knows `inode` and takes them."""


#: whose request the task works on, who knows what it brings about
_guest: ContextVar[Guest | None] = ContextVar("guest", default=None)


def caller() -> Caller:
    """Who the request is from that this task works on."""
    return _caller.get()


def _missing(what: str) -> OSError:
    return OSError(errno.ENOSYS, f"this file system has no {what}")


class Filesystem:
    """Base of file systems; all methods are optional, and what is not overridden the guest is told not to ask for.

    A request is a task of its own: methods may wait (for a thread, the network, …) while others run, and are cancelled
    when the guest goes. Errors are `OSError` with an `errno`; any other exception is logged and the guest gets EIO.
    `forget` and `release` are plain functions, as the guest does not wait for them either: they come when no request
    uses the inode or the handle any more, and for everything that a guest leaves behind when it goes.

    Names are text as `os.fsdecode` makes it, so that any bytes survive.

    One object may serve several guests, each by an `Fs` of its own.

    Class attributes:
        entry_timeout: seconds for which a guest may keep a name it looked up.
        attr_timeout: seconds for which it may keep attributes.
        negative_timeout: seconds for which it may remember that there is no such name.
        writeback: the guest may collect writes in its cache. Only if files change through this guest alone.
    """

    entry_timeout: float = 1.0
    attr_timeout: float = 1.0
    negative_timeout: float = 0.0
    writeback: bool = False

    #: names of the methods, as `overrides` knows them
    METHODS: ClassVar[tuple[str, ...]]

    def overrides(self, method: str) -> bool:
        """Whether the file system brings `method` itself."""
        return getattr(type(self), method) is not getattr(Filesystem, method)

    # Names

    async def lookup(self, parent: Inode, name: str) -> Found:
        """What `name` in folder `parent` is. Raises: OSError: ENOENT."""
        raise _missing("lookup")

    async def readlink(self, inode: Inode) -> str:
        """The target of a symbolic link."""
        raise _missing("readlink")

    async def mknod(self, parent: Inode, name: str, mode: int, rdev: int) -> Found:
        """Make a file of the type that `mode` says. Raises: OSError: EEXIST, ENOSPC, …"""
        raise _missing("mknod")

    async def mkdir(self, parent: Inode, name: str, mode: int) -> Found:
        """Make a folder."""
        raise _missing("mkdir")

    async def symlink(self, parent: Inode, name: str, target: str) -> Found:
        """Make a symbolic link."""
        raise _missing("symlink")

    async def link(self, inode: Inode, parent: Inode, name: str) -> Found:
        """Give a file one more name."""
        raise _missing("link")

    async def unlink(self, parent: Inode, name: str) -> None:
        """Remove a name that is no folder. Its file lives on while it is open: until `forget`."""
        raise _missing("unlink")

    async def rmdir(self, parent: Inode, name: str) -> None:
        """Remove an empty folder. Raises: OSError: ENOTEMPTY."""
        raise _missing("rmdir")

    async def rename(self, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int) -> None:
        """Move a name, over one that is there already.

        Args:
            flags: RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4. Raise EINVAL for those not understood.
        """
        raise _missing("rename")

    def forget(self, inode: Inode) -> None:
        """No guest knows `inode` any more; it comes again only by a name."""

    # Attributes

    async def getattr(self, inode: Inode, fh: FileHandle | None = None) -> Attr:
        """Attributes of a file, by an open handle of it if the guest has one at hand."""
        raise _missing("getattr")

    async def setattr(self, inode: Inode, changes: Changes, fh: FileHandle | None = None) -> Attr:
        """Change attributes, the size included; returns all of them."""
        raise _missing("setattr")

    async def statfs(self, inode: Inode) -> StatFs:
        """Room that is left."""
        return StatFs()

    async def getxattr(self, inode: Inode, name: str) -> bytes:
        """An extended attribute. Raises: OSError: ENODATA."""
        raise _missing("extended attributes")

    async def setxattr(self, inode: Inode, name: str, value: bytes, flags: int) -> None:
        """Set one. Args: flags: XATTR_CREATE 1 (else EEXIST), XATTR_REPLACE 2 (else ENODATA)."""
        raise _missing("extended attributes")

    async def listxattr(self, inode: Inode) -> Iterable[str]:
        """Their names."""
        raise _missing("extended attributes")

    async def removexattr(self, inode: Inode, name: str) -> None:
        """Remove one. Raises: OSError: ENODATA."""
        raise _missing("extended attributes")

    # Folders

    async def readdir(self, inode: Inode) -> Iterable[DirEntry]:
        """All that is in a folder, without ``.`` and ``..``: kept while the guest goes through it."""
        raise _missing("readdir")

    async def fsyncdir(self, inode: Inode, datasync: bool) -> None:
        """Make the folder's names durable."""
        raise _missing("fsyncdir")

    # Files

    async def create(self, parent: Inode, name: str, mode: int, flags: int) -> tuple[Found, FileHandle | Opened]:
        """Make a regular file and open it. Without it a guest uses `mknod` and `open`."""
        raise _missing("create")

    async def tmpfile(self, parent: Inode, mode: int, flags: int) -> tuple[Found, FileHandle | Opened]:
        """Make and open a file without a name (O_TMPFILE)."""
        raise _missing("tmpfile")

    async def open(self, inode: Inode, flags: int) -> FileHandle | Opened:
        """Open a file (without O_CREAT, O_EXCL, O_TRUNC). Without it files need no opening: handles are all 0."""
        raise _missing("open")

    def release(self, inode: Inode, fh: FileHandle) -> None:
        """The last copy of an open file was closed."""

    async def read(self, inode: Inode, fh: FileHandle, offset: int, size: int) -> bytes | bytearray | memoryview:
        """At most `size` bytes from `offset`; fewer only where the file ends."""
        raise _missing("read")

    async def write(self, inode: Inode, fh: FileHandle, offset: int, data: bytes) -> int:
        """Write `data` at `offset`; returns how many of its bytes."""
        raise _missing("write")

    async def flush(self, inode: Inode, fh: FileHandle) -> None:
        """A copy of an open file is closed: the last moment to tell its process of an error."""
        raise _missing("flush")

    async def fsync(self, inode: Inode, fh: FileHandle, datasync: bool) -> None:
        """Make it durable; `datasync`: at least its content."""
        raise _missing("fsync")

    async def syncfs(self, inode: Inode) -> None:
        """Make the whole file system durable."""
        raise _missing("syncfs")

    async def fallocate(self, inode: Inode, fh: FileHandle, offset: int, length: int, mode: int) -> None:
        """Reserve room or, by the bits of `mode` (FALLOC_FL_*), punch a hole. Raise EOPNOTSUPP for those not known."""
        raise _missing("fallocate")

    async def lseek(self, inode: Inode, fh: FileHandle, offset: int, whence: int) -> int:
        """Where the next data (`os.SEEK_DATA`) or hole (`os.SEEK_HOLE`) is. Raises: OSError: ENXIO."""
        raise _missing("lseek")

    async def copy_file_range(
        self, inode: Inode, fh: FileHandle, offset: int, to: Inode, to_fh: FileHandle, to_offset: int, length: int
    ) -> int:
        """Copy between two open files; returns the bytes copied."""
        raise _missing("copy_file_range")

    # Locks: without them a guest's locks hold within that guest. `devices.fs.locks.LockTable` does all of it.

    async def getlk(self, inode: Inode, fh: FileHandle, owner: LockOwner, lock: Lock) -> Lock | None:
        """A lock of somebody else's that `lock` would collide with."""
        raise _missing("locks")

    async def setlk(self, inode: Inode, fh: FileHandle, owner: LockOwner, lock: Lock, wait: bool) -> None:
        """Take, change or give up a lock; when it is somebody else's, `wait` for it or raise EAGAIN."""
        raise _missing("locks")

    async def flock(self, inode: Inode, fh: FileHandle, owner: LockOwner, kind: int, wait: bool) -> None:
        """Likewise for the lock on the whole of an open file. Args: kind: as `Lock.type`."""
        raise _missing("locks")

    def unlock(self, inode: Inode, owner: LockOwner) -> None:
        """All locks of `owner` on `inode` end: the file was closed, or its guest is gone."""

    # Called, not overridden: what has changed behind the guests' backs. All are told that know the file and take
    # notifications (`Fs(…, notifications=True)`, and a driver that can), but for the one whose request the task works
    # on. They return how many that are. In the event loop's thread; they do not wait.

    def notify_inode(self, inode: Inode, offset: int = 0, length: int = 0) -> int:
        """Attributes of `inode` and `length` bytes of its content (0: to the end; negative offset: none) are new."""
        return self._notify(inode, (notices.inval_inode(inode, offset, length),))

    def notify_entry(self, parent: Inode, name: str) -> int:
        """`name` in folder `parent` is something else now."""
        return self._notify(parent, (notices.inval_entry(parent, name),))

    def notify_delete(self, parent: Inode, inode: Inode, name: str) -> int:
        """`name` in folder `parent`, which was `inode`, is gone: who watches it there hears of it."""
        return self._notify(parent, (notices.delete(parent, inode, name),))

    def notify_store(self, inode: Inode, offset: int, data: bytes) -> int:
        """`data` is what `inode` holds at `offset`: guests may keep it as if they had read it."""
        return self._notify(inode, tuple(notices.store(inode, offset, data)))

    def _notify(self, inode: Inode, messages: Iterable[bytes]) -> int:
        mine = _guest.get()
        return sum(guest.tell(inode, messages) for guest in tuple(self._guests) if guest is not mine)

    @property
    def _guests(self) -> WeakSet[Guest]:
        """Those who have it mounted, or may: there is no constructor that a subclass had to call."""
        known: WeakSet[Guest] = vars(self).setdefault("_guests_of_it", WeakSet())
        return known


Filesystem.METHODS = tuple(
    name
    for name, value in vars(Filesystem).items()
    if callable(value) and not name.startswith(("_", "notify_")) and name != "overrides"
)


def entry_of(found: Any) -> Entry:
    """`found` as an `Entry`. Raises: TypeError: a method returned something else."""
    if isinstance(found, Entry):
        return found
    if isinstance(found, Attr):
        return Entry(found)
    raise TypeError(f"an Attr or an Entry is expected, not {type(found).__name__}")

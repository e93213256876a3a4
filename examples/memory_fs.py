"""A file system in memory: files, folders, links, extended attributes and locks, gone when the program ends.

    python examples/memory_fs.py /tmp/mem.sock
    qemu-system-x86_64 … -object memory-backend-memfd,id=m,size=1G,share=on -machine memory-backend=m \\
        -chardev socket,id=c,path=/tmp/mem.sock -device vhost-user-fs-pci,chardev=c,tag=mem
    guest# mount -t virtiofs mem /mnt
"""

import errno
import itertools
import stat
import sys
import time
from dataclasses import dataclass, field

import trio

import vhost
from devices.fs import Fs
from devices.fs.filesystem import (
    ROOT,
    Attr,
    Changes,
    DirEntry,
    FileHandle,
    Filesystem,
    Inode,
    Lock,
    LockOwner,
    StatFs,
    caller,
)
from devices.fs.locks import LockTable

NOREPLACE, EXCHANGE = 1, 2  # flags of rename
CREATE, REPLACE = 1, 2  # flags of setxattr


@dataclass
class Node:
    """A file of any type: what is in it, and what is known about it."""

    attr: Attr
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, Inode] = field(default_factory=dict)
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)


class MemoryFilesystem(Filesystem):
    """Holds at most `capacity` bytes of data."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.used = 0
        self.locks = LockTable()
        self.numbers = itertools.count(ROOT)
        self.nodes: dict[Inode, Node] = {}
        self.new(stat.S_IFDIR | 0o755).attr.nlink = 2

    def new(self, mode: int, rdev: int = 0) -> Node:
        now, inode = time.time_ns(), Inode(next(self.numbers))
        attr = Attr(inode, mode, rdev=rdev, uid=caller().uid, gid=caller().gid)
        attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.birth_ns = now
        node = self.nodes[inode] = Node(attr)
        return node

    def touch(self, node: Node, *, content: bool = True) -> None:
        node.attr.ctime_ns = time.time_ns()
        if content:
            node.attr.mtime_ns = node.attr.ctime_ns

    def find(self, parent: Inode, name: str) -> Node:
        try:
            return self.nodes[self.nodes[parent].names[name]]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None

    def put(self, parent: Inode, name: str, node: Node) -> Attr:
        """Give `node` a name; folders count the folders in them."""
        folder = self.nodes[parent]
        if name in folder.names:
            raise OSError(errno.EEXIST, name)
        folder.names[name] = node.attr.inode
        folder.attr.nlink += node.attr.is_dir
        self.touch(folder)
        return node.attr

    def take(self, parent: Inode, name: str) -> Node:
        """Take a name away from its file."""
        node, folder = self.find(parent, name), self.nodes[parent]
        del folder.names[name]
        folder.attr.nlink -= node.attr.is_dir
        self.touch(folder)
        return node

    def drop(self, node: Node) -> None:
        """A name of `node` is gone. Its content goes with the last one, when nobody has it open: see `forget`."""
        node.attr.nlink -= 2 if node.attr.is_dir else 1
        self.touch(node, content=False)

    def resize(self, node: Node, size: int) -> None:
        growth = size - len(node.data)
        if self.used + growth > self.capacity:
            raise OSError(errno.ENOSPC, "full")
        self.used += growth
        if growth < 0:
            del node.data[size:]
        else:
            node.data.extend(bytes(growth))
        node.attr.size = size
        self.touch(node)

    def forget(self, inode: Inode) -> None:
        if not self.nodes[inode].attr.nlink:
            self.used -= len(self.nodes.pop(inode).data)

    # Names

    async def lookup(self, parent: Inode, name: str) -> Attr:
        return self.find(parent, name).attr

    async def mknod(self, parent: Inode, name: str, mode: int, rdev: int) -> Attr:
        return self.put(parent, name, self.new(mode, rdev))

    async def create(self, parent: Inode, name: str, mode: int, flags: int) -> tuple[Attr, FileHandle]:
        return await self.mknod(parent, name, mode, 0), FileHandle(0)

    async def open(self, inode: Inode, flags: int) -> FileHandle:
        return FileHandle(0)

    async def mkdir(self, parent: Inode, name: str, mode: int) -> Attr:
        node = self.new(stat.S_IFDIR | mode)
        node.attr.nlink = 2
        return self.put(parent, name, node)

    async def symlink(self, parent: Inode, name: str, target: str) -> Attr:
        node = self.new(stat.S_IFLNK | 0o777)
        node.target, node.attr.size = target, len(target.encode(errors="surrogateescape"))
        return self.put(parent, name, node)

    async def readlink(self, inode: Inode) -> str:
        return self.nodes[inode].target

    async def link(self, inode: Inode, parent: Inode, name: str) -> Attr:
        node = self.nodes[inode]
        self.put(parent, name, node)
        node.attr.nlink += 1
        self.touch(node, content=False)
        return node.attr

    async def unlink(self, parent: Inode, name: str) -> None:
        self.drop(self.take(parent, name))

    async def rmdir(self, parent: Inode, name: str) -> None:
        if self.find(parent, name).names:
            raise OSError(errno.ENOTEMPTY, name)
        self.drop(self.take(parent, name))

    async def rename(self, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int) -> None:
        if flags & ~(NOREPLACE | EXCHANGE):
            raise OSError(errno.EINVAL, "no whiteouts here")
        self.find(parent, name)
        there = self.nodes[new_parent].names.get(new_name)
        if flags & NOREPLACE and there is not None:
            raise OSError(errno.EEXIST, new_name)
        if there is None:
            if flags & EXCHANGE:
                raise OSError(errno.ENOENT, new_name)
        elif not flags & EXCHANGE and self.nodes[there].names:
            raise OSError(errno.ENOTEMPTY, new_name)
        node = self.take(parent, name)
        if there is not None:
            old = self.take(new_parent, new_name)
            if flags & EXCHANGE:
                self.put(parent, name, old)
            else:
                self.drop(old)
        self.put(new_parent, new_name, node)
        self.touch(node, content=False)

    async def readdir(self, inode: Inode) -> list[DirEntry]:
        return [DirEntry(name, child, self.nodes[child].attr.mode) for name, child in self.nodes[inode].names.items()]

    # Content

    async def getattr(self, inode: Inode, fh: FileHandle | None = None) -> Attr:
        return self.nodes[inode].attr

    async def setattr(self, inode: Inode, changes: Changes, fh: FileHandle | None = None) -> Attr:
        node = self.nodes[inode]
        if changes.size is not None:
            self.resize(node, changes.size)
        changes.apply(node.attr)
        self.touch(node, content=False)
        return node.attr

    async def read(self, inode: Inode, fh: FileHandle, offset: int, size: int) -> bytes:
        return bytes(memoryview(self.nodes[inode].data)[offset : offset + size])

    async def write(self, inode: Inode, fh: FileHandle, offset: int, data: bytes) -> int:
        node = self.nodes[inode]
        if offset + len(data) > len(node.data):
            self.resize(node, offset + len(data))
        node.data[offset : offset + len(data)] = data
        self.touch(node)
        return len(data)

    async def statfs(self, inode: Inode) -> StatFs:
        free = (self.capacity - self.used) // 4096
        return StatFs(self.capacity // 4096, free, free, files=len(self.nodes), ffree=1 << 32)

    # Extended attributes

    async def getxattr(self, inode: Inode, name: str) -> bytes:
        try:
            return self.nodes[inode].xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, name) from None

    async def setxattr(self, inode: Inode, name: str, value: bytes, flags: int) -> None:
        xattrs = self.nodes[inode].xattrs
        if flags & CREATE and name in xattrs:
            raise OSError(errno.EEXIST, name)
        if flags & REPLACE and name not in xattrs:
            raise OSError(errno.ENODATA, name)
        xattrs[name] = value

    async def listxattr(self, inode: Inode) -> list[str]:
        return list(self.nodes[inode].xattrs)

    async def removexattr(self, inode: Inode, name: str) -> None:
        await self.getxattr(inode, name)
        del self.nodes[inode].xattrs[name]

    # Locks

    async def getlk(self, inode: Inode, fh: FileHandle, owner: LockOwner, lock: Lock) -> Lock | None:
        return self.locks.collision(inode, owner, lock)

    async def setlk(self, inode: Inode, fh: FileHandle, owner: LockOwner, lock: Lock, wait: bool) -> None:
        await self.locks.take(inode, owner, lock, wait=wait)

    async def flock(self, inode: Inode, fh: FileHandle, owner: LockOwner, kind: int, wait: bool) -> None:
        await self.locks.take_whole(inode, owner, kind, wait=wait)

    def unlock(self, inode: Inode, owner: LockOwner) -> None:
        self.locks.drop(inode, owner)


if __name__ == "__main__":
    trio.run(vhost.run_until_signal, vhost.serve, Fs(MemoryFilesystem(), tag="mem"), sys.argv[1])

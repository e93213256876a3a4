"""A folder passed through Python, with a log of all that is changed in it: one line of JSON each.

    python examples/overlay_log_fs.py /srv/share changes.jsonl /tmp/share.sock
    guest# mount -t virtiofs logged /mnt

Each file the guest knows takes a descriptor here. For a shared folder that is to be fast there is `vhost fs`.
"""

import errno
import json
import os
import stat
import sys
import time
from typing import Any, TextIO

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
    StatFs,
    caller,
)

PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class LoggingFilesystem(Filesystem):
    """Passes `folder` on, and writes to `log` what is changed there."""

    def __init__(self, folder: str, log: TextIO) -> None:
        self.log = log
        self.fds: dict[Inode, int] = {ROOT: os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}
        self.numbers: dict[tuple[int, int], Inode] = {}  # device and inode there -> our number
        self.last = ROOT

    def note(self, what: str, fd: int, name: str = "", **more: Any) -> None:
        path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), name) if name else os.readlink(f"/proc/self/fd/{fd}")
        print(json.dumps({"time": time.time(), "what": what, "path": path, "uid": caller().uid, **more}), file=self.log)

    @staticmethod
    def attr(inode: Inode, st: os.stat_result) -> Attr:
        return Attr(
            inode, st.st_mode, st.st_size, st.st_nlink, st.st_uid, st.st_gid, st.st_rdev,
            st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns, blksize=st.st_blksize, blocks=st.st_blocks,
        )  # fmt: skip

    def opened(self, inode: Inode, flags: int) -> int:
        """A new descriptor of a file that is known; nothing but files and folders is ever opened."""
        fd = self.fds[inode]
        if stat.S_IFMT(os.fstat(fd).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError(errno.ENXIO, "no file")
        return os.open(f"/proc/self/fd/{fd}", (flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)) | os.O_CLOEXEC)

    def mine(self, parent: Inode, name: str) -> None:
        """What was made in somebody's name is theirs."""
        os.chown(name, caller().uid, caller().gid, dir_fd=self.fds[parent], follow_symlinks=False)

    def forget(self, inode: Inode) -> None:
        fd = self.fds.pop(inode)
        st = os.fstat(fd)
        del self.numbers[st.st_dev, st.st_ino]
        os.close(fd)

    # Names

    async def lookup(self, parent: Inode, name: str) -> Attr:
        fd = os.open(name, PATH_ONLY, dir_fd=self.fds[parent])
        st = os.fstat(fd)
        key = st.st_dev, st.st_ino
        if key in self.numbers:
            os.close(fd)
        else:
            self.last = self.numbers[key] = Inode(self.last + 1)
            self.fds[self.last] = fd
        return self.attr(self.numbers[key], st)

    async def readdir(self, inode: Inode) -> list[DirEntry]:
        fd = self.opened(inode, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return [
                    DirEntry(e.name, Inode(e.inode()), stat.S_IFDIR if e.is_dir(follow_symlinks=False) else 0)
                    for e in entries
                ]
        finally:
            os.close(fd)

    async def readlink(self, inode: Inode) -> str:
        return os.readlink("", dir_fd=self.fds[inode])

    async def mkdir(self, parent: Inode, name: str, mode: int) -> Attr:
        os.mkdir(name, mode, dir_fd=self.fds[parent])
        self.mine(parent, name)
        self.note("mkdir", self.fds[parent], name)
        return await self.lookup(parent, name)

    async def symlink(self, parent: Inode, name: str, target: str) -> Attr:
        os.symlink(target, name, dir_fd=self.fds[parent])
        self.mine(parent, name)
        self.note("symlink", self.fds[parent], name, target=target)
        return await self.lookup(parent, name)

    async def link(self, inode: Inode, parent: Inode, name: str) -> Attr:
        os.link(f"/proc/self/fd/{self.fds[inode]}", name, dst_dir_fd=self.fds[parent], follow_symlinks=True)
        self.note("link", self.fds[parent], name)
        return await self.lookup(parent, name)

    async def unlink(self, parent: Inode, name: str) -> None:
        os.unlink(name, dir_fd=self.fds[parent])
        self.note("unlink", self.fds[parent], name)

    async def rmdir(self, parent: Inode, name: str) -> None:
        os.rmdir(name, dir_fd=self.fds[parent])
        self.note("rmdir", self.fds[parent], name)

    async def rename(self, parent: Inode, name: str, new_parent: Inode, new_name: str, flags: int) -> None:
        if flags:
            raise OSError(errno.EINVAL, "no flags of rename here")
        os.rename(name, new_name, src_dir_fd=self.fds[parent], dst_dir_fd=self.fds[new_parent])
        self.note("rename", self.fds[parent], name, to=new_name)

    # Content

    async def getattr(self, inode: Inode, fh: FileHandle | None = None) -> Attr:
        return self.attr(inode, os.fstat(self.fds[inode]))

    async def setattr(self, inode: Inode, changes: Changes, fh: FileHandle | None = None) -> Attr:
        path = f"/proc/self/fd/{self.fds[inode]}"
        st = os.stat(path)
        if changes.uid is not None or changes.gid is not None:
            os.chown(path, -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid)
        if changes.mode is not None:
            os.chmod(path, changes.mode)
        if changes.size is not None:
            os.truncate(path, changes.size)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            atime = st.st_atime_ns if changes.atime_ns is None else changes.atime_ns
            os.utime(path, ns=(atime, st.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns))
        said = {
            name: getattr(changes, name)
            for name in ("mode", "uid", "gid", "size")
            if getattr(changes, name) is not None
        }
        self.note("setattr", self.fds[inode], **said)
        return await self.getattr(inode)

    async def create(self, parent: Inode, name: str, mode: int, flags: int) -> tuple[Attr, FileHandle]:
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC  # another name would be another file's
        fd = os.open(name, flags & ~os.O_APPEND, mode & 0o7777, dir_fd=self.fds[parent])
        os.fchown(fd, caller().uid, caller().gid)
        self.note("create", self.fds[parent], name)
        return await self.lookup(parent, name), FileHandle(fd)

    async def open(self, inode: Inode, flags: int) -> FileHandle:
        return FileHandle(self.opened(inode, flags & ~(os.O_APPEND | os.O_TRUNC)))

    def release(self, inode: Inode, fh: FileHandle) -> None:
        os.close(fh)

    async def read(self, inode: Inode, fh: FileHandle, offset: int, size: int) -> bytes:
        return await trio.to_thread.run_sync(os.pread, fh, size, offset)

    async def write(self, inode: Inode, fh: FileHandle, offset: int, data: bytes) -> int:
        done = await trio.to_thread.run_sync(os.pwrite, fh, data, offset)
        self.note("write", fh, offset=offset, size=done)
        return done

    async def fsync(self, inode: Inode, fh: FileHandle, datasync: bool) -> None:
        await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    async def statfs(self, inode: Inode) -> StatFs:
        st = os.statvfs(f"/proc/self/fd/{self.fds[ROOT]}")
        return StatFs(
            st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_frsize, st.f_namemax
        )


if __name__ == "__main__":
    with open(sys.argv[2], "a", buffering=1) as changes:
        served = Fs(LoggingFilesystem(sys.argv[1], changes), tag="logged")
        trio.run(vhost.run_until_signal, vhost.serve, served, sys.argv[3])

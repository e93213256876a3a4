"""A zip or tar archive as a folder, read-only: nothing is unpacked but what the guest reads.

python examples/archive_fs.py photos.zip /tmp/photos.sock
guest# mount -t virtiofs archive /mnt
"""

import errno
import os
import stat
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

import trio

import vhost
from devices.fs import Fs
from devices.fs.filesystem import ROOT, Attr, DirEntry, FileHandle, Filesystem, Inode

TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
}


class ArchiveFilesystem(Filesystem):
    """What is in the archive at `path`. Nothing changes, so the guest may keep all it has seen."""

    entry_timeout = attr_timeout = negative_timeout = 3600.0

    def __init__(self, path: str) -> None:
        self.attrs = [Attr(Inode(0), 0), Attr(ROOT, stat.S_IFDIR | 0o755, nlink=2)]  # by number
        self.names: dict[Inode, dict[str, Inode]] = {ROOT: {}}
        self.load: dict[Inode, Callable[[], bytes]] = {}
        self.open_files: dict[FileHandle, bytes] = {}
        self.next = 0
        self.one_at_a_time = trio.Lock()  # archives have one file position
        if zipfile.is_zipfile(path):
            self.add_zip(zipfile.ZipFile(path))
        else:
            self.add_tar(tarfile.open(path))  # noqa: SIM115 - read from as long as it is served

    def add_zip(self, archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            unix = info.external_attr >> 16
            kind = stat.S_IFDIR if info.is_dir() else stat.S_IFMT(unix) or stat.S_IFREG
            mode = kind | (stat.S_IMODE(unix) or (0o755 if info.is_dir() else 0o644))
            mtime = time.mktime((*info.date_time, 0, 0, -1))
            self.add(info.filename, mode, info.file_size, mtime, partial(archive.read, info))

    def add_tar(self, archive: tarfile.TarFile) -> None:
        for info in archive:
            if info.islnk() or info.type in TYPES:
                mode = (TYPES[info.type] if not info.islnk() else stat.S_IFREG) | info.mode
                source = archive.getmember(info.linkname) if info.islnk() else info
                self.add(info.name, mode, source.size, info.mtime, partial(self.read_tar, archive, source))

    @staticmethod
    def read_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
        if info.issym():
            return info.linkname.encode()
        file = archive.extractfile(info)
        return file.read() if file is not None else b""

    def add(self, path: str, mode: int, size: int, mtime: float, load: Callable[[], bytes]) -> None:
        inode = self.folder(PurePosixPath(path))
        attr = self.attrs[inode]
        attr.mode, attr.size, attr.mtime_ns = mode, size, int(mtime * 1e9)
        self.load[inode] = load

    def folder(self, path: PurePosixPath) -> Inode:
        """The inode of `path`, made if it is new; archives need not name the folders their files are in."""
        inode = ROOT
        for part in path.parts:
            if part in ("/", ".", ".."):
                continue
            names = self.names.setdefault(inode, {})
            if part not in names:
                names[part] = Inode(len(self.attrs))
                self.attrs.append(Attr(names[part], stat.S_IFDIR | 0o755))
            inode = names[part]
        return inode

    async def content(self, inode: Inode) -> bytes:
        async with self.one_at_a_time:
            return await trio.to_thread.run_sync(self.load[inode])

    async def lookup(self, parent: Inode, name: str) -> Attr:
        try:
            return self.attrs[self.names[parent][name]]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None

    async def getattr(self, inode: Inode, fh: FileHandle | None = None) -> Attr:
        return self.attrs[inode]

    async def readdir(self, inode: Inode) -> list[DirEntry]:
        return [DirEntry(name, child, self.attrs[child].mode) for name, child in self.names.get(inode, {}).items()]

    async def readlink(self, inode: Inode) -> str:
        return (await self.content(inode)).decode()

    async def open(self, inode: Inode, flags: int) -> FileHandle:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "an archive is read-only")
        self.next += 1
        fh = FileHandle(self.next)
        self.open_files[fh] = await self.content(inode)
        return fh

    def release(self, inode: Inode, fh: FileHandle) -> None:
        del self.open_files[fh]

    async def read(self, inode: Inode, fh: FileHandle, offset: int, size: int) -> bytes:
        return self.open_files[fh][offset : offset + size]


if __name__ == "__main__":
    trio.run(vhost.run_until_signal, vhost.serve, Fs(ArchiveFilesystem(sys.argv[1]), tag="archive"), sys.argv[2])

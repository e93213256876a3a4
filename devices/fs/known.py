"""What a guest knows of a Python file system: inodes it looked up, files it opened."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from devices.fs.filesystem import ROOT, DirEntry, FileHandle, Filesystem, Inode, LockOwner

__all__ = ["Handle", "Handles", "Inodes", "tell"]

log = logging.getLogger(__name__)

HANDLES_MAX = 65536  # open files of one guest
FOLDERS_MAX = 4096  # of them folders, each with a listing


def tell(method: Callable[..., None], *args: object) -> None:
    """Call a method that nobody waits for: what it raises is logged."""
    try:
        method(*args)
    except Exception:
        log.exception("%s failed", getattr(method, "__qualname__", method))


class _Node:
    """An inode that some guest knows or some request uses."""

    __slots__ = ("guests", "users")

    def __init__(self) -> None:
        self.guests = 0
        self.users = 0


class Inodes:
    """How often one guest looked each inode up. What all guests know is shared by those of one file system."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._nodes: dict[int, _Node] = vars(fs).setdefault("_known_inodes", {})
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        """Inodes the guest knows, the root aside."""
        return len(self._counts)

    def __contains__(self, inode: int) -> bool:
        """The guest knows it."""
        return inode == ROOT or inode in self._counts

    def enter(self, inode: int) -> Inode:
        """A request begins to use `inode`. Raises: OSError: ESTALE."""
        if inode == ROOT:
            return ROOT
        if inode not in self._counts:
            raise OSError(errno.ESTALE, f"the guest was never given inode {inode}")
        self._nodes[inode].users += 1
        return Inode(inode)

    def leave(self, inode: int) -> None:
        """A request is done with `inode`."""
        if inode != ROOT:
            node = self._nodes[inode]
            node.users -= 1
            self._maybe_forget(inode, node)

    @contextmanager
    def using(self, inode: int) -> Iterator[Inode]:
        """`enter` and `leave` around a block."""
        known = self.enter(inode)
        try:
            yield known
        finally:
            self.leave(inode)

    def found(self, inode: int) -> None:
        """A reply names `inode`."""
        if inode == ROOT:
            return
        count = self._counts.get(inode, 0)
        self._counts[inode] = count + 1
        if not count:
            self._nodes.setdefault(inode, _Node()).guests += 1

    def forget(self, inode: int, times: int) -> None:
        """The guest gives back `times` of what `found` counted; more than that is a guest's mistake, and all."""
        count = self._counts.get(inode)
        if count is None:
            return
        if times < count:
            self._counts[inode] = count - times
            return
        del self._counts[inode]
        node = self._nodes[inode]
        node.guests -= 1
        self._maybe_forget(inode, node)

    def clear(self) -> None:
        """The guest knows nothing any more."""
        for inode in tuple(self._counts):
            self.forget(inode, self._counts[inode])

    def _maybe_forget(self, inode: int, node: _Node) -> None:
        if not node.guests and not node.users:
            del self._nodes[inode]
            tell(self._fs.forget, Inode(inode))


class Handle:
    """An open file or folder: `number` is what the guest calls it, `fh` what the file system does."""

    __slots__ = ("fh", "gone", "inode", "listing", "number", "opened", "users")

    def __init__(self, number: int, inode: Inode, fh: FileHandle, *, opened: bool) -> None:
        self.number = number
        self.inode = inode
        self.fh = fh
        self.opened = opened  # by the file system, which is told of its end
        self.users = 0
        self.gone = False
        self.listing: list[DirEntry] | None = None


class Handles:
    """Open files and folders of one guest, and who may have locks there."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._open: dict[int, Handle] = {}
        self._next = 0
        self._folders = 0
        self._owners: set[tuple[Inode, LockOwner]] = set()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    def room(self, *, folder: bool = False) -> None:
        """Raises: OSError: ENFILE: the guest has as many open as it may."""
        if len(self._open) >= HANDLES_MAX or (folder and self._folders >= FOLDERS_MAX):
            raise OSError(errno.ENFILE, f"the guest has {len(self._open)} files open, {self._folders} of them folders")

    def add(self, inode: Inode, fh: Any, *, folder: bool = False) -> Handle:
        """A file or folder was opened; an `fh` that is no number is the file system's mistake."""
        if not isinstance(fh, int):
            raise TypeError(f"a FileHandle or Opened is expected, not {type(fh).__name__}")
        self._next += 1
        handle = self._open[self._next] = Handle(self._next, inode, FileHandle(fh), opened=not folder)
        if folder:
            handle.listing = []
            self._folders += 1
        return handle

    def enter(self, number: int, inode: int, *, folder: bool = False) -> Handle:
        """A request begins to use handle `number` of `inode`. Raises: OSError: EBADF."""
        handle = self._open.get(number)
        if handle is None or handle.inode != inode or (handle.listing is None) == folder:
            raise OSError(errno.EBADF, f"the guest has no handle {number} of inode {inode}")
        handle.users += 1
        return handle

    def leave(self, handle: Handle) -> None:
        """A request is done with it."""
        handle.users -= 1
        self._maybe_release(handle)

    def close(self, number: int, inode: int, *, folder: bool = False) -> None:
        """The guest closed it. Raises: OSError: EBADF."""
        handle = self._open.get(number)
        if handle is None or handle.inode != inode or (handle.listing is None) == folder:
            raise OSError(errno.EBADF, f"the guest has no handle {number} of inode {inode}")
        self._drop(handle)

    def clear(self) -> None:
        """The guest is gone: all its locks end and its files are closed."""
        for inode, owner in tuple(self._owners):
            self.unlock(inode, owner)
        for handle in tuple(self._open.values()):
            self._drop(handle)

    def may_lock(self, inode: Inode, owner: LockOwner) -> None:
        """`owner` may have locks on `inode` from now on. Raises: OSError: ENOLCK: too many do."""
        if len(self._owners) >= HANDLES_MAX and (inode, owner) not in self._owners:
            raise OSError(errno.ENOLCK, f"the guest has locks of {len(self._owners)} owners")
        self._owners.add((inode, owner))

    def unlock(self, inode: Inode, owner: LockOwner) -> None:
        """All locks of `owner` on `inode` end."""
        if (inode, owner) in self._owners:
            self._owners.discard((inode, owner))
            tell(self._fs.unlock, inode, owner)

    def _drop(self, handle: Handle) -> None:
        del self._open[handle.number]
        if handle.listing is not None:
            self._folders -= 1
        handle.gone = True
        self._maybe_release(handle)

    def _maybe_release(self, handle: Handle) -> None:
        if handle.gone and not handle.users and handle.opened:
            tell(self._fs.release, handle.inode, handle.fh)

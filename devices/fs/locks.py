"""Locks of files in memory, for file systems in Python that have no other place for them.

    class Mine(Filesystem):
        def __init__(self):
            self._locks = LockTable()

        async def getlk(self, inode, fh, owner, lock):
            return self._locks.collision(inode, owner, lock)

        async def setlk(self, inode, fh, owner, lock, wait):
            await self._locks.take(inode, owner, lock, wait=wait)

        async def flock(self, inode, fh, owner, kind, wait):
            await self._locks.take_whole(inode, owner, kind, wait=wait)

        def unlock(self, inode, owner):
            self._locks.drop(inode, owner)

They hold between all guests of the file system, and within each.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import trio

from devices.fs.filesystem import Inode, Lock, LockOwner

__all__ = ["LockTable"]

_LAST = (1 << 63) - 1  # to the end of the file, however long it grows
_LOCKS_MAX = 65536  # of one file: a guest can split its ranges as finely as it likes


@dataclass(frozen=True, slots=True)
class _Held:
    owner: LockOwner
    lock: Lock


class _File:
    """Locks of one file: ranges in order, those on the whole, and who waits for a change."""

    def __init__(self) -> None:
        self.ranges: list[_Held] = []
        self.whole: dict[LockOwner, int] = {}
        self.waiting = 0
        self.changed = trio.Event()

    @property
    def idle(self) -> bool:
        return not (self.ranges or self.whole or self.waiting)

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def blockers(self, owner: LockOwner, lock: Lock) -> Iterator[_Held]:
        """Locks of others that collide with `lock`."""
        for held in self.ranges:
            old = held.lock
            meets = old.start <= lock.end and lock.start <= old.end
            if held.owner != owner and meets and fcntl.F_WRLCK in (old.type, lock.type):
                yield held

    def put(self, owner: LockOwner, lock: Lock) -> None:
        """Make `lock` true of `owner`'s bytes: what it had there before is cut, neighbours of one kind are joined."""
        kept, mine = [], lock
        for held in self.ranges:
            old = held.lock
            if held.owner != owner:
                kept.append(held)
            elif old.type == mine.type and old.start <= mine.end + 1 and mine.start <= old.end + 1:
                mine = replace(mine, start=min(old.start, mine.start), end=max(old.end, mine.end))
            else:
                if old.start < lock.start:
                    kept.append(_Held(owner, replace(old, end=min(old.end, lock.start - 1))))
                if old.end > lock.end:
                    kept.append(_Held(owner, replace(old, start=max(old.start, lock.end + 1))))
        if mine.type != fcntl.F_UNLCK:
            kept.append(_Held(owner, mine))
        if len(kept) > max(len(self.ranges), _LOCKS_MAX):
            raise OSError(errno.ENOLCK, f"{len(self.ranges)} locks on one file")
        self.ranges = sorted(kept, key=lambda held: held.lock.start)
        self.tell()


class LockTable:
    """POSIX locks on ranges and flock's on whole files; the two do not see each other, as on Linux."""

    def __init__(self) -> None:
        self._files: dict[Inode, _File] = {}
        self._blocked: list[tuple[LockOwner, set[LockOwner]]] = []  # who waits, and for whom

    def collision(self, inode: Inode, owner: LockOwner, lock: Lock) -> Lock | None:
        """A lock of somebody else's that `lock` would collide with."""
        file = self._files.get(inode)
        return next((held.lock for held in file.blockers(owner, lock)), None) if file is not None else None

    async def take(self, inode: Inode, owner: LockOwner, lock: Lock, *, wait: bool) -> None:
        """Take, change or (F_UNLCK) give up.

        Raises: OSError: EAGAIN: somebody else's; EDEADLK: those in the way wait for `owner`; ENOLCK: too many.
        Cancellation: nothing was taken.
        """
        _check(lock)

        def blocked(file: _File) -> set[LockOwner]:
            return {held.owner for held in file.blockers(owner, lock)} if lock.type != fcntl.F_UNLCK else set()

        await self._until(inode, owner, blocked, lambda file: file.put(owner, lock), wait, detect=True)

    async def take_whole(self, inode: Inode, owner: LockOwner, kind: int, *, wait: bool) -> None:
        """flock: take, change or give up the lock of `kind` on a whole file. Raises: OSError: as `take`."""

        def blocked(file: _File) -> set[LockOwner]:
            by = {o for o, theirs in file.whole.items() if o != owner and fcntl.F_WRLCK in (kind, theirs)}
            if kind == fcntl.F_UNLCK or not by:
                return set()
            if wait and file.whole.pop(owner, None) is not None:
                file.tell()  # as flock(2): who waits to change the kind of a lock gives up the old one first
            return by

        def put(file: _File) -> None:
            if kind == fcntl.F_UNLCK:
                file.whole.pop(owner, None)
            else:
                file.whole[owner] = kind
            file.tell()

        await self._until(inode, owner, blocked, put, wait)

    def drop(self, inode: Inode, owner: LockOwner) -> None:
        """All locks of `owner` on `inode` end."""
        file = self._files.get(inode)
        if file is not None:
            file.whole.pop(owner, None)
            file.ranges = [held for held in file.ranges if held.owner != owner]
            file.tell()
            self._tidy(inode, file)

    async def _until(
        self,
        inode: Inode,
        owner: LockOwner,
        blocked: Callable[[_File], set[LockOwner]],
        put: Callable[[_File], None],
        wait: bool,
        *,
        detect: bool = False,
    ) -> None:
        file = self._files.setdefault(inode, _File())
        file.waiting += 1
        try:
            while by := blocked(file):
                if not wait:
                    raise OSError(errno.EAGAIN, "locked by somebody else")
                if detect and self._waits_for(by, owner):
                    raise OSError(errno.EDEADLK, "each waits for the other's lock")
                waits = (owner, by)
                self._blocked.append(waits)
                try:
                    await file.changed.wait()
                finally:
                    self._blocked.remove(waits)
            put(file)
        finally:
            file.waiting -= 1
            self._tidy(inode, file)

    def _waits_for(self, owners: set[LockOwner], target: LockOwner) -> bool:
        """Whether one of `owners` waits, by whatever detour, for `target`."""
        seen: set[LockOwner] = set()
        while owners - seen:
            seen |= owners
            owners = set().union(*(by for who, by in self._blocked if who in owners))
        return target in seen | owners

    def _tidy(self, inode: Inode, file: _File) -> None:
        if file.idle and self._files.get(inode) is file:
            del self._files[inode]


def _check(lock: Lock) -> None:
    if not 0 <= lock.start <= lock.end <= _LAST:
        raise OSError(errno.EINVAL, f"bytes {lock.start} to {lock.end} are none")
    if lock.type not in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
        raise OSError(errno.EINVAL, f"{lock.type} is no type of lock")

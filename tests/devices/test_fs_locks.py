"""Passthrough: locks of guests are locks of the host, and nobody waits for one at somebody else's cost."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from devices.fs import Passthrough
from devices.fs.config import Opcode
from tests.fsrig import END, F_OFD_SETLK, NONE, READ, ROOT, WRITE, Mount, errno_of, guest, mounted, serving, until


@asynccontextmanager
async def folder(path: Path, **how: Any) -> AsyncIterator[Mount]:
    """A guest that has `path` mounted."""
    async with mounted(Passthrough(path), **how) as mount:
        yield mount


class File:
    """An open file of a guest."""

    def __init__(self, mount: Mount, node: int, fh: int) -> None:
        self.mount, self.node, self.fh = mount, node, fh

    @classmethod
    async def open(cls, mount: Mount, name: str = "file", flags: int = os.O_RDWR) -> File:
        node = (await mount.lookup(ROOT, name)).nodeid
        return cls(mount, node, await mount.open(node, flags))

    async def lock(
        self, kind: int, start: int = 0, end: int = END, *, owner: int = 1, wait: bool = False, **how: Any
    ) -> None:
        what = {key: how.pop(key) for key in ("flock", "pid") if key in how}
        args = self.mount.lock_args(self.fh, owner, kind, start, end, **what)
        await self.mount.ask(Opcode.SETLKW if wait else Opcode.SETLK, self.node, args, room=0, **how)

    async def find(self, kind: int, start: int = 0, end: int = END, *, owner: int = 99) -> tuple[int, int, int, int]:
        """GETLK: kind, start, end and process of who is in the way."""
        args = self.mount.lock_args(self.fh, owner, kind, start, end)
        reply = await self.mount.ask(Opcode.GETLK, self.node, args, room=24)
        start, end, kind, pid = struct.unpack("<QQII", reply)
        return kind, start, end, pid

    async def release(self, **how: Any) -> None:
        await self.mount.release(self.node, self.fh, **how)


def host_can(path: Path, kind: int, start: int = 0, length: int = 0) -> bool:
    """Does somebody else on the host get such a lock now?"""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def host_lock(path: Path, how: str) -> Iterator[None]:
    """Another process of the host holds a lock: "lockf" or "flock"."""
    code = f"import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.{how}(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.communicate("\n")


@pytest.fixture(autouse=True)
def _file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)


async def test_they_lock_on_the_host(tmp_path: Path) -> None:
    """What a guest locks nobody on the host can, and the other way round; ranges are the same."""
    path = tmp_path / "file"
    async with folder(tmp_path) as mount:
        file = await File.open(mount)
        await file.lock(WRITE, 10, 19)
        await file.lock(READ, 15, 29)
        assert host_can(path, WRITE, 0, 10)
        assert not host_can(path, READ, 10, 5)
        assert host_can(path, READ, 15, 15)
        assert not host_can(path, WRITE, 15, 15)
        assert host_can(path, WRITE, 30)
        await file.lock(NONE, 12, 20)
        assert host_can(path, WRITE, 12, 9)
        assert not host_can(path, WRITE, 11, 1)
        assert not host_can(path, WRITE, 21, 1)
        await file.lock(NONE)
        assert host_can(path, WRITE)
        with host_lock(path, "lockf"):
            assert await errno_of(file.lock(READ)) == errno.EAGAIN
            assert (await file.find(READ))[:3] == (WRITE, 0, END)
        await file.lock(WRITE)


async def test_owners(tmp_path: Path) -> None:
    """Owners conflict with each other, whatever handles they use; each sees who is in its way."""
    async with folder(tmp_path) as mount:
        one, two = await File.open(mount), await File.open(mount)
        await one.lock(WRITE, 0, 9, owner=1, pid=11)
        await two.lock(WRITE, 10, 19, owner=1, pid=11)  # the same process by another handle
        await two.lock(READ, 100, END, owner=2, pid=22)
        assert await errno_of(one.lock(READ, 5, 5, owner=2)) == errno.EAGAIN
        await one.lock(WRITE, 0, 19, owner=1, pid=11)
        assert await two.find(READ, 3, 30, owner=2) == (WRITE, 0, 19, 11)
        assert await two.find(WRITE, 50, END, owner=1) == (READ, 100, END, 22)
        assert (await two.find(READ, 100, END, owner=1))[0] == NONE
        assert (await two.find(WRITE, 0, 19, owner=1))[0] == NONE
        # FLUSH: a process closed one of its handles
        await two.mount.flush(two.node, two.fh, owner=1)
        assert (await one.find(WRITE, 0, 99))[0] == NONE
        assert (await one.find(WRITE, 0, END))[3] == 22
        await two.release(flags=1, owner=2)  # RELEASE_FLUSH
        assert (await one.find(WRITE))[0] == NONE


async def test_what_cannot_be_locked(tmp_path: Path) -> None:
    """Modes of the handle, and arguments that mean nothing."""
    async with folder(tmp_path) as mount:
        reader, writer = await File.open(mount, flags=os.O_RDONLY), await File.open(mount, flags=os.O_RDWR)
        assert await errno_of(reader.lock(WRITE)) == errno.EBADF
        await reader.lock(READ)
        await reader.lock(NONE)
        for kind, start, end in ((3, 0, 1), (READ, 5, 4), (WRITE, 1 << 63, 1 << 63), (2**32 - 1, 0, 0)):
            assert await errno_of(writer.lock(kind, start, end)) == errno.EINVAL
        assert await errno_of(writer.find(NONE)) == errno.EINVAL
        writer.fh += 1 << 40
        assert await errno_of(writer.lock(READ)) == errno.EBADF
        assert await errno_of(writer.find(READ)) == errno.EBADF
        await reader.lock(READ, 5, 2**64 - 1)  # more than there can be: to the end
        assert not host_can(tmp_path / "file", WRITE, 1 << 60, 1)


@pytest.mark.parametrize("flock", [False, True])
async def test_waiting(tmp_path: Path, flock: bool) -> None:
    """Many wait, none holds up another request, and each gets it in the end."""
    async with folder(tmp_path, size=512) as mount:
        holder = await File.open(mount)
        await holder.lock(WRITE, owner=1, flock=flock)
        got = 0

        async def wait(owner: int) -> None:
            nonlocal got
            file = await File.open(mount)
            await file.lock(WRITE, owner=owner, wait=True, flock=flock, queue=1)
            got += 1
            await file.lock(NONE, owner=owner, flock=flock)
            await file.release()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for owner in range(2, 40):
                    nursery.start_soon(wait, owner)
                for _ in range(200):
                    assert (await mount.getattr(holder.node, queue=1)).size == 100
                assert got == 0
                await holder.lock(NONE, owner=1, flock=flock)
        assert got == 38


async def test_deadlocks(tmp_path: Path) -> None:
    """Owners that would wait for one another for ever: the last one is told; who only queues up is not."""
    for name in ("file", "other"):
        (tmp_path / name).touch()
    async with folder(tmp_path) as mount:
        one, other = await File.open(mount), await File.open(mount, "other")
        await one.lock(WRITE, 0, 9, owner=1)
        await other.lock(WRITE, 0, 9, owner=2)
        await one.lock(WRITE, 10, 19, owner=3)
        got: list[int] = []

        async def wait(file: File, start: int, owner: int) -> None:
            await file.lock(WRITE, start, start, owner=owner, wait=True)
            got.append(owner)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, other, 0, 1)  # 1 waits for 2
            nursery.start_soon(wait, one, 5, 3)  # 3 for 1
            nursery.start_soon(wait, one, 6, 4)  # and 4, in no circle
            await trio.sleep(0.1)
            for start in (1, 11):  # 2 for 1, and for 3, which waits for 1
                assert await errno_of(one.lock(WRITE, start, start, owner=2, wait=True)) == errno.EDEADLK
            await trio.sleep(0.05)
            assert got == []
            await other.lock(NONE, 0, 9, owner=2)
            await until(lambda: got == [1])
            nursery.start_soon(wait, one, 1, 2)  # 2 waits for 1 no longer than 1 holds it
            await trio.sleep(0.05)
            await one.lock(NONE, 0, 9, owner=1)
        assert sorted(got) == [1, 2, 3, 4]


async def test_given_up(tmp_path: Path) -> None:
    """FUSE_INTERRUPT ends the wait."""
    async with folder(tmp_path) as mount:
        file = await File.open(mount)
        await file.lock(WRITE, owner=1)
        ended = trio.Event()

        async def wait() -> None:
            assert await errno_of(file.lock(WRITE, owner=2, wait=True, unique=1000)) == errno.EINTR
            ended.set()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                while not ended.is_set():
                    await mount.call(Opcode.INTERRUPT, 0, struct.pack("<Q", 1000))
                    await trio.sleep(0.001)
        await file.lock(WRITE, owner=1)


async def test_flock(tmp_path: Path) -> None:
    """Locks of whole files belong to the open file, and go with it; they are of another kind than the others."""
    path = tmp_path / "file"
    async with folder(tmp_path) as mount:
        one, two = await File.open(mount), await File.open(mount, flags=os.O_RDONLY)
        await one.lock(WRITE, flock=True)
        assert await errno_of(two.lock(READ, flock=True)) == errno.EAGAIN
        await two.lock(READ)
        await two.lock(NONE)
        with path.open() as host:
            with pytest.raises(BlockingIOError):
                fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)
            await one.lock(READ, flock=True)
            fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)
            assert await errno_of(two.lock(WRITE, flock=True)) == errno.EAGAIN
        await one.release()
        await two.lock(WRITE, flock=True)
        await two.lock(NONE, flock=True)
        with host_lock(path, "flock"):
            assert await errno_of(two.lock(READ, flock=True)) == errno.EAGAIN


async def test_they_end_with_the_guest(tmp_path: Path) -> None:
    """A guest that goes away, or starts anew, holds nothing any more."""
    path = tmp_path / "file"
    async with Passthrough(tmp_path) as server, serving(server) as (_, socket):
        for end in ("INIT", "connection"):
            async with guest(socket) as mount:
                file = await File.open(mount)
                await file.lock(WRITE, 0, 9)
                await file.lock(WRITE, flock=True)
                assert not host_can(path, WRITE)
                if end == "INIT":
                    await mount.start()
                    assert host_can(path, WRITE)
            with trio.fail_after(60):
                while not host_can(path, WRITE):
                    await trio.sleep(0.001)


async def test_two_guests(tmp_path: Path) -> None:
    """Guests of one process lock each other out, and a wait of one ends when the other lets go."""
    async with folder(tmp_path) as first, folder(tmp_path) as second:
        one, two = await File.open(first), await File.open(second)
        await one.lock(WRITE, 0, 9)
        assert await errno_of(two.lock(READ, 5, 5)) == errno.EAGAIN
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: two.lock(WRITE, 5, 20, wait=True))
            await first.getattr(one.node)
            await one.lock(NONE, 0, 9)
        assert (await one.find(READ))[:3] == (WRITE, 5, 20)


async def test_numbers_are_bounded(tmp_path: Path) -> None:
    """A guest cannot make the host's kernel remember any number of ranges."""
    async with folder(tmp_path, size=512) as mount:
        file = await File.open(mount)
        errors: set[int] = set()

        async def lock(start: int) -> None:
            errors.add(await errno_of(file.lock(WRITE, start, start)))

        for first in range(0, 20000, 100):
            async with trio.open_nursery() as nursery:
                for at in range(first, first + 100, 2):
                    nursery.start_soon(lock, at)
            if errors != {0}:
                break
        assert errors == {0, errno.ENOLCK}
        await file.lock(NONE)
        await file.lock(WRITE, 0, 0)

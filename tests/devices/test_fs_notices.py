"""What guests are told without having asked: FUSE's notifications, over a queue of their own."""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from fsrig import _SILENT, ROOT, Mount, errno_of, serving, until

from devices.fs import Fs, NullServer, Passthrough
from devices.fs.config import FsFeature
from devices.fs.filesystem import Attr, DirEntry, Filesystem, Inode
from devices.fs.notices import BUFFER_BYTES
from devices.fs.serving import PythonServer
from vhost.frontend import Frontend

FILE = Inode(2)
INVAL_INODE, INVAL_ENTRY, STORE, DELETE = 2, 3, 4, 6
_HEAD = 16


class Shared(Filesystem):
    """A file that guests write; the others are told."""

    def __init__(self) -> None:
        self.data = b"text"

    async def lookup(self, parent, name):
        if name != "file":
            raise OSError(errno.ENOENT, name)
        return await self.getattr(FILE)

    async def getattr(self, inode, fh=None):
        return Attr(inode, stat.S_IFDIR | 0o755) if inode == ROOT else Attr(inode, stat.S_IFREG | 0o644, len(self.data))

    async def readdir(self, inode):
        return [DirEntry("file", FILE, stat.S_IFREG)]

    async def read(self, inode, fh, offset, size):
        return self.data[offset : offset + size]

    async def write(self, inode, fh, offset, data):
        self.data = self.data[:offset] + data + self.data[offset + len(data) :]
        self.notify_inode(inode, offset, len(data))
        return len(data)


class Told(Mount):
    """A driver that knows the queue for notifications, which comes before those for requests."""

    async def call(self, *args: Any, queue: int | None = None, **how: Any) -> tuple[int, bytes]:
        return await super().call(*args, queue=2 if queue is None and args[0] not in _SILENT else queue, **how)

    async def hear(self, room: int = BUFFER_BYTES) -> tuple[int, bytes]:
        """Leave a buffer; the message's kind and body, 0 where it comes back empty."""
        used, (back,) = await self.raw((), [room], 1)
        if not used:
            return 0, b""
        length, kind, unique = struct.unpack_from("<IiQ", back)
        assert (length, unique) == (used, 0)
        return kind, back[_HEAD:length]


@asynccontextmanager
async def told(path: str, *, packed: bool = False) -> AsyncIterator[Told]:
    async with Frontend.connect(path) as fe:
        assert fe.features_offered & FsFeature.NOTIFICATION
        config = await fe.get_config(0, 44)
        assert struct.unpack("<36sII", config)[1:] == (1, BUFFER_BYTES)
        await fe.start(queues=3, size=16, packed=packed)
        mount = Told(fe)
        await mount.start()
        yield mount


@asynccontextmanager
async def hearing(
    nursery: trio.Nursery, listen: Callable[[], Awaitable[tuple[int, bytes]]]
) -> AsyncIterator[list[tuple[int, bytes]]]:
    """What a buffer that is there before the block comes back with, after it."""
    found: list[tuple[int, bytes]] = []

    async def one() -> None:
        found.append(await listen())

    nursery.start_soon(one)
    await trio.testing.wait_all_tasks_blocked()
    yield found
    await until(lambda: found)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_messages(packed: bool) -> None:
    """One of each kind, to who knows the file and nobody else; before and after there are buffers for them."""
    fs = Shared()
    async with serving(PythonServer(fs), notifications=True) as (device, path), told(path, packed=packed) as mount:
        assert fs.notify_inode(FILE) == 0, "the guest does not know it"
        assert (await mount.lookup(ROOT, "file")).nodeid == FILE
        assert await mount.read(FILE, 0, 10) == b"text"
        assert fs.notify_inode(FILE, -1) == 1
        assert await mount.hear() == (INVAL_INODE, struct.pack("<Qqq", FILE, -1, 0))
        async with trio.open_nursery() as nursery:
            async with hearing(nursery, mount.hear) as found:
                assert fs.notify_inode(FILE, 4096, 100) == 1
            assert found == [(INVAL_INODE, struct.pack("<Qqq", FILE, 4096, 100))]
        assert fs.notify_entry(Inode(ROOT), "naïve") == 1
        raw = "naïve".encode()
        assert await mount.hear() == (INVAL_ENTRY, struct.pack("<QII", ROOT, len(raw), 0) + raw + b"\0")
        assert fs.notify_delete(Inode(ROOT), FILE, "file") == 1
        assert await mount.hear() == (DELETE, struct.pack("<QQII", ROOT, FILE, 4, 0) + b"file\0")
        data = bytes(range(256)) * 40
        assert fs.notify_store(FILE, 100, data) == 1
        got, at = b"", 100
        while len(got) < len(data):
            kind, body = await mount.hear()
            node, offset, size, _ = struct.unpack_from("<QQII", body)
            assert (kind, node, offset, size) == (STORE, FILE, at, len(body) - 24)
            got, at = got + body[24:], at + size
        assert got == data
        await mount.forget(FILE)
        await mount.getattr(ROOT)
        assert fs.notify_inode(FILE) == 0
        for bad in ("", "a/b", "n" * 256, "a\0b"):
            with pytest.raises(ValueError, match="is not the name of a file"):
                fs.notify_entry(Inode(ROOT), bad)
        assert device.controls()["info"]()["notifications"] == {"sent": 7, "lost": 0, "short": 0}
        assert {metric.name: metric.value for metric in device.metrics()}["fs_notifications_total"] == 7


async def test_the_others_are_told() -> None:
    """Two guests of one file system: who writes knows by itself."""
    fs = Shared()
    async with (
        serving(PythonServer(fs), notifications=True) as (_, a),
        serving(PythonServer(fs), notifications=True) as (_, b),
        serving(PythonServer(fs)) as (_, c),
        told(a) as one,
        told(b) as two,
        Frontend.connect(c) as deaf,
    ):
        await deaf.start(queues=2)
        third = Mount(deaf)
        await third.start()
        for mount in (one, two, third):
            await mount.lookup(ROOT, "file")
        await one.write(FILE, 0, b"TE")
        assert await two.hear() == (INVAL_INODE, struct.pack("<Qqq", FILE, 0, 2))
        await two.write(FILE, 0, b"XT", 2)
        assert await one.hear() == (INVAL_INODE, struct.pack("<Qqq", FILE, 2, 2))
        await third.write(FILE, 0, b"..", 4)
        for mount in (one, two):
            assert await mount.hear() == (INVAL_INODE, struct.pack("<Qqq", FILE, 4, 2))


async def test_guests_that_take_none() -> None:
    """No buffers, buffers that are too small: nobody waits, nothing grows without end, all ends cleanly."""
    fs = Shared()
    async with serving(PythonServer(fs), notifications=True) as (device, path):
        async with told(path) as mount:
            await mount.lookup(ROOT, "file")
            for number in range(10_000):
                fs.notify_inode(FILE, number)
                fs.notify_inode(FILE, number)
            for _ in range(3):
                assert await mount.hear(20) == (0, b"")
            assert (await mount.hear())[1] == struct.pack("<Qqq", FILE, 10_000 - 8192, 0), "the oldest are lost"
            for number in range(3000):
                fs.notify_store(FILE, number << 12, bytes(4096))
            counts = device.controls()["info"]()["notifications"]
            assert counts["short"] == 3
            assert counts["lost"] > 10_000 - 8192
            assert isinstance(device.server, PythonServer)
            assert len(device.server.notices) <= 1024
            assert (await mount.getattr(FILE)).size == 4
            await mount.start()
            assert len(device.server.notices) == 0, "it mounts anew"
        async with told(path) as mount:
            assert fs.notify_inode(FILE) == 0
            async with trio.open_nursery() as nursery:
                async with hearing(nursery, mount.hear) as found:
                    fs.notify_entry(Inode(ROOT), "new")
                assert found[0][0] == INVAL_ENTRY
        await until(lambda: fs.notify_entry(Inode(ROOT), "new") == 0)


async def test_drivers_that_do_not_know_them() -> None:
    """Queue 1 is for requests then."""
    fs = Shared()
    async with (
        serving(PythonServer(fs), notifications=True, request_queues=2) as (_, path),
        Frontend.connect(path) as fe,
    ):
        await fe.start(queues=3, features=0)
        mount = Mount(fe)
        await mount.start(queue=1)
        assert (await mount.lookup(ROOT, "file", queue=2)).nodeid == FILE
        assert (await mount.getattr(FILE, queue=1)).size == 4
        assert fs.notify_inode(FILE) == 0


async def test_offered_where_asked_for(tmp_path: Path) -> None:
    """By file systems in Python."""
    async with serving(PythonServer(Shared())) as (_, path), Frontend.connect(path) as fe:
        assert not fe.features_offered & FsFeature.NOTIFICATION
    async with NullServer() as null, Passthrough(tmp_path) as folder:
        for server in (null, folder):
            with pytest.raises(ValueError, match="has no notifications; file systems in Python have"):
                Fs(server, notifications=True)
    assert await errno_of(Shared().lookup(Inode(ROOT), "x")) == errno.ENOENT

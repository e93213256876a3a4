"""A guest's driver of a display, over our own front-end.

async with display(Gpu()) as guest:
    await guest.create(1, 64, 64)
    await guest.attach(1, size=64 * 64 * 4)
    await guest.show(0, 1, 64, 64)
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

import vhost
from devices.gpu import Gpu
from vhost.frontend import Frontend
from vhost.frontend.core import Target

_HEADER = struct.Struct("<IIQIB3x")
_FENCE = 1
BGRA, BGRX, ARGB, XRGB, RGBA, XBGR, ABGR, RGBX = FORMATS = (1, 2, 3, 4, 67, 68, 121, 134)


class Cmd(IntEnum):
    """Commands [VIRTIO 1.3, 5.7.6.7]."""

    GET_DISPLAY_INFO = 0x100
    RESOURCE_CREATE_2D = 0x101
    RESOURCE_UNREF = 0x102
    SET_SCANOUT = 0x103
    RESOURCE_FLUSH = 0x104
    TRANSFER_TO_HOST_2D = 0x105
    ATTACH_BACKING = 0x106
    DETACH_BACKING = 0x107
    GET_CAPSET_INFO = 0x108
    GET_CAPSET = 0x109
    GET_EDID = 0x10A
    ASSIGN_UUID = 0x10B
    CREATE_BLOB = 0x10C
    SET_SCANOUT_BLOB = 0x10D
    CTX_CREATE = 0x200
    CTX_DESTROY = 0x201
    CTX_ATTACH = 0x202
    CTX_DETACH = 0x203
    CREATE_3D = 0x204
    TO_HOST_3D = 0x205
    FROM_HOST_3D = 0x206
    SUBMIT_3D = 0x207
    MAP_BLOB = 0x208
    UNMAP_BLOB = 0x209
    UPDATE_CURSOR = 0x300
    MOVE_CURSOR = 0x301


class Resp(IntEnum):
    """Replies."""

    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_CAPSET_INFO = 0x1102
    OK_CAPSET = 0x1103
    OK_EDID = 0x1104
    OK_RESOURCE_UUID = 0x1105
    OK_MAP_INFO = 0x1106
    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205


class Reply(NamedTuple):
    """What came back."""

    type: Resp
    flags: int
    fence: int
    context: int
    ring: int
    data: bytes


class Rect(NamedTuple):
    """A rectangle, pixels."""

    x: int
    y: int
    width: int
    height: int

    def pack(self) -> bytes:
        return struct.pack("<4I", *self)


class Guest:
    """A driver."""

    def __init__(self, fe: Frontend) -> None:
        self.fe = fe
        self.pages: dict[int, list[tuple[int, int]]] = {}  # of each resource

    async def command(
        self, kind: int, body: bytes = b"", *, room: int = 4096, fence: int | None = None, context: int = 0
    ) -> Reply:
        """One command."""
        flags = 0 if fence is None else _FENCE
        head = _HEADER.pack(kind, flags, fence or 0, context, 0)
        used, (back, *_) = await self.fe.queues[0].request([head + body], [room])
        assert used >= _HEADER.size
        type_, flags, fence_id, context, ring = _HEADER.unpack_from(back)
        return Reply(Resp(type_), flags, fence_id, context, ring, back[_HEADER.size : used])

    async def do(self, kind: int, body: bytes = b"", *, fence: int | None = None, context: int = 0) -> bytes:
        """One command that has to succeed."""
        reply = await self.command(kind, body, fence=fence, context=context)
        assert reply.type < Resp.ERR_UNSPEC, reply.type.name
        return reply.data

    # Resources

    async def create(self, resource: int, width: int, height: int, kind: int = BGRX) -> None:
        await self.do(Cmd.RESOURCE_CREATE_2D, struct.pack("<4I", resource, kind, width, height))

    def allocate(self, size: int, pieces: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Pages for so many bytes: one piece, or pieces of such sizes."""
        return [(self.fe.memory.alloc(length), length) for length in pieces or (size,)]

    @staticmethod
    def entries(pages: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(struct.pack("<QII", at, length, 0) for at, length in pages)

    async def attach(self, resource: int, size: int, pieces: Sequence[int] = ()) -> None:
        pages = self.pages[resource] = self.allocate(size, pieces)
        await self.do(Cmd.ATTACH_BACKING, struct.pack("<II", resource, len(pages)) + self.entries(pages))

    async def blob(self, resource: int, size: int, pieces: Sequence[int] = ()) -> None:
        pages = self.pages[resource] = self.allocate(size, pieces)
        body = struct.pack("<4IQQ", resource, 1, 3, len(pages), 0, size)
        await self.do(Cmd.CREATE_BLOB, body + self.entries(pages))

    def draw(self, resource: int, data: bytes, at: int = 0) -> None:
        """Put bytes into the pages of a resource."""
        for gpa, length in self.pages[resource]:
            if at < length:
                part = data[: length - at]
                self.fe.memory.write(gpa + at, part)
                data, at = data[len(part) :], 0
            else:
                at -= length
        assert not data

    async def transfer(self, resource: int, rect: Rect, offset: int = 0) -> None:
        await self.do(Cmd.TRANSFER_TO_HOST_2D, rect.pack() + struct.pack("<QII", offset, resource, 0))

    async def flush(self, resource: int, rect: Rect) -> None:
        await self.do(Cmd.RESOURCE_FLUSH, rect.pack() + struct.pack("<II", resource, 0))

    async def show(self, scanout: int, resource: int, width: int, height: int, x: int = 0, y: int = 0) -> None:
        await self.do(Cmd.SET_SCANOUT, Rect(x, y, width, height).pack() + struct.pack("<II", scanout, resource))

    async def show_blob(
        self,
        scanout: int,
        resource: int,
        width: int,
        height: int,
        *,
        kind: int = BGRX,
        offset: int = 0,
        stride: int = 0,
    ) -> None:
        body = Rect(0, 0, width, height).pack() + struct.pack("<6I", scanout, resource, width, height, kind, 0)
        body += struct.pack("<8I", stride or width * 4, 0, 0, 0, offset, 0, 0, 0)
        await self.do(Cmd.SET_SCANOUT_BLOB, body)

    async def unref(self, resource: int) -> None:
        await self.do(Cmd.RESOURCE_UNREF, struct.pack("<II", resource, 0))

    # 3D

    async def context(self, number: int, name: bytes = b"a program") -> None:
        await self.do(Cmd.CTX_CREATE, struct.pack("<II64s", len(name), 0, name), context=number)

    async def create_3d(self, resource: int, width: int, height: int, **what: int) -> None:
        await self.do(Cmd.CREATE_3D, self.in_3d(resource, width, height, **what))

    @staticmethod
    def in_3d(
        resource: int,
        width: int,
        height: int,
        *,
        kind: int = BGRX,
        bind: int = 2,
        flags: int = 1,
        target: int = 2,
        depth: int = 1,
        layers: int = 1,
    ) -> bytes:
        return struct.pack("<12I", resource, target, kind, bind, width, height, depth, layers, 0, 0, flags, 0)

    async def transfer_3d(
        self, kind: int, resource: int, rect: Rect, *, offset: int = 0, context: int = 0, fence: int | None = None
    ) -> None:
        box = struct.pack("<6I", rect.x, rect.y, 0, rect.width, rect.height, 1)
        await self.do(kind, box + struct.pack("<Q4I", offset, resource, 0, 0, 0), context=context, fence=fence)

    async def submit(self, context: int, words: Sequence[int], *, fence: int | None = None) -> Reply:
        """Commands of a context."""
        data = struct.pack(f"<{len(words)}I", *words)
        body = struct.pack("<II", len(data), 0) + data
        return await self.command(Cmd.SUBMIT_3D, body, context=context, fence=fence)

    def pixels(self, resource: int, size: int) -> bytes:
        """What lies in its pages."""
        found = b"".join(self.fe.memory.read(gpa, length) for gpa, length in self.pages[resource])
        return found[:size]

    async def cursor(
        self, resource: int, x: int, y: int, *, scanout: int = 0, hot: tuple[int, int] = (0, 0), move: bool = False
    ) -> None:
        """A command on the cursor queue."""
        kind = Cmd.MOVE_CURSOR if move else Cmd.UPDATE_CURSOR
        body = struct.pack("<8I", scanout, x, y, 0, resource, *hot, 0)
        used, _ = await self.fe.queues[1].request([_HEADER.pack(kind, 0, 0, 0, 0) + body])
        assert used == 0

    async def paint(self, scanout: int, resource: int, width: int, height: int, pixels: bytes) -> None:
        """All that it takes to show a picture."""
        await self.create(resource, width, height)
        await self.attach(resource, len(pixels))
        self.draw(resource, pixels)
        await self.show(scanout, resource, width, height)
        await self.transfer(resource, Rect(0, 0, width, height))
        await self.flush(resource, Rect(0, 0, width, height))


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and theirs, but for those that lead a session of their own (the tests' guard)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and fields[3] != path.parent.name:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


@asynccontextmanager
async def plugged(gpu: Gpu) -> AsyncIterator[str]:
    """A socket at which a display is served."""
    with tempfile.TemporaryDirectory(prefix="vhk-") as folder:
        path = str(Path(folder) / "s")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(vhost.serve, gpu, path, options=vhost.Options(shmem=True)))
            yield path
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def driver(
    path: Target, *, packed: bool = False, features: int = 0xE, memory: int = 64 << 20
) -> AsyncIterator[Guest]:
    """A driver of what is served there."""
    async with Frontend.connect(path, memory_size=memory, timeout=60) as fe:
        await fe.start(queues=2, size=64, packed=packed, features=features)
        yield Guest(fe)


@asynccontextmanager
async def display(
    gpu: Gpu, *, packed: bool = False, features: int = 0xE, memory: int = 64 << 20
) -> AsyncIterator[Guest]:
    """A display and its driver."""
    async with plugged(gpu) as path, driver(path, packed=packed, features=features, memory=memory) as guest:
        yield guest

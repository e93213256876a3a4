"""A guest whose back-end comes and goes: memory and rings stay, as they do in a VMM that connects again."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import peerlib
from fsrig import Mount
from keptring import Kept

from vhost.constants import VirtioFeature
from vhost.frontend import Frontend
from vhost.frontend.memory import Memory
from vhost.frontend.queue import Queue
from vhost.frontend.rings import make_ring

VHOST = str(Path(sys.executable).with_name("vhost"))
_QUEUES, _SIZE = 2, 64


class Guest:
    """Memory and rings that stay while back-ends come and go."""

    def __init__(self, folder: Path, *args: object, packed: bool = False) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir(exist_ok=True)
        self.command = [VHOST, "fs", "--socket-path", str(folder / "s"), "--shared-dir", str(self.shared)]
        self.command += ["--state-file", str(folder / "state"), *map(str, args)]
        self.features = VirtioFeature.VERSION_1 | (VirtioFeature.RING_PACKED if packed else 0)
        self.packed = packed
        self.memory = Memory(16 << 20)
        self.rings: list[Kept] = []
        self.region: Any = None
        self.backend: peerlib.Backend | None = None
        self._mount: Mount | None = None

    def start(self) -> None:
        """A new back-end."""
        self.backend = peerlib.Backend(self.command, self.folder / "s", self.folder / "log")
        self.backend.connect().close()

    def kill(self) -> None:
        assert self.backend is not None
        self.backend.process.kill()
        self.backend.process.wait()

    @asynccontextmanager
    async def connected(self, *, inflight: bool = True) -> AsyncIterator[Mount]:
        """A life of the connection."""
        async with Frontend.connect(str(self.folder / "s"), memory=self.memory, timeout=60) as fe:
            await fe.negotiate(self.features)
            await fe.share_memory()
            if inflight:
                if self.region is None:
                    self.region = await fe.get_inflight(_QUEUES, _SIZE)
                await fe.set_inflight(self.region)
            for index in range(_QUEUES):
                if len(self.rings) == index:
                    self.rings.append(Kept(make_ring(self.memory, _SIZE, fe.features)))
                queue = Queue(self.memory, index, self.rings[index])
                fe.queues[index] = queue
                fe._spawn(queue.serve_calls)
                fe._spawn(queue.serve_errors)
            await fe.start_queues()
            mount = Mount(fe)
            mount._unique = 1000 * len(self.backend.words if self.backend else "")
            if self._mount is not None:
                mount.init = self._mount.init
            self._mount = mount
            yield mount

    def leave(self, mount: Mount, opcode: int, node: int, args: bytes, token: int, room: int = 256) -> tuple[int, int]:
        """Put a request into the ring that nobody waits for; its id in the ring, and where its answer will be."""
        request = mount.header(opcode, node, len(args)) + args
        at, answer = self.memory.alloc(len(request)), self.memory.alloc(16 + room)
        self.memory.write(at, request)
        number = self.rings[1].ring.add([(at, len(request))], [(answer, 16 + room)], token)
        self.rings[1].ring.publish()
        return number, answer

    def mark(self, number: int, counter: int) -> None:
        """Write into the record that the request was being carried out. [rst "Inflight I/O tracking", split]"""
        assert not self.packed
        stride = self.region.message.mmap_size // _QUEUES
        at = self.region.message.mmap_offset + stride + 16 + 16 * number
        os.pwrite(self.region.fd.fileno(), struct.pack("<B7xQ", 1, counter), at)

    def error(self, answer: int) -> int:
        """What the request was answered."""
        return -int.from_bytes(self.memory.read(answer + 4, 4), "little", signed=True)

    def close(self) -> None:
        if self.backend is not None and self.backend.process.poll() is None:
            assert self.backend.end() == 0
        if self.region is not None:
            self.region.close()
        for ring in self.rings:
            ring.ring.close()
        self.memory.close()


@asynccontextmanager
async def running(here: Path, *args: object, **how: Any) -> AsyncIterator[Guest]:
    one = Guest(here, *args, **how)
    try:
        one.start()
        yield one
    finally:
        one.close()

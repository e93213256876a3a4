"""Small devices in Python, and a server around them: what the tests of the server share."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

import ring
import vhost


class Echo(vhost.Device):
    """Copies what it reads to where it may write. Requests wait while `gate` is shut."""

    device_id = 0xFFFF
    queue_sizes = (256, 256)

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()
        self.taken = 0
        self.order: list[bytes] = []
        self.served: list[bytes] = []
        self.features_seen: list[int] = []
        self.resets = 0
        self.space = bytearray(b"\x01\x02\x03\x04\x05\x06\x07\x08")
        self.state = b""

    def config(self) -> bytes:
        return bytes(self.space)

    def set_config(self, offset: int, data: bytes) -> None:
        if offset == 0:
            raise ValueError("the first byte is read-only")
        self.space[offset : offset + len(data)] = data

    def features_acked(self, features: int) -> None:
        self.features_seen.append(features)

    def reset(self) -> None:
        self.resets += 1

    async def save_state(self) -> bytes:
        return self.state

    async def load_state(self, state: bytes) -> None:
        if state.startswith(b"bad"):
            raise ValueError("not a state of this device")
        self.state = state

    async def run(self, queue: ring.Virtqueue) -> None:
        async with trio.open_nursery() as nursery:
            async for chain in queue:
                self.taken += 1
                self.order.append(chain.read(0, chain.out_bytes))
                nursery.start_soon(self._one, chain)

    async def _one(self, chain: ring.Chain) -> None:
        data = chain.read(0, chain.out_bytes)
        await self.gate.wait()
        self.served.append(data)
        chain.complete(chain.write(0, data))

    def shut(self) -> None:
        """Hold requests from now on."""
        self.gate = trio.Event()

    async def until_taken(self, count: int) -> None:
        """Wait until the device has been handed `count` requests in all."""
        with trio.fail_after(60):
            while self.taken < count:
                await trio.sleep(0.002)


@asynccontextmanager
async def serving(device: vhost.Device, **how: Any) -> AsyncIterator[tuple[str, vhost.Server]]:
    """`device` served on a socket of its own: path and server."""
    with tempfile.TemporaryDirectory(prefix="vhost-") as folder:
        path = str(Path(folder) / "s")
        options = how.pop("options", None)
        async with vhost.open_server(**how) as server:
            await server.listen(device, path, options=options)
            yield path, server

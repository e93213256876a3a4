"""Two devices written in Python in one process, for the hostile tests: python tests/twodevices.py SOCKET SOCKET."""

from __future__ import annotations

import os
import sys

import trio

import ring
import vhost
from vhost import logs


class Entropy(vhost.Device):
    device_id = 4
    queue_sizes = (256, 256)

    async def run(self, queue: ring.Virtqueue) -> None:
        async for chain in queue:
            for view in chain.writable:
                view[:] = os.urandom(len(view))
            chain.complete(chain.in_bytes)


async def main() -> None:
    async with vhost.open_server() as server:
        for path in sys.argv[1:]:
            await server.listen(Entropy(), path)
        await trio.sleep_forever()


logs.setup("info", "text")
trio.run(vhost.run_until_signal, main)

"""User-mode Linux before back-ends that its front-end does not get on with: a relay for the messages, and no more.

virtio_uml sends a memory table with room for a second region behind it, which virtiofsd in Rust refuses, and reads the
tag by GET_CONFIG, which virtiofsd in C does not have. The relay cuts the one and answers the other. Memory, kicks and
calls go past it: once the rings run, nothing passes through.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import trio

from bench.guest_fio import cpu_ns
from devices.fs.config import pack_config
from vhost import wire
from vhost.channel import Channel
from vhost.constants import FrontendRequest, ProtocolFeature
from vhost.messages import Config


class Relay:
    """Between one front-end and the back-end at `socket`, called `tag`."""

    def __init__(self, socket: Path, tag: str) -> None:
        self._socket = socket
        self._config = pack_config(tag, 1)
        self._lends = False
        """The configuration space is ours, for the back-end has none."""

    async def serve(self, listener: trio.SocketListener) -> None:
        """Until both have hung up. One front-end."""
        stream = await listener.accept()
        back = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        with Channel(stream.socket) as front, Channel(back, wire.decode_reply) as behind:
            await back.connect(str(self._socket))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answers, behind, front)
                await self._requests(front, behind)
                back.shutdown(trio.socket.SHUT_WR)

    async def _requests(self, front: Channel, behind: Channel) -> None:
        while (message := await front.receive()) is not None:  # decoded, and so without what follows a table
            asked = message.payload
            if self._lends and isinstance(asked, Config):
                data = self._config[asked.offset :][: asked.size].ljust(asked.size, b"\0")
                await front.send(message.reply(replace(asked, data=data)))
                continue
            if self._lends and message.request == FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(asked, int):
                message = replace(message, payload=asked & ~ProtocolFeature.CONFIG)
            await behind.send(message)

    async def _answers(self, behind: Channel, front: Channel) -> None:
        while (message := await behind.receive()) is not None:
            offered = message.payload
            if message.request == FrontendRequest.GET_PROTOCOL_FEATURES and isinstance(offered, int):
                self._lends = not offered & ProtocolFeature.CONFIG
                message = replace(message, payload=offered | ProtocolFeature.CONFIG)
            await front.send(message)
        front.socket.shutdown(trio.socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def relayed(socket: Path, tag: str) -> AsyncIterator[Path]:
    """A socket for User-mode Linux, in front of the one of a back-end, for the length of the block."""
    path = socket.with_suffix(".relay")
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as sock:
        await sock.bind(str(path))
        sock.listen(1)
        async with trio.open_nursery() as nursery:  # one of the two may be killed: its end is no failure of ours
            nursery.start_soon(Relay(socket, tag).serve, trio.SocketListener(sock))
            yield path
            nursery.cancel_scope.cancel()


def tree_cpu_ns(pid: int) -> int:
    """CPU time of a process and of its children, as User-mode Linux's programs are; of those that ended, in ticks."""
    total = cpu_ns(pid)
    with contextlib.suppress(FileNotFoundError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[13:15])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    with contextlib.suppress(OSError):  # gone since the list was read
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_cpu_ns(int(child)) for child in (task / "children").read_text().split())
    return total

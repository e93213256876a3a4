"""A guest's view of a network card: a front-end of ours, buffers in its memory, frames in and out."""

from __future__ import annotations

import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

import vhost
from devices.net import Net, NetFeature, NetLink
from vhost.constants import FrontendRequest, VirtioFeature
from vhost.frontend import PLAIN, Frontend, Personality

VERSION_1, PACKED, INDIRECT, EVENT_IDX, IN_ORDER = (
    VirtioFeature.VERSION_1, VirtioFeature.RING_PACKED, VirtioFeature.INDIRECT_DESC, VirtioFeature.EVENT_IDX,
    VirtioFeature.IN_ORDER,
)  # fmt: skip
#: what a plain modern driver takes
BASE = int(VERSION_1 | INDIRECT | EVENT_IDX)

_HEADER = struct.Struct("<BBHHHHH")
_HASH = struct.Struct("<IH")
NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Header:
    """struct virtio_net_hdr with num_buffers, and what is reported of a hash."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0
    hash_value: int = 0
    hash_report: int = 0

    def pack(self, size: int = 12) -> bytes:
        return _HEADER.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers
        )[:size].ljust(size, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        return cls(*_HEADER.unpack(data[:12].ljust(12, b"\0")), *_HASH.unpack(data[12:18].ljust(6, b"\0")))


def frame(length: int = 60, *, tag: int = 0, dst: bytes = b"\xff" * 6, src: bytes = b"\x52\x54\0\0\0\1") -> bytes:
    """A frame of an experimental type whose bytes tell of `tag`."""
    body = bytes((tag + i * 7 + (i >> 8)) & 0xFF for i in range(max(length - 14, 0)))
    return (dst + src + b"\x88\xb5" + body)[:length]


class Guest:
    """A driver for a card: pairs of rings of one front-end."""

    def __init__(self, fe: Frontend, features: int, *, header: int, mergeable: bool) -> None:
        self.fe = fe
        self.features = features
        self.header = header
        self.mergeable = mergeable
        #: the card is somebody else's: DPDK sets num_buffers only where buffers are mergeable
        self.foreign = False
        #: buffers hold nothing but frames; not so where one that was too large was read from a file
        self.tidy = True
        self._token = 0
        self._rx: dict[tuple[int, int], tuple[list[tuple[int, int]], int]] = {}
        self._tx: dict[tuple[int, int], list[int]] = {}
        self._parts: dict[int, list[bytes]] = {}

    def offer(self, count: int, size: int | Sequence[int] = 2048, *, pair: int = 0, publish: bool = True) -> None:
        """Give the card `count` receive buffers, of `size` bytes or of several pieces of such sizes."""
        queue = self.fe.queues[2 * pair]
        for _ in range(count):
            pieces = [(self.fe.memory.alloc(n), n) for n in ([size] if isinstance(size, int) else size)]
            for at, n in pieces:
                self.fe.memory.write(at, b"\xee" * n)
            self._token += 1
            queue.ring.add([], pieces, self._token, indirect=len(pieces) > 1 and bool(self.features & INDIRECT))
            self._rx[pair, self._token] = pieces, sum(n for _, n in pieces)
        if publish and queue.ring.publish():
            queue.kick()

    def push(
        self,
        data: bytes,
        header: Header | bytes | None = None,
        *,
        pair: int = 0,
        cut: Sequence[int] = (),
        indirect: bool = False,
        publish: bool = True,
    ) -> None:
        """Send a frame; `cut`: lengths of the first pieces, header included, the rest is the last."""
        queue = self.fe.queues[2 * pair + 1]
        raw = header if isinstance(header, bytes) else (header or Header()).pack(self.header)
        left = raw + data
        pieces = []
        for n in (*cut, len(left)):
            part, left = left[:n], left[n:]
            if part:
                at = self.fe.memory.alloc(len(part))
                self.fe.memory.write(at, part)
                pieces.append((at, len(part)))
        self._token += 1
        queue.ring.add(pieces, [], self._token, indirect=indirect)
        self._tx[pair, self._token] = [at for at, _ in pieces]
        if publish and queue.ring.publish():
            queue.kick()

    def publish(self, *, pair: int = 0) -> None:
        """Show the card what was pushed with `publish=False`."""
        queue = self.fe.queues[2 * pair + 1]
        if queue.ring.publish():
            queue.kick()

    def reap(self, *, pair: int = 0) -> int:
        """Take back what was sent; how many."""
        done = 0
        for used in self.fe.queues[2 * pair + 1].ring.poll():
            assert used.length == 0
            for at in self._tx.pop((pair, used.token)):
                self.fe.memory.free(at)
            done += 1
        return done

    async def sent(self, count: int, *, pair: int = 0, timeout: float = 60) -> None:
        """Wait until `count` frames have been taken."""
        with trio.fail_after(timeout):
            while count > 0:
                count -= self.reap(pair=pair)
                await trio.sleep(0.001)
        assert count == 0

    def take(self, *, pair: int = 0) -> list[tuple[Header, bytes]]:
        """Frames that have come."""
        out = []
        for used in self.fe.queues[2 * pair].ring.poll():
            pieces, room = self._rx.pop((pair, used.token))
            assert used.length <= room
            data = b"".join(self.fe.memory.read(at, n) for at, n in pieces)
            clean = data[used.length :] == b"\xee" * (room - used.length)
            assert clean or not self.tidy, "bytes beyond the frame were written"
            for at, _ in pieces:
                self.fe.memory.free(at)
            parts = self._parts.setdefault(pair, [])
            parts.append(data[: used.length])
            if not parts[0]:  # a buffer given back unused
                parts.clear()
                continue
            header = Header.unpack(parts[0][: self.header])
            if self.header >= 12 and not self.foreign:
                assert header.num_buffers >= 1
                assert self.mergeable or header.num_buffers == 1
            if len(parts) == max(header.num_buffers, 1) or not self.mergeable:
                whole = b"".join(parts)
                out.append((header, whole[self.header :]))
                parts.clear()
        return out

    async def receive(self, count: int = 1, *, pair: int = 0, timeout: float = 60) -> list[tuple[Header, bytes]]:
        """Wait for that many frames, and see that no more come."""
        got: list[tuple[Header, bytes]] = []
        with trio.fail_after(timeout):
            while len(got) < count:
                got += self.take(pair=pair)
                if len(got) < count:
                    await trio.sleep(0.001)
        assert len(got) == count, got
        return got


class Control:
    """The control queue of `g`, ring `index`."""

    def __init__(self, g: Guest, index: int) -> None:
        self.queue = g.fe.queues[index]
        self.memory = g.fe.memory

    async def __call__(self, kind: int, command: int, *data: bytes, ack: int = 1) -> int | None:
        parts = [bytes((kind, command)), *data]
        out = []
        for part in parts:
            at = self.memory.alloc(max(len(part), 1))
            self.memory.write(at, part)
            out.append((at, len(part)))
        into = [(self.memory.alloc(ack), ack)] if ack else []
        for at, n in into:
            self.memory.write(at, b"\xee" * n)
        self.queue.ring.add(out, into, 1)
        if self.queue.ring.publish():
            self.queue.kick()
        with trio.fail_after(60):
            while not (used := self.queue.ring.poll()):
                await trio.sleep(0.001)
        assert used[0].length == min(ack, 1)
        return self.memory.read(into[0][0], 1)[0] if ack else None


@asynccontextmanager
async def guest(
    path: str,
    *,
    features: int = BASE,
    pairs: int = 1,
    size: int = 256,
    rings: Sequence[int] | None = None,
    personality: Personality = PLAIN,
    native: bool = True,
) -> AsyncIterator[Guest]:
    """A driver with `pairs` pairs, or the rings `rings`, connected to the card at `path`."""
    async with Frontend.connect(path, personality=personality, timeout=60) as fe:
        await fe.negotiate(features)
        await fe.share_memory()
        for index in rings or range(2 * pairs):
            fe.make_queue(index, size, native=native, serve=False, indirect_max=64)
        await fe.start_queues()
        await fe.ask_u64(FrontendRequest.GET_FEATURES)  # a front-end without answers: all is done now
        mergeable = bool(fe.features & NetFeature.MRG_RXBUF)
        header = 12 if mergeable or fe.features & VERSION_1 else 10
        header = 20 if fe.features & NetFeature.HASH_REPORT else header
        yield Guest(fe, fe.features, header=header, mergeable=mergeable)


@asynccontextmanager
async def serving(*cards: Net, **how: Any) -> AsyncIterator[list[str]]:
    """The sockets that `cards` are served on, by one server."""
    options = how.pop("options", None)
    with tempfile.TemporaryDirectory(prefix="vhost-net-") as folder:
        async with vhost.open_server(**how) as server:
            paths = []
            for i, card in enumerate(cards):
                paths.append(str(Path(folder) / f"s{i}"))
                await server.listen(card, paths[-1], options=options)
            yield paths
        for card in cards:
            card.close()


@asynccontextmanager
async def plugged(
    link: NetLink, *, workers: vhost.WorkerOptions | None = None, pairs: int = 1, **how: Any
) -> AsyncIterator[tuple[Guest, Net]]:
    """A driver for a card on `link`, which is closed at the end, and the card. `how`: of both, where they know it."""
    card_knows = ("mac", "mtu", "queue_size", "offloads", "mergeable", "in_order", "offer_config")
    of_card = {key: how.pop(key) for key in card_knows if key in how}
    async with link:
        card = Net(link, pairs=pairs, **of_card)
        async with serving(card, workers=workers) as [path], guest(path, pairs=pairs, **how) as g:
            yield g, card

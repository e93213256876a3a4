"""A driver of a card for hostile tests: sends any bytes in any pieces, and looks at every buffer that comes back."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from hostilelib import PACKED

from vhost.testing import Peer, connect_to

HEADER = struct.Struct("<BBHHHHH")
PLAIN = bytes(HEADER.size)
A, B, EVIL, NOBODY = (bytes((0x52, 0x54, 0, 0, 0, n)) for n in (1, 2, 3, 9))
EVERYONE = b"\xff" * 6
#: all a card offers, on split rings; and on packed ones
ALL = ~PACKED
ROOM = 2048
UNTOUCHED = 0xA5


def eth(dst: bytes, src: bytes, body: bytes = bytes(46), kind: int = 0x88B5) -> bytes:
    """A frame; 0x88b5 is for experiments (IEEE 802)."""
    return dst + src + struct.pack("!H", kind) + body


class Card:
    """A driver's pair of rings, receive buffers offered."""

    def __init__(self, path: Path, features: int = 0, *, queues: int = 2, buffers: int = 60) -> None:
        self.peer = Peer(connect_to(path)(), timeout=30)
        try:
            self.rings = self.peer.bring_up(features, queues=queues, size=64)
        except BaseException:
            self.peer.close()
            raise
        self.receive, self.transmit = self.rings[:2]
        self._rooms: dict[int, int] = {}
        self.offer(buffers)

    def offer(self, count: int) -> None:
        for _ in range(count):
            at, size = self.peer.room(ROOM, UNTOUCHED)
            self._rooms[self.receive.submit([], [(at, size)], kick=False)] = at
        self.receive.kick()

    def send(self, data: bytes, header: bytes = PLAIN, cut: Sequence[int] = (), *, indirect: bool = False) -> None:
        """One frame, in pieces where `cut` says so, and wait until it was taken."""
        data = header + data
        pieces = []
        for n in (*cut, len(data)):
            if data[:n]:
                pieces.append(self.peer.put(data[:n]))
            data = data[n:]
        self.transmit.submit(pieces, [], indirect=indirect)
        (used,) = self.transmit.wait()
        assert used.length == 0
        for at, _ in pieces:
            self.peer.memory.free(at)

    def heard(self) -> list[tuple[bytes, bytes]]:
        """Headers and frames that have come; their buffers are offered again."""
        frames = []
        left, whole = 0, b""
        for used in self.receive.driver.poll(64):
            at = self._rooms.pop(used.token)
            data = self.peer.memory.read(at, ROOM)
            assert used.length <= ROOM
            assert data.count(UNTOUCHED, used.length) == ROOM - used.length, "bytes behind the frame were written"
            if not left:
                left, whole = struct.unpack_from("<H", data, 10)[0], b""
            whole += data[: used.length]
            left -= 1
            if not left:
                frames.append((whole[: HEADER.size], whole[HEADER.size :]))
            self.peer.memory.free(at)
            self.offer(1)
        assert not left, "a frame in fewer buffers than its header says"
        return frames

    def wait(self) -> bytes:
        """The next frame, alone."""
        end = time.monotonic() + 60
        while not (frames := self.heard()):
            assert time.monotonic() < end, "no frame came"
            time.sleep(0.001)
        ((_, data),) = frames
        return data

    def wait_for(self, data: bytes) -> list[bytes]:
        """Wait for this frame; the others that came."""
        end, others, there = time.monotonic() + 60, list[bytes](), False
        while not there:
            assert time.monotonic() < end, f"a frame was lost: {data[:40].hex()}"
            for _, found in self.heard():
                there |= found == data
                if found != data:
                    others.append(found)
        return others

    def close(self) -> None:
        self.peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

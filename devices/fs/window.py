"""DAX: the window of shared memory into which the front-end maps files for the guest."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import trio

from devices.fs._fs import lib
from vhost.constants import ProtocolFeature
from vhost.device import Link
from vhost.errors import VhostError

__all__ = ["NEEDED", "UNIT", "Window"]

log = logging.getLogger(__name__)

UNIT = int(lib.PASS_WINDOW_UNIT)
"""Bytes; files and window are mapped by multiples of it."""

NEEDED = (
    ProtocolFeature.SHMEM
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.REPLY_ACK
)  # fmt: skip
"""What a front-end has that maps files, and says when it has."""

#: of shared memory in virtio-fs [VIRTIO 1.3, 5.11.4]
_SHMID = 0
#: how long a front-end may take for one mapping
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class _Mapped:
    length: int
    nodeid: int
    offset: int
    writable: bool


class Window:
    """What is mapped, and the task that does a server's errands (`run`).

    Args:
        server: ``struct fs_server *`` of a passthrough with a window.
        bytes_: size, a multiple of `UNIT`.
        link: the way to the front-end, None while there is none.
    """

    def __init__(self, server: Any, bytes_: int, link: Callable[[], Link | None]) -> None:
        self._server = server
        self._bytes = bytes_
        self._link = link
        self._mapped: dict[int, _Mapped] = {}
        self._of: Link | None = None
        self._epoch = 0
        self._news = int(lib.pass_window_open(server, 0))

    @property
    def mapped(self) -> int:
        """Bytes that are mapped now."""
        return sum(have.length for have in self._mapped.values())

    def queue_starts(self) -> None:
        """Look whether the front-end can map files."""
        link = self._link()
        can = link is not None and not NEEDED & ~link.protocol_features
        result = lib.pass_window_open(self._server, self._bytes if can else 0)
        assert result >= 0, os.strerror(-result)

    async def run(self) -> None:
        """Do errands until cancelled; what waits then fails."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._news)
                os.eventfd_read(self._news)
                await self._forget()
                while errand := lib.pass_window_next(self._server):
                    result = -errno.EIO
                    try:
                        result = await self._do(errand)
                    finally:
                        lib.pass_window_done(self._server, errand, result)
        finally:
            lib.pass_window_close(self._server)

    async def _forget(self) -> None:
        """Nothing is mapped for a guest that mounts anew; nor by another front-end."""
        link = self._link()
        if link is not self._of:
            self._of = link
            self._mapped.clear()
        if (epoch := int(lib.pass_window_epoch(self._server))) != self._epoch:
            self._epoch = epoch
            if link is not None:
                await self._remove(link, tuple(self._mapped))

    async def _do(self, errand: Any) -> int:
        await self._forget()
        link = self._link()
        if link is None or errand.epoch != self._epoch:
            return -errno.EIO
        ranges = [(errand.ranges[i].at, errand.ranges[i].len) for i in range(errand.nr)]
        try:
            with trio.fail_after(_PATIENCE):
                if errand.fd < 0:
                    return await self._take_away(link, ranges)
                return await self._map(link, errand, *ranges[0])
        except trio.TooSlowError:
            log.warning("the front-end did not answer to a mapping of a file within %g s", _PATIENCE)
        except (VhostError, OSError) as exc:
            log.warning("a file cannot be mapped for the guest: %s", exc)
        return -errno.EIO

    def _within(self, at: int, length: int) -> list[int] | None:
        """What is mapped there; None: some of it goes beyond."""
        found = [place for place in range(at, at + length, UNIT) if place in self._mapped]
        if any(place + self._mapped[place].length > at + length for place in found):
            return None
        before = [place for place, have in self._mapped.items() if place < at < place + have.length]
        return None if before else found

    async def _remove(self, link: Link, places: Iterable[int]) -> None:
        for place in places:
            await link.shmem_unmap(_SHMID, shm_offset=place, length=self._mapped[place].length)
            del self._mapped[place]

    async def _take_away(self, link: Link, ranges: list[tuple[int, int]]) -> int:
        for at, length in ranges:
            found = self._within(at, length)
            if found is None:
                return -errno.EINVAL
            await self._remove(link, found)
        return 0

    async def _map(self, link: Link, errand: Any, at: int, length: int) -> int:
        new = _Mapped(length, errand.nodeid, errand.offset, bool(errand.writable))
        have = self._mapped.get(at)
        if have == new:
            return 0  # it may be written to already
        found = self._within(at, length)
        if found is None:
            return -errno.EINVAL
        await self._remove(link, found)
        await link.shmem_map(
            _SHMID,
            errand.fd,
            fd_offset=new.offset,
            shm_offset=at,
            length=length,
            writable=new.writable,
        )
        self._mapped[at] = new
        return 0

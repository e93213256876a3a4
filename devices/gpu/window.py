"""The guest's window into memory of the renderer's: what commands map and unmap there, the front-end does."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import trio

from devices.gpu._gpu import ffi, lib
from vhost.constants import ProtocolFeature
from vhost.device import Link
from vhost.errors import VhostError
from vhost.fds import Fds, OwnedFd

__all__ = ["SHMID", "Window"]

_LOG: Final = logging.getLogger("vhost.gpu")
#: VIRTIO_GPU_SHM_ID_HOST_VISIBLE
SHMID: Final = 1
#: seconds that a front-end may take for one mapping
_PATIENCE: Final = 5.0
_NEEDED: Final = (
    ProtocolFeature.SHMEM
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.REPLY_ACK
)  # fmt: skip


class Window:
    """What is mapped, and the task that does the display's errands (`run`).

    Args:
        ptr: the ``struct gpu *``.
        size: bytes, a multiple of a page's.
        parked: the display's worker is parked in the block.
        wake: let commands that wait be tried again; the worker is parked.
        link: the way to the front-end; None while there is none.
    """

    def __init__(
        self,
        ptr: Any,
        size: int,
        parked: Callable[[], AbstractContextManager[None]],
        wake: Callable[[], None],
        link: Callable[[], Link | None],
    ) -> None:
        self._ptr = ptr
        self.size: Final = size
        self._parked = parked
        self._wake = wake
        self._link = link
        self._of: Link | None = None
        self._mapped: dict[int, int] = {}
        self._open = 0
        self._news = -1

    @property
    def mapped(self) -> int:
        """Bytes that are mapped now."""
        return sum(self._mapped.values())

    @property
    def can_map(self) -> bool:
        """The front-end maps, as far as it has said."""
        link = self._link()
        return link is not None and not _NEEDED & ~link.protocol_features

    def queue_starts(self) -> None:
        """Look whether the front-end can map."""
        self._open = self.size if self.can_map else 0
        self._tell()

    def _tell(self) -> None:
        with self._parked():
            lib.gpu_set_window(self._ptr, self._open if self._news >= 0 else 0, self._news)

    async def run(self) -> None:
        """Do errands until cancelled; only then can anything be mapped."""
        with OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) as news:
            self._news = news.fileno()
            self._tell()
            try:
                while True:
                    await trio.lowlevel.wait_readable(self._news)
                    os.eventfd_read(self._news)
                    await self._do_all()
            finally:
                self._news = -1
                self._tell()

    async def _do_all(self) -> None:
        errand = ffi.new("struct gpu_errand *")
        while self._next(errand):
            done = False
            try:
                done = await self._do(errand)
            finally:
                with self._parked():
                    lib.gpu_errand_done(self._ptr, done)
                    self._wake()

    def _next(self, errand: Any) -> bool:
        with self._parked():
            return bool(lib.gpu_errand_next(self._ptr, errand))

    async def _do(self, errand: Any) -> bool:
        link = self._link()
        if link is not self._of:
            self._of = link
            self._mapped.clear()  # another front-end has nothing of it
        with Fds([errand.fd] if errand.fd >= 0 else []):
            try:
                with trio.fail_after(_PATIENCE):
                    return link is not None and await self._ask(link, errand)
            except trio.TooSlowError:
                _LOG.warning("the front-end did not answer to a mapping within %g s", _PATIENCE)
            except (VhostError, OSError) as exc:
                _LOG.warning("memory of the 3D renderer cannot be mapped for the guest: %s", str(exc))
        return False

    async def _ask(self, link: Link, errand: Any) -> bool:
        at, size = int(errand.at), int(errand.bytes)
        if errand.what == lib.GPU_ERRAND_MAP:
            if errand.fd < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            await link.shmem_map(SHMID, errand.fd, fd_offset=0, shm_offset=at, length=size, writable=True)
            self._mapped[at] = size
            return True
        places = [at] if errand.what == lib.GPU_ERRAND_UNMAP else list(self._mapped)
        for place in places:
            if place not in self._mapped:
                return False
            await link.shmem_unmap(SHMID, shm_offset=place, length=self._mapped.pop(place))
        return True

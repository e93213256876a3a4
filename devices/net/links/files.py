"""What links to files of frames share: taps, and sockets of packets."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from devices.net._net import ffi, lib
from devices.net.links.base import LinkError, NetLink, PortPtr
from ring import SourcePtr

if TYPE_CHECKING:
    import ring
    from devices.net.device import Net

__all__ = ["FileLink"]


class FileLink(NetLink):
    """A port made of files, one for each queue. One card, or one port of a switch, is plugged into it.

    Args:
        fds: of 1 to 16 queues; owned by the link from now on, also if this raises.
        header: each frame has a virtio header in front, as a tap's.
        takes: ``NET_TAKES_*``: frames taken unfinished.
        gives: ``NET_TAKES_*``: what frames from sockets with headers may need.
        offload: frames may be given unfinished to who takes them so.
        whole_tcp: large TCP segments are taken uncut, with their checksum filled in.
        max_frame: of frames that come from there, bytes; 0: any.
    """

    def __init__(
        self,
        fds: Sequence[int],
        *,
        header: bool,
        takes: int = 0,
        gives: int = 0,
        offload: bool = False,
        whole_tcp: bool = False,
        max_frame: int = 0,
    ) -> None:
        self._port: Any = None
        self._fds = list(fds)
        self.shared = len(self._fds) == 1  # all pairs are where that queue is
        self._card: Net | None = None
        self._offload = offload
        self._sources: dict[int, SourcePtr] = {}
        try:
            for fd in self._fds:
                os.set_blocking(fd, False)
            config = ffi.new("struct net_fdlink_config *")
            config.queues = len(self._fds)
            config.header = lib.NET_FD_HEADER if header else 0
            config.takes, config.gives = takes, gives
            config.whole_tcp, config.max_frame = whole_tcp, max_frame
            for i, fd in enumerate(self._fds):
                config.fds[i] = fd
            port = lib.net_fdlink_new(config)
            if port == ffi.NULL:
                raise MemoryError("no memory for a link")
            self._port = port
        except BaseException:
            self._close_fds()
            raise

    def _close_fds(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    @property
    def queues(self) -> int:
        """How many it has."""
        return len(self._fds)

    @property
    def port(self) -> PortPtr:
        """The ``struct net_port *``, for who plugs something else than a card into it.

        Raises:
            RuntimeError: it is closed.
        """
        if self._port is None:
            raise RuntimeError(f"{self.description} is closed")
        return PortPtr(self._port)

    def start_queue(self, queue: int, worker: ring.Worker) -> None:
        """Run ``queue`` on ``worker``, which is parked; its port is plugged in."""
        source = lib.net_fdlink_start(self.port, queue, self._offload)
        if source == ffi.NULL:
            raise ValueError(f"{self.description} has no queue {queue}")
        worker.add(SourcePtr(source))
        self._sources[queue] = SourcePtr(source)

    def stop_queue(self, queue: int, worker: ring.Worker) -> None:
        """Undo `start_queue`; ``worker`` is parked."""
        source = self._sources.pop(queue, None)
        if source is not None:
            worker.remove(source)
            lib.net_fdlink_stop(self.port, queue)

    # As `NetLink`: for a card

    def port_for(self, card: Net) -> PortPtr:
        """As `NetLink.port_for`: for one card at a time."""
        if self._card not in (None, card):
            raise LinkError(f"{self.description} has a card already; plug both into a switch to share it")
        self._card = card
        return self.port

    def release(self, card: Net) -> None:
        """As `NetLink.release`."""
        if self._card is card:
            self._card = None

    def worker_key(self, card: Net, pair: int) -> Hashable | None:
        """Pairs that write to the same queue are on one worker."""
        return self, pair % max(1, self.queues)

    def started(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.started`."""
        if pair < self.queues:
            self.start_queue(pair, worker)

    def stopped(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.stopped`."""
        self.stop_queue(pair, worker)

    def lost(self, queue: int = 0) -> str | None:
        """Why ``queue`` gives nothing any more; None: it works."""
        error = lib.net_fdlink_error(self.port, queue)
        if error == 0:
            return None
        return os.strerror(error) if error > 0 else "closed"

    def _close(self) -> None:
        if self._port is not None:
            port, self._port = self._port, None
            lib.net_port_free(port)
        self._close_fds()

    async def aclose(self) -> None:
        """As `NetLink.aclose`."""
        self._close()

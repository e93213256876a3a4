"""virtio-fs as the server sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import trio

import ring
from devices.fs._fs import ffi, lib
from devices.fs.config import FsFeature, InitFlag, check_tag, pack_config
from devices.fs.filesystem import Filesystem
from devices.fs.notices import BUFFER_BYTES, Notices
from devices.fs.server import NativeServer, Server
from devices.fs.serving import PythonServer
from devices.fs.stats import FsStats
from devices.fs.window import Window
from vhost import Device, Metric
from vhost.constants import ProtocolFeature
from vhost.device import Link

if TYPE_CHECKING:
    from vhost.sandbox.confinement import Confinement

__all__ = ["Fs"]

#: entries of the queue for FORGET and INTERRUPT
_HIPRIO = 0
#: where the driver agreed to it; else the first one for requests
_NOTIFICATIONS = 1


class _Queue:
    """A `vhost.Source`: one queue as a worker runs it."""

    def __init__(self, fs: Fs, ptr: Any) -> None:
        self._fs = fs
        self.ptr = ptr

    def close(self) -> None:
        """Free it; what it counted stays with the device."""
        ptr = self.ptr
        if ptr is None:
            return
        stats = FsStats()
        stats.add_queue(ptr)
        if lib.fs_queue_free(ptr) != 0:
            raise RuntimeError("a queue is closed after it was removed from its worker with nothing in flight")
        self.ptr = None
        self._fs._closed(self, stats)


class Fs(Device):
    """A file system device: one guest's mount.

    Args:
        server: what answers: a `Filesystem`, or a server, which stays the caller's, who closes it after the device.
        tag: by which the guest mounts it, 1 to 36 bytes; QEMU and cloud-hypervisor have their own option.
        request_queues: 1 to 64.
        queue_size: largest size of a queue, entries; the front-end chooses.
        notifications: offer a queue for what the guest is told without having asked (`Filesystem.notify_inode` …).

    Raises:
        ValueError: an argument out of range; notifications of what is no `Filesystem`.
    """

    device_id: ClassVar[int] = 26
    name: ClassVar[str] = "fs"
    backend_type: ClassVar[str] = "fs"

    def __init__(
        self,
        server: Server | Filesystem,
        *,
        tag: str = "vhost",
        request_queues: int = 1,
        queue_size: int = 1024,
        notifications: bool = False,
    ) -> None:
        check_tag(tag)
        if not 1 <= request_queues <= 64:
            raise ValueError(f"request_queues is {request_queues}; give 1 to 64")
        if not 2 <= queue_size <= 32768:
            raise ValueError(f"queue_size is {queue_size}; queues have 2 to 32768 entries")
        self.server = PythonServer(server) if isinstance(server, Filesystem) else server
        self.tag = tag
        self.request_queues = request_queues
        self._notices: Notices | None = None
        if notifications:
            if not isinstance(self.server, PythonServer):
                raise ValueError(f"{self.server.description} has no notifications; file systems in Python have")
            self._notices = self.server.notices
        self.queue_sizes = (queue_size,) * (1 + notifications + request_queues)
        self._queues: set[_Queue] = set()
        self._past = FsStats()
        self._gone = False
        self._ending = False
        self._ran = False
        self._confinement: Confinement | None = None
        self._window: Window | None = None
        if isinstance(self.server, NativeServer) and (size := self.server.shmem_sizes.get(0)):
            self._window = Window(self.server.ptr, size, lambda: next(iter(self.links), None))

    # What it is

    @property
    def confinement(self) -> Confinement | None:
        """As `vhost.Device.confinement`; known where somebody has set it."""
        return self._confinement

    @confinement.setter
    def confinement(self, needs: Confinement) -> None:
        self._confinement = needs

    @property
    def is_native(self) -> bool:
        """As `vhost.Device.is_native`: the server is in C."""
        return isinstance(self.server, NativeServer)

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The usual ones; its state where the server can be moved.

        An inflight record only where the next process knows what the guest means, and that a request may have been
        carried out (a second MKDIR fails). No post-copy from inside a sandbox, where there is no userfaultfd.
        """
        offer = super().protocol_features
        if not self.server.keeps:
            offer &= ~ProtocolFeature.INFLIGHT_SHMFD
        sealed = self._confinement
        if sealed is not None and (sealed.mode, sealed.others) != ("none", "none"):
            offer &= ~ProtocolFeature.PAGEFAULT
        return offer if self.server.migratable else offer & ~ProtocolFeature.DEVICE_STATE

    @property
    def shmem_sizes(self) -> Mapping[int, int]:
        """As `vhost.Device.shmem_sizes`: the window for files that the guest maps."""
        return self.server.shmem_sizes

    def config(self) -> bytes:
        """The configuration space: tag, number of request queues, size of buffers for notifications."""
        return pack_config(self.tag, self.request_queues, None if self._notices is None else BUFFER_BYTES)

    @property
    def features(self) -> int:
        """As `vhost.Device.features`."""
        return 0 if self._notices is None else FsFeature.NOTIFICATION

    def features_acked(self, features: int) -> None:
        """As `vhost.Device.features_acked`."""
        if self._notices is not None:
            self._notices.agreed = bool(features & FsFeature.NOTIFICATION)

    # Life-cycle

    def make_source(self, queue: ring.Virtqueue, worker: ring.Worker) -> _Queue:
        """As `vhost.Device.make_source`."""
        assert isinstance(self.server, NativeServer)
        self.server.queue_starts()
        self._ran = True
        if self._window is not None:
            self._window.queue_starts()
        ptr = lib.fs_queue_new(self.server.ptr, queue.ptr, queue.size, queue.index == _HIPRIO)
        if ptr == ffi.NULL:
            raise MemoryError(f"no memory or no thread for a queue of {queue.size} requests")
        source = _Queue(self, ptr)
        self._queues.add(source)
        return source

    def _closed(self, queue: _Queue, stats: FsStats) -> None:
        self._queues.discard(queue)
        self._past.add(stats)
        self._forget_guest()

    async def run(self, queue: ring.Virtqueue) -> None:
        """As `vhost.Device.run`."""
        self.server.queue_starts()
        self._ran = True
        if self._notices is not None and self._notices.agreed and queue.index == _NOTIFICATIONS:
            await self._notices.run(queue)
        else:
            await self.server.run(queue)

    async def background(self) -> None:
        """As `vhost.Device.background`."""
        async with trio.open_nursery() as nursery:
            if self._window is not None:
                nursery.start_soon(self._window.run)
            await self.server.background()

    def attach(self, link: Link) -> None:
        """As `vhost.Device.attach`."""
        super().attach(link)
        self._gone = self._ran = False

    def detach(self, link: Link) -> None:
        """The guest is gone: so is all that it had open, unless it is this process that goes."""
        super().detach(link)
        if self.server.keeps and not self._ran:
            return  # whoever only looked did not come for what is kept
        if self._notices is not None:
            self._notices.agreed = False
        self._gone = True
        self._ending = self.server.keeps and link.ending
        if isinstance(self.server, NativeServer) and self.server.is_open:
            (lib.fs_server_leave if self._ending else lib.fs_server_cancel)(self.server.ptr)
        self._forget_guest()

    def _forget_guest(self) -> None:
        """What the last guest had goes when its last request has ended, or is kept for the next process."""
        if self._gone and not self._queues:
            self._gone = False
            if self._ending:
                self.server.keep()
            elif not isinstance(self.server, NativeServer) or self.server.is_open:
                self.server.reset()

    def reset(self) -> None:
        """As `vhost.Device.reset`: queues are stopped."""
        self.server.reset()

    async def save_state(self) -> bytes:
        """As `vhost.Device.save_state`."""
        return await self.server.save_state()

    async def load_state(self, state: bytes) -> None:
        """As `vhost.Device.load_state`."""
        await self.server.load_state(state)

    # Control socket and metrics

    @property
    def stats(self) -> FsStats:
        """What its queues have counted so far; a server in Python counts for itself."""
        sum_ = FsStats()
        sum_.add(self._past)
        for queue in tuple(self._queues):
            sum_.add_queue(queue.ptr)
        return sum_

    def session(self) -> dict[str, Any]:
        """What the guest's INIT agreed on, and the threads for requests that wait."""
        if not isinstance(self.server, NativeServer):
            return {}
        now = self.server.session
        return {
            "mounted": now.minor != 0,
            "protocol": f"7.{now.minor}" if now.minor else None,
            "driver": f"7.{now.driver_minor}" if now.minor else None,
            "max_write": now.max_write,
            "flags": _names(now.flags),
            "not_used": _names(now.offered & ~now.flags),
            "threads": self.server.threads(),
        }

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `vhost.Device.controls`."""
        own: dict[str, Callable[..., Any]] = {
            "quiesce": self.quiesce,
            "resume": self.resume,
            "stats": self._show_stats,
            "info": self._info,
            "session": self.session,
        }
        if isinstance(self.server, NativeServer):
            own["set_threads"] = self._set_threads
        return {**own, **self.server.controls()}

    def _show_stats(self) -> dict[str, Any]:
        """Requests and errors per operation, latencies in microseconds."""
        return self.stats.as_dict()

    def _info(self) -> dict[str, Any]:
        """The device and its server."""
        return {
            "tag": self.tag,
            "request_queues": self.request_queues,
            "quiesced": self.quiesced,
            **({} if self._window is None else {"dax_mapped": self._window.mapped}),
            **self.server.info(),
        }

    def _set_threads(self, most: int) -> int:
        """Bound the threads for requests that may wait."""
        assert isinstance(self.server, NativeServer)
        self.server.set_threads(most)
        return most

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        if isinstance(self.server, NativeServer):
            yield from self.stats.metrics()
            session = self.session()
            yield Metric("fs_mounted", "gauge", "1 while a guest has it mounted.", int(session["mounted"]))
            yield Metric("fs_threads", "gauge", "Threads for requests that wait.", session["threads"]["now"])
        yield from self.server.metrics()


def _names(flags: int) -> list[str]:
    """FUSE's names without their prefix; numbers for those that have none."""
    known = [flag for flag in InitFlag if flags & flag]
    rest = flags & ~sum(known)
    return [flag.name or str(int(flag)) for flag in known] + [f"{1 << i:#x}" for i in range(64) if rest >> i & 1]

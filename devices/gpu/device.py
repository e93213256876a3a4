"""virtio-gpu as the server sees it."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from enum import IntFlag
from typing import Any, ClassVar, Final

import trio

import ring
from devices.gpu._gpu import ffi, lib
from devices.gpu.edid import edid_of
from devices.gpu.picture import Mode, Picture, PictureError, parse_mode, save, save_frames
from devices.gpu.stats import GpuStats
from vhost import Device, Metric
from vhost.constants import ProtocolFeature
from vhost.device import Link

__all__ = ["Gpu", "GpuFeature", "Limits"]

_CONFIG: Final = struct.Struct("<4I")
_EVENT_DISPLAY: Final = 1
_EVENTS_CLEAR: Final = 4
_CURSOR: Final = 1
_FRAMES_MAX: Final = 600


class GpuFeature(IntFlag):
    """Feature bits [VIRTIO 1.3, 5.7.3]."""

    VIRGL = 1 << 0
    EDID = 1 << 1
    RESOURCE_UUID = 1 << 2
    RESOURCE_BLOB = 1 << 3
    CONTEXT_INIT = 1 << 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What one guest may use.

    Attributes:
        resources: most that it may have at once, 1 to 2^31.
        bytes: most host memory for them, 1 to 2^50.
    """

    resources: int = 4096
    bytes: int = 512 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.resources <= 1 << 31:
            raise ValueError(f"limit of resources is {self.resources}; give 1 or more")
        if not 1 <= self.bytes <= 1 << 50:
            raise ValueError(f"limit of memory is {self.bytes}; give 1 byte or more")


class _Queue:
    """A `vhost.Source`: one queue as a worker runs it."""

    def __init__(self, gpu: Gpu, ptr: Any, worker: ring.Worker) -> None:
        self._gpu = gpu
        self.ptr = ptr
        self.worker = worker

    def close(self) -> None:
        """Free it; with the last one of a guest that is gone goes what it made."""
        if self.ptr is None:
            return
        with self.worker.parked():
            lib.gpu_queue_free(self.ptr)
        self.ptr = None
        self._gpu._closed(self)


class Gpu(Device):
    """A display, 2D: what the guest draws can be looked at.

    Args:
        scanouts: monitors it can have, 1 to 16. QEMU has an option of its own, which is to be no larger.
        modes: what is plugged in, from the first on; others than these are unplugged.
        blobs: offer resources that stay in the guest's memory: nothing is copied until somebody looks.
        limits: what a guest may use.

    Raises:
        ValueError: an argument out of range.
    """

    device_id: ClassVar[int] = 16
    name: ClassVar[str] = "gpu"
    backend_type: ClassVar[str] = "gpu"
    queue_sizes: Sequence[int] = (1024, 256)

    def __init__(
        self,
        *,
        scanouts: int = 1,
        modes: Sequence[Mode] = (Mode(1280, 800),),
        blobs: bool = True,
        limits: Limits | None = None,
    ) -> None:
        most = int(lib.GPU_SCANOUTS_MAX)
        if not 1 <= scanouts <= most:
            raise ValueError(f"scanouts is {scanouts}; a display has 1 to {most}")
        if len(modes) > scanouts:
            raise ValueError(f"{len(modes)} modes for {scanouts} scanouts")
        self._scanouts = scanouts
        self._blobs = blobs
        limits = limits or Limits()
        raw = ffi.new("struct gpu_limits *", {"resources": limits.resources, "bytes": limits.bytes})
        ptr = lib.gpu_new(scanouts, raw)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a display")
        self._ptr: Any = ffi.gc(ptr, lib.gpu_free)
        self.limits = limits
        self._queues: set[_Queue] = set()
        self._gone = False
        self._events = 0
        self._modes: list[Mode | None] = [*modes, *[None] * (scanouts - len(modes))]
        self._tell_modes()

    # What it is

    @property
    def features(self) -> int:
        """What it offers."""
        offer = GpuFeature.EDID | GpuFeature.RESOURCE_UUID
        return int(offer | GpuFeature.RESOURCE_BLOB if self._blobs else offer)

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The usual ones; no inflight record: what commands made is gone with the process."""
        return super().protocol_features & ~ProtocolFeature.INFLIGHT_SHMFD

    def config(self) -> bytes:
        """The configuration space, 16 bytes."""
        return _CONFIG.pack(self._events, 0, self._scanouts, 0)

    def set_config(self, offset: int, data: bytes) -> None:
        """The driver has seen events; front-ends that write all of it are understood, too."""
        if offset <= _EVENTS_CLEAR and offset + len(data) >= _EVENTS_CLEAR + 4:
            at = _EVENTS_CLEAR - offset
            self._events &= ~int.from_bytes(data[at : at + 4], "little")

    # Life-cycle

    def features_acked(self, features: int) -> None:
        """As `vhost.Device.features_acked`."""
        with self._parked():
            lib.gpu_set_features(self._ptr, features)

    def worker_key(self, index: int) -> Hashable | None:
        """Both queues are on one worker."""
        return self

    def make_source(self, queue: ring.Virtqueue, worker: ring.Worker) -> _Queue:
        """As `vhost.Device.make_source`."""
        ptr = lib.gpu_queue_new(self._ptr, queue.ptr, queue.memory.ptr, queue.index == _CURSOR)
        if ptr == ffi.NULL:
            raise MemoryError(f"no memory for queue {queue.index}")
        source = _Queue(self, ptr, worker)
        self._queues.add(source)
        return source

    def _closed(self, queue: _Queue) -> None:
        self._queues.discard(queue)
        self._forget_guest()

    def attach(self, link: Link) -> None:
        """As `vhost.Device.attach`."""
        super().attach(link)
        self._gone = False

    def detach(self, link: Link) -> None:
        """The guest is gone, and what it made goes too."""
        super().detach(link)
        self._gone = True
        self._forget_guest()

    def _forget_guest(self) -> None:
        if self._gone and not self._queues:
            self._gone = False
            self.reset()

    def reset(self) -> None:
        """As `vhost.Device.reset`."""
        with self._parked():
            lib.gpu_reset(self._ptr)

    def set_status(self, status: int) -> None:
        """A driver that resets the device has nothing in it any more."""
        if not status:
            self.reset()

    @contextmanager
    def _parked(self) -> Iterator[None]:
        worker = next((queue.worker for queue in self._queues), None)  # all are on one
        if worker is None:
            yield
            return
        with worker.parked():
            yield

    # Monitors

    @property
    def modes(self) -> tuple[Mode | None, ...]:
        """Of each scanout; None: nothing is plugged in."""
        return tuple(self._modes)

    def set_mode(self, scanout: int, mode: Mode | None) -> None:
        """Plug a monitor in or out, or let it have another size; the guest is told.

        Raises:
            ValueError: no such scanout, no such mode.
        """
        self._check(scanout)
        before = self._modes[scanout]
        self._modes[scanout] = mode
        try:
            self._tell_modes()
        except ValueError:
            self._modes[scanout] = before
            raise
        self._events |= _EVENT_DISPLAY
        self.config_changed()

    def _tell_modes(self) -> None:
        raws, x = [], 0
        for number, mode in enumerate(self._modes):
            raw = ffi.new("struct gpu_mode *")
            raw.x = x
            if mode is not None:
                data = edid_of(mode.width, mode.height, mode.refresh, serial=number + 1)
                raw.width, raw.height, raw.edid_bytes = mode.width, mode.height, len(data)
                ffi.memmove(raw.edid, data, len(data))
                x += mode.width
            raws.append(raw)
        with self._parked():
            for number, raw in enumerate(raws):
                lib.gpu_set_mode(self._ptr, number, raw)

    def _check(self, scanout: int) -> None:
        if not 0 <= scanout < self._scanouts:
            raise PictureError(f"there is no scanout {scanout}; there are 0 to {self._scanouts - 1}")

    # Looking

    def picture(self, scanout: int = 0, *, cursor: bool = True) -> Picture:
        """What a scanout shows now. The guest's commands wait meanwhile, a millisecond or two.

        Args:
            cursor: with the cursor drawn in.

        Raises:
            PictureError: no such scanout; it shows nothing; its pages are not there.
        """
        self._check(scanout)
        now = ffi.new("struct gpu_picture *")
        with self._parked():
            lib.gpu_picture(self._ptr, scanout, now)
            if not now.width:
                raise PictureError(
                    f"scanout {scanout} shows nothing: the guest has switched it off, or has no driver yet"
                )
            pixels = bytearray(now.width * now.height * 4)
            rect = ffi.new("struct gpu_rect *", (0, 0, now.width, now.height))
            if lib.gpu_read(self._ptr, scanout, rect, ffi.from_buffer(pixels), now.width * 4, cursor):
                raise PictureError(f"scanout {scanout} lies in memory that the guest does not have")
        return Picture(now.width, now.height, bytes(pixels))

    def flushes(self, scanout: int = 0) -> int:
        """Times that what a scanout shows has changed, since the start.

        Raises:
            PictureError: no such scanout.
        """
        return int(self._now(scanout).flushes)

    def _now(self, scanout: int) -> Any:
        self._check(scanout)
        now = ffi.new("struct gpu_picture *")
        with self._parked():
            lib.gpu_picture(self._ptr, scanout, now)
        return now

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[None]]:
        """Changes of any scanout or cursor: an iterator of them; several that come close together are one.

        One user at a time.
        """
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with self._parked():
                lib.gpu_set_watcher(self._ptr, fd)
            lib.gpu_watch(self._ptr)
            yield self._each_change(fd)
        finally:
            with self._parked():
                lib.gpu_set_watcher(self._ptr, -1)
            os.close(fd)

    async def _each_change(self, fd: int) -> AsyncIterator[None]:
        while True:
            await trio.lowlevel.wait_readable(fd)
            os.eventfd_read(fd)
            lib.gpu_watch(self._ptr)  # before it is looked at: nothing gets lost in between
            yield

    async def record(
        self, path: str | os.PathLike[str], seconds: float, *, scanout: int = 0, per_second: int = 10
    ) -> int:
        """Capture what changes for some seconds into an animation.

        Returns:
            The number of frames.

        Raises:
            PictureError: as `picture`; what was asked for is too long; the file cannot be written.
        """
        if not 0 < seconds * per_second <= _FRAMES_MAX or not 1 <= per_second <= 60:
            raise PictureError(f"give 1 to 60 frames a second, and no more than {_FRAMES_MAX} in all")
        frames, times = [self.picture(scanout)], [trio.current_time()]
        end = times[0] + seconds
        seen = self._marks(scanout)
        while (now := trio.current_time()) < end:
            await trio.sleep(min(1 / per_second, end - now))
            if (marks := self._marks(scanout)) != seen:
                seen = marks
                frames.append(self.picture(scanout))
                times.append(trio.current_time())
        shown = [round((after - at) * 1000) for at, after in zip(times, [*times[1:], end], strict=True)]
        await trio.to_thread.run_sync(save_frames, frames, [max(ms, 1) for ms in shown], path)
        return len(frames)

    def _marks(self, scanout: int) -> tuple[int, int]:
        now = self._now(scanout)
        return now.flushes, now.cursor_changes

    # Control socket and metrics

    @property
    def stats(self) -> GpuStats:
        """What it has counted so far."""
        return GpuStats.of(self._ptr)

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """As `vhost.Device.controls`."""
        return {
            "quiesce": self.quiesce,
            "resume": self.resume,
            "displays": self._displays,
            "resize": self._resize,
            "unplug": self._unplug,
            "screenshot": self._screenshot,
            "record": self._record,
            "stats": self._show_stats,
        }

    def _displays(self) -> list[dict[str, Any]]:
        """Scanouts: what is plugged in, what is shown, where the cursor is."""
        found = []
        for number, mode in enumerate(self._modes):
            now = self._now(number)
            cursor = {"x": now.cursor_x, "y": now.cursor_y} if now.cursor_shown else None
            found.append(
                {
                    "scanout": number,
                    "mode": str(mode) if mode else None,
                    "shows": f"{now.width}x{now.height}" if now.width else None,
                    "flushes": now.flushes,
                    "cursor": cursor,
                }
            )
        return found

    def _resize(self, mode: str, scanout: int = 0) -> str:
        """Give a scanout another mode (1920x1080, 1920x1080@75), plugging it in if it was not."""
        wanted = parse_mode(mode)
        self.set_mode(scanout, wanted)
        return str(wanted)

    def _unplug(self, scanout: int = 0) -> None:
        """Plug a monitor out."""
        self.set_mode(scanout, None)

    async def _screenshot(self, path: str, scanout: int = 0, cursor: bool = True) -> str:
        """Write what a scanout shows to a file (.png, .webp, .bmp, .tiff)."""
        picture = self.picture(scanout, cursor=cursor)
        await trio.to_thread.run_sync(save, picture, path)
        return f"{picture.width}x{picture.height}"

    async def _record(self, path: str, seconds: float = 5, scanout: int = 0, per_second: int = 10) -> int:
        """Write what a scanout shows in some seconds as an animation (.png, .gif, .webp); the number of frames."""
        return await self.record(path, seconds, scanout=scanout, per_second=per_second)

    def _show_stats(self) -> dict[str, Any]:
        """Commands, errors, transfers."""
        return asdict(self.stats)

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        return self.stats.metrics()

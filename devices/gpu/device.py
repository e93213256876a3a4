"""virtio-gpu as the server sees it."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

import ring
from devices.gpu._gpu import ffi, lib
from devices.gpu.edid import edid_of
from devices.gpu.picture import (
    Mode,
    Monitor,
    Picture,
    PictureError,
    encode,
    encode_frames,
    parse_mode,
    save_frames,
)
from devices.gpu.qemu import QemuDisplay
from devices.gpu.render import Renderer
from devices.gpu.seat import Seat
from devices.gpu.stats import GpuStats
from devices.gpu.threed import ThreeD
from devices.gpu.view import Hub, Rect, View, Viewer
from vhost import Device, Metric
from vhost.constants import ProtocolFeature
from vhost.control import CallersFile
from vhost.device import Link

if TYPE_CHECKING:
    from vhost.sandbox import Confinement

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
        contexts: of 3D, 1 to 65536: each program that draws has one.
    """

    resources: int = 4096
    bytes: int = 512 << 20
    contexts: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.resources <= 1 << 31:
            raise ValueError(f"limit of resources is {self.resources}; give 1 or more")
        if not 1 <= self.bytes <= 1 << 50:
            raise ValueError(f"limit of memory is {self.bytes}; give 1 byte or more")
        if not 1 <= self.contexts <= 1 << 16:
            raise ValueError(f"limit of contexts is {self.contexts}; give 1 to 65536")


class _Queue:
    """A `vhost.Source`: one queue as a worker runs it."""

    def __init__(self, gpu: Gpu, ptr: Any, worker: ring.Worker) -> None:
        self._gpu = gpu
        self.ptr = ptr
        self.worker = worker
        self.answers: Any = None  #: the source of a renderer's answers, if there is one

    def close(self) -> None:
        """Free it; with the last one of a guest that is gone goes what it made."""
        if self.ptr is None:
            return
        with self.worker.parked():
            if self.answers is not None:
                self.worker.remove(self.answers)
            lib.gpu_queue_free(self.ptr)
        self.ptr = None
        self._gpu._closed(self)


class Gpu(Device):
    """A display: what the guest draws can be looked at.

    Args:
        scanouts: monitors it can have, 1 to 16. QEMU has an option of its own, which is to be no larger.
        modes: what is plugged in, from the first on; others than these are unplugged.
        blobs: offer resources that stay in the guest's memory: nothing is copied until somebody looks.
        limits: what a guest may use.
        renderer: offer 3D, by this one (`devices.gpu.render.open_renderer`), which stays the caller's and no other
            display's. Resources in the guest's memory are not offered then.

    Raises:
        ValueError: an argument out of range.
        RendererError: the renderer cannot be used.
    """

    device_id: ClassVar[int] = 16
    name: ClassVar[str] = "gpu"
    backend_type: ClassVar[str] = "gpu"
    queue_sizes: Sequence[int] = (1024, 256)
    confinement: Confinement | None = None

    def __init__(
        self,
        *,
        scanouts: int = 1,
        modes: Sequence[Mode] = (Mode(1280, 800),),
        blobs: bool = True,
        limits: Limits | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        most = int(lib.GPU_SCANOUTS_MAX)
        if not 1 <= scanouts <= most:
            raise ValueError(f"scanouts is {scanouts}; a display has 1 to {most}")
        if len(modes) > scanouts:
            raise ValueError(f"{len(modes)} modes for {scanouts} scanouts")
        self._scanouts = scanouts
        self._blobs = blobs and renderer is None
        limits = limits or Limits()
        raw = ffi.new("struct gpu_limits *", {"resources": limits.resources, "bytes": limits.bytes})
        ptr = lib.gpu_new(scanouts, raw)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a display")
        self._ptr: Any = ffi.gc(ptr, lib.gpu_free)
        self.limits = limits
        self._queues: set[_Queue] = set()
        self._3d: ThreeD | None = None
        if renderer is not None:
            self._3d = ThreeD(self._ptr, renderer, limits.contexts, self._parked, self._wake)
        self._gone = False
        self._events = 0
        self._hub: Hub | None = None
        self._qemu: QemuDisplay | None = None
        self._plugged = trio.Event()
        self.seat = Seat(self)
        self.viewers: list[Viewer] = []
        self._theirs: Sequence[Monitor] | None = None
        self._modes: list[Mode | None] = [*modes, *[None] * (scanouts - len(modes))]
        self._tell_modes()

    # What it is

    @property
    def features(self) -> int:
        """What it offers."""
        offer = GpuFeature.EDID | GpuFeature.RESOURCE_UUID
        if self._blobs:
            offer |= GpuFeature.RESOURCE_BLOB
        if self._3d is not None:
            offer |= GpuFeature.VIRGL | GpuFeature.CONTEXT_INIT
        return int(offer)

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The usual ones; no inflight record: what commands made is gone with the process.

        No postcopy: front-ends do not migrate displays, and its descriptor takes a capability that is given up. With 3D
        no migration at all: a renderer's state stays where it is, and nobody logs what it writes.
        """
        offer = super().protocol_features & ~(ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.PAGEFAULT)
        if self._3d is not None:
            offer &= ~ProtocolFeature.LOG_SHMFD
        return offer

    def config(self) -> bytes:
        """The configuration space, 16 bytes."""
        return _CONFIG.pack(self._events, 0, self._scanouts, self._3d.capsets if self._3d is not None else 0)

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
        if self._3d is not None and queue.index != _CURSOR:
            worker.add(self._3d.source)
            source.answers = self._3d.source
            worker.set_kick(source.answers, self._3d.kick)
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
        if self._3d is not None:
            self._3d.forget_regions()
        self._forget_guest()

    def region_added(self, gpa: int, size: int, fd: int, offset: int, *, read_only: bool) -> None:
        """As `vhost.Device.region_added`: the renderer works in the guest's memory, too."""
        if self._3d is not None:
            self._3d.add_region(gpa, size, fd, offset, read_only=read_only)

    def region_removed(self, gpa: int) -> None:
        """As `vhost.Device.region_removed`."""
        if self._3d is not None:
            self._3d.remove_region(gpa)

    def _forget_guest(self) -> None:
        if self._gone and not self._queues:
            self._gone = False
            self.reset()

    def reset(self) -> None:
        """As `vhost.Device.reset`."""
        with self._parked():
            lib.gpu_reset(self._ptr)
        if self._3d is not None:
            self._3d.was_reset()

    def set_status(self, status: int) -> None:
        """A driver that resets the device has nothing in it any more."""
        if not status:
            self.reset()

    # QEMU's display

    def set_gpu_socket(self, fd: int) -> None:
        """As `vhost.Device.set_gpu_socket`: QEMU shows what the guest does, and says what is plugged in."""
        display = QemuDisplay(self, fd)
        before, self._qemu = self._qemu, display
        self._ask(display.asked)
        if before is not None:
            before.close()
        self._plugged.set()

    def meet(self, others: Mapping[str, Device], companions: Sequence[Device]) -> None:
        """As `vhost.Device.meet`: what viewers type goes to input devices."""
        self.seat.meet(others, companions)

    async def background(self) -> None:
        """As `vhost.Device.background`."""
        async with trio.open_nursery() as nursery:
            if self._3d is not None:
                nursery.start_soon(self._3d.run)
            for viewer in self.viewers:
                nursery.start_soon(viewer.run)
            nursery.start_soon(self._show_in_qemu)

    async def _show_in_qemu(self) -> None:
        try:
            while True:
                await self._plugged.wait()
                self._plugged = trio.Event()
                display = self._qemu
                if display is None:
                    continue
                await display.run()
                if self._qemu is display:
                    self._unplug_qemu()
        finally:
            self._unplug_qemu()

    def _unplug_qemu(self) -> None:
        display, self._qemu = self._qemu, None
        if display is not None:
            self._ask(None)
            display.close()
            self.take_monitors(None)

    def _ask(self, fd: int | None) -> None:
        """Whom to ask for modes from now on. A driver that waits goes on with those that are known."""
        with self._parked():
            lib.gpu_set_asked(self._ptr, -1 if fd is None else fd)
            self.answer()

    def answer(self, unless: Callable[[], bool] = lambda: False) -> bool:
        """Whoever knows the modes has told them: a driver that waits for them goes on, `unless` it has asked since."""
        with self._parked():
            if unless():
                return False
            lib.gpu_answer(self._ptr)
            self._wake()
        return True

    def _wake(self) -> None:
        for queue in self._queues:
            queue.worker.wake(queue.ptr)

    def ask_nobody(self, display: QemuDisplay) -> None:
        """`display` does not answer: drivers get what is known."""
        if self._qemu is display:
            self._ask(None)

    def ask_again(self, display: QemuDisplay) -> None:
        """It does."""
        if self._qemu is display:
            self._ask(display.asked)

    def take_monitors(self, monitors: Sequence[Monitor] | None) -> bool:
        """What QEMU has plugged in; None: what we have. True where that is not what was known."""
        before, self._theirs = self._theirs, monitors
        self._tell_modes()
        return before != monitors

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
        """Of each scanout; None: nothing is plugged in. QEMU's where its display is attached."""
        if self._theirs is not None:
            return tuple(monitor.mode for monitor in self._theirs)
        return tuple(self._modes)

    def set_mode(self, scanout: int, mode: Mode | None) -> None:
        """Plug a monitor in or out, or let it have another size; the guest is told.

        Raises:
            ValueError: no such scanout, no such mode; QEMU's display is attached, and has the say.
        """
        self._check(scanout)
        if self._qemu is not None:
            raise PictureError(
                "QEMU decides what is plugged in; resize its window, or give xres= and yres= to its device"
            )
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
        raws = []
        for monitor in self._monitors() if self._theirs is None else self._theirs:
            raw = ffi.new("struct gpu_mode *")
            if monitor.mode is not None:
                raw.x, raw.y, raw.edid_bytes = monitor.x, monitor.y, len(monitor.edid)
                raw.width, raw.height = monitor.mode.width, monitor.mode.height
                ffi.memmove(raw.edid, monitor.edid, len(monitor.edid))
            raws.append(raw)
        with self._parked():
            for number, raw in enumerate(raws):
                lib.gpu_set_mode(self._ptr, number, raw)

    def _monitors(self) -> Iterator[Monitor]:
        """Our own modes, side by side."""
        x = 0
        for number, mode in enumerate(self._modes):
            if mode is None:
                yield Monitor(None, x, 0, b"")
                continue
            yield Monitor(mode, x, 0, edid_of(mode.width, mode.height, mode.refresh, serial=number + 1))
            x += mode.width

    @property
    def scanouts(self) -> int:
        """Monitors it can have."""
        return self._scanouts

    def size(self, scanout: int) -> tuple[int, int]:
        """What a scanout shows, pixels; of its monitor where it shows nothing."""
        now, mode = self._now(scanout), self.modes[scanout]
        if now.width:
            return now.width, now.height
        return (mode.width, mode.height) if mode is not None else (640, 480)

    def place(self, scanout: int) -> tuple[int, int, int, int]:
        """Where a scanout lies among the monitors, and how wide and high they are together, pixels."""
        monitors = list(self._monitors() if self._theirs is None else self._theirs)
        width, height = self.size(scanout)
        x, y = (monitors[scanout].x, monitors[scanout].y) if scanout < len(monitors) else (0, 0)
        boxes = [(m.x + m.mode.width, m.y + m.mode.height) for m in monitors if m.mode is not None]
        boxes.append((x + width, y + height))
        return x, y, max(right for right, _ in boxes), max(bottom for _, bottom in boxes)

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
    async def changes(self) -> AsyncIterator[View]:
        """A viewer of all scanouts, for the length of the block; any number of them."""
        if self._hub is None:
            self._hub = Hub(self._ptr)
            with self._parked():
                lib.gpu_set_watcher(self._ptr, self._hub.fd)
        hub = self._hub
        view = View(self, hub, self._scanouts)
        hub.views.add(view)
        try:
            yield view
        finally:
            hub.views.remove(view)
            if not hub.views:
                with self._parked():
                    lib.gpu_set_watcher(self._ptr, -1)
                self._hub = None
                hub.close()

    def gather(self, scanout: int) -> Any:
        """The ``struct gpu_picture`` of a scanout; viewers note what is damaged in it, and the device forgets it."""
        self._check(scanout)
        now = ffi.new("struct gpu_picture *")
        with self._parked():
            lib.gpu_picture(self._ptr, scanout, now)
            lib.gpu_take_damage(self._ptr, scanout)
        if self._hub is not None:
            for view in self._hub.views:
                view.note(scanout, now)
        return now

    def read(self, scanout: int, rect: Rect, to: memoryview, *, cursor: bool = False) -> bool:
        """Copy a rectangle of what is shown, rows without gaps, 4 bytes a pixel: blue, green, red, 255.

        Returns:
            False where the scanout does not show it any more, or lies in memory that the guest does not have.

        Raises:
            ValueError: `to` is too small.
        """
        self._check(scanout)
        if len(to) < rect.width * rect.height * 4:
            raise ValueError(f"{len(to)} bytes are too few for {rect.width}x{rect.height} pixels")
        raw = ffi.new("struct gpu_rect *", (rect.x, rect.y, rect.width, rect.height))
        with self._parked():
            rc = lib.gpu_read(self._ptr, scanout, raw, ffi.from_buffer(to), rect.width * 4, cursor)
        return bool(rc == 0)

    def shot(self, scanout: int, rect: Rect) -> Any:
        """The ``struct gpu_shot`` that updates a rectangle on QEMU's display; freed by `lib.gpu_shot_free`.

        Returns:
            None where the scanout does not show it any more, or lies in memory that the guest does not have.
        """
        self._check(scanout)
        raw = ffi.new("struct gpu_rect *", (rect.x, rect.y, rect.width, rect.height))
        with self._parked():
            shot = lib.gpu_shot_new(self._ptr, scanout, raw)
        return None if shot == ffi.NULL else shot

    def cursor_image(self, scanout: int = 0) -> bytes:
        """The cursor's picture: 64 rows of 64 pixels: blue, green, red, alpha."""
        self._check(scanout)
        image = bytearray(lib.GPU_CURSOR_SIDE * lib.GPU_CURSOR_SIDE * 4)
        with self._parked():
            lib.gpu_read_cursor(self._ptr, scanout, ffi.from_buffer(image))
        return bytes(image)

    async def record(
        self, path: str | os.PathLike[str], seconds: float, *, scanout: int = 0, per_second: int = 10
    ) -> int:
        """Capture what changes for some seconds into an animation.

        Returns:
            The number of frames.

        Raises:
            PictureError: as `picture`; what was asked for is too long; the file cannot be written.
        """
        frames, shown = await self._capture(seconds, scanout, per_second)
        await trio.to_thread.run_sync(save_frames, frames, shown, path)
        return len(frames)

    async def _capture(self, seconds: float, scanout: int, per_second: int) -> tuple[list[Picture], list[int]]:
        """Frames, and milliseconds that each was shown."""
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
        return frames, [max(ms, 1) for ms in shown]

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
        for number, mode in enumerate(self.modes):
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

    async def _screenshot(self, path: str, scanout: int = 0, cursor: bool = True) -> CallersFile:
        """Write what a scanout shows to a file (.png, .webp, .bmp, .tiff)."""
        picture = self.picture(scanout, cursor=cursor)
        data = await trio.to_thread.run_sync(encode, picture, path)
        return CallersFile(data, f"{picture.width}x{picture.height}")

    async def _record(self, path: str, seconds: float = 5, scanout: int = 0, per_second: int = 10) -> CallersFile:
        """Write what a scanout shows in some seconds as an animation (.png, .gif, .webp); the number of frames."""
        frames, shown = await self._capture(seconds, scanout, per_second)
        return CallersFile(await trio.to_thread.run_sync(encode_frames, frames, shown, path), len(frames))

    def _show_stats(self) -> dict[str, Any]:
        """Commands, errors, transfers."""
        return asdict(self.stats)

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        return self.stats.metrics()

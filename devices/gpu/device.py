"""virtio-gpu as the server sees it."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

import ring
from devices.gpu._gpu import ffi, lib
from devices.gpu.control import Controls
from devices.gpu.limits import GpuFeature, Limits
from devices.gpu.picture import Mode, Monitor, PictureError
from devices.gpu.qemu import QemuDisplay
from devices.gpu.render import Renderer
from devices.gpu.screen import Screen
from devices.gpu.seat import Seat
from devices.gpu.stats import GpuStats
from devices.gpu.threed import ThreeD
from devices.gpu.view import Viewer
from devices.gpu.window import SHMID, Window
from vhost import Device, Metric
from vhost.constants import ProtocolFeature
from vhost.device import Link

if TYPE_CHECKING:
    from vhost.sandbox import Confinement

__all__ = ["Gpu"]

_LOG: Final = logging.getLogger("vhost.gpu")
_CONFIG: Final = struct.Struct("<4I")
_EVENT_DISPLAY: Final = 1
_EVENTS_CLEAR: Final = 4
_CURSOR: Final = 1


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


class Gpu(Screen, Device):
    """A display: what the guest draws can be looked at.

    Args:
        scanouts: monitors it can have, 1 to 16. QEMU has an option of its own, which is to be no larger.
        modes: what is plugged in, from the first on; others than these are unplugged.
        blobs: offer resources that stay in the guest's memory: nothing is copied until somebody looks.
        limits: what a guest may use.
        renderer: offer 3D, by this one (`devices.gpu.render.open_renderer`), which stays the caller's and no other
            display's. Resources in memory of the guest's are offered then only by one that has such of its own.
        dmabufs: QEMU looks at 3D where it is drawn, if renderer and QEMU know how; QEMU's display is to have OpenGL.

        host_memory: of the window through which a guest sees memory of the renderer's, bytes, a multiple of 1 MiB; for
            renderers that have such, and front-ends that map it.

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
        dmabufs: bool = True,
        host_memory: int = 256 << 20,
    ) -> None:
        self.limits = limits or Limits()
        self._queues: set[_Queue] = set()
        super().__init__(scanouts, modes, self.limits)
        self._blobs = blobs and renderer is None
        self._dmabufs = dmabufs
        self._3d: ThreeD | None = None
        if renderer is not None:
            self._3d = ThreeD(self._ptr, renderer, self.limits.contexts, self._parked, self._wake)
        self._window: Window | None = None
        if self._3d is not None and self._3d.blobs:
            if host_memory < 1 << 20 or host_memory % (1 << 20):
                raise ValueError(f"host memory is {host_memory} bytes; give MiBs")
            self._window = Window(
                self._ptr, host_memory, self._parked, self._wake, lambda: next(iter(self.links), None)
            )
        self._gone = False
        self._events = 0
        self._qemu: QemuDisplay | None = None
        self._plugged = trio.Event()
        self.seat = Seat(self)
        self.viewers: list[Viewer] = []

    # What it is

    @property
    def features(self) -> int:
        """What it offers."""
        offer = GpuFeature.EDID | GpuFeature.RESOURCE_UUID
        if self._blobs or self._window is not None:
            offer |= GpuFeature.RESOURCE_BLOB
        if self._3d is not None:
            offer |= GpuFeature.VIRGL | GpuFeature.CONTEXT_INIT
        return int(offer)

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The usual ones; no inflight record: what commands made is gone with the process.

        No dirty log and no postcopy: resources, and what a renderer holds, stay where they are, so that front-ends have
        to refuse migration: a guest would be left with a dark screen.
        """
        lacks = ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.PAGEFAULT | ProtocolFeature.LOG_SHMFD
        return super().protocol_features & ~lacks

    @property
    def shmem_sizes(self) -> Mapping[int, int]:
        """As `vhost.Device.shmem_sizes`: the window into memory of the renderer's."""
        return {SHMID: self._window.size} if self._window is not None else {}

    def config(self) -> bytes:
        """The configuration space, 16 bytes."""
        maps = self._window is not None and self._window.can_map
        capsets = self._3d.capsets(window=maps) if self._3d is not None else 0
        return _CONFIG.pack(self._events, 0, self._scanouts, capsets)

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
        if self._window is not None:
            self._window.queue_starts()
            if queue.index != _CURSOR and self._3d is not None and self._3d.vulkan and not self._window.can_map:
                _LOG.warning("no Vulkan for this guest: its front-end maps no memory of ours (SHMEM)")
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
        display = QemuDisplay(self, fd, dmabufs=self._dmabufs and self._3d is not None)
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
            if self._window is not None:
                nursery.start_soon(self._window.run)
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

    @contextmanager
    def _parked(self) -> Iterator[None]:
        worker = next((queue.worker for queue in self._queues), None)  # all are on one
        if worker is None:
            yield
            return
        with worker.parked():
            yield

    # Monitors

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
        self._monitors.set(scanout, mode)
        self._events |= _EVENT_DISPLAY
        self.config_changed()

    def take_monitors(self, monitors: Sequence[Monitor] | None) -> bool:
        """What QEMU has plugged in; None: what we have. True where that is not what was known."""
        return self._monitors.take(monitors)

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
            **Controls(self).all(),
        }

    def metrics(self) -> Iterable[Metric]:
        """As `vhost.Device.metrics`."""
        return self.stats.metrics()

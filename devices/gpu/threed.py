"""3D as the device has it: whose renderer it is, which memory it sees, what happens when it ends.

States, kept in C (`gpu_3d_state`)

    STARTING  a renderer is on its way; 3D commands wait        it is ready -> UP; it does not start -> LOST
    UP        commands go to it                                 its end -> LOST; the guest's reset -> STARTING
    LOST      3D commands are answered with an error            the guest's reset -> STARTING

2D goes on in all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import trio

from devices.gpu._gpu import ffi, lib
from devices.gpu.render import Renderer, RendererError
from devices.gpu.render.renderer import Started
from devices.gpu.stats import GpuStats
from vhost.fds import OwnedFd

__all__ = ["PATIENCE", "ThreeD"]

_LOG: Final = logging.getLogger("vhost.gpu")

#: seconds without an answer, with commands under way, after which a renderer is ended
PATIENCE: Final = 30.0
#: the same while somebody waits for the end of them: the guest has gone, or its device is to stop
DRAIN_PATIENCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Region:
    fd: OwnedFd
    size: int
    offset: int
    read_only: bool


class ThreeD:
    """The renderer of a display.

    Args:
        ptr: the ``struct gpu *``.
        renderer: has started; stays its opener's.
        contexts: that a guest may have.
        parked: the display's worker is parked in the block.
        wake: let commands that wait be tried again; the worker is parked.

    Raises:
        MemoryError, RendererError: it cannot be used.
    """

    def __init__(
        self,
        ptr: Any,
        renderer: Renderer,
        contexts: int,
        parked: Callable[[], AbstractContextManager[None]],
        wake: Callable[[], None],
    ) -> None:
        self._ptr = ptr
        self._renderer = renderer
        self._parked = parked
        self._wake = wake
        self._regions: dict[int, _Region] = {}
        self._news = trio.Event()
        if lib.gpu_3d_enable(ptr, contexts):
            raise MemoryError("no memory for contexts")
        if renderer.started is None:
            raise RendererError("this renderer is another display's")
        self._take(renderer.started)

    def capsets(self, *, window: bool) -> int:
        """How many kinds of 3D it offers to a guest that maps its memory, or does not."""
        return int(lib.gpu_3d_capsets(self._ptr, window))

    @property
    def vulkan(self) -> bool:
        """It offers Vulkan, to guests that map its memory."""
        return self.capsets(window=True) != self.capsets(window=False)

    @property
    def blobs(self) -> bool:
        """It has memory that guests can map."""
        return bool(lib.gpu_3d_blobs(self._ptr))

    @property
    def source(self) -> Any:
        """The ``struct ring_source *`` that takes answers."""
        return lib.gpu_3d_source(self._ptr)

    @property
    def kick(self) -> int:
        """The descriptor that wakes it."""
        return self._renderer.answers.fileno()

    # The guest's memory

    def add_region(self, gpa: int, size: int, fd: int, offset: int, *, read_only: bool) -> None:
        """The guest has more memory, of `fd` (stays the caller's). Workers are parked."""
        region = _Region(OwnedFd(os.dup(fd)), size, offset, read_only)
        self.remove_region(gpa)
        self._regions[gpa] = region
        self._tell(gpa, region)

    def _tell(self, gpa: int, region: _Region) -> None:
        lib.gpu_3d_region(self._ptr, region.fd.fileno(), gpa, region.size, region.offset, region.read_only)

    def remove_region(self, gpa: int) -> None:
        """It has that no longer. Workers are parked."""
        region = self._regions.pop(gpa, None)
        if region is not None:
            region.fd.close()
            lib.gpu_3d_region(self._ptr, -1, gpa, region.size, 0, 0)

    def forget_regions(self) -> None:
        """The guest is gone."""
        with self._parked():
            for gpa in list(self._regions):
                self.remove_region(gpa)

    # Life

    def was_reset(self) -> None:
        """The guest has reset the display: it gets a new renderer, if it has used the old one."""
        self._news.set()

    async def run(self) -> None:
        """Keep a renderer, until cancelled."""
        while True:
            state = lib.gpu_3d_state(self._ptr)
            if state == lib.GPU_3D_STARTING:
                await self._start()
            elif state == lib.GPU_3D_UP:
                await self._watch()
            else:
                await self._news.wait()
            self._news = trio.Event()

    async def _start(self) -> None:
        try:
            started = await self._renderer.start()
            with self._parked():
                if lib.gpu_3d_state(self._ptr) == lib.GPU_3D_STARTING:
                    self._take(started)
        except RendererError as exc:
            _LOG.error("no 3D until the guest resets the display: %s", exc)
            with self._parked():
                lib.gpu_3d_fail(self._ptr)
                self._wake()

    def _take(self, started: Started) -> None:
        """It is the guest's from now on. The worker is parked, or there is none."""
        failed = lib.gpu_3d_ready(self._ptr, ffi.from_buffer(started.ready), len(started.ready))
        if not failed:
            fds = started.memory, self._renderer.commands, started.socket, started.exports
            failed = lib.gpu_3d_start(self._ptr, *(fd.fileno() for fd in fds))
        if failed:
            raise RendererError(f"the renderer cannot be used: {os.strerror(-failed)}")
        for gpa, region in self._regions.items():
            self._tell(gpa, region)
        self._wake()

    async def _watch(self) -> None:
        """Until it ends, hangs, or is not wanted any more."""
        how: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ends, how, nursery.cancel_scope)
            nursery.start_soon(self._hangs, how)
            nursery.start_soon(self._is_refused)
            await self._news.wait()
            nursery.cancel_scope.cancel()
        if not how:
            return
        with self._parked():
            if lib.gpu_3d_state(self._ptr) != lib.GPU_3D_STARTING:  # unless a reset came first
                lib.gpu_3d_lost(self._ptr)
                self._wake()
        _LOG.error(
            "the 3D renderer has ended (%s); the guest's 3D fails until it resets the display, 2D goes on", how[0]
        )

    async def _ends(self, how: list[str], scope: trio.CancelScope) -> None:
        said = await self._renderer.ended()
        how.append(said)
        scope.cancel()

    async def _hangs(self, how: list[str]) -> None:
        done, under_way, draining = ffi.new("uint64_t *"), ffi.new("uint32_t *"), ffi.new("uint32_t *")
        seen, since = -1, trio.current_time()
        while True:
            with self._parked():
                lib.gpu_3d_progress(self._ptr, done, under_way, draining)
            patience = min(PATIENCE, DRAIN_PATIENCE) if draining[0] else PATIENCE
            if not under_way[0] or done[0] != seen:
                seen, since = done[0], trio.current_time()
            elif trio.current_time() - since >= patience:
                how.append(f"no answer in {patience:g} s")
                self._renderer.stop()
                return
            await trio.sleep(min(PATIENCE / 8, 1))

    async def _is_refused(self) -> None:
        """Say once that the guest wants more than it may have: its programs cannot tell, and draw wrongly."""
        before = self._refused()
        while self._refused() == before:  # noqa: ASYNC110 - the worker is not to wake anybody
            await trio.sleep(1)
        _LOG.warning(
            "the guest was refused memory for what it draws, which may look wrong until its programs start anew; "
            "give more by --max-memory (or --max-resources, --max-contexts)"
        )

    def _refused(self) -> int:
        return GpuStats.of(self._ptr).errors.get("out_of_memory", 0)

    def close(self) -> None:
        """The display is served no longer."""
        self.forget_regions()

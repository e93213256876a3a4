"""A display as those who look at it have it: what its scanouts show, and when that changes."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Final

import trio

from devices.gpu._gpu import ffi, lib
from devices.gpu.export import Buffer
from devices.gpu.limits import Limits
from devices.gpu.monitors import Monitors
from devices.gpu.picture import Mode, Picture, PictureError, save_frames
from devices.gpu.view import Hub, Rect, View
from vhost.fds import OwnedFd

__all__ = ["Screen"]

_FRAMES_MAX: Final = 600
#: seconds that a renderer may take for what is shown
_FETCH_SECONDS: Final = 5


class Screen:
    """The scanouts of a display; the device is one.

    Args:
        scanouts: monitors it can have, 1 to 16.
        modes: what is plugged in, from the first on.
        limits: what a guest may use.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, scanouts: int, modes: Sequence[Mode], limits: Limits) -> None:
        most = int(lib.GPU_SCANOUTS_MAX)
        if not 1 <= scanouts <= most:
            raise ValueError(f"scanouts is {scanouts}; a display has 1 to {most}")
        raw = ffi.new("struct gpu_limits *", {"resources": limits.resources, "bytes": limits.bytes})
        ptr = lib.gpu_new(scanouts, raw)
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a display")
        self._ptr: Any = ffi.gc(ptr, lib.gpu_free)
        self._scanouts = scanouts
        self._hub: Hub | None = None
        self._monitors = Monitors(self._ptr, scanouts, modes, self._parked)

    def _parked(self) -> AbstractContextManager[None]:
        """The worker is parked in the block."""
        raise NotImplementedError

    @property
    def scanouts(self) -> int:
        """Monitors it can have."""
        return self._scanouts

    @property
    def modes(self) -> tuple[Mode | None, ...]:
        """Of each scanout; None: nothing is plugged in. QEMU's where its display is attached."""
        return self._monitors.modes

    def size(self, scanout: int) -> tuple[int, int]:
        """What a scanout shows, pixels; of its monitor where it shows nothing."""
        now, mode = self.now(scanout), self.modes[scanout]
        if now.width:
            return now.width, now.height
        return (mode.width, mode.height) if mode is not None else (640, 480)

    def place(self, scanout: int) -> tuple[int, int, int, int]:
        """Where a scanout lies among the monitors, and how wide and high they are together, pixels."""
        return self._monitors.place(scanout, *self.size(scanout))

    def _check(self, scanout: int) -> None:
        if not 0 <= scanout < self._scanouts:
            raise PictureError(f"there is no scanout {scanout}; there are 0 to {self._scanouts - 1}")

    # Pictures

    async def fetch(self, scanout: int = 0) -> None:
        """Wait until what was flushed is here: of 3D nothing is as long as nobody looks.

        Raises:
            PictureError: no such scanout; the renderer does not tell.
        """
        self._check(scanout)
        async with self.changes() as view:
            with trio.move_on_after(_FETCH_SECONDS) as late:
                while lib.gpu_3d_behind(self._ptr, scanout):
                    await anext(view)
        if late.cancelled_caught:
            raise PictureError(f"the 3D renderer does not say in {_FETCH_SECONDS} s what scanout {scanout} shows")

    def picture(self, scanout: int = 0, *, cursor: bool = True) -> Picture:
        """What a scanout shows now; of 3D what is here (`fetch`). The guest's commands wait, a millisecond or two.

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
        return int(self.now(scanout).flushes)

    def now(self, scanout: int) -> Any:
        """The ``struct gpu_picture`` of a scanout."""
        self._check(scanout)
        now = ffi.new("struct gpu_picture *")
        with self._parked():
            lib.gpu_picture(self._ptr, scanout, now)
        return now

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
        frames, shown = await self.capture(seconds, scanout, per_second)
        await trio.to_thread.run_sync(save_frames, frames, shown, path)
        return len(frames)

    async def capture(self, seconds: float, scanout: int, per_second: int) -> tuple[list[Picture], list[int]]:
        """Frames, and milliseconds that each was shown.

        Raises:
            PictureError: as `picture`; what was asked for is too long.
        """
        if not 0 < seconds * per_second <= _FRAMES_MAX or not 1 <= per_second <= 60:
            raise PictureError(f"give 1 to 60 frames a second, and no more than {_FRAMES_MAX} in all")
        async with self.changes():
            await self.fetch(scanout)
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
        now = self.now(scanout)
        return now.flushes, now.cursor_changes

    # Viewers

    @asynccontextmanager
    async def changes(self, *, pixels: bool = True) -> AsyncIterator[View]:
        """A viewer of all scanouts, for the length of the block; any number of them.

        Args:
            pixels: it looks at them; they are brought here from where 3D is drawn.
        """
        if self._hub is None:
            self._hub = Hub(self._ptr)
            with self._parked():
                lib.gpu_set_watcher(self._ptr, self._hub.fd)
        hub = self._hub
        view = View(self, hub, self._scanouts, pixels=pixels)
        hub.views.add(view)
        self._look()
        try:
            yield view
        finally:
            hub.views.remove(view)
            self._look()
            if not hub.views:
                with self._parked():
                    lib.gpu_set_watcher(self._ptr, -1)
                self._hub = None
                hub.close()

    def want_pixels(self, view: View, pixels: bool) -> None:
        """A viewer begins to look at pixels, or is content with being told."""
        view.pixels = pixels
        self._look()

    def _look(self) -> None:
        looked = self._hub is not None and any(view.pixels for view in self._hub.views)
        with self._parked():
            lib.gpu_set_looked(self._ptr, looked)

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

    def buffer(self, scanout: int) -> Buffer | None:
        """What a scanout shows where a renderer draws it; None where it shows nothing, or what no renderer draws.

        Raises:
            BlockingIOError: the renderer is asked; viewers are woken when it has answered.
            PictureError: it does not say.
        """
        found, fd = self._exported(scanout)
        if fd is not None:
            fd.close()
        return found

    def buffer_fd(self, scanout: int, buffer: Buffer) -> OwnedFd | None:
        """A descriptor of it, the caller's; None: the scanout shows another one by now."""
        try:
            found, fd = self._exported(scanout)
        except (BlockingIOError, PictureError):
            return None
        if fd is not None and found != buffer:
            fd.close()
            return None
        return fd

    def _exported(self, scanout: int) -> tuple[Buffer | None, OwnedFd | None]:
        self._check(scanout)
        raw = ffi.new("struct gpu_dmabuf *")
        with self._parked():
            rc = lib.gpu_dmabuf(self._ptr, scanout, raw)
            fd = None if rc < 0 else OwnedFd(os.dup(raw.fd))
        if rc == -errno.ENOENT:
            return None, None
        if rc == -errno.EAGAIN:
            raise BlockingIOError(errno.EAGAIN, "the renderer is asked")
        if fd is None:
            raise PictureError("the renderer's OpenGL does not share what it draws; that takes a GPU (--render-node)")
        rect = Rect(raw.rect.x, raw.rect.y, raw.rect.width, raw.rect.height)
        modifier = raw.modifier if raw.modified else None
        size = raw.width, raw.height
        return Buffer(raw.serial, rect, *size, raw.stride, raw.offset, raw.fourcc, raw.flags, modifier), fd

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

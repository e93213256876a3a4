"""Who looks at a display: each viewer is woken by changes, and knows what of them it has not seen yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import trio

from devices.gpu._gpu import lib

if TYPE_CHECKING:
    from devices.gpu.screen import Screen

__all__ = ["Cursor", "Hub", "Look", "Rect", "View", "Viewer"]


class Viewer(Protocol):
    """Something that shows a display elsewhere, as long as the display is served."""

    async def run(self) -> None:
        """Show it until cancelled."""


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle, pixels."""

    x: int
    y: int
    width: int
    height: int

    def union(self, other: Rect) -> Rect:
        """The smallest one that holds both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        bottom = max(self.y + self.height, other.y + other.height)
        return Rect(x, y, right - x, bottom - y)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor.

    Attributes:
        x: of its picture's upper left corner, pixels; as the guest has it, so perhaps far outside.
        hot_x: place in its picture that points.
        changes: of shape or place, since the start.
        shapes: that were set, since the start.
    """

    x: int
    y: int
    shown: bool
    hot_x: int
    hot_y: int
    changes: int
    shapes: int


@dataclass(frozen=True, slots=True)
class Look:
    """A scanout as one viewer finds it.

    Attributes:
        width: pixels; 0: it shows nothing.
        damage: what this viewer has not seen yet; None: nothing.
    """

    width: int
    height: int
    damage: Rect | None
    cursor: Cursor


class View:
    """One viewer of a screen: an asynchronous iterator of changes; several that come close together are one."""

    def __init__(self, gpu: Screen, hub: Hub, scanouts: int, *, pixels: bool = True) -> None:
        self._gpu = gpu
        self.pixels = pixels  #: are to be here; set by `Screen.want_pixels`
        self._hub = hub
        self._seen = hub.generation
        self._sizes = [(0, 0)] * scanouts
        self._damage: list[Rect | None] = [None] * scanouts

    def __aiter__(self) -> Self:
        """Of changes."""
        return self

    async def __anext__(self) -> None:
        """Wait for the next one.

        Cancellation: nothing is lost.
        """
        self._seen = await self._hub.wait(self._seen)

    def note(self, scanout: int, now: Any) -> None:
        """What a ``struct gpu_picture`` says is damaged is so for this viewer, too."""
        size = now.width, now.height
        if size != self._sizes[scanout]:
            self._sizes[scanout] = size
            self._damage[scanout] = Rect(0, 0, *size) if now.width else None
        elif now.damage.width:
            fresh = Rect(now.damage.x, now.damage.y, now.damage.width, now.damage.height)
            before = self._damage[scanout]
            self._damage[scanout] = before.union(fresh) if before else fresh

    def look(self, scanout: int) -> Look:
        """A scanout now; what is damaged counts as seen from here on."""
        now = self._gpu.gather(scanout)
        damage, self._damage[scanout] = self._damage[scanout], None
        cursor = Cursor(
            now.cursor_x, now.cursor_y, bool(now.cursor_shown), now.cursor_hot_x, now.cursor_hot_y,
            now.cursor_changes, now.cursor_shapes,
        )  # fmt: skip
        return Look(now.width, now.height, damage, cursor)


class Hub:
    """Wakes all viewers by the one eventfd that the device writes; whoever waits first reads it for all.

    Args:
        ptr: the ``struct gpu *``.
    """

    def __init__(self, ptr: Any) -> None:
        self._ptr = ptr
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.generation = 0
        self._read_by_one = False
        self._news = trio.Event()
        self.views: set[View] = set()
        lib.gpu_watch(ptr)

    async def wait(self, seen: int) -> int:
        """Wait until changes have come after generation `seen`; the newest generation."""
        await trio.lowlevel.checkpoint()
        while self.generation == seen:
            if self._read_by_one:
                await self._news.wait()
                continue
            self._read_by_one = True
            try:
                await trio.lowlevel.wait_readable(self.fd)
                os.eventfd_read(self.fd)
                lib.gpu_watch(self._ptr)  # before anybody looks: nothing gets lost in between
                self.generation += 1
            finally:
                self._read_by_one = False
                news, self._news = self._news, trio.Event()
                news.set()
        return self.generation

    def close(self) -> None:
        """Nobody looks any more, and the device does not write to it."""
        os.close(self.fd)

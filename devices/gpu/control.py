"""A display over the control socket (``vhost ctl``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import trio

from devices.gpu.picture import encode, encode_frames, parse_mode
from vhost.control import CallersFile

if TYPE_CHECKING:
    from devices.gpu.device import Gpu

__all__ = ["Controls"]


class Controls:
    """What can be asked of a display.

    Args:
        gpu: the display.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def all(self) -> Mapping[str, Callable[..., Any]]:
        """By name, as `vhost.Device.controls` has them."""
        return {
            "displays": self.displays,
            "resize": self.resize,
            "unplug": self.unplug,
            "screenshot": self.screenshot,
            "record": self.record,
            "stats": self.stats,
        }

    def displays(self) -> list[dict[str, Any]]:
        """Scanouts: what is plugged in, what is shown, where the cursor is."""
        found = []
        for number, mode in enumerate(self._gpu.modes):
            now = self._gpu.now(number)
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

    def resize(self, mode: str, scanout: int = 0) -> str:
        """Give a scanout another mode (1920x1080, 1920x1080@75), plugging it in if it was not."""
        wanted = parse_mode(mode)
        self._gpu.set_mode(scanout, wanted)
        return str(wanted)

    def unplug(self, scanout: int = 0) -> None:
        """Plug a monitor out."""
        self._gpu.set_mode(scanout, None)

    async def screenshot(self, path: str, scanout: int = 0, cursor: bool = True) -> CallersFile:
        """Write what a scanout shows to a file (.png, .webp, .bmp, .tiff)."""
        await self._gpu.fetch(scanout)
        picture = self._gpu.picture(scanout, cursor=cursor)
        data = await trio.to_thread.run_sync(encode, picture, path)
        return CallersFile(data, f"{picture.width}x{picture.height}")

    async def record(self, path: str, seconds: float = 5, scanout: int = 0, per_second: int = 10) -> CallersFile:
        """Write what a scanout shows in some seconds as an animation (.png, .gif, .webp); the number of frames."""
        frames, shown = await self._gpu.capture(seconds, scanout, per_second)
        return CallersFile(await trio.to_thread.run_sync(encode_frames, frames, shown, path), len(frames))

    def stats(self) -> dict[str, Any]:
        """Commands, errors, transfers; of 3D contexts, submissions, pixels read back, renderers."""
        return asdict(self._gpu.stats)

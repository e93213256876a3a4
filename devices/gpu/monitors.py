"""Which monitors a guest is told of: ours, or QEMU's where its display is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from devices.gpu._gpu import ffi, lib
from devices.gpu.edid import edid_of
from devices.gpu.picture import Mode, Monitor

__all__ = ["Monitors"]


class Monitors:
    """What is plugged in.

    Args:
        ptr: the ``struct gpu *``, which is told of all that changes.
        scanouts: monitors that there can be.
        modes: of those that are plugged in, from the first on.
        parked: the display's worker is parked in the block.

    Raises:
        ValueError: more modes than scanouts, or one that no monitor has.
    """

    def __init__(
        self, ptr: Any, scanouts: int, modes: Sequence[Mode], parked: Callable[[], AbstractContextManager[None]]
    ) -> None:
        if len(modes) > scanouts:
            raise ValueError(f"{len(modes)} modes for {scanouts} scanouts")
        self._ptr: Final = ptr
        self._parked = parked
        self._modes: list[Mode | None] = [*modes, *[None] * (scanouts - len(modes))]
        self._theirs: Sequence[Monitor] | None = None
        self._tell()

    @property
    def modes(self) -> tuple[Mode | None, ...]:
        """Of each scanout; None: nothing is plugged in."""
        return tuple(monitor.mode for monitor in self)

    def __iter__(self) -> Iterator[Monitor]:
        """All of them."""
        return iter(self._theirs) if self._theirs is not None else self._ours()

    def _ours(self) -> Iterator[Monitor]:
        """Side by side."""
        x = 0
        for number, mode in enumerate(self._modes):
            if mode is None:
                yield Monitor(None, x, 0, b"")
                continue
            yield Monitor(mode, x, 0, edid_of(mode.width, mode.height, mode.refresh, serial=number + 1))
            x += mode.width

    def set(self, scanout: int, mode: Mode | None) -> None:
        """Plug one of ours in or out, or let it have another size.

        Raises:
            ValueError: no monitor has such a mode; all is as before.
        """
        before = self._modes[scanout]
        self._modes[scanout] = mode
        try:
            self._tell()
        except ValueError:
            self._modes[scanout] = before
            raise

    def take(self, theirs: Sequence[Monitor] | None) -> bool:
        """What QEMU has plugged in; None: ours count. True where that is not what was known."""
        before, self._theirs = self._theirs, theirs
        self._tell()
        return before != theirs

    def place(self, scanout: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Where a scanout of that size lies among them, and how wide and high they are together, pixels."""
        all_ = list(self)
        x, y = (all_[scanout].x, all_[scanout].y) if scanout < len(all_) else (0, 0)
        boxes = [(m.x + m.mode.width, m.y + m.mode.height) for m in all_ if m.mode is not None]
        boxes.append((x + width, y + height))
        return x, y, max(right for right, _ in boxes), max(bottom for _, bottom in boxes)

    def _tell(self) -> None:
        raws = []
        for monitor in self:
            raw = ffi.new("struct gpu_mode *")
            if monitor.mode is not None:
                raw.x, raw.y, raw.edid_bytes = monitor.x, monitor.y, len(monitor.edid)
                raw.width, raw.height = monitor.mode.width, monitor.mode.height
                ffi.memmove(raw.edid, monitor.edid, len(monitor.edid))
            raws.append(raw)
        with self._parked():
            for number, raw in enumerate(raws):
                lib.gpu_set_mode(self._ptr, number, raw)

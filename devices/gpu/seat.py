"""Who sits before a display: what viewers type and point at goes to input devices of the same process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from devices.gpu.picture import PictureError
from vhost.errors import VhostError

if TYPE_CHECKING:
    from devices.gpu.device import Gpu

__all__ = ["Seat", "Sink"]

_AXIS_MAX: Final = 32767


@runtime_checkable
class Sink(Protocol):
    """An input device, as viewers see it. What it does not have it leaves out."""

    def keysym(self, number: int, down: bool, *, place: int = 0) -> None:
        """A key by what it writes, as X11 numbers that.

        Args:
            place: its XT scancode, where that is known, which counts then; bit 7 stands for e0 before it.
        """

    def name_key(self, name: str, down: bool) -> None:
        """A key by its place, as browsers name that (KeyboardEvent.code)."""

    def point(self, x: int, y: int, buttons: int) -> None:
        """A place, 0 to 32767 from edge to edge, and buttons held: left, middle, right, wheel up, down, left, right."""

    def release(self) -> None:
        """Let go what is held."""


class Seat:
    """The input devices of a display.

    Args:
        gpu: the display.
        names: devices to look for among those of the process.
    """

    def __init__(self, gpu: Gpu, names: Sequence[str] = ()) -> None:
        self._gpu = gpu
        self.names = names
        self.sinks: list[Sink] = []

    def add(self, sink: Sink) -> None:
        """One more input device."""
        self.sinks.append(sink)

    def meet(self, others: Mapping[str, object], companions: Sequence[object]) -> None:
        """Find the devices in `names`, and those that come with the display.

        Raises:
            VhostError: there is none of that name, or it takes no input.
        """
        for name in self.names:
            if name not in others:
                raise VhostError(f"input: there is no device {name!r}; there are {', '.join(others) or 'no others'}")
        for found in [*(others[name] for name in self.names), *companions]:
            if not isinstance(found, Sink):
                raise VhostError(f"input: {getattr(found, 'name', found)} is no input device")
            self.add(found)

    def keysym(self, number: int, down: bool, *, place: int = 0) -> None:
        """As `Sink.keysym`."""
        for sink in self.sinks:
            sink.keysym(number, down, place=place)

    def name_key(self, name: str, down: bool) -> None:
        """As `Sink.name_key`."""
        for sink in self.sinks:
            sink.name_key(name, down)

    def point(self, scanout: int, x: int, y: int, buttons: int) -> None:
        """A place in what a scanout shows, pixels. A guest spreads its tablet over all of its monitors."""
        left, top, width, height = self._gpu.place(scanout)
        for sink in self.sinks:
            sink.point(_scaled(left + x, width), _scaled(top + y, height), buttons)

    def release(self) -> None:
        """As `Sink.release`."""
        for sink in self.sinks:
            sink.release()

    def resize(self, scanout: int, mode: Any) -> None:
        """A viewer wants another size; where somebody else has the say nothing happens."""
        try:
            self._gpu.set_mode(scanout, mode)
        except (PictureError, ValueError):
            return


def _scaled(at: int, size: int) -> int:
    return min(max(at, 0), size - 1) * _AXIS_MAX // max(size - 1, 1)

"""Links for measuring and trying out: null, echo, source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.net._net import ffi, lib
from devices.net.links.base import LinkError, NetLink, PortPtr

if TYPE_CHECKING:
    import ring
    from devices.net.device import Net

__all__ = ["EchoLink", "NullLink", "SourceLink"]


class _Simple(NetLink):
    """One port for each card."""

    def __init__(self) -> None:
        self._ports: dict[Net, Any] = {}

    def _new(self) -> Any:
        raise NotImplementedError

    def port_for(self, card: Net) -> PortPtr:
        """As `NetLink.port_for`."""
        if card not in self._ports:
            ptr = self._new()
            if ptr == ffi.NULL:
                raise MemoryError("no memory for a port")
            self._ports[card] = ptr
        return PortPtr(self._ports[card])

    def release(self, card: Net) -> None:
        """As `NetLink.release`."""
        lib.net_port_free(self._ports.pop(card))


class NullLink(_Simple):
    """Swallows every frame."""

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return "null"

    def _new(self) -> Any:
        return lib.net_null_new()


class EchoLink(_Simple):
    """Gives every frame back, as it is, to the pair it came from."""

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return "echo"

    def _new(self) -> Any:
        return lib.net_echo_new()


class SourceLink(_Simple):
    """Offers frames as fast as the guest gives buffers, and swallows what it sends.

    Args:
        frame_bytes: of each frame, without the frame check sequence: 14 to 65557.
    """

    def __init__(self, frame_bytes: int = 60) -> None:
        super().__init__()
        if not 14 <= frame_bytes <= lib.NET_FRAME_BYTES_MAX:
            raise LinkError(f"a frame of {frame_bytes} bytes cannot be; give 14 to {lib.NET_FRAME_BYTES_MAX}")
        self._frame_bytes = frame_bytes

    @property
    def description(self) -> str:
        """As `NetLink.description`."""
        return f"source of {self._frame_bytes}-byte frames"

    def _new(self) -> Any:
        return lib.net_source_new(self._frame_bytes)

    def started(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.started`."""
        if lib.net_source_start(self._ports[card], card.ptr, pair) < 0:
            raise MemoryError("no memory for a source of frames")

    def stopped(self, card: Net, pair: int, worker: ring.Worker) -> None:
        """As `NetLink.stopped`."""
        lib.net_source_stop(self._ports[card], card.ptr, pair)

"""What passes a port, into pcapng files that Wireshark and tcpdump read: with nanoseconds, and with a direction.

Workers copy frames into rings and never wait; a thread in C writes them. What is lost on the way is counted, in the
file too. A frame is captured as it passes: unfinished ones have the checksum that their sender left, and may be longer
than any wire would carry.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from devices.net._net import ffi, lib
from vhost import Metric, VhostError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import ring

__all__ = ["Capture", "CaptureControls", "CaptureError", "CaptureStats", "PortCapture", "parked"]

#: bytes for each port: some milliseconds of small frames at full speed
RING_SIZE = 4 << 20


class CaptureError(VhostError):
    """A capture cannot be made: the message says what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True)
class CaptureStats:
    """What a capture has done so far.

    Attributes:
        frames: captured; their bytes are those of the whole frames.
        lost: not captured, since the file's thread was behind or writing had failed.
        written: bytes in files.
        files: begun.
        error: errno that ended it, 0: none.
    """

    frames: int = 0
    bytes: int = 0
    lost: int = 0
    written: int = 0
    files: int = 0
    error: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For the control socket; the error in words."""
        return {
            "frames": self.frames,
            "bytes": self.bytes,
            "lost": self.lost,
            "written": self.written,
            "files": self.files,
            "error": os.strerror(self.error) if self.error else None,
        }


@contextmanager
def parked(workers: Iterable[ring.Worker]) -> Iterator[None]:
    """Hold all of `workers` (again is fine, and so is none) outside of every source."""
    with ExitStack() as stack:
        for worker in set(workers):
            stack.enter_context(worker.parked())
        yield


def _words(path: str, code: int) -> str:
    """Why `path` could not be begun."""
    if code == errno.ENXIO:
        return f"nobody reads the pipe {path}: start its reader first"
    if code == errno.EISDIR:
        return f"{path} is a folder: name a file in it to capture to"
    return f"cannot capture to {path}: {os.strerror(code)}"


class Capture:
    """A pcapng file, or a ring of them, that any number of ports are captured to. Made by `open`."""

    def __init__(self, ptr: Any, path: str) -> None:
        """Take over the C object; use `open`."""
        self._ptr = ptr
        self._ports: dict[Any, Any] = {}
        self._past = CaptureStats()
        self._on = True
        self.path = path

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        snaplen: int = 0,
        file_size: int = 0,
        files: int = 0,
        ring_size: int = RING_SIZE,
    ) -> Self:
        """Begin a file, with mode 600; an existing one is written over.

        Args:
            path: The file, or a named pipe that somebody reads. With `file_size` a number is put before its suffix,
                ``vm0-00001.pcapng``, and counts from 1.
            snaplen: bytes kept of each frame; 0: all.
            file_size: bytes after which the next file begins; 0: never. At least 64 KiB otherwise.
            files: with `file_size`, how many are kept, the newest; 0: all.
            ring_size: bytes of memory for each port, a power of two from 256 KiB to 1 GiB.

        Raises:
            CaptureError: the file cannot be written, in words.
            ValueError: an argument out of range.
        """
        if not 0 <= snaplen < 1 << 32:
            raise ValueError(f"snaplen is {snaplen}; give a number of bytes, or 0 for all")
        if file_size and not 65536 <= file_size < 1 << 63:
            raise ValueError(f"file_size is {file_size}; give at least 65536 bytes, or 0 for one file")
        if not 0 <= files < 1 << 32:
            raise ValueError(f"files is {files}; give how many to keep, or 0 for all")
        if files and not file_size:
            raise ValueError(f"files is {files} without file_size; say how large one gets")
        if ring_size & (ring_size - 1) or not lib.NET_CAPTURE_RING_MIN <= ring_size <= lib.NET_CAPTURE_RING_MAX:
            raise ValueError(f"ring_size is {ring_size}; give a power of two from 262144 to 1073741824")
        name = os.fspath(path)
        options = ffi.new(
            "struct net_capture_options *",
            {"snaplen": snaplen, "files": files, "file_bytes": file_size, "ring_bytes": ring_size},
        )
        error = ffi.new("int *")
        ptr = lib.net_capture_open(os.fsencode(name), options, error)
        if ptr == ffi.NULL:
            raise CaptureError(_words(name, error[0]))
        return cls(ptr, name)

    def attach(self, port: Any, name: str, workers: Iterable[ring.Worker] = ()) -> None:
        """Capture `port` (``struct net_port *``) as the interface `name`, its first 63 bytes.

        Args:
            port: not captured by anybody yet. Detach it before it is freed.
            name: as Wireshark shows it.
            workers: that the port's frames pass on; they are parked here, unless they are already.

        Raises:
            CaptureError: there is no memory for its ring, or the capture is closed.
        """
        if self._ptr is None:
            raise CaptureError(f"the capture to {self.path} is closed")
        if port in self._ports:
            raise ValueError("a port is attached twice")
        interface = lib.net_capture_add(self._ptr, name.encode()[:63])
        if interface == ffi.NULL:
            raise CaptureError(f"no memory to capture {name} to {self.path}; make its ring smaller")
        lib.net_capture_set_on(interface, self._on)
        with parked(workers):
            lib.net_port_set_capture(port, interface)
        self._ports[port] = interface

    def detach(self, port: Any, workers: Iterable[ring.Worker] = ()) -> None:
        """Capture `port` no longer; what was captured is still written. Nothing if it is not attached."""
        interface = self._ports.pop(port, None)
        if interface is None:
            return
        with parked(workers):
            lib.net_port_set_capture(port, ffi.NULL)
        self._past = self._add(self._past, interface)
        lib.net_capture_remove(interface)

    @property
    def on(self) -> bool:
        """Frames are captured; else they just pass."""
        return self._on

    @on.setter
    def on(self, on: bool) -> None:
        self._on = on
        for interface in self._ports.values():
            lib.net_capture_set_on(interface, on)

    @staticmethod
    def _add(stats: CaptureStats, interface: Any) -> CaptureStats:
        out = ffi.new("struct net_capture_stats *")
        lib.net_capture_stats(interface, out)
        return CaptureStats(stats.frames + out.frames, stats.bytes + out.bytes, stats.lost + out.lost)

    @property
    def stats(self) -> CaptureStats:
        """Sums over its ports, those that were detached too."""
        stats = self._past
        if self._ptr is None:
            return stats
        for interface in self._ports.values():
            stats = self._add(stats, interface)
        out = ffi.new("struct net_capture_file_stats *")
        lib.net_capture_file_stats(self._ptr, out)
        return CaptureStats(stats.frames, stats.bytes, stats.lost, out.bytes, out.files, out.error)

    async def sync(self) -> None:
        """Wait until all that has been captured is in the file. Cancellation: waits to the end."""
        if self._ptr is not None:
            await trio.to_thread.run_sync(lib.net_capture_sync, self._ptr)

    def _closing(self) -> Any:
        if self._ports:
            raise RuntimeError(f"the capture to {self.path} still has ports: detach them first")
        self._past = self.stats
        ptr, self._ptr = self._ptr, None
        return ptr

    def close(self) -> None:
        """Write what is left and end the file; ports are detached before. Waits for the disk. May be called again."""
        if self._ptr is not None:
            lib.net_capture_close(self._closing())

    async def aclose(self) -> None:
        """As `close`, which a thread waits for. Cancellation: waits to the end."""
        if self._ptr is not None:
            await trio.to_thread.run_sync(lib.net_capture_close, self._closing())

    async def __aenter__(self) -> Self:
        """The capture, which is closed at the end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        with trio.CancelScope(shield=True):
            await self.aclose()


class PortCapture:
    """The capture of one port, on and off while it runs: what a card or a switch puts behind its control socket.

    Args:
        port: the ``struct net_port *``, alive until `close`.
        workers: those that its frames pass on now; they are parked for a moment when a capture starts or stops.
        name: of the interface in the file.
    """

    def __init__(self, port: Any, workers: Callable[[], Iterable[ring.Worker]], name: str) -> None:
        self._port = port
        self._workers = workers
        self._name = name
        self._capture: Capture | None = None
        self._past = CaptureStats()

    def start(self, path: str | os.PathLike[str], *, snaplen: int = 0, file_size: int = 0, files: int = 0) -> None:
        """Capture to `path`; as `Capture.open`.

        Raises:
            CaptureError: the file cannot be written, or a capture is under way.
            ValueError: an argument out of range.
        """
        if self._capture is not None:
            raise CaptureError(f"{self._name} is captured to {self._capture.path} already: stop that first")
        capture = Capture.open(path, snaplen=snaplen, file_size=file_size, files=files)
        try:
            capture.attach(self._port, self._name, self._workers())
        except BaseException:
            capture.close()
            raise
        self._capture = capture

    def _detach(self) -> Capture | None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.detach(self._port, self._workers())
            self._past = capture.stats
        return capture

    async def stop(self) -> CaptureStats:
        """End the file; what it holds. Nothing if there is none. Cancellation: waits to the end."""
        capture = self._detach()
        if capture is not None:
            with trio.CancelScope(shield=True):
                await capture.sync()
                self._past = capture.stats
                await capture.aclose()
        return self._past

    def close(self) -> None:
        """As `stop`, where nobody can wait; before the port is freed. May be called again."""
        capture = self._detach()
        if capture is not None:
            capture.close()

    @property
    def stats(self) -> CaptureStats:
        """Of the capture under way, else of the last one."""
        return self._past if self._capture is None else self._capture.stats

    @property
    def path(self) -> str | None:
        """Of the file that is being written, as it was given."""
        return None if self._capture is None else self._capture.path

    def metrics(self, labels: Mapping[str, str] | None = None) -> Iterable[Metric]:
        """Values now, with `labels`; none before a first capture."""
        stats = self.stats
        if not stats.files:
            return
        base = labels or {}
        yield Metric("net_captured_total", "counter", "Frames captured to files.", stats.frames, base)
        yield Metric("net_capture_lost_total", "counter", "Frames that a capture lost.", stats.lost, base)


class CaptureControls:
    """Captures behind a control socket.

    Args:
        own: of the card.
        other: the capture of a port of its switch, by name.
    """

    def __init__(self, own: PortCapture, other: Callable[[str], PortCapture]) -> None:
        self._own = own
        self._other = other

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """By name."""
        return {"capture_start": self._start, "capture_stop": self._stop, "capture": self._status}

    def _of(self, port: str | None) -> PortCapture:
        return self._own if port is None else self._other(port)

    def _start(
        self, path: str, port: str | None = None, snaplen: int = 0, file_size: int = 0, files: int = 0
    ) -> dict[str, Any]:
        """Capture what passes the card, or a port of its switch, to the pcapng file path; as vhost net --pcap."""
        self._of(port).start(path, snaplen=snaplen, file_size=file_size, files=files)
        return self._status(port)

    async def _stop(self, port: str | None = None) -> dict[str, Any]:
        """End the capture of the card, or of a port of its switch."""
        return (await self._of(port).stop()).as_dict()

    def _status(self, port: str | None = None) -> dict[str, Any]:
        """The file, if any, and what was captured and lost; of the card, or of a port of its switch."""
        capture = self._of(port)
        return {"path": capture.path, **capture.stats.as_dict()}

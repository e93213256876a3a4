"""Migration: the device's own state on its way through a descriptor, and kicks of the dirty log.

Memory and ring positions travel by other ways: the dirty log (`ring.GuestMemory.set_log`, `Virtqueue.set_logging`) and
GET_VRING_BASE. [rst "Migrating back-end state"]
"""

import logging
import os
from contextlib import suppress

import trio

from vhost.device import Device
from vhost.errors import DeviceError
from vhost.fds import OwnedFd

__all__ = ["MAX_STATE", "LogKicker", "StateTransfer"]

_log = logging.getLogger("vhost.migration")

MAX_STATE = 256 << 20
"""Most bytes of device state we take from another host: far above what any device has, far below what would hurt."""

_CHUNK = 1 << 20
LOG_KICK_SECONDS = 0.1
"""How often a front-end that asked for log kicks gets one, while requests are processed."""


class StateTransfer:
    """At most one transfer at a time, in a task of the connection."""

    def __init__(self, device: Device, nursery: trio.Nursery) -> None:
        self._device = device
        self._nursery = nursery
        self._done: trio.Event | None = None
        self._error: str | None = None

    def save(self, fd: OwnedFd) -> None:
        """Begin to write the device's state to `fd` (taken over, closed at the end).

        Raises: DeviceError: a transfer is under way.
        """
        self._begin(fd, save=True)

    def load(self, fd: OwnedFd) -> None:
        """Begin to read the device's state from `fd` (taken over) up to its end.

        Raises: DeviceError: a transfer is under way.
        """
        self._begin(fd, save=False)

    def _begin(self, fd: OwnedFd, *, save: bool) -> None:
        if self._done is not None and not self._done.is_set():
            raise DeviceError("another transfer of device state is under way")
        self._done = trio.Event()
        self._error = None
        stream = trio.lowlevel.FdStream(fd.take())
        self._nursery.start_soon(self._run, stream, save, self._done)

    async def _run(self, stream: trio.lowlevel.FdStream, save: bool, done: trio.Event) -> None:
        try:
            async with stream:
                if save:
                    await stream.send_all(await self._device.save_state())
                else:
                    await self._device.load_state(await self._read(stream))
        except trio.ClosedResourceError:
            self._error = "the descriptor cannot be " + ("written" if save else "read")  # what EBADF becomes
        except (ValueError, OSError, trio.BrokenResourceError, DeviceError) as error:
            self._error = str(error) or type(error).__name__
        except Exception as error:
            _log.exception("the device failed to %s its state", "save" if save else "load")
            self._error = f"the device failed: {error!r}"
        finally:
            if not done.is_set():
                done.set()

    async def _read(self, stream: trio.lowlevel.FdStream) -> bytes:
        state = bytearray()
        while chunk := await stream.receive_some(_CHUNK):
            state += chunk
            if len(state) > MAX_STATE:
                raise ValueError(f"more than {MAX_STATE} bytes of device state")
        return bytes(state)

    async def check(self) -> None:
        """Wait for the last transfer.

        Raises: DeviceError: it failed, or there was none.
        """
        if self._done is None:
            raise DeviceError("no device state was transferred")
        await self._done.wait()
        if self._error is not None:
            raise DeviceError(f"transfer of device state failed: {self._error}")


class LogKicker:
    """Kicks the descriptor of SET_LOG_FD while guest memory is being logged."""

    def __init__(self, fd: OwnedFd) -> None:
        """Take over `fd`, an eventfd."""
        self._fd = fd
        os.set_blocking(fd.fileno(), False)

    def kick(self) -> None:
        """Signal it; a full eventfd is signalled already."""
        with suppress(OSError):
            os.write(self._fd.fileno(), (1).to_bytes(8, "little"))

    def close(self) -> None:
        """Close the descriptor."""
        self._fd.close()

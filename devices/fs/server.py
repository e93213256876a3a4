"""What answers the requests of a file system: in C (`NativeServer`), or a coroutine for each queue (`Server.run`)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NewType

from _cffi_backend import FFI

from devices.fs._fs import ffi, lib
from vhost._owned import Owned

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import ring
    from vhost import Metric

__all__ = ["NativeServer", "NullServer", "Server", "ServerPtr", "Session"]

ServerPtr = NewType("ServerPtr", FFI.CData)  # struct fs_server *


@dataclass(frozen=True, slots=True)
class Session:
    """What a guest's INIT agreed on; part of what moves with a guest.

    Attributes:
        minor: of the protocol, 7.x; 0: there was no INIT.
        flags: agreed on, bits of `InitFlag`.
        offered: what the driver offered.
        max_write: bytes.
        driver_minor: what the driver speaks.
    """

    minor: int = 0
    flags: int = 0
    offered: int = 0
    max_write: int = 0
    driver_minor: int = 0


class Server:
    """One guest's view of a file system. A subclass overrides what it needs.

    Attributes:
        description: what is served, in a few words, for logs.
    """

    description: str = "a file system"

    async def run(self, queue: ring.Virtqueue) -> None:
        """Answer the requests of one started queue, as `vhost.Device.run`; not called for a `NativeServer`."""
        raise NotImplementedError

    def reset(self) -> None:
        """The guest went away: forget what it had open. No queue runs."""

    async def background(self) -> None:
        """Run beside the queues; cancelled at the end."""

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """Methods for the control socket, as `vhost.Device.controls`."""
        return {}

    def metrics(self) -> Iterable[Metric]:
        """Values now."""
        return ()

    def info(self) -> dict[str, Any]:
        """What it is, for the control socket."""
        return {"server": self.description}

    #: its state can be moved to another process: `save_state` and `load_state` work
    migratable: bool = False

    async def save_state(self) -> bytes:
        """What the guest knows of it: inodes, open files, locks. Queues are stopped."""
        raise NotImplementedError

    async def load_state(self, state: bytes) -> None:
        """Take over `state` (untrusted bytes). Raises: ValueError: not acceptable, in words."""
        raise NotImplementedError

    #: windows of shared memory: id -> bytes
    shmem_sizes: Mapping[int, int] = MappingProxyType({})

    #: the guest may go on with the next process: `keep` works
    keeps: bool = False

    def keep(self) -> None:
        """The process ends under a guest that may go on with the next one. Queues are stopped."""
        raise NotImplementedError

    def queue_starts(self) -> None:
        """A queue is about to run: the guest goes on here, also after `save_state`."""

    def close(self) -> None:
        """Let go of everything; no queue runs. May be called again."""

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class NativeServer(Owned[ServerPtr], Server):
    """A server in C.

    Args:
        ptr: its ``struct fs_server *``, owned from now on.
    """

    def __init__(self, ptr: Any) -> None:
        if ptr == ffi.NULL:
            raise MemoryError("no memory for a file system")
        super().__init__(ServerPtr(ptr))

    @property
    def session(self) -> Session:
        """What the guest's INIT agreed on. Set it before queues run, for a guest that goes on here.

        Raises:
            ValueError: this server cannot go on like that.
        """
        out = ffi.new("struct fs_session *")
        lib.fs_server_session(self.ptr, out)
        return Session(out.minor, out.flags, out.offered, out.max_write, out.driver_minor)

    @session.setter
    def session(self, session: Session) -> None:
        try:
            raw = ffi.new("struct fs_session *", asdict(session))
        except OverflowError as exc:
            raise ValueError(f"no session of ours: {exc}") from None
        result = lib.fs_server_set_session(self.ptr, raw)
        if result == -errno.EPROTO:
            raise ValueError(f"the guest speaks FUSE 7.{session.minor}, which is not spoken here")
        if result < 0:
            raise ValueError(
                f"the guest's mount needs what {self.description} does not implement: give it the options of the source"
            )

    def threads(self) -> dict[str, int]:
        """Threads for requests that wait: how many there are, may be, and requests that none has taken yet."""
        out = ffi.new("struct fs_session *")
        lib.fs_server_session(self.ptr, out)
        return {"now": out.threads, "most": out.threads_max, "waiting": out.waiting}

    def set_threads(self, most: int) -> None:
        """Bound the threads for requests that may wait, 1 to 256."""
        if not 1 <= most <= lib.FS_THREADS_MAX:
            raise ValueError(f"{most} threads; give 1 to {lib.FS_THREADS_MAX}")
        lib.fs_server_set_threads(self.ptr, most)

    def reset(self) -> None:
        """As `Server.reset`."""
        lib.fs_server_reset(self.ptr)

    def _free(self, ptr: ServerPtr) -> None:
        lib.fs_server_free(ptr)

    def __del__(self) -> None:
        if getattr(self, "_ptr", None) is not None:
            self.close()


class NullServer(NativeServer):
    """For tests of everything but a file system; see ``fs_null_new`` in fs.h."""

    description = "null"

    def __init__(self, can: int = 0) -> None:
        super().__init__(lib.fs_null_new(can))

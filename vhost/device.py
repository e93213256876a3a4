"""What a device is to the server: its numbers, its configuration space, and what it does with its queues.

A device knows neither sockets nor ring layouts. The server negotiates for it and hands it started queues; a device
either works on them in Python (`run`) or gives a worker thread something to poll (`make_source`):

    class Entropy(vhost.Device):
        device_id = 4
        queue_sizes = (256,)

        async def run(self, queue):
            async for chain in queue:
                for view in chain.writable:          # memoryviews that lie in guest memory
                    view[:] = os.urandom(len(view))
                chain.complete(chain.in_bytes)

One `Device` object is one device of one guest (one disk, one network card). It outlives its connections: after a
front-end went away the next one finds the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import trio

from vhost.constants import ProtocolFeature

if TYPE_CHECKING:
    import ring
    from vhost.sandbox.confinement import Confinement

__all__ = ["Device", "Discards", "Link", "Metric", "Source"]


class Source(Protocol):
    """What a C device gives a worker to poll: made by `Device.make_source`, owned by the server until `close`."""

    @property
    def ptr(self) -> Any:
        """The `struct ring_source *`."""

    def close(self) -> None:
        """Free the source. The server has removed it from its worker; nothing is in flight any more."""


@runtime_checkable
class Discards(Protocol):
    """A `Source` that runs while its ring is disabled too, and then throws away what comes.

    Spec: vhost-user, "Ring states": frames that a network card sends on a disabled ring are consumed and dropped.
    """

    def set_enabled(self, on: bool) -> None:
        """The ring was enabled or disabled; the worker is parked."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of one metric, as Prometheus understands it.

    Attributes:
        name: without prefix and unit-suffixed, e.g. `requests_total`, `latency_seconds`.
        kind: for a histogram `value` is the sum, and `buckets` holds cumulative counts.
        help: one sentence.
        value: in the unit the name says.
        labels: beyond the device's own, e.g. `{"op": "read"}`.
        buckets: histogram only: upper bounds and cumulative counts, the last bound is `inf`.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    buckets: Sequence[tuple[float, int]] = ()


class Link:
    """What a connection offers its device: the way back to the front-end, and a hold on the queues.

    What needs the front-end's answer, or a worker to stop, is awaited.
    """

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space again (CONFIG_CHANGE)."""

    @property
    def ending(self) -> bool:
        """It ends because this side does: the guest may go on with the next process."""
        return False

    @property
    def protocol_features(self) -> ProtocolFeature:
        """What was negotiated."""
        return ProtocolFeature(0)

    async def pause(self) -> None:
        """Take no new requests from any queue of this connection, nor of rings that start later."""

    async def resume(self) -> None:
        """Undo `pause`."""

    async def drain(self) -> None:
        """Wait until no request of a paused connection is in flight."""

    async def shared_object_add(self, uuid: bytes) -> None:
        """Announce the object `uuid` (16 bytes). Raises: DeviceError: refused or not negotiated."""
        raise NotImplementedError

    async def shared_object_remove(self, uuid: bytes) -> None:
        """Withdraw the object `uuid`. Raises: DeviceError: refused or not negotiated."""
        raise NotImplementedError

    async def shared_object_lookup(self, uuid: bytes) -> int | None:
        """A dmabuf fd of somebody's object `uuid`, which the caller closes, or None where nobody has it."""
        raise NotImplementedError

    async def shmem_map(
        self, shmid: int, fd: int, *, fd_offset: int, shm_offset: int, length: int, writable: bool
    ) -> None:
        """Map `length` bytes of `fd` at `fd_offset` into the guest's shared memory `shmid`. The fd stays the caller's.

        Raises: DeviceError: refused or not negotiated.
        """
        raise NotImplementedError

    async def shmem_unmap(self, shmid: int, *, shm_offset: int, length: int) -> None:
        """Undo one whole earlier `shmem_map`. Raises: DeviceError: refused or not negotiated."""
        raise NotImplementedError

    async def host_notifier(self, queue: int, fd: int | None, *, size: int = 4096, offset: int = 0) -> None:
        """Let the guest ring `queue` by a page of `fd` (None: no more).

        Raises: DeviceError: refused or not negotiated.
        """
        raise NotImplementedError


class Device:
    """Base of all devices; a subclass overrides what it needs, and exactly one of `run` and `make_source`.

    Class attributes:
        device_id: virtio device id [VIRTIO 1.3, 5].
        name: of the sub-command, in logs and metrics: the class's name in lower case unless set.
        backend_type: `type` of QEMU's vhost-user.json, printed by --print-capabilities.
        backend_features: likewise `features`.
        queue_sizes: largest size of each queue, entries; the front-end may choose less.
    """

    device_id: ClassVar[int]
    name: ClassVar[str] = ""
    backend_type: ClassVar[str] = ""
    backend_features: ClassVar[Sequence[str]] = ()
    queue_sizes: Sequence[int] = (1024,)

    _links: set[Link]
    _quiesced: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Fill in the name of a device that has none."""
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("name") and not cls.name:
            cls.name = cls.__name__.lower()

    # What it is: asked at every connection, constant while one lasts.

    @property
    def num_queues(self) -> int:
        """Number of queues, 1 to 256."""
        return len(self.queue_sizes)

    @property
    def max_queue_size(self) -> int:
        """Largest size of any queue, entries, 1 to 32768."""
        return max(self.queue_sizes)

    @property
    def features(self) -> int:
        """Device-specific virtio feature bits (0-23, 50-63). The server adds those of rings and of vhost-user."""
        return 0

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Protocol features to offer; the default fits what the subclass overrides."""
        offer = (
            ProtocolFeature.MQ
            | ProtocolFeature.LOG_SHMFD
            | ProtocolFeature.REPLY_ACK
            | ProtocolFeature.BACKEND_REQ
            | ProtocolFeature.BACKEND_SEND_FD
            | ProtocolFeature.CONFIGURE_MEM_SLOTS
            | ProtocolFeature.RESET_DEVICE
            | ProtocolFeature.INFLIGHT_SHMFD
            | ProtocolFeature.STATUS
        )
        if self.is_native:
            # A device in Python touches guest memory on the event loop's thread, which must not wait for a page.
            offer |= ProtocolFeature.PAGEFAULT
        if self._overrides("config"):
            offer |= ProtocolFeature.CONFIG
        if self._overrides("save_state"):
            offer |= ProtocolFeature.DEVICE_STATE
        if self._overrides("set_mtu"):
            offer |= ProtocolFeature.MTU
        if self._overrides("send_rarp"):
            offer |= ProtocolFeature.RARP
        if self._overrides("shared_object"):
            offer |= ProtocolFeature.SHARED_OBJECT
        return offer

    @property
    def shmem_sizes(self) -> Mapping[int, int]:
        """Shared memory regions: id -> bytes (multiples of the page size). Offered only where SHMEM is asked for."""
        return {}

    @property
    def is_native(self) -> bool:
        """True if its queues are moved by worker threads in C (`make_source`), False if by `run`."""
        return self._overrides("make_source")

    def _overrides(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(Device, method)

    @property
    def confinement(self) -> Confinement | None:
        """What it needs of the system once it is open, for `vhost.sandbox`; None: not known."""
        return None

    # Configuration space

    def config(self) -> bytes:
        """The whole configuration space as it is now, at most 256 bytes. Reads beyond its end give zeros."""
        return b""

    def set_config(self, offset: int, data: bytes) -> None:
        """The driver wrote `data` at `offset` (bounds are checked).

        Raises: ValueError: refused; the front-end is told.
        """
        raise ValueError("the configuration space is read-only")

    def meet(self, others: Mapping[str, Device], companions: Sequence[Device]) -> None:
        """Other devices of this process by name, before any is served; and which of them are there for this one.

        Raises: VhostError: one is missing.
        """

    # Life-cycle, called by the server in this order

    def features_acked(self, features: int) -> None:
        """The driver chose `features` (all bits, those of the ring too). May come several times; queues are stopped."""

    def region_added(self, gpa: int, size: int, fd: int, offset: int, *, read_only: bool) -> None:
        """The guest has `size` bytes at `gpa`, of `fd` (not the device's) from `offset` on. Workers are parked."""

    def region_removed(self, gpa: int) -> None:
        """It has them no longer, nor once its front-end has gone. Workers are parked."""

    def set_status(self, status: int) -> None:
        """The driver's status byte changed (only from front-ends that send it). 0 is a reset."""

    async def run(self, queue: ring.Virtqueue) -> None:
        """Work on one started queue, in a task of its own; returns when iteration ends because the queue stopped.

        Requests still in flight after that are completed by nobody: the server drains first.
        Cancellation: ends the queue without draining.
        """
        raise NotImplementedError

    def make_source(self, queue: ring.Virtqueue, worker: ring.Worker) -> Source:
        """Make what `worker` polls for one started queue; the worker is parked or not yet running."""
        raise NotImplementedError

    def worker_key(self, index: int) -> Hashable | None:
        """Queues of any devices with equal keys run on one worker; None: anywhere. For `make_source`.

        Constant while queue `index` runs.
        """
        return None

    async def background(self) -> None:
        """Run beside the queues as long as the server serves this device; cancelled at the end."""

    def reset(self) -> None:
        """The device is reset (RESET_DEVICE): forget what the driver set. Queues are stopped."""

    async def save_state(self) -> bytes:
        """State for migration beyond rings and configuration. Queues are stopped."""
        raise NotImplementedError

    async def load_state(self, state: bytes) -> None:
        """Take over `state` (untrusted bytes) of another host. Raises: ValueError: not acceptable, in words."""
        raise NotImplementedError

    # Messages of single device types

    def set_mtu(self, mtu: int) -> None:
        """NET_SET_MTU. Raises: ValueError: refused."""
        raise ValueError("this device has no MTU")

    def send_rarp(self, mac: bytes) -> None:
        """SEND_RARP: announce `mac` (6 bytes) after migration."""

    def set_gpu_socket(self, fd: int) -> None:
        """GPU_SET_SOCKET: the device owns `fd` from now on; it replaces an earlier one. Raises: ValueError: refused."""
        raise ValueError("this device has no display")

    def shared_object(self, uuid: bytes) -> int | None:
        """An fd of the object `uuid` (stays the device's; the server sends a copy), or None."""
        return None

    # What control socket, command line and metrics show

    def controls(self) -> Mapping[str, Callable[..., Any]]:
        """Methods for the control socket: name -> typed callable (plain or async) of keywords, JSON-able result."""
        return {"quiesce": self.quiesce, "resume": self.resume}

    def metrics(self) -> Iterable[Metric]:
        """Values now. Called often: cheap, no waiting."""
        return ()

    # What a subclass and its user may call

    def config_changed(self) -> None:
        """The configuration space differs now: tell every connected front-end."""
        for link in tuple(self.links):
            link.config_changed()

    @property
    def links(self) -> frozenset[Link]:
        """Connections this device serves now."""
        return frozenset(self.__dict__.get("_links", ()))

    @property
    def quiesced(self) -> bool:
        """True between `quiesce` and `resume`."""
        return self._quiesced > 0

    async def quiesce(self) -> None:
        """Take no new requests and wait until those in flight are completed; nests. Guests just see a slow device.

        Cancellation: the device runs on.
        """
        self._quiesced += 1
        try:
            for link in self.links:
                await link.pause()
            for link in self.links:
                await link.drain()
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.resume()
            raise

    async def resume(self) -> None:
        """Undo one `quiesce`. Raises: RuntimeError: it is not quiesced."""
        if not self._quiesced:
            raise RuntimeError(f"{self.name} is not quiesced")
        self._quiesced -= 1
        if not self._quiesced:
            for link in self.links:
                await link.resume()

    # What the server calls

    def attach(self, link: Link) -> None:
        """A front-end connected. The link looks at `quiesced` for itself."""
        self.__dict__.setdefault("_links", set()).add(link)

    def detach(self, link: Link) -> None:
        """The front-end went away."""
        self.__dict__.setdefault("_links", set()).discard(link)

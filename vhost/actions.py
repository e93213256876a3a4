"""What a session asks its server to do. Plain data: no sockets, no mmap.

A message becomes a `Step` with actions in the order they must be done (session.py, "How to drive it"). An action says
in its docstring what the server returns for it; those without such a line return None. The result of a step is that of
its last action.

Resource handling: an action owns its `fd`s. A server that keeps one calls `take()` on it; `Step.finish` and
`Step.close` close what was not taken. Descriptors given before for the same purpose (kick of ring 3, back-end channel,
log, …) are replaced: the server closes its old one.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from vhost.fds import OwnedFd
from vhost.messages import MemRegion


class AddressKind(Enum):
    """Which address space ring addresses are in."""

    UADDR = auto()
    """Addresses of the front-end's process, as MemRegion.uaddr (the rule)."""
    GPA = auto()
    """Guest-physical, with GPA_ADDRESSES negotiated."""
    IOVA = auto()
    """Translated by the IOTLB, with ACCESS_PLATFORM negotiated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """All a ring needs to start; sizes, alignments and (without IOMMU) memory bounds were checked.

    Attributes:
        index: ring number, 0-based.
        size: entries; split: a power of two.
        base: where to go on, as SET_VRING_BASE encodes it (messages.RingBase).
        desc, avail, used: addresses in the space `addr_kind`; packed: descriptor ring, driver and device event areas.
        features: negotiated virtio features, with RING_PACKED, EVENT_IDX, …
        enabled: process at once, or wait for EnableQueue.
        log: LOG_ALL is in force now.
        log_addr: guest-physical address at which writes to the used ring are logged, None: not logged.
        polled: no kick descriptor; the ring must be polled, or is kicked in-band.
    """

    index: int
    size: int
    packed: bool
    base: int
    desc: int
    avail: int
    used: int
    addr_kind: AddressKind
    features: int
    enabled: bool
    log: bool
    log_addr: int | None
    polled: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A memory region with the descriptor to map it from."""

    where: MemRegion
    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class InflightArea:
    """Result of GetInflight. The descriptor moves to the reply."""

    fd: OwnedFd
    mmap_size: int
    mmap_offset: int = 0


# Negotiation and device


@dataclass(frozen=True, slots=True)
class SetFeatures:
    """The driver chose these features (offered ones only). Not repeated when nothing but LOG_ALL changed."""

    features: int


@dataclass(frozen=True, slots=True)
class SetProtocolFeatures:
    """The front-end acknowledged these protocol features."""

    features: int


@dataclass(frozen=True, slots=True)
class SetStatus:
    """The driver's status byte. 0 is a reset that keeps ring indexes."""

    status: int


@dataclass(frozen=True, slots=True)
class ResetDevice:
    """Reset the device, drop inflight region and shared memory mappings. Rings were stopped by earlier actions.

    Keep connection, memory, back-end channel, call and err descriptors.
    """


@dataclass(frozen=True, slots=True)
class GetConfig:
    """Read `size` bytes at `offset`; both lie in the configuration space. Result: bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SetConfig:
    """Write `data` at `offset`; both lie in the configuration space. `flags`: as sent, see ConfigFlag."""

    offset: int
    data: bytes
    flags: int


@dataclass(frozen=True, slots=True)
class SetBackendChannel:
    """Socket for messages of ours."""

    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class SetGpuSocket:
    """Display socket of a GPU."""

    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class SendRarp:
    """Announce `mac` (6 bytes)."""

    mac: bytes


@dataclass(frozen=True, slots=True)
class SetMtu:
    """The network's MTU, 68-65535 bytes."""

    mtu: int


@dataclass(frozen=True, slots=True)
class GetSharedObject:
    """Find the object `uuid` (16 bytes). Result: OwnedFd of its dmabuf (moves to the reply), or None."""

    uuid: bytes


# Memory


@dataclass(frozen=True, slots=True)
class SetMemTable:
    """Replace guest memory; running rings go on in it. If it fails no memory is left.

    With postcopy, result: address of each mapping, in order.
    """

    regions: tuple[Region, ...]
    postcopy: bool = False


@dataclass(frozen=True, slots=True)
class AddRegion:
    """Add to guest memory. With postcopy, result: address of the mapping."""

    region: Region
    postcopy: bool = False


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    """Remove exactly this region from guest memory; no running ring lies in it."""

    where: MemRegion


@dataclass(frozen=True, slots=True)
class SetLog:
    """Dirty log: `size` bytes at `offset` of the descriptor. It replaces an earlier one, also while rings run."""

    size: int
    offset: int
    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class SetLogFd:
    """Eventfd to kick after logging."""

    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class SetLogging:
    """LOG_ALL came or went: log writes to guest memory from now on, if there is a log, or no more."""

    enabled: bool


@dataclass(frozen=True, slots=True)
class IotlbUpdate:
    """`size` bytes at `iova` are at front-end address `uaddr`, `perm` as IotlbPerm."""

    iova: int
    size: int
    uaddr: int
    perm: int


@dataclass(frozen=True, slots=True)
class IotlbInvalidate:
    """Forget translations of `size` bytes at `iova` (0 at 0: all); accesses in flight there have ended on return."""

    iova: int
    size: int


@dataclass(frozen=True, slots=True)
class PostcopyAdvise:
    """Open a userfaultfd. Result: OwnedFd after UFFDIO_API (moves to the reply; keep a dup)."""


@dataclass(frozen=True, slots=True)
class PostcopyListen:
    """Regions that come from now on are filled by page faults."""


@dataclass(frozen=True, slots=True)
class PostcopyRegister:
    """The front-end knows our addresses: UFFDIO_REGISTER the regions added last."""


@dataclass(frozen=True, slots=True)
class PostcopyEnd:
    """All pages are here: unregister and close the userfaultfd."""


# Rings


@dataclass(frozen=True, slots=True)
class SetKick:
    """Descriptor that becomes readable on new requests; None: poll, or in-band kicks. Also for a running ring."""

    index: int
    fd: OwnedFd | None


@dataclass(frozen=True, slots=True)
class SetCall:
    """Eventfd to write for the driver; None: it polls. Survives stop and reset. Signal once if the ring runs."""

    index: int
    fd: OwnedFd | None


@dataclass(frozen=True, slots=True)
class SetErr:
    """Eventfd to write when the ring breaks, or None. Survives stop and reset."""

    index: int
    fd: OwnedFd | None


@dataclass(frozen=True, slots=True)
class StartQueue:
    """Start a ring and look at it once, kick or not."""

    config: QueueConfig


@dataclass(frozen=True, slots=True)
class StopQueue:
    """Stop a ring, forget its kick descriptor, touch its memory no more. Result: its base (int, u32 as encoded).

    Attributes:
        drain: first complete every request in flight; else leave them recorded in the inflight region.
    """

    index: int
    drain: bool = True


@dataclass(frozen=True, slots=True)
class EnableQueue:
    """Process the running ring."""

    index: int


@dataclass(frozen=True, slots=True)
class DisableQueue:
    """Take no more requests from the running ring; those in flight end normally."""

    index: int


@dataclass(frozen=True, slots=True)
class SetQueueLog:
    """Log writes to the used ring of the running ring at `log_addr` (guest-physical), None: no more."""

    index: int
    log_addr: int | None


@dataclass(frozen=True, slots=True)
class KickQueue:
    """In-band kick: look at the ring."""

    index: int


@dataclass(frozen=True, slots=True)
class GetInflight:
    """Make a zeroed inflight region in shared memory; it replaces an earlier one. Result: InflightArea."""

    num_queues: int
    queue_size: int
    packed: bool


@dataclass(frozen=True, slots=True)
class SetInflight:
    """Use this inflight region, replay what it holds when the rings start. Sizes in bytes and entries."""

    size: int
    offset: int
    num_queues: int
    queue_size: int
    packed: bool
    fd: OwnedFd


# Device state


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write the device's state to the descriptor, then close it; may go on after the step."""

    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class LoadState:
    """Read the device's state up to the end of the descriptor; may go on after the step."""

    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class CheckState:
    """Wait for the last transfer; fails if that failed."""


Action: TypeAlias = (
    SetFeatures | SetProtocolFeatures | SetStatus | ResetDevice | GetConfig | SetConfig | SetBackendChannel
    | SetGpuSocket | SendRarp | SetMtu | GetSharedObject
    | SetMemTable | AddRegion | RemoveRegion | SetLog | SetLogFd | SetLogging | IotlbUpdate | IotlbInvalidate
    | PostcopyAdvise | PostcopyListen | PostcopyRegister | PostcopyEnd
    | SetKick | SetCall | SetErr | StartQueue | StopQueue | EnableQueue | DisableQueue | SetQueueLog | KickQueue
    | GetInflight | SetInflight
    | SaveState | LoadState | CheckState
)  # fmt: skip
"""Every action; `match` over it, mypy checks that none is forgotten."""


def close_action(action: Action) -> None:
    """Close the descriptors an action still owns; a second call does nothing."""
    match action:
        case SetMemTable(regions=regions):
            for region in regions:
                region.fd.close()
        case AddRegion(region=region):
            region.fd.close()
        case _:
            fd = getattr(action, "fd", None)
            if isinstance(fd, OwnedFd):
                fd.close()

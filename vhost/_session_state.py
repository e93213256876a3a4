"""What a session remembers, and the words its message handlers speak. Tables of the states are in session.py."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from vhost.actions import Action, AddressKind, DisableQueue, EnableQueue, QueueConfig
from vhost.constants import (
    MAX_CONFIG_SIZE,
    MAX_MEM_SLOTS,
    MAX_QUEUE_SIZE,
    MAX_RINGS,
    NO_PROTOCOL_FEATURES,
    FrontendRequest,
    ProtocolFeature,
    VirtioFeature,
)
from vhost.fds import OwnedFd
from vhost.messages import MemRegion, Message, RingBase, VringAddr

RING_FEATURES: Final = int(
    VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX | VirtioFeature.VERSION_1 | VirtioFeature.RING_PACKED
)
"""Features of our rings, offered unless left out. Not NOTIFICATION_DATA: an eventfd carries no data."""

U64: Final = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDescription:
    """What the session has to know about a device; constant while a connection lasts.

    Attributes:
        device_id: virtio id.
        num_queues: rings, 1-256.
        features: virtio features of the device type; those of rings and of vhost-user are added.
        protocol_features: what to offer; options may add or take away.
        config_size: bytes of configuration space, 0-256.
        max_queue_size: entries, 1-32768.
        max_mem_slots: memory regions taken, constant over reconnects.
        shmem: size in bytes by shared memory id.
    """

    device_id: int
    num_queues: int
    features: int = 0
    protocol_features: ProtocolFeature = NO_PROTOCOL_FEATURES
    config_size: int = 0
    max_queue_size: int = MAX_QUEUE_SIZE
    max_mem_slots: int = MAX_MEM_SLOTS
    shmem: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no connection could work with."""
        if not 1 <= self.num_queues <= MAX_RINGS:
            raise ValueError(f"num_queues is {self.num_queues}, it must be 1 to {MAX_RINGS}")
        if not 1 <= self.max_queue_size <= MAX_QUEUE_SIZE:
            raise ValueError(f"max_queue_size is {self.max_queue_size}, it must be 1 to {MAX_QUEUE_SIZE}")
        if not 0 <= self.config_size <= MAX_CONFIG_SIZE:
            raise ValueError(f"config_size is {self.config_size}, it must be 0 to {MAX_CONFIG_SIZE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user may switch on and off, per connection.

    Attributes:
        ring_features: features of rings to offer.
        without: virtio features not to offer after all.
        without_protocol: protocol features not to offer after all.
        iommu: offer ACCESS_PLATFORM (only together with BACKEND_REQ and REPLY_ACK).
        inband_notifications: offer INBAND_NOTIFICATIONS. QEMU acks it without implementing it; User-mode Linux uses it.
        shmem: offer SHMEM if the device has shared memory regions.
        gpa_addresses: offer GPA_ADDRESSES. Front-ends on rust-vmm's vhost 0.16 take the bit for SHMEM.
        inflight_migration: offer GET_VRING_BASE_INFLIGHT and GET_VRING_BASE_SKIP_DRAIN (with INFLIGHT_SHMFD).
    """

    ring_features: int = RING_FEATURES
    without: int = 0
    without_protocol: ProtocolFeature = NO_PROTOCOL_FEATURES
    iommu: bool = False
    inband_notifications: bool = False
    shmem: bool = False
    gpa_addresses: bool = False
    inflight_migration: bool = False


def offered_protocol_features(device: DeviceDescription, options: Options) -> ProtocolFeature:
    """What GET_PROTOCOL_FEATURES answers. XEN_MMAP, CROSS_ENDIAN and CRYPTO_SESSION are never in it."""
    p = ProtocolFeature
    special = p.INBAND_NOTIFICATIONS | p.SHMEM | p.GPA_ADDRESSES
    special |= p.GET_VRING_BASE_INFLIGHT | p.GET_VRING_BASE_SKIP_DRAIN
    never = p.XEN_MMAP | p.CROSS_ENDIAN | p.CRYPTO_SESSION
    offer = device.protocol_features & ~(special | never)
    if options.inband_notifications:
        offer |= p.INBAND_NOTIFICATIONS | p.BACKEND_REQ | p.REPLY_ACK
    if options.shmem and device.shmem:
        offer |= p.SHMEM | p.BACKEND_REQ | p.REPLY_ACK | p.BACKEND_SEND_FD
    if options.gpa_addresses:
        offer |= p.GPA_ADDRESSES
    if options.iommu:
        offer |= p.BACKEND_REQ | p.REPLY_ACK
    if options.inflight_migration and p.INFLIGHT_SHMFD in offer:
        offer |= p.GET_VRING_BASE_INFLIGHT | p.GET_VRING_BASE_SKIP_DRAIN
    return offer & ~options.without_protocol


def offered_features(device: DeviceDescription, options: Options) -> int:
    """What GET_FEATURES answers."""
    protocol = offered_protocol_features(device, options)
    offer = device.features | options.ring_features | VirtioFeature.LOG_ALL
    if options.iommu and ProtocolFeature.BACKEND_REQ in protocol and ProtocolFeature.REPLY_ACK in protocol:
        offer |= VirtioFeature.ACCESS_PLATFORM
    return int((offer & ~options.without) | VirtioFeature.PROTOCOL_FEATURES)


class Refused(Exception):
    """A handler declines a message.

    Attributes:
        harmless: True: without an acknowledgement to put it in, log and go on, whatever the table says.
    """

    def __init__(self, reason: str, *, harmless: bool = False) -> None:
        self.reason = reason
        self.harmless = harmless
        super().__init__(reason)


Done = Callable[[object], Message | None]
"""Applies a message's effect once its actions succeeded; gets the step's result, returns the message's own answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a handler makes of a message.

    Attributes:
        actions: in order.
        done: applied on success. Nothing of the session changes before.
        failed: applied when an action failed.
        silent: no acknowledgement, even if asked for.
        fatal: a failed action closes the connection, whatever the table says.
    """

    actions: Sequence[Action] = ()
    done: Done | None = None
    failed: Callable[[], None] | None = None
    silent: bool = False
    fatal: bool = False


class RingState(Enum):
    """Half of a ring's state; the other half is enabled or disabled."""

    STOPPED = auto()
    STARTED = auto()


class Postcopy(Enum):
    """How far postcopy has come."""

    OFF = auto()
    ADVISED = auto()
    LISTENING = auto()


@dataclass(slots=True)
class Ring:
    """What is known about one ring."""

    index: int
    state: RingState = RingState.STOPPED
    enable: bool = False
    """Last SET_VRING_ENABLE; in force only with PROTOCOL_FEATURES acknowledged."""
    size: int | None = None
    base: int | None = None
    addr: VringAddr | None = None
    kicked: bool = False
    """SET_VRING_KICK has come since the last stop."""
    polled: bool = False

    @property
    def started(self) -> bool:
        """True between start and stop."""
        return self.state is RingState.STARTED


@dataclass(slots=True)
class SessionState:
    """Everything a session remembers between two messages."""

    device: DeviceDescription
    options: Options
    offered: int
    offered_protocol: ProtocolFeature
    rings: list[Ring]
    features: int = 0
    features_set: bool = False
    protocol: ProtocolFeature = NO_PROTOCOL_FEATURES
    regions: list[MemRegion] = field(default_factory=list)
    #: address in the guest, in the front-end and size of those removed since one was added
    removed: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=64))
    status: int = 0
    postcopy: Postcopy = Postcopy.OFF
    awaiting_ack: FrontendRequest | None = None
    """In postcopy: the message whose acknowledgement by the front-end must come next."""

    @classmethod
    def new(cls, device: DeviceDescription, options: Options) -> "SessionState":
        """State of a fresh connection."""
        return cls(
            device=device,
            options=options,
            offered=offered_features(device, options),
            offered_protocol=offered_protocol_features(device, options),
            rings=[Ring(index) for index in range(device.num_queues)],
        )

    @property
    def packed(self) -> bool:
        """RING_PACKED is negotiated."""
        return bool(self.features & VirtioFeature.RING_PACKED)

    @property
    def logging(self) -> bool:
        """LOG_ALL is negotiated."""
        return bool(self.features & VirtioFeature.LOG_ALL)

    @property
    def address_kind(self) -> AddressKind:
        """Address space of ring addresses, as negotiated."""
        if self.features & VirtioFeature.ACCESS_PLATFORM:
            return AddressKind.IOVA
        return AddressKind.GPA if ProtocolFeature.GPA_ADDRESSES in self.protocol else AddressKind.UADDR

    @property
    def started_rings(self) -> list[Ring]:
        """Rings that run."""
        return [ring for ring in self.rings if ring.started]

    def ring(self, index: int) -> Ring:
        """The ring a message names.

        Raises: Refused: there is none; harmless, since QEMU sets up as many rings as its user asked for.
        """
        if index >= len(self.rings):
            count = len(self.rings)
            raise Refused(
                f"ring {index} does not exist, this device has {count} (0-{count - 1}); "
                "give the VMM fewer queues or the device more",
                harmless=True,
            )
        return self.rings[index]

    def is_enabled(self, ring: Ring) -> bool:
        """True if the ring is to be processed; without PROTOCOL_FEATURES acknowledged every ring is."""
        return in_force(ring.enable, self.features)

    def enable_changes(self, *, features: int | None = None, enable: bool | None = None) -> list[Action]:
        """What changes for running rings when `features` come into force, or all get the flag `enable`."""
        features = self.features if features is None else features
        actions: list[Action] = []
        for ring in self.started_rings:
            after = in_force(ring.enable if enable is None else enable, features)
            if after != self.is_enabled(ring):
                actions.append(EnableQueue(ring.index) if after else DisableQueue(ring.index))
        return actions

    def queue_config(self, ring: Ring) -> QueueConfig:
        """Configuration of a ring of which everything is known."""
        assert ring.size is not None
        assert ring.base is not None
        assert ring.addr is not None
        return QueueConfig(
            index=ring.index,
            size=ring.size,
            packed=self.packed,
            base=RingBase.decode(ring.base, packed=self.packed).encode(packed=self.packed),
            desc=ring.addr.desc,
            avail=ring.addr.avail,
            used=ring.addr.used,
            addr_kind=self.address_kind,
            features=self.features,
            enabled=self.is_enabled(ring),
            log=self.logging,
            log_addr=ring.addr.log if ring.addr.flags else None,
            polled=ring.polled,
        )


def in_force(enable: bool, features: int) -> bool:
    """True if a ring with the flag `enable` is processed under `features`."""
    return enable or not features & VirtioFeature.PROTOCOL_FEATURES


def one_fd(message: Message) -> OwnedFd:
    """Take the message's descriptor. Raises: Refused: none came."""
    if not len(message.fds):
        raise Refused("no file descriptor came with it")
    return message.fds.pop()

"""Messages as dataclasses, and the table of facts from which decoding and dispatch are derived.

A message is a number, flags, at most one payload and the descriptors that came with it. Payload classes say nothing
about roles; `FRONTEND_SPECS` and `BACKEND_SPECS` say which kind of payload belongs to which request, in which
direction, with how many descriptors. `wire` turns kinds into bytes; `session` and the front-end read the same table.
"""

import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeAlias

from vhost.constants import (
    FLAGS_REPLY,
    FLAGS_REQUEST,
    MAX_FDS,
    SHMEM_REGIONS,
    VRING_NO_FD,
    BackendRequest,
    FrontendRequest,
    HeaderFlag,
)
from vhost.errors import request_name
from vhost.fds import Fds


@dataclass(frozen=True, slots=True)
class VringState:
    """Ring index and one number: size, base, enable flag or byte order. [rst "A vring state description"]."""

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where a ring lies; front-end addresses, or IOVAs with ACCESS_PLATFORM [rst "A vring address description"]."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


@dataclass(frozen=True, slots=True)
class VringFd:
    """Which ring a kick, call or err descriptor is for.

    `index` keeps the reserved bits 9-63 too: a message that sets them names a ring that does not exist, instead of
    being cut down to one that does.
    """

    index: int
    has_fd: bool

    @classmethod
    def from_u64(cls, value: int) -> "VringFd":
        """Split the u64 of the message."""
        return cls(index=value & ~VRING_NO_FD, has_fd=not value & VRING_NO_FD)

    def to_u64(self) -> int:
        """The u64 of the message."""
        return self.index | (0 if self.has_fd else VRING_NO_FD)


@dataclass(frozen=True, slots=True)
class MemRegion:
    """A piece of guest memory [rst "Memory region description"]. All in bytes."""

    gpa: int
    size: int
    uaddr: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class MemTable:
    """All of guest memory; one descriptor per region comes along. Empty: also the acknowledgement in postcopy."""

    regions: tuple[MemRegion, ...]


@dataclass(frozen=True, slots=True)
class LogBase:
    """Dirty log in shared memory [rst "Log description"]. Bytes."""

    mmap_size: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class Iotlb:
    """IOTLB miss, update or invalidation [linux/vhost_types.h struct vhost_iotlb_msg]."""

    iova: int
    size: int
    uaddr: int
    perm: int
    type: int


@dataclass(frozen=True, slots=True)
class Config:
    """Piece of the configuration space [rst "Virtio device config space"].

    `data` is what follows the three words, whatever `size` says: some front-ends (SPDK) send a larger buffer.
    """

    offset: int
    size: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Inflight:
    """Inflight region [rst "Inflight description"]. Sizes and offset in bytes."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class StateTransfer:
    """Direction and phase of a device state transfer [rst "Device state transfer parameters"]."""

    direction: int
    phase: int


@dataclass(frozen=True, slots=True)
class SharedObject:
    """UUID (16 bytes) of a shared object [rst "VhostUserShared"]."""

    uuid: bytes


@dataclass(frozen=True, slots=True)
class ShmemConfig:
    """Sizes of shared memory regions, bytes; the index is the shared memory id, 0 is "none"."""

    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many regions exist."""
        return sum(1 for size in self.sizes if size)

    @classmethod
    def of(cls, sizes: dict[int, int]) -> "ShmemConfig":
        """From shared memory id (0-255) to size in bytes."""
        return cls(tuple(sizes.get(shmid, 0) for shmid in range(SHMEM_REGIONS)))


@dataclass(frozen=True, slots=True)
class ShmemMap:
    """Map or unmap part of a shared memory region; offsets and length in bytes, flags ShmemFlag."""

    shmid: int
    fd_offset: int
    shm_offset: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class HostNotifier:
    """Page the front-end may map for the doorbell of a ring [rst "Vring area description"]. Bytes."""

    index: int
    has_fd: bool
    size: int
    offset: int


Payload: TypeAlias = (
    VringState | VringAddr | VringFd | MemRegion | MemTable | LogBase | Iotlb | Config | Inflight | StateTransfer
    | SharedObject | ShmemConfig | ShmemMap | HostNotifier | int | bytes | None
)  # fmt: skip
"""`int` is a u64, `bytes` an undecoded payload (unknown request, crypto session), `None` no payload."""


class Kind(Enum):
    """Wire layout of a payload; the class (or int, bytes, None) it becomes is in the name."""

    NONE = auto()
    U64 = auto()
    VRING_STATE = auto()
    VRING_ADDR = auto()
    VRING_FD = auto()
    MEM_TABLE = auto()
    MEM_REGION = auto()
    LOG_BASE = auto()
    IOTLB = auto()
    CONFIG = auto()
    INFLIGHT = auto()
    STATE_TRANSFER = auto()
    SHARED_OBJECT = auto()
    SHMEM_CONFIG = auto()
    SHMEM_MAP = auto()
    HOST_NOTIFIER = auto()
    RAW = auto()


@dataclass(frozen=True, slots=True)
class Message:
    """One message, either direction.

    Resource handling: owns `fds`; whoever consumes the message closes them.
    """

    request: int
    payload: Payload = None
    flags: int = FLAGS_REQUEST
    fds: Fds = field(default_factory=Fds, compare=False)

    @property
    def name(self) -> str:
        """Name of the request for people."""
        return request_name(self.request)

    @property
    def is_reply(self) -> bool:
        """REPLY is set."""
        return bool(self.flags & HeaderFlag.REPLY)

    @property
    def need_reply(self) -> bool:
        """NEED_REPLY is set."""
        return bool(self.flags & HeaderFlag.NEED_REPLY)

    def reply(self, payload: Payload = None, fds: Fds | None = None) -> "Message":
        """The answer to this message; takes over `fds`."""
        return Message(self.request, payload, FLAGS_REPLY, Fds() if fds is None else fds)

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        self.fds.close()


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A framed message whose payload is still bytes. Owns `fds`."""

    request: int
    flags: int
    payload: bytes
    fds: Fds = field(default_factory=Fds, compare=False)


class Answer(Enum):
    """When a request is answered."""

    ON_DEMAND = auto()
    """Only with REPLY_ACK negotiated and NEED_REPLY set: a u64, 0 is success."""
    ALWAYS = auto()
    """The request has an answer of its own; NEED_REPLY adds none."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Facts about one request.

    Attributes:
        payload: kinds the request may carry; the first whose size fits is taken.
        answer: when it is answered.
        reply: kinds of its own answer; every answer may also be the u64 of an acknowledgement.
        fds: fewest and most descriptors with the request.
        reply_fds: most descriptors with the answer.
    """

    request: int
    payload: tuple[Kind, ...] = (Kind.NONE,)
    answer: Answer = Answer.ON_DEMAND
    reply: tuple[Kind, ...] = ()
    fds: tuple[int, int] = (0, 0)
    reply_fds: int = 0


_F = FrontendRequest
_K = Kind
_ALWAYS = Answer.ALWAYS

_FRONTEND: Final = (
    Spec(_F.GET_FEATURES, answer=_ALWAYS, reply=(_K.U64,)),
    Spec(_F.SET_FEATURES, (_K.U64,)),
    Spec(_F.SET_OWNER),
    Spec(_F.RESET_OWNER),
    # The answer is a table only in postcopy; 8 bytes are an acknowledgement.
    Spec(_F.SET_MEM_TABLE, (_K.MEM_TABLE,), reply=(_K.U64, _K.MEM_TABLE), fds=(0, MAX_FDS)),
    # Answered when LOG_SHMFD is negotiated; back-ends answer with 0, 8 or 16 bytes.
    Spec(_F.SET_LOG_BASE, (_K.LOG_BASE, _K.U64), _ALWAYS, (_K.LOG_BASE, _K.U64, _K.NONE), fds=(0, 1)),
    Spec(_F.SET_LOG_FD, fds=(0, 1)),
    Spec(_F.SET_VRING_NUM, (_K.VRING_STATE,)),
    Spec(_F.SET_VRING_ADDR, (_K.VRING_ADDR,)),
    Spec(_F.SET_VRING_BASE, (_K.VRING_STATE,)),
    Spec(_F.GET_VRING_BASE, (_K.VRING_STATE,), _ALWAYS, (_K.VRING_STATE,)),
    Spec(_F.SET_VRING_KICK, (_K.VRING_FD,), fds=(0, 1)),
    Spec(_F.SET_VRING_CALL, (_K.VRING_FD,), fds=(0, 1)),
    Spec(_F.SET_VRING_ERR, (_K.VRING_FD,), fds=(0, 1)),
    Spec(_F.GET_PROTOCOL_FEATURES, answer=_ALWAYS, reply=(_K.U64,)),
    Spec(_F.SET_PROTOCOL_FEATURES, (_K.U64,)),
    Spec(_F.GET_QUEUE_NUM, answer=_ALWAYS, reply=(_K.U64,)),
    Spec(_F.SET_VRING_ENABLE, (_K.VRING_STATE,)),
    Spec(_F.SEND_RARP, (_K.U64,)),
    Spec(_F.NET_SET_MTU, (_K.U64,)),
    Spec(_F.SET_BACKEND_REQ_FD, fds=(1, 1)),
    Spec(_F.IOTLB_MSG, (_K.IOTLB,), _ALWAYS, (_K.U64,)),
    Spec(_F.SET_VRING_ENDIAN, (_K.VRING_STATE,)),
    Spec(_F.GET_CONFIG, (_K.CONFIG,), _ALWAYS, (_K.CONFIG, _K.NONE)),
    Spec(_F.SET_CONFIG, (_K.CONFIG,)),
    Spec(_F.CREATE_CRYPTO_SESSION, (_K.RAW,), _ALWAYS, (_K.RAW,)),
    Spec(_F.CLOSE_CRYPTO_SESSION, (_K.U64,)),
    Spec(_F.POSTCOPY_ADVISE, answer=_ALWAYS, reply=(_K.NONE,), reply_fds=1),
    # QEMU sets NEED_REPLY and waits even where REPLY_ACK was not negotiated.
    Spec(_F.POSTCOPY_LISTEN, answer=_ALWAYS, reply=(_K.U64,)),
    Spec(_F.POSTCOPY_END, answer=_ALWAYS, reply=(_K.U64,)),
    Spec(_F.GET_INFLIGHT_FD, (_K.INFLIGHT,), _ALWAYS, (_K.INFLIGHT,), reply_fds=1),
    Spec(_F.SET_INFLIGHT_FD, (_K.INFLIGHT,), fds=(1, 1)),
    Spec(_F.GPU_SET_SOCKET, fds=(1, 1)),
    Spec(_F.RESET_DEVICE),
    Spec(_F.VRING_KICK, (_K.VRING_STATE,)),
    Spec(_F.GET_MAX_MEM_SLOTS, answer=_ALWAYS, reply=(_K.U64,)),
    # 8 bytes and no descriptor: the front-end's acknowledgement in postcopy.
    Spec(_F.ADD_MEM_REG, (_K.MEM_REGION, _K.U64), reply=(_K.U64, _K.MEM_REGION), fds=(0, 1)),
    # Old front-ends send the region's descriptor again; it is closed.
    Spec(_F.REM_MEM_REG, (_K.MEM_REGION,), fds=(0, 1)),
    Spec(_F.SET_STATUS, (_K.U64,)),
    Spec(_F.GET_STATUS, answer=_ALWAYS, reply=(_K.U64,)),
    # QEMU up to early 2026 forgets to send the uuid.
    Spec(_F.GET_SHARED_OBJECT, (_K.SHARED_OBJECT, _K.NONE), _ALWAYS, (_K.NONE, _K.SHARED_OBJECT), reply_fds=1),
    Spec(_F.SET_DEVICE_STATE_FD, (_K.STATE_TRANSFER,), _ALWAYS, (_K.U64,), fds=(0, 1), reply_fds=1),
    Spec(_F.CHECK_DEVICE_STATE, answer=_ALWAYS, reply=(_K.U64,)),
    Spec(_F.GET_SHMEM_CONFIG, answer=_ALWAYS, reply=(_K.SHMEM_CONFIG,)),
    Spec(_F.GET_VRING_BASE_SKIP_DRAIN, (_K.VRING_STATE,), _ALWAYS, (_K.VRING_STATE,)),
)

_B = BackendRequest

_BACKEND: Final = (
    Spec(_B.IOTLB_MSG, (_K.IOTLB,)),
    Spec(_B.CONFIG_CHANGE_MSG),
    Spec(_B.VRING_HOST_NOTIFIER_MSG, (_K.HOST_NOTIFIER,), fds=(0, 1)),
    Spec(_B.VRING_CALL, (_K.VRING_STATE,)),
    Spec(_B.VRING_ERR, (_K.VRING_STATE,)),
    Spec(_B.SHARED_OBJECT_ADD, (_K.SHARED_OBJECT,)),
    Spec(_B.SHARED_OBJECT_REMOVE, (_K.SHARED_OBJECT,)),
    Spec(_B.SHARED_OBJECT_LOOKUP, (_K.SHARED_OBJECT,), _ALWAYS, (_K.U64,), reply_fds=1),
    Spec(_B.SHMEM_MAP, (_K.SHMEM_MAP,), fds=(1, 1)),
    Spec(_B.SHMEM_UNMAP, (_K.SHMEM_MAP,)),
)

FRONTEND_SPECS: Final[dict[int, Spec]] = {spec.request: spec for spec in _FRONTEND}
"""Facts about requests of the front-end, by number."""

BACKEND_SPECS: Final[dict[int, Spec]] = {spec.request: spec for spec in _BACKEND}
"""Facts about requests of the back-end (its own channel), by number."""


@dataclass(frozen=True, slots=True)
class RingBase:
    """Indices of a ring as GET/SET_VRING_BASE carry them [rst "Vring descriptor indices for packed virtqueues"].

    Attributes:
        avail: next index to take (split: 0-65535; packed: below the ring size).
        used: next index to give back (packed only; split rings keep it in guest memory).
        avail_wrap, used_wrap: wrap counters (packed only).
    """

    avail: int
    used: int = 0
    avail_wrap: bool = True
    used_wrap: bool = True

    @classmethod
    def decode(cls, num: int, *, packed: bool) -> "RingBase":
        """From the message's number (u32)."""
        if not packed:
            return cls(avail=num & 0xFFFF)
        low, high = num & 0xFFFF, num >> 16 & 0xFFFF
        if high == 0 and low & 0x8000:
            # Only the lower half was filled in (DPDK's virtio_user): the ring was drained, so both are equal.
            high = low
        return cls(low & 0x7FFF, high & 0x7FFF, bool(low & 0x8000), bool(high & 0x8000))

    def encode(self, *, packed: bool) -> int:
        """The message's number (u32)."""
        if not packed:
            return self.avail & 0xFFFF
        return (self.avail | self.avail_wrap << 15) | (self.used | self.used_wrap << 15) << 16


def mac_of_rarp(value: int) -> bytes:
    """MAC address (6 bytes) in the u64 of SEND_RARP: its first bytes in memory."""
    return value.to_bytes(8, sys.byteorder)[:6]

"""Numbers of the vhost-user protocol, each with the place that defines it.

Section names in brackets are those of QEMU's `docs/interop/vhost-user.rst` ("rst") unless another text is named.
Where QEMU's name differs in more than its prefix, it is given.
"""

from enum import IntEnum, IntFlag
from typing import Final, TypeVar

HEADER_SIZE: Final = 12
"""Bytes of a message header: u32 request, u32 flags, u32 size, native byte order [rst "Message Specification"]."""

MAX_PAYLOAD: Final = 0x1000
"""Largest payload taken from a peer, bytes; rust-vmm's limit too. The largest real one is GET_SHMEM_CONFIG's 2056."""

MAX_FDS: Final = 32
"""Largest number of file descriptors with a real message (rust-vmm's SET_MEM_TABLE; QEMU sends at most 8)."""

MAX_BACKEND_FDS: Final = 8
"""Largest number of file descriptors from back-end to front-end [rst "Communication"]."""

MAX_CONFIG_SIZE: Final = 256
"""Largest device configuration space, bytes (QEMU: VHOST_USER_MAX_CONFIG_SIZE)."""

MAX_MEM_SLOTS: Final = 509
"""Memory regions we take; libvhost-user answers the same, and it must stay constant over reconnects."""

MAX_QUEUE_SIZE: Final = 32768
"""Largest virtqueue, entries [VIRTIO 1.3, 2.7 and 2.8.10.1]."""

MAX_RINGS: Final = 256
"""Largest number of rings on one connection: SET_VRING_KICK and its kin name a ring in 8 bits [rst "Message types"]."""

VRING_NO_FD: Final = 0x100
"""In SET_VRING_KICK/CALL/ERR: no file descriptor comes with the message (QEMU: VHOST_USER_VRING_NOFD_MASK)."""

VRING_ADDR_LOG: Final = 0x1
"""In SET_VRING_ADDR's flags: log writes to the used ring (linux: VHOST_VRING_F_LOG)."""

STATE_NO_FD: Final = 0x100
"""In the reply to SET_DEVICE_STATE_FD: the back-end returns no descriptor [rst "Migrating back-end state"]."""

LOG_PAGE_SIZE: Final = 0x1000
"""Bytes of guest memory per bit of the dirty log [rst "Migration"]."""

SHMEM_REGIONS: Final = 256
"""Entries in GET_SHMEM_CONFIG's answer; the index is the shared memory id."""


_Flag = TypeVar("_Flag", bound=type[IntFlag])


def _whole_word(cls: _Flag) -> _Flag:
    """Make `~` invert all bits of a word and give an int.

    IntFlag's own `x & ~FLAG` drops every bit of x above the highest one with a name, such as a device's feature bits.
    (EnumType puts its own method into each class, so a base class would not do.)
    """

    def invert(self: IntFlag) -> int:
        return ~int(self)

    cls.__invert__ = invert  # type: ignore[assignment,method-assign]
    return cls


@_whole_word
class HeaderFlag(IntFlag):
    """Bits of the header's flags word [rst "Header"]."""

    VERSION = 0x1
    """Protocol version 1; bits 0-1 together are the version."""
    REPLY = 0x4
    """Set in every answer."""
    NEED_REPLY = 0x8
    """The sender waits for an answer (with REPLY_ACK negotiated)."""


VERSION_MASK: Final = 0x3
FLAGS_KNOWN: Final = 0xF
FLAGS_REQUEST: Final = 0x1
FLAGS_REPLY: Final = 0x5
"""Exactly what QEMU wants in a reply: version and REPLY, NEED_REPLY cleared."""


class FrontendRequest(IntEnum):
    """Messages from front-end to back-end [rst "Front-end message types"]."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    """QEMU before 8.0: SET_SLAVE_REQ_FD."""
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    """QEMU 11.1, crosvm, rust-vmm."""
    GET_VRING_BASE_SKIP_DRAIN = 45
    """After QEMU 11.1."""


class BackendRequest(IntEnum):
    """Messages from back-end to front-end, on the socket of SET_BACKEND_REQ_FD [rst "Back-end message types"]."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


@_whole_word
class ProtocolFeature(IntFlag):
    """Bits of GET/SET_PROTOCOL_FEATURES [rst "Protocol features"]."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    """QEMU acks it without implementing it: never offered unless asked for."""
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    """QEMU acks it without implementing it: never offered."""
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    """rust-vmm's vhost 0.16 takes this bit for SHMEM: never offered unless asked for."""
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23


NO_PROTOCOL_FEATURES: Final = ProtocolFeature(0)


@_whole_word
class VirtioFeature(IntFlag):
    """Feature bits all device types share [VIRTIO 1.3, 6], and two of vhost-user's own [rst]."""

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    """VHOST_F_LOG_ALL: log all writes to guest memory [rst "Migration"]."""
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    """VHOST_USER_F_PROTOCOL_FEATURES: the protocol feature messages exist and rings start disabled [rst]."""
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    """Addresses are IOVAs (QEMU: VIRTIO_F_IOMMU_PLATFORM)."""
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41
    SUSPEND = 1 << 43


class DeviceType(IntEnum):
    """Virtio device ids [VIRTIO 1.3, 5]; those that matter here."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    SCSI = 8
    GPU = 16
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    FS = 26


@_whole_word
class DeviceStatus(IntFlag):
    """Bits of the device status byte [VIRTIO 1.3, 2.1]."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class ConfigFlag(IntEnum):
    """Flags of GET/SET_CONFIG [rst "Virtio device config space"]; rust-vmm sends 1 for QEMU's 0, so any is taken."""

    WRITABLE = 0
    LIVE_MIGRATION = 1


class IotlbType(IntEnum):
    """`type` of an IOTLB message [linux/vhost_types.h]."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


@_whole_word
class IotlbPerm(IntFlag):
    """`perm` of an IOTLB message [linux/vhost_types.h]."""

    NONE = 0
    READ = 1
    WRITE = 2


class StateDirection(IntEnum):
    """`direction` of SET_DEVICE_STATE_FD [rst "Device state transfer parameters"]."""

    SAVE = 0
    LOAD = 1


@_whole_word
class ShmemFlag(IntFlag):
    """Flags of SHMEM_MAP."""

    READ_ONLY = 0
    READ_WRITE = 1

"""The front-end half of vhost-user: connect to any back-end, own the guest memory and the driver's rings."""

from vhost.frontend.backchannel import BackChannel, Mapping
from vhost.frontend.core import Frontend, InflightRegion
from vhost.frontend.link import Refused
from vhost.frontend.log import DirtyLog
from vhost.frontend.memory import Memory, Region
from vhost.frontend.native import NativeRing
from vhost.frontend.personality import (
    CLOUD_HYPERVISOR,
    CROSVM,
    FIRECRACKER,
    PERSONALITIES,
    PLAIN,
    QEMU,
    QEMU_7_2,
    UML,
    Personality,
)
from vhost.frontend.queue import Queue
from vhost.frontend.rings import DriverRing, PackedRing, SplitRing, make_ring

__all__ = [
    "CLOUD_HYPERVISOR",
    "CROSVM",
    "FIRECRACKER",
    "PERSONALITIES",
    "PLAIN",
    "QEMU",
    "QEMU_7_2",
    "UML",
    "BackChannel",
    "DirtyLog",
    "DriverRing",
    "Frontend",
    "InflightRegion",
    "Mapping",
    "Memory",
    "NativeRing",
    "PackedRing",
    "Personality",
    "Queue",
    "Refused",
    "Region",
    "SplitRing",
    "make_ring",
]

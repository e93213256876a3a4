"""Guest memory and virtqueues: a C core behind typed Python objects.

`GuestMemory` maps a guest's memory, `Virtqueue` is the device's side of a split or packed ring on it, `Worker` runs
queues of C devices on a thread of its own, `Driver` is the other side of the ring. Nothing here knows vhost-user: a
VMM may embed it alone.
"""

from __future__ import annotations

from ring.chain import Chain, ChainPtr
from ring.driver import Driver, DriverLayout, DriverPtr, Used
from ring.errors import Error, ErrorCode, RingError, RingFull, strerror
from ring.iotlb import Iotlb, IotlbMiss, IotlbPtr, Perm
from ring.memory import AddressKind, GuestMemory, MemPtr, Region
from ring.virtqueue import QueueConfig, QueueState, QueueStats, Virtqueue, VqPtr, inflight_bytes
from ring.worker import SourcePtr, Worker, WorkerPtr, WorkerStats

__all__ = [
    "AddressKind",
    "Chain",
    "ChainPtr",
    "Driver",
    "DriverLayout",
    "DriverPtr",
    "Error",
    "ErrorCode",
    "GuestMemory",
    "Iotlb",
    "IotlbMiss",
    "IotlbPtr",
    "MemPtr",
    "Perm",
    "QueueConfig",
    "QueueState",
    "QueueStats",
    "Region",
    "RingError",
    "RingFull",
    "SourcePtr",
    "Used",
    "Virtqueue",
    "VqPtr",
    "Worker",
    "WorkerPtr",
    "WorkerStats",
    "inflight_bytes",
    "strerror",
]

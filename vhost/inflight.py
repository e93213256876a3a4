"""The inflight region: which requests the guest is still owed, in memory that outlives this process.

The front-end keeps the fd over a crash of ours and hands it to the next back-end, which replays what it finds. The
region is the queues' records one after the other (layout: ring/csrc/inflight.c). [rst "Inflight I/O tracking"]
"""

import fcntl
import os

from ring import inflight_bytes
from ring.shared import SharedArea
from vhost.errors import ProtocolError
from vhost.fds import OwnedFd

__all__ = ["InflightRegion", "create"]


def create(num_queues: int, queue_size: int, *, packed: bool) -> tuple[OwnedFd, int]:
    """A zeroed region for `num_queues` rings of `queue_size` entries: its memfd and its size in bytes.

    Sealed against shrinking: we map what the front-end sends back.
    """
    size = num_queues * inflight_bytes(queue_size, packed)
    fd = OwnedFd(os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, seals)
    except BaseException:
        fd.close()
        raise
    return fd, size


class InflightRegion:
    """A mapped inflight region. The fd is not kept."""

    def __init__(self, fd: int, *, size: int, offset: int, num_queues: int, queue_size: int, packed: bool) -> None:
        """Map what SET_INFLIGHT_FD describes.

        Args:
            size, offset: bytes.
            num_queues: rings it has records for.
            queue_size: entries each record has room for.

        Raises:
            ProtocolError: too small for that many rings.
            RingError: it cannot be mapped.
        """
        self._stride = inflight_bytes(queue_size, packed)
        self._num_queues = num_queues
        if num_queues * self._stride > size:
            raise ProtocolError(
                f"an inflight region of {size} bytes is too small for {num_queues} rings of {queue_size} entries, "
                f"which need {num_queues * self._stride}",
                32,
            )
        self._area = SharedArea(fd, size, offset)

    def part(self, index: int) -> memoryview | None:
        """The record of ring `index`, None if the region has none for it."""
        return self._area.view(index * self._stride, self._stride) if index < self._num_queues else None

    def close(self) -> None:
        """Unmap; no queue may use it any more."""
        self._area.close()

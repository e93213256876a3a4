"""Feature bits and configuration space of virtio-blk.

Spec: VIRTIO 1.3, 5.2.3 and 5.2.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

__all__ = ["CONFIG_BYTES", "CONFIG_BYTES_ERASE", "WRITEBACK_OFFSET", "BlkConfig", "BlkFeature"]

#: up to and with write zeroes; secure erase adds 12 bytes
CONFIG_BYTES = 60
CONFIG_BYTES_ERASE = 72
#: of the only field a driver may write
WRITEBACK_OFFSET = 32

_LAYOUT = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIII")
assert _LAYOUT.size == CONFIG_BYTES_ERASE

_HEADS = 16
_SECTORS = 63


class BlkFeature(IntFlag):
    """Feature bits of virtio-blk."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16


@dataclass(slots=True)
class BlkConfig:
    """The configuration space; sizes as in the fields of the specification.

    Attributes:
        capacity: 512-byte sectors.
        size_max: bytes of a segment; 0: no limit, feature not offered.
        seg_max: segments of a request.
        blk_size: bytes.
        physical_exp: log2 of logical blocks per physical block.
        alignment: first aligned logical block.
        min_io: logical blocks.
        opt_io: logical blocks.
        writeback: 1 while the cache is writeback.
        num_queues: request queues.
        max_discard_sectors: of a segment, 512-byte sectors; likewise the other two.
        max_discard_seg: segments of a request; likewise the other two.
        discard_alignment: 512-byte sectors.
        may_unmap: write zeroes may deallocate when asked to.
    """

    capacity: int = 0
    size_max: int = 0
    seg_max: int = 0
    blk_size: int = 512
    physical_exp: int = 0
    alignment: int = 0
    min_io: int = 0
    opt_io: int = 0
    writeback: int = 1
    num_queues: int = 1
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_alignment: int = 0
    max_zero_sectors: int = 0
    max_zero_seg: int = 0
    may_unmap: int = 0
    max_erase_sectors: int = 0
    max_erase_seg: int = 0
    erase_alignment: int = 0

    def pack(self, *, erase: bool) -> bytes:
        """The bytes of the space: 60, with secure erase 72."""
        data = _LAYOUT.pack(
            self.capacity,
            self.size_max,
            self.seg_max,
            min(self.capacity // (_HEADS * _SECTORS), 0xFFFF),
            _HEADS,
            _SECTORS,
            self.blk_size,
            self.physical_exp,
            self.alignment,
            self.min_io,
            self.opt_io,
            self.writeback,
            self.num_queues,
            self.max_discard_sectors,
            self.max_discard_seg,
            self.discard_alignment,
            self.max_zero_sectors,
            self.max_zero_seg,
            self.may_unmap,
            self.max_erase_sectors,
            self.max_erase_seg,
            self.erase_alignment,
        )
        return data if erase else data[:CONFIG_BYTES]
